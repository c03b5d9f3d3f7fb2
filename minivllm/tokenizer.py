"""Text to token ids and back: from a Hugging Face directory, from a GGUF, or made up.

Built on the `tokenizers` library alone; `transformers` takes too long to import for a start-up
that is to take seconds.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend

if TYPE_CHECKING:
    from gguf import GGUFReader

_LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

PRE_TOKENIZERS: dict[str, list[pre_tokenizers.PreTokenizer]] = {
    "gpt-2": [pre_tokenizers.ByteLevel(add_prefix_space=False)],
    "smollm": [
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False),
    ],
    "llama-bpe": [
        pre_tokenizers.Split(Regex(_LLAMA3_SPLIT), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ],
    "qwen2": [
        pre_tokenizers.Split(Regex(_LLAMA3_SPLIT.replace("{1,3}", "")), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ],
}
"""How each family cuts text before merging, by GGUF's name (llama.cpp, src/llama-vocab.cpp)."""

_CONTROL, _USER_DEFINED = 3, 4  # token types of a GGUF

_PRINTED = [*range(33, 127), *range(161, 173), *range(174, 256)]
_BYTE_OF = {chr(byte): byte for byte in _PRINTED} | {
    chr(256 + index): byte for index, byte in enumerate(sorted(set(range(256)) - set(_PRINTED)))
}
"""Byte-level BPE's spelling of each byte."""

_TEXT_PARTS = ("text", "input_text", "output_text", "refusal")
"""Parts of a message that are text (vllm/entrypoints/chat_utils.py)."""


