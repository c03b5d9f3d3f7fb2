"""The page's tokenizer is the library's: the same ids, the same text."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minivllm.byte_level_bpe import ByteLevelBPE, open_tokenizer
from minivllm.models.loader import DEFAULT_MODEL, SMALL_MODEL, find_model
from minivllm.tokenizer import Tokenizer
from minivllm.tokenizer_files import load_tokenizer, tiny_tokenizer

TEXTS = [
    "", " ", "  two  spaces ", "It's what they're saying: we'll, I'd, you've, I'm, can't'S",
    "1234 and 5,678.90 ²½Ⅷ四", "naïve café Straße", "Привет, мир", "日本語のテキスト", "مرحبا",
    "👩‍👩‍👧‍👦 🏳️‍🌈",
    "tabs\tand\nlines\r\n\n  indented", "a\xa0b\u3000c\u2028d\x85e\x1cf\x1fg\u200bh", "x" * 300,
    "<|im_start|>user\nHi<|im_end|>\n<|im_sta",
    "def f(x):\n    return x ** 2  # ok", "\x00\x7f\ufffd",
]  # fmt: skip


@functools.cache
def both(name: str, folder: Path) -> tuple[Tokenizer, Tokenizer]:
    """The library's and ours."""
    directory = folder
    if name == "tiny":
        tiny_tokenizer().save(directory)
    else:
        directory = find_model({"smollm2": DEFAULT_MODEL}.get(name, name))
    files = ("tokenizer.json", "tokenizer_config.json")
    return load_tokenizer(directory), open_tokenizer(*((directory / f).read_text() for f in files))


@pytest.mark.parametrize("name", ["tiny", "smollm2", SMALL_MODEL])
def test_it_says_what_the_library_says(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    theirs, ours = both(name, tmp_path_factory.getbasetemp())

    @settings(max_examples=150, deadline=None)
    @given(st.one_of(st.text(max_size=40), st.lists(st.sampled_from(TEXTS)).map("".join)))
    def same(text: str) -> None:
        ids = theirs.encode(text)
        assert ours.encode(text) == ids
        assert ours.decode(ids) == theirs.decode(ids)
        assert ours.decode(ids[1:], True) == theirs.decode(ids[1:], True)

    for text in TEXTS:
        same.hypothesis.inner_test(text)  # type: ignore[attr-defined]
    same()
    assert (ours.vocab_size, ours.eos_token_id, ours.all_special_ids, ours.is_byte_level) == (
        theirs.vocab_size, theirs.eos_token_id, theirs.all_special_ids, theirs.is_byte_level
    )  # fmt: skip
    assert all(ours.bytes_of(i) == theirs.bytes_of(i) for i in range(0, ours.vocab_size, 7))
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    assert ours.apply_chat_template(chat) == theirs.apply_chat_template(chat)


def test_another_kind_is_refused() -> None:
    about = json.loads(tiny_tokenizer().backend.to_str())  # type: ignore[union-attr]
    about["pre_tokenizer"] = {"type": "Metaspace"}
    with pytest.raises(ValueError, match="this is BPE with \\['Metaspace'\\]"):
        ByteLevelBPE(about)
