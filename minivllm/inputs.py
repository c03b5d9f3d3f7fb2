"""Prompts as callers give them. Names follow `vllm/inputs/llm.py`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypedDict

from minivllm.core.config import unknown_name
from minivllm.core.prompt import TokenizedPrompt
from minivllm.tokenizer import Tokenizer


class _PromptOptions(TypedDict, total=False):
    cache_salt: str
    """Prompts with different salts share no block of the prefix cache."""


class TextPrompt(_PromptOptions):
    """A text."""

    prompt: str


class _PromptText(TypedDict, total=False):
    prompt: str
    """What the token ids stand for; told in the result, not read."""


class TokensPrompt(_PromptOptions, _PromptText):
    """Token ids."""

    prompt_token_ids: Sequence[int]


Prompt = str | Sequence[int] | Mapping[str, Any]
"""A text, token ids (NumPy arrays and tensors too), a `TextPrompt` or a `TokensPrompt`."""

_KEYS = frozenset({"prompt", "prompt_token_ids", "cache_salt"})

_REFUSED = {
    **dict.fromkeys(
        ("multi_modal_data", "multi_modal_uuids", "mm_processor_kwargs", "media_io_kwargs"),
        "the models here read text only",
    ),
    **dict.fromkeys(
        ("prompt_embeds", "prompt_is_token_ids", "token_type_ids", "prompt_token_offsets"),
        "give prompt or prompt_token_ids alone",
    ),
    **dict.fromkeys(
        ("encoder_prompt", "decoder_prompt"), "no model here has an encoder; give the prompt itself"
    ),
}
"""vLLM's other keys, and why not."""


def as_prompts(prompts: Prompt | Iterable[Prompt]) -> list[Prompt]:
    """One prompt or several, as a list.

    Raises:
        ValueError: if it is neither.
    """
    if hasattr(prompts, "tolist"):
        prompts = prompts.tolist()
    if isinstance(prompts, (str, Mapping)):
        return [prompts]
    if isinstance(prompts, bytes) or not isinstance(prompts, Iterable):
        raise ValueError(f"prompts must be a prompt or a list of prompts, got {prompts!r:.80}")
    several: list[Any] = list(prompts)
    first: Any = several[0] if several else None
    first = first.tolist() if hasattr(first, "tolist") else first
    return [several] if isinstance(first, int) else several


def tokenize(
    prompt: Prompt, get_tokenizer: Callable[[], Tokenizer], vocab_size: int
) -> TokenizedPrompt:
    """A prompt's token ids, checked.

    Args:
        get_tokenizer: called for a text only.

    Raises:
        ValueError: if it is no prompt, or has a key that is unknown or not supported.
    """
    about: Mapping[str, Any]
    token_ids: Any
    if isinstance(prompt, str):
        about = {"prompt": prompt}
    elif isinstance(prompt, Mapping):
        about = prompt
    else:
        about = {"prompt_token_ids": prompt}
    for key, value in about.items():
        if key in _REFUSED:
            if value is not None:
                raise ValueError(f"a prompt's {key!r} is not supported: {_REFUSED[key]}")
        elif key not in _KEYS:
            raise ValueError(unknown_name("a prompt has no key", key, _KEYS))
    text = about.get("prompt")
    token_ids = about.get("prompt_token_ids")
    if token_ids is None and isinstance(text, str):
        token_ids = get_tokenizer().encode(text)
    is_sequence = isinstance(token_ids, Sequence) and not isinstance(token_ids, (str, bytes))
    if not (is_sequence or hasattr(token_ids, "tolist")) or not isinstance(text, str | None):
        raise ValueError(
            'a prompt must be a string, a list of token ids, {"prompt": ...} or '
            f'{{"prompt_token_ids": [...]}}, got {prompt!r:.80}'
        )
    return TokenizedPrompt(
        token_ids, vocab_size=vocab_size, text=text, cache_salt=about.get("cache_salt")
    )