class Tokenizer:
    """A tokenizer with its special tokens and its chat template.

    The methods that scripts use have the names and defaults of Hugging Face's tokenizers.

    Args:
        backend: does the work.
        chat_template: a Jinja template; None: the model is not for chat.
        special_tokens: `bos_token`, `eos_token`, ... as text: templates refer to them.
    """

    def __init__(
        self,
        backend: Backend,
        chat_template: str | None = None,
        special_tokens: Mapping[str, str] | None = None,
    ) -> None:
        self.backend = backend
        self.chat_template = chat_template
        self.special_tokens = dict(special_tokens or {})
        self.all_special_ids = sorted(
            token_id
            for token_id, token in backend.get_added_tokens_decoder().items()
            if token.special
        )
        # A file may have been saved in the middle of a training: its settings are not the model's.
        backend.no_truncation()
        backend.no_padding()
        if getattr(backend.model, "dropout", None):
            backend.model.dropout = None

        state = "null" if backend.decoder is None else backend.decoder.__getstate__()
        self._decoders = _decoder_types(json.loads(state))
        self._bytes: dict[int, bytes | None] = {}

    @property
    def is_byte_level(self) -> bool:
        """Whether every token is a string of bytes, and a text these bytes in a row."""
        return self._decoders == {"ByteLevel"}

    def token_bytes(self, token_id: int) -> bytes | None:
        """The bytes that a token stands for; None: it stands for text.

        Byte-level BPE has only the first kind; with byte fallback `<0xE6>` is one of 256.
        """
        if token_id not in self._bytes:
            token = self.backend.id_to_token(token_id) or ""
            data: bytes | None = None
            if self.is_byte_level:
                spelled = all(character in _BYTE_OF for character in token)
                data = bytes(map(_BYTE_OF.__getitem__, token)) if spelled else token.encode()
            elif "ByteFallback" in self._decoders and len(token) == 6 and token[:3] == "<0x":
                data = bytes.fromhex(token[3:5])
            self._bytes[token_id] = data
        return self._bytes[token_id]

    @property
    def eos_token_id(self) -> int | None:
        """Id of the end-of-sequence token."""
        return self._special_id("eos_token")

    @property
    def bos_token_id(self) -> int | None:
        """Id of the beginning-of-sequence token."""
        return self._special_id("bos_token")

    @property
    def vocab_size(self) -> int:
        """Number of tokens, added ones included."""
        return self.backend.get_vocab_size()

    def __len__(self) -> int:
        return self.vocab_size

    def _special_id(self, name: str) -> int | None:
        token = self.special_tokens.get(name)
        return None if token is None else self.backend.token_to_id(token)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text. Special tokens written out in it are recognised."""
        return self.backend.encode(text, add_special_tokens=add_special_tokens).ids

    def decode(self, token_ids: int | Sequence[int], skip_special_tokens: bool = False) -> str:
        """Text of token ids; bytes that are not valid UTF-8 become U+FFFD."""
        ids = [token_ids] if isinstance(token_ids, int) else list(token_ids)
        return self.backend.decode(ids, skip_special_tokens=skip_special_tokens)

    def convert_ids_to_tokens(self, token_ids: Iterable[int]) -> list[str | None]:
        """The vocabulary's spelling of each token."""
        return [self.backend.id_to_token(token_id) for token_id in token_ids]

    def apply_chat_template(
        self,
        conversation: Sequence[Mapping[str, Any]],
        *,
        tokenize: bool = True,
        add_generation_prompt: bool = False,
        chat_template: str | None = None,
        **variables: Any,
    ) -> str | list[int]:
        """Write a conversation down as the model was trained to read it.

        Args:
            conversation: messages, each with `role` and `content`: a text, None (empty), or text
                parts (`[{"type": "text", "text": ...}]`), which are joined by newlines unless the
                template itself goes through them (vllm/entrypoints/chat_utils.py).
            tokenize: return token ids, not text.
            add_generation_prompt: end with the opening of the assistant's answer.
            variables: more variables for the template.

        Raises:
            ValueError: if there is no template, it is broken, or it refuses the conversation; if a
                message has content that is not text.
        """
        template = chat_template or self.chat_template
        if template is None:
            raise ValueError("this tokenizer has no chat template: pass chat_template=...")
        import jinja2
        from jinja2 import nodes
        from jinja2.ext import Extension
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        def raise_exception(message: str) -> None:
            raise jinja2.TemplateError(message)

        class Generation(Extension):
            """`{% generation %}` marks what is trained on; the words stay as they are."""

            tags = {"generation"}

            def parse(self, parser: Any) -> Any:
                next(parser.stream)
                return parser.parse_statements(("name:endgeneration",), drop_needle=True)

        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", Generation]
        )
        environment.globals["raise_exception"] = raise_exception
        environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        environment.filters["tojson"] = lambda value, **kw: json.dumps(
            value, ensure_ascii=False, **kw
        )
        try:
            tree = environment.parse(template)
            compiled = environment.from_string(template)
        except jinja2.TemplateSyntaxError as error:
            raise ValueError(
                f"the chat template is broken, line {error.lineno}: {error}; pass another one as "
                f"chat_template=..."
            ) from error
        takes_parts = any(_is_content(loop.iter) for loop in tree.find_all(nodes.For))
        try:
            text = compiled.render(
                messages=[_plain_message(message, takes_parts) for message in conversation],
                add_generation_prompt=add_generation_prompt,
                **{**self.special_tokens, **variables},
            )
        except jinja2.TemplateError as error:
            raise ValueError(f"the chat template refuses this conversation: {error}") from error
        except TypeError as error:
            raise ValueError(f"the chat template fails on this conversation: {error}") from error
        # The template writes BOS itself where the model wants one.
        return self.encode(text, add_special_tokens=False) if tokenize else text

    def save(self, directory: Path) -> None:
        """Write `tokenizer.json` and `tokenizer_config.json`."""
        self.backend.save(str(directory / "tokenizer.json"))
        config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
        config |= self.special_tokens
        if self.chat_template is not None:
            config["chat_template"] = self.chat_template
        (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=2))


def _decoder_types(decoder: Mapping[str, Any] | None) -> set[str]:
    """The kinds of a tokenizer's decoders, taken out of their sequence."""
    if decoder is None:
        return set()
    if decoder["type"] != "Sequence":
        return {decoder["type"]}
    return set().union(*map(_decoder_types, decoder["decoders"]))


def _is_content(expression: Any) -> bool:
    """Whether a template's expression is `message.content` or `message["content"]`."""
    name = getattr(expression, "attr", None) or getattr(
        getattr(expression, "arg", None), "value", None
    )
    return name == "content"


def _plain_message(message: Mapping[str, Any], takes_parts: bool) -> dict[str, Any]:
    """A message whose content is a text, or text parts where the template `takes_parts`.

    Raises:
        ValueError: on anything that is not text.
    """
    if not isinstance(message, Mapping):
        raise ValueError(f"a message must have role and content, got {message!r:.80}")
    content, role = message.get("content"), message.get("role")
    if content is None:
        content = ""
    elif isinstance(content, (list, tuple)):
        texts = [_part_text(part, role) for part in content]
        joined = "\n".join(texts)
        content = [{"type": "text", "text": text} for text in texts] if takes_parts else joined
    elif not isinstance(content, str):
        raise ValueError(
            f"the content of a {role} message must be a text, a list of text parts or None, "
            f"got {content!r:.80}"
        )
    return {**message, "content": content}


