"""One request's tokens into text, as they come, and the stop strings in it."""

from __future__ import annotations

import codecs
import itertools
from collections.abc import Sequence

from minivllm.tokenizer import Tokenizer

_CONTEXT = 5
"""Tokens decoded along with the next one: some begin with a space only in the middle of a text
(vllm/tokenizers/detokenizer_utils.py)."""


class IncrementalDetokenizer:
    """Turns one request's tokens into text as they come, and looks for stop strings in it.

    A token can end in the middle of a character: its bytes wait until the character is whole, and
    no longer. So `text` only ever grows, never shows half a character, and takes the same time
    for each token, bytes that are no text included. A character that the prompt begins and the
    output ends is the output's.

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
        self._context: list[int] = []
        """The latest tokens, skipped ones left out."""
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        """Holds the bytes of a character that is not whole yet: 3 at most."""
        for token_id in prompt_token_ids[-2 * _CONTEXT :]:
            self._decode_next(token_id)

    def update(self, new_token_ids: Sequence[int], stop_terminated: bool = False) -> str | None:
        """Take new tokens; return the stop string that is now in the text, if any.

        Of several, the one that begins first; of those, the longest (vLLM #49391).

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
        if self.skip_special_tokens and self.tokenizer.is_special(token_id):
            return ""
        own_bytes = self.tokenizer.bytes_of(token_id)
        if own_bytes is not None:
            text = self._utf8.decode(own_bytes)
        else:  # what waits for more bytes waits in vain
            text = self._utf8.decode(b"", final=True) + self._decode_in_context(token_id)
        self._context = [*self._context[1 - _CONTEXT :], token_id]
        return text

    def _decode_in_context(self, token_id: int) -> str:
        before = self.tokenizer.decode(self._context)
        now = self.tokenizer.decode([*self._context, token_id])
        same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(before, now, strict=False))
        return now[sum(1 for _ in same) :]

    def _find_stop_string(self, searched: int) -> str | None:
        found = []
        for stop in self.stop:
            start = self.text.find(stop, max(0, searched - len(stop) + 1))
            if start >= 0:
                found.append((start, -len(stop), stop))
        if not found:
            return None
        start, _, stop = min(found)
        self.text = self.text[: start + len(stop) if self.include_stop_str_in_output else start]
        return stop
