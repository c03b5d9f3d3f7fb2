"""`bad_words`: the tokens that spell them, and which token would complete one."""

from __future__ import annotations

from collections.abc import Sequence

from minivllm.tokenizer import Tokenizer


def bad_words_token_ids(bad_words: Sequence[str], tokenizer: Tokenizer) -> list[list[int]]:
    """The token ids of bad words, at the beginning of a text and after a space.

    Raises:
        ValueError: on a word that has no token.

    Source: vllm/sampling_params.py, `update_from_tokenizer`.
    """
    found: list[list[int]] = []
    for word in bad_words:
        alone = tokenizer.encode(word.lstrip(), add_special_tokens=False)
        spaced = tokenizer.encode(" " + word.lstrip(), add_special_tokens=False)
        if not alone:
            raise ValueError(f"bad_words: {word!r} has no token")
        found.append(alone)
        if spaced and spaced[0] != alone[0] and len(spaced) == len(alone):
            found.append(spaced)
    return found


def completing(
    bad_words_token_ids: Sequence[Sequence[int]], output_token_ids: Sequence[int]
) -> list[int]:
    """The tokens that would complete a bad word.

    Source: vllm/v1/sample/ops/bad_words.py.
    """
    found = []
    for *start, last in bad_words_token_ids:
        end = len(output_token_ids) - len(start)
        if end >= 0 and list(output_token_ids[end:]) == start:
            found.append(last)
    return found