def _part_text(part: Any, role: Any) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind is None and isinstance(part, Mapping) and "text" in part:
        kind = "text"
    if kind not in _TEXT_PARTS:
        name = repr(kind) if kind is not None else f"{part!r:.80}"
        raise ValueError(
            f"a {role} message has a part {name}: minivllm reads text only, parts of type "
            f"{', '.join(_TEXT_PARTS)}"
        )
    text = part.get("refusal" if kind == "refusal" else "text")
    if not isinstance(text, str):
        raise ValueError(f"a {role} message has a {kind!r} part whose text is {text!r:.80}")
    return text


def check_tokenizer(directory: Path) -> Path:
    """A directory that has a tokenizer.

    Raises:
        ValueError: if it has none.
    """
    if not (directory / "tokenizer.json").is_file():
        raise ValueError(
            f"{directory} has no tokenizer.json; pass tokenizer=... with a directory that has one"
        )
    return directory


def load_tokenizer(directory: Path) -> Tokenizer:
    """Read the tokenizer of a Hugging Face directory.

    What `tokenizer.json` says of truncation, padding and BPE dropout is passed over: a server
    neither cuts prompts nor draws lots over them. What `tokenizer_config.json` says of special
    tokens is applied as transformers does it: tokens that the other file lacks, and
    `split_special_tokens`. `add_bos_token` is not: the other file's post-processor decides.

    Raises:
        ValueError: if there is none, or it cannot be read.
    """
    path = check_tokenizer(directory) / "tokenizer.json"
    try:
        backend = Backend.from_file(str(path))
    except Exception as error:  # the library raises bare Exceptions
        raise ValueError(f"{path} is corrupted: {error}") from error
    config: dict[str, Any] = {}
    if (config_path := directory / "tokenizer_config.json").is_file():
        config = json.loads(config_path.read_text(encoding="utf-8"))
    names: dict[str, Any] = config
    if (map_path := directory / "special_tokens_map.json").is_file():  # of older checkpoints
        names = json.loads(map_path.read_text(encoding="utf-8")) | config
    special_tokens = {}
    for name in ("bos_token", "eos_token", "unk_token", "pad_token"):
        if token := names.get(name):
            special_tokens[name] = token if isinstance(token, str) else token["content"]
    _apply_config(backend, config, special_tokens)
    template = config.get("chat_template")
    if isinstance(template, list):  # several, by name
        named = {entry["name"]: entry["template"] for entry in template}
        template = named.get("default")
    if (template_path := directory / "chat_template.jinja").is_file():
        template = template_path.read_text(encoding="utf-8")
    return Tokenizer(backend, template, special_tokens)


def _apply_config(
    backend: Backend, config: Mapping[str, Any], special_tokens: Mapping[str, str]
) -> None:
    """Settings of a `tokenizer_config.json` that change the ids of a text.

    Source: transformers 5, tokenization_utils_tokenizers.py, `TokenizersBackend.__init__`.
    """
    declared = config.get("added_tokens_decoder") or {}
    wanted = [AddedToken(**declared[token_id]) for token_id in sorted(declared, key=int)]
    extra = config.get("extra_special_tokens") or config.get("additional_special_tokens") or ()
    extra = extra.values() if isinstance(extra, Mapping) else extra
    for token in [*special_tokens.values(), *extra]:
        name = token if isinstance(token, str) else token["content"]
        wanted.append(AddedToken(name, special=True, normalized=False))
    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    for token in wanted:
        if token.content not in known:
            backend.add_tokens([token])
            known.add(token.content)

    backend.encode_special_tokens = bool(config.get("split_special_tokens", False))


