"""Text to token ids and back: from a Hugging Face directory, from a GGUF, or made up.

Built on the `tokenizers` library alone; `transformers` takes too long to import for a start-up
that is to take seconds.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend

from minivllm.text_file import read_text

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

_CONTEXT = 5
"""Prompt tokens decoded along with the first output token: some tokens begin with a space only
in the middle of a text (vllm/tokenizers/detokenizer_utils.py)."""


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
        conversation: Sequence[Mapping[str, str]],
        *,
        tokenize: bool = True,
        add_generation_prompt: bool = False,
        chat_template: str | None = None,
        **variables: Any,
    ) -> str | list[int]:
        """Write a conversation down as the model was trained to read it.

        Args:
            conversation: messages, each with `role` and `content`.
            tokenize: return token ids, not text.
            add_generation_prompt: end with the opening of the assistant's answer.
            variables: more variables for the template.

        Raises:
            ValueError: if there is no template, or it refuses the conversation.
        """
        template = chat_template or self.chat_template
        if template is None:
            raise ValueError("this tokenizer has no chat template: pass chat_template=...")
        import jinja2
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        def raise_exception(message: str) -> None:
            raise jinja2.TemplateError(message)

        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        environment.globals["raise_exception"] = raise_exception
        environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        environment.filters["tojson"] = lambda value, **kw: json.dumps(
            value, ensure_ascii=False, **kw
        )
        try:
            text = environment.from_string(template).render(
                messages=conversation,
                add_generation_prompt=add_generation_prompt,
                **{**self.special_tokens, **variables},
            )
        except jinja2.TemplateError as error:
            raise ValueError(f"the chat template refuses this conversation: {error}") from error
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
        config = json.loads(read_text(config_path))
    special_tokens = {}
    for name in ("bos_token", "eos_token", "unk_token", "pad_token"):
        if token := config.get(name):
            special_tokens[name] = token if isinstance(token, str) else token["content"]
    template = config.get("chat_template")
    if isinstance(template, list):  # several, by name
        named = {entry["name"]: entry["template"] for entry in template}
        template = named.get("default")
    if (template_path := directory / "chat_template.jinja").is_file():
        template = read_text(template_path)
    return Tokenizer(backend, template, special_tokens)


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


class IncrementalDetokenizer:
    """Turns one request's tokens into text as they come, and looks for stop strings in it.

    A token can end in the middle of a character: text is held back until the character is whole.
    So `text` only ever grows, and never shows half a character.

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
        self.tokenizer = tokenizer
        self.stop = list(stop)
        self.min_tokens = min_tokens
        self.skip_special_tokens = skip_special_tokens
        self.include_stop_str_in_output = include_stop_str_in_output
        self.text = ""
        self.num_output_tokens = 0
        # `window` is what is still undecided, after some context that is decoded with it.
        self._window = list(prompt_token_ids[-_CONTEXT:])
        self._num_context = len(self._window)

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
            self.text += self._decode_next(token_id)
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

    def _decode_next(self, token_id: int) -> str:
        self._window.append(token_id)
        decode, skip = self.tokenizer.decode, self.skip_special_tokens
        before = decode(self._window[: self._num_context], skip)
        now = decode(self._window, skip)
        if len(now) <= len(before) or now.endswith("\ufffd"):
            return ""  # half a character, or a special token that is skipped
        self._window = self._window[self._num_context :]
        self._num_context = len(self._window)
        return now[len(before) :]

    def _find_stop_string(self, searched: int) -> str | None:
        for stop in self.stop:
            start = self.text.find(stop, max(0, searched - len(stop) + 1))
            if start >= 0:
                end = start + len(stop) if self.include_stop_str_in_output else start
                self.text = self.text[:end]
                return stop
        return None
