"""Byte-level BPE in plain Python, from a `tokenizer.json`: for a page, which has no `tokenizers`.

A text's bytes are written as letters, cut into words, and in each word neighbours are merged, the
earliest rule first, until no rule applies (Sennrich et al. 2016; GPT-2's `bytes_to_unicode`). What
this gives is what the library gives, which a test holds.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from functools import cache, lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

from minivllm.tokenizer import Tokenizer, byte_level_alphabet

_CONTRACTION = re.compile("'(?:s|t|re|ve|m|ll|d)")
_WORD = re.compile(r" ?L+| ?N+| ?O+|[ s]+(?![^ s])|[ s]+")
"""GPT-2's words, over the kinds of letters that `_kind` gives: Python's `re` knows no `\\p{L}`."""
_WHITESPACE = frozenset("\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000") | {
    chr(code) for code in range(0x2000, 0x200B)
}
"""Unicode's White_Space; `str.isspace` has four control characters more."""


class AddedToken(NamedTuple):
    """A token that is found in a text before it is cut into words."""

    content: str
    special: bool


class Encoding(NamedTuple):
    """What `encode` gives: the part of the library's that is used here."""

    ids: list[int]


class Part:
    """A pre-tokenizer or decoder: what the file says of it."""

    def __init__(self, about: Mapping[str, Any]) -> None:
        self._about = json.dumps(about).encode()

    def __getstate__(self) -> bytes:
        return self._about


class ByteLevelBPE:
    """As much of a `tokenizers.Tokenizer` as `minivllm.tokenizer.Tokenizer` calls.

    Args:
        about: of a `tokenizer.json`, parsed.

    Raises:
        ValueError: if it is no byte-level BPE, or cuts words in a way that is not known here.
    """

    def __init__(self, about: Mapping[str, Any]) -> None:
        model, pre = about["model"], about["pre_tokenizer"] or {}
        parts: Sequence[Mapping[str, Any]] = pre.get("pretokenizers", [pre])
        kinds = [part.get("type") for part in parts]
        known = (["ByteLevel"], ["Digits", "ByteLevel"])
        if model.get("type") != "BPE" or kinds not in known or about.get("normalizer"):
            raise ValueError(
                f"a page reads byte-level BPE tokenizers that cut text as GPT-2 or SmolLM does; "
                f"this is {model.get('type')} with {kinds}"
            )
        self._splits_digits = kinds[0] == "Digits"
        self.decoder, self.pre_tokenizer = Part(about["decoder"]), Part(pre)
        self._vocab: dict[str, int] = dict(model["vocab"])
        merges = (m.split(" ") if isinstance(m, str) else m for m in model["merges"])
        self._ranks = {(left, right): rank for rank, (left, right) in enumerate(merges)}
        self._added: dict[int, AddedToken] = {}
        for token in about.get("added_tokens", ()):
            self._added[token["id"]] = AddedToken(token["content"], token["special"])
            self._vocab[token["content"]] = token["id"]
        self._tokens = {token_id: token for token, token_id in self._vocab.items()}
        longest_first = sorted((t.content for t in self._added.values()), key=len, reverse=True)
        self._find_added = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        self._letters = {byte: letter for letter, byte in byte_level_alphabet().items()}
        self._ids_of = lru_cache(maxsize=10_000)(self._merge)

    model = None
    """The library's has settings of a training run; here they are not read."""

    def no_truncation(self) -> None:
        """It never cuts."""

    def no_padding(self) -> None:
        """It never pads."""

    def get_vocab_size(self) -> int:
        """Number of tokens, added ones included."""
        return len(self._vocab)

    def get_added_tokens_decoder(self) -> dict[int, AddedToken]:
        """The added tokens by id."""
        return dict(self._added)

    def token_to_id(self, token: str) -> int | None:
        """The id of a token as the vocabulary spells it."""
        return self._vocab.get(token)

    def id_to_token(self, token_id: int) -> str | None:
        """The vocabulary's spelling of a token."""
        return self._tokens.get(token_id)

    def encode(self, text: str, add_special_tokens: bool = True) -> Encoding:
        """Token ids of a text; added tokens that are written out in it are recognised.

        Args:
            add_special_tokens: is taken for the library's sake: these files add none.
        """
        ids: list[int] = []
        start = 0
        for match in self._find_added.finditer(text):
            ids += self._encode_plain(text[start : match.start()])
            ids.append(self._vocab[match[0]])
            start = match.end()
        return Encoding(ids + self._encode_plain(text[start:]))

    def _encode_plain(self, text: str) -> list[int]:
        ids: list[int] = []
        for word in words(text, self._splits_digits):
            ids += self._ids_of("".join(self._letters[byte] for byte in word.encode()))
        return ids

    def _merge(self, word: str) -> tuple[int, ...]:
        parts = list(word)
        while len(parts) > 1:
            last = len(self._ranks)
            ranks = [self._ranks.get(pair, last) for pair in pairwise(parts)]
            best = min(ranks)
            if best == last:
                break
            place = ranks.index(best)
            parts[place : place + 2] = [parts[place] + parts[place + 1]]
        # A byte that the vocabulary has no token for is dropped, as the library drops it.
        return tuple(self._vocab[part] for part in parts if part in self._vocab)

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        """Text of token ids; bytes that are not valid UTF-8 become U+FFFD."""
        alphabet, data = byte_level_alphabet(), bytearray()
        for token_id in ids:
            token = self._tokens.get(token_id)
            added = self._added.get(token_id)
            if token is None or (skip_special_tokens and added and added.special):
                continue
            if all(letter in alphabet for letter in token):
                data += bytes(alphabet[letter] for letter in token)
            else:
                data += token.encode()
        return data.decode(errors="replace")


def words(text: str, splits_digits: bool) -> Iterator[str]:
    """A text cut as GPT-2 cuts it; SmolLM's tokenizer makes each digit a text of its own first."""
    kinds = "".join(map(_kind, text))
    pieces = re.finditer("N|[^N]+", kinds) if splits_digits else [re.match("(?s).*", kinds)]
    for piece in pieces:
        assert piece
        start, end = piece.span()
        part, of = text[start:end], kinds[start:end]
        place = 0
        while place < len(part):
            match = _CONTRACTION.match(part, place) or _WORD.match(of, place)
            assert match
            yield part[place : match.end()]
            place = match.end()


@cache
def _kind(character: str) -> str:
    """L: letter, N: number, O: another; whitespace is s, but for a space, which begins words."""
    if character in _WHITESPACE:
        return " " if character == " " else "s"
    category = unicodedata.category(character)[0]
    return category if category in "LN" else "O"


def open_tokenizer(tokenizer_json: str, tokenizer_config: str) -> Tokenizer:
    """A tokenizer from the texts of its two files, `tokenizer.json` and `tokenizer_config.json`.

    Raises:
        ValueError: as `ByteLevelBPE`.
    """
    config = json.loads(tokenizer_config)
    names = ("bos_token", "eos_token", "unk_token", "pad_token")
    special = {name: config[name] for name in names if config.get(name)}
    backend: Any = ByteLevelBPE(json.loads(tokenizer_json))
    return Tokenizer(backend, config.get("chat_template"), special)