def tokenizer_from_gguf(reader: GGUFReader, metadata: Mapping[str, Any]) -> Tokenizer:
    """Build a byte-level BPE tokenizer from a GGUF's tokens and merges.

    Raises:
        ValueError: if the file describes another kind, or an unknown pre-tokenizer.
    """
    kind = metadata.get("tokenizer.ggml.model")
    pre = metadata.get("tokenizer.ggml.pre", "gpt-2")
    if kind is None or "tokenizer.ggml.tokens" not in reader.fields:
        raise ValueError("the GGUF has no tokenizer")
    if kind != "gpt2" or pre not in PRE_TOKENIZERS:
        raise ValueError(
            f"a GGUF tokenizer of model {kind!r} with pre-tokenizer {pre!r} is not supported; "
            f"the supported model is 'gpt2', with {', '.join(PRE_TOKENIZERS)}"
        )
    tokens: list[str] = reader.fields["tokenizer.ggml.tokens"].contents()
    merges = reader.fields["tokenizer.ggml.merges"].contents()
    types: list[int] = reader.fields["tokenizer.ggml.token_type"].contents()
    pairs = [(left, right) for left, right in (merge.split(" ") for merge in merges)]
    backend = _byte_level_bpe(tokens, pairs, PRE_TOKENIZERS[pre])

    def added(kind: int) -> list[AddedToken]:
        typed = zip(tokens, types, strict=True)
        return [AddedToken(token, normalized=False) for token, its in typed if its == kind]

    backend.add_special_tokens(added(_CONTROL))
    backend.add_tokens(added(_USER_DEFINED))
    special_tokens = {}
    for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        if (token_id := metadata.get(f"tokenizer.ggml.{key}_token_id")) is not None:
            special_tokens[f"{name}_token"] = tokens[token_id]
    if metadata.get("tokenizer.ggml.add_bos_token", False):
        bos = special_tokens["bos_token"]
        backend.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A",
            pair=f"{bos} $A {bos} $B",
            special_tokens=[(bos, backend.token_to_id(bos))],
        )
    return Tokenizer(backend, metadata.get("tokenizer.chat_template"), special_tokens)


def tiny_tokenizer() -> Tokenizer:
    """960 tokens: three special ones, all bytes, all pairs of small letters, space and letter."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    space = "Ġ"  # byte-level BPE's spelling of a space
    merges = [(a, b) for a in letters for b in letters] + [(space, a) for a in letters[:25]]
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokens = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet()), *(a + b for a, b in merges)]
    backend = _byte_level_bpe(tokens, merges, PRE_TOKENIZERS["gpt-2"])
    backend.add_special_tokens([AddedToken(token, normalized=False) for token in special])
    template = (
        "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
        "{{ message['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    return Tokenizer(backend, template, {"bos_token": special[1], "eos_token": special[2]})


def _byte_level_bpe(
    tokens: Sequence[str],
    merges: list[tuple[str, str]],
    cuts: list[pre_tokenizers.PreTokenizer],
) -> Backend:
    vocab = {token: token_id for token_id, token in enumerate(tokens)}
    backend = Backend(models.BPE(vocab=vocab, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.Sequence(cuts)
    backend.decoder = decoders.ByteLevel()
    return backend


class TextStream:
    """The text of tokens as they come: each `push` returns what is certain of it by then.

    All pushed text in a row is `decode` of prompt and output, less the prompt's own. A character
    that the output completes is the output's, whole. Every token costs the same, however long a
    run of bytes it is in.

    With byte fallback, `decode` shows a whole run of byte tokens as U+FFFD if a single byte of the
    run is wrong. What has been shown by then stays; the rest of the run is U+FFFD.
    """

    def __init__(
        self, tokenizer: Tokenizer, prompt_token_ids: Sequence[int], skip_special_tokens: bool
    ) -> None:
        self._tokenizer = tokenizer
        self._skipped = set(tokenizer.all_special_ids) if skip_special_tokens else set()
        self._last: list[int] = []  # decoded with the next: some tokens begin with a space then
        self._pending = b""  # the beginning of a character
        self._num_prompt_bytes = 0  # of these, the prompt's
        self._run_is_broken = False
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        for token_id in self._relevant_tail(prompt_token_ids):
            self.push(token_id)
        self._num_prompt_bytes = len(self._pending)
        self._num_prompt_marks = len(self._pending.decode(errors="replace"))

    def push(self, token_id: int) -> str:
        """Take a token; return the text that it makes certain."""
        if self._is_silent(token_id):
            return ""
        data = self._tokenizer.token_bytes(token_id)
        if data is None:
            text = self._give_up_pending() + self._text_of(token_id)
            self._run_is_broken = False
        elif self._tokenizer.is_byte_level:
            text = self._take_bytes(data)
        else:
            text = self._take_fallback_byte(data)
        self._last = [token_id]
        return text

    def _is_silent(self, token_id: int) -> bool:
        """Special and skipped, or known to the model alone: `decode` leaves it out."""
        return token_id in self._skipped or self._tokenizer.backend.id_to_token(token_id) is None

    def _relevant_tail(self, prompt_token_ids: Sequence[int]) -> list[int]:
        """The end of a prompt, from where on it has a bearing on what follows.

        That is the last token of text and the bytes after it; of byte-level tokens four bytes,
        the length of a character.
        """
        tail: list[int] = []
        num_bytes = 0
        for token_id in reversed(prompt_token_ids):
            if self._is_silent(token_id):
                continue
            tail.append(token_id)
            data = self._tokenizer.token_bytes(token_id)
            num_bytes += len(data or b"")
            if data is None or (self._tokenizer.is_byte_level and num_bytes >= 4):
                break
        return tail[::-1]

    def _text_of(self, token_id: int) -> str:
        before = self._tokenizer.decode(self._last)
        return self._tokenizer.decode([*self._last, token_id])[len(before) :]

    def _take_bytes(self, data: bytes) -> str:
        begun = self._pending + data
        text = self._utf8.decode(data)
        self._pending = self._utf8.getstate()[0]
        if text and self._num_prompt_bytes:
            # The prompt's text shows its half character as U+FFFD already.
            self._num_prompt_bytes = 0
            if text[0] == "\ufffd" and not begun.startswith("\ufffd".encode()):
                return text[self._num_prompt_marks :]
        return text

    def _take_fallback_byte(self, data: bytes) -> str:
        if self._run_is_broken:
            return "\ufffd"
        self._pending += data
        try:
            text = self._pending.decode()
        except UnicodeDecodeError as error:
            if error.reason == "unexpected end of data":
                return ""
            self._run_is_broken = True
            return self._give_up_pending()
        self._pending, self._num_prompt_bytes = b"", 0
        return text

    def _give_up_pending(self) -> str:
        """The pending bytes are no character: U+FFFD for each that is not the prompt's."""
        text = "\ufffd" * (len(self._pending) - self._num_prompt_bytes)
        self._pending, self._num_prompt_bytes = b"", 0
        return text


