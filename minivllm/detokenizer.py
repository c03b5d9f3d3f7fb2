"""One request's tokens into text, as they come, and the stop strings in it."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from minivllm.tokenizer import Tokenizer


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
        data = self._tokenizer.bytes_of(token_id)
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
            data = self._tokenizer.bytes_of(token_id)
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
        self.stop = list(stop)
        self.min_tokens = min_tokens
        self.include_stop_str_in_output = include_stop_str_in_output
        self.text = ""
        self.num_output_tokens = 0
        self._stream = TextStream(tokenizer, prompt_token_ids, skip_special_tokens)

    def update(self, new_token_ids: Sequence[int], stop_terminated: bool = False) -> str | None:
        """Take new tokens; return the stop string that is now in the text, if any.

        Of several, the one that is complete first, as if the text came letter by letter (vLLM
        #49391), so how tokens cut the text decides nothing; of those, the longest.

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
