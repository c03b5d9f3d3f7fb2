"""A prompt as the scheduler takes it: token ids, checked once."""

from __future__ import annotations

from collections.abc import Iterable

from minivllm.core.config import as_token_ids


class TokenizedPrompt:
    """Token ids that have been checked: whoever is given one looks at them no more.

    Args:
        token_ids: at least one; a list, a NumPy array or a tensor of one dimension, or the like.
        vocab_size: they are below it; None: any will do.
        text: what they were made from, if it is known.
        cache_salt: prompts with different salts share no block of the prefix cache.

    Attributes:
        token_ids: a list of its own, which requests share: not to be changed.

    Raises:
        ValueError: on an empty prompt, what is no token id, or an unusable salt.
    """

    __slots__ = ("cache_salt", "text", "token_ids")

    def __init__(
        self,
        token_ids: Iterable[int],
        *,
        vocab_size: int | None = None,
        text: str | None = None,
        cache_salt: str | None = None,
    ) -> None:
        self.token_ids = as_token_ids("prompt_token_ids", token_ids, vocab_size)
        if not self.token_ids:
            raise ValueError("the prompt is empty; give at least one token")
        self.text = text
        if cache_salt is not None and not (isinstance(cache_salt, str) and cache_salt):
            raise ValueError(f"cache_salt must be a non-empty string, got {cache_salt!r}")
        self.cache_salt = cache_salt