class IncrementalDetokenizer:
    """Turns one request's tokens into text as they come, and looks for stop strings in it.

    A token can end in the middle of a character: text is held back until the character is whole.
    So `text` only ever grows, and never shows half a character; one that the output ends in is
    left out, as upstream. Of several stop strings the one that is complete first counts, as if
    the text came letter by letter; of two that end together, the longer (upstream, since vLLM
    #49391: the one that the list names first).

    Source: vllm/v1/engine/detokenizer.py:30, vllm/tokenizers/detokenizer_utils.py.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt_token_ids: Sequence[int],
        *,
        stop: Sequence[str] = (),
        min_tokens: int = 0,
        skip_special_tokens: bool = True,
        include_stop_str_in_output: bool = False,
    ) -> None:
        self.stop = list(stop)
        self.min_tokens = min_tokens
        self.include_stop_str_in_output = include_stop_str_in_output
        self.text = ""
        self.num_output_tokens = 0
        self._stream = TextStream(tokenizer, prompt_token_ids, skip_special_tokens)

    def update(self, new_token_ids: Sequence[int], stop_terminated: bool = False) -> str | None:
        """Take new tokens; return the stop string that is now in the text, if any.

        Args:
            stop_terminated: the last token ended the request (EOS or a stop token): it is
                not shown, unless `include_stop_str_in_output`.
        """
        if stop_terminated and not self.include_stop_str_in_output:
            self.num_output_tokens += 1
            new_token_ids = new_token_ids[:-1]
        searched = len(self.text)
        for token_id in new_token_ids:
            self.num_output_tokens += 1
            self.text += self._stream.push(token_id)
            if self.num_output_tokens <= self.min_tokens:
                searched = len(self.text)
        if len(self.text) == searched or self.num_output_tokens <= self.min_tokens:
            return None
        return self._find_stop_string(searched)

    def visible_text(self, finished: bool) -> str:
        """The text so far, less what may turn out to be the beginning of a stop string."""
        if finished or not self.stop or self.include_stop_str_in_output:
            return self.text
        held_back = max(map(len, self.stop)) - 1
        return self.text[: max(0, len(self.text) - held_back)]

    def _find_stop_string(self, searched: int) -> str | None:
        """Cut the text at the first stop string that ends after `searched` characters."""
        found = []
        for stop in self.stop:
            start = self.text.find(stop, max(0, searched - len(stop) + 1))
            if start >= 0:
                found.append((start + len(stop), start, stop))
        if not found:
            return None
        end, start, stop = min(found)
        self.text = self.text[: end if self.include_stop_str_in_output else start]
        return stop
