"""Tokenizers from a Hugging Face directory, from a GGUF, or made up.

Built on the `tokenizers` library alone; `transformers` takes too long to import for a start-up
that is to take seconds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend

from minivllm.text_file import read_text
from minivllm.tokenizer import Tokenizer

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

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""The chat template of the models that are made here."""

_CONTROL, _USER_DEFINED = 3, 4  # token types of a GGUF


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

    What `tokenizer_config.json` says of special tokens is applied as transformers does it: tokens
    that `tokenizer.json` lacks, and `split_special_tokens`. `add_bos_token` is not: the other
    file's post-processor decides.

    Raises:
        ValueError: if there is none, or it cannot be read.
    """
    path = check_tokenizer(directory) / "tokenizer.json"
    try:
        backend = Backend.from_str(read_text(path))
    except Exception as error:  # the library raises bare Exceptions
        raise ValueError(f"{path} is corrupted: {error}") from error
    config: dict[str, Any] = {}
    if (config_path := directory / "tokenizer_config.json").is_file():
        config = json.loads(read_text(config_path))
    special_tokens = {}
    for name in ("bos_token", "eos_token", "unk_token", "pad_token"):
        if token := config.get(name):
            special_tokens[name] = token if isinstance(token, str) else token["content"]
    _apply_config(backend, config, special_tokens)
    template = config.get("chat_template")
    if isinstance(template, list):  # several, by name
        named = {entry["name"]: entry["template"] for entry in template}
        template = named.get("default")
    if (template_path := directory / "chat_template.jinja").is_file():
        template = read_text(template_path)
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
    return Tokenizer(backend, CHATML, {"bos_token": special[1], "eos_token": special[2]})


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


def eos_token_id_of(directory: Path) -> int | None:
    """The EOS id of a Hugging Face directory's tokenizer, without building the tokenizer.

    Raises:
        ValueError: if `tokenizer.json`, which is looked at last, is broken.
    """
    config_path = directory / "tokenizer_config.json"
    config = json.loads(read_text(config_path)) if config_path.is_file() else {}
    token = config.get("eos_token")
    token = token["content"] if isinstance(token, dict) else token
    if token is None:
        return None
    for token_id, added in config.get("added_tokens_decoder", {}).items():
        if added.get("content") == token:
            return int(token_id)
    return load_tokenizer(directory).eos_token_id
