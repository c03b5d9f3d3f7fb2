"""A tokenizer: text to token ids and back, its special tokens and its chat template.

Where tokenizers come from is `minivllm.tokenizer_files`' business, or in a page, which has no
`tokenizers` library, `minivllm.byte_level_bpe`'s.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minivllm import chat

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

_BYTE_TOKEN = re.compile("<0x([0-9A-Fa-f]{2})>")
"""How a vocabulary with byte fallback spells a byte (SentencePiece)."""


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
        # A file may carry what somebody's training run had set: it would cut, pad or vary prompts.
        backend.no_truncation()
        backend.no_padding()
        if getattr(backend.model, "dropout", None):
            backend.model.dropout = None
        self.backend = backend
        self.chat_template = chat_template
        self.special_tokens = dict(special_tokens or {})
        self.all_special_ids = sorted(
            token_id
            for token_id, token in backend.get_added_tokens_decoder().items()
            if token.special
        )
        self._special_ids = frozenset(self.all_special_ids)
        self._own_bytes: dict[int, bytes | None] = {}
        decoder = backend.decoder
        self.is_byte_level = decoder is not None and _parts(decoder)[0]["type"] == "ByteLevel"
        """Whether every token is a string of bytes, and a text these bytes in a row."""
        self._space_marker = _space_marker(backend)
        self._byte_fallback = decoder is not None and b'"ByteFallback"' in decoder.__getstate__()

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

    def decode_alone(self, token_id: int) -> str:
        """Text of one token whatever stands before it, with the spaces that it begins with.

        Source: vllm/tokenizers/detokenizer_utils.py, `convert_ids_list_to_tokens`.
        """
        text = self.decode(token_id)
        marker = self._space_marker
        if marker and (token := self.backend.id_to_token(token_id)):
            num_spaces = len(token) - len(token.lstrip(marker))
            text = " " * (num_spaces - (len(text) - len(text.lstrip(" ")))) + text
        return text

    def is_special(self, token_id: int) -> bool:
        """Whether a token is left out of a text by `skip_special_tokens`."""
        return token_id in self._special_ids

    def bytes_of(self, token_id: int) -> bytes | None:
        """The bytes that a token stands for, whatever its neighbours; None: they matter."""
        if token_id not in self._own_bytes:
            self._own_bytes[token_id] = self._find_bytes(token_id)
        return self._own_bytes[token_id]

    def _find_bytes(self, token_id: int) -> bytes | None:
        token = self.backend.id_to_token(token_id)
        if token is None:
            return b""
        if self.is_byte_level:
            alphabet = byte_level_alphabet()
            if all(character in alphabet for character in token):
                return bytes(alphabet[character] for character in token)
            return token.encode()  # an added token, spelled as it is
        if self._byte_fallback and (match := _BYTE_TOKEN.fullmatch(token)):
            return bytes.fromhex(match[1])
        return None

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
            conversation: messages, each with `role` and `content` (text, parts of text, or None).
            tokenize: return token ids, not text.
            add_generation_prompt: end with the opening of the assistant's answer.
            variables: more variables for the template.

        Raises:
            ValueError: if there is no template, it is broken, it refuses the conversation, or a
                message holds what is no text.
        """
        template = chat_template or self.chat_template
        if template is None:
            raise ValueError("this tokenizer has no chat template: pass chat_template=...")
        variables = {
            "add_generation_prompt": add_generation_prompt,
            **self.special_tokens,
            **variables,
        }
        text = chat.render(template, conversation, variables)
        # The template writes BOS itself where the model wants one.
        return self.encode(text, add_special_tokens=False) if tokenize else text

    def save(self, directory: Path) -> None:
        """Write `tokenizer.json` and `tokenizer_config.json`."""
        self.backend.save(str(directory / "tokenizer.json"))
        config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
        config |= self.special_tokens
        config["added_tokens_decoder"] = {
            str(token_id): {"content": self.backend.id_to_token(token_id), "special": True}
            for token_id in self.all_special_ids
        }
        if self.chat_template is not None:
            config["chat_template"] = self.chat_template
        (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=2))


def _parts(of: Any) -> list[dict[str, Any]]:
    """A pre-tokenizer or decoder as `tokenizer.json` writes it, taken apart if it is a sequence of
    pre-tokenizers."""
    about: dict[str, Any] = json.loads(of.__getstate__())
    return about.get("pretokenizers", [about])


def _space_marker(backend: Backend) -> str | None:
    """What a vocabulary writes for a space that `decode` drops at the beginning of a text."""
    if backend.pre_tokenizer is None:
        return None
    for part in _parts(backend.pre_tokenizer):
        if part["type"] == "Metaspace":
            return str(part["replacement"])
    return None


@cache
def byte_level_alphabet() -> dict[str, int]:
    """The byte that each letter of byte-level BPE stands for (GPT-2's `bytes_to_unicode`)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = [*map(chr, printable), *(chr(256 + index) for index in range(len(others)))]
    return dict(zip(letters, [*printable, *others], strict=True))
