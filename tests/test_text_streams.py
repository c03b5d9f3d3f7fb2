"""More of text in and out: any tokens, any bytes, any cut; settings that transformers applies."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers
from tokenizers import Tokenizer as Backend

from minivllm.detokenizer import IncrementalDetokenizer
from minivllm.tokenizer import Tokenizer
from minivllm.tokenizer_files import load_tokenizer, tiny_tokenizer

BAD = "\ufffd"

SCRIPTS = [
    "plain words, and more",
    "naïve café Straße",
    "Привет, мир",
    "שלום עולם",
    "नमस्ते दुनिया",
    "ไทย ภาษา",
    "日本語 中文 한국어",
    "a🎉b👩‍👩‍👧‍👦absing",
    "𐍈𝒳 end",
    "e\u0301 \u200d\ufeffx",
]


def fallback_tokenizer() -> Tokenizer:
    """As Llama 2's: pieces of text, and a token for each byte."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁"]
    pieces += [*"abcdefghinopqrstuvwxyz", "ab", "sing", "▁ab", "▁w", "日", "é"]
    vocab = {piece: token_id for token_id, piece in enumerate(pieces)}
    merges = [("a", "b"), ("▁", "ab"), ("▁", "w")]
    backend = Backend(
        models.BPE(
            vocab={**vocab, "si": len(vocab)}, merges=merges, unk_token="<unk>", byte_fallback=True
        )
    )
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    backend.add_special_tokens([AddedToken(piece, normalized=False) for piece in pieces[:3]])
    return Tokenizer(backend, None, {"bos_token": "<s>", "eos_token": "</s>"})


def wordpiece_tokenizer() -> Tokenizer:
    pieces = ["[UNK]", "play", "##ing", "##ed", "the", ",", BAD]
    backend = Backend(models.WordPiece({piece: i for i, piece in enumerate(pieces)}))
    backend.decoder = decoders.WordPiece()
    return Tokenizer(backend)


TOKENIZERS = {
    "byte-level": tiny_tokenizer(),
    "fallback": fallback_tokenizer(),
    "wordpiece": wordpiece_tokenizer(),
}


def byte_ids(tokenizer: Tokenizer, data: bytes) -> list[int]:
    by_bytes = {tokenizer.bytes_of(i): i for i in reversed(range(len(tokenizer)))}
    return [by_bytes[bytes([byte])] for byte in data]


def stream(tokenizer: Tokenizer, prompt: list[int], output: list[int], **kwargs: Any) -> str:
    detokenizer = IncrementalDetokenizer(tokenizer, prompt, **kwargs)
    shown = ""
    for token_id in output:
        detokenizer.update([token_id])
        assert detokenizer.text.startswith(shown)
        shown = detokenizer.text
    at_once = IncrementalDetokenizer(tokenizer, prompt, **kwargs)
    at_once.update(output)
    assert at_once.text == shown
    return shown


# --- tokens to text -----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["byte-level", "fallback"])
@pytest.mark.parametrize("text", SCRIPTS, ids=ascii)
@pytest.mark.parametrize("as_bytes", [False, True])
def test_nothing_is_lost_or_doubled_at_any_cut(name: str, text: str, as_bytes: bool) -> None:
    tokenizer = TOKENIZERS[name]
    ids = byte_ids(tokenizer, text.encode()) if as_bytes else tokenizer.encode(text)
    whole = tokenizer.decode(ids)
    assert whole == text
    for cut in range(len(ids) + 1):
        # The prompt's own text is its whole characters; a half one is the output's.
        prompt = tokenizer.decode(ids[:cut])
        own = next(n for n in range(len(prompt), -1, -1) if whole.startswith(prompt[:n]))
        if cut and not tokenizer.decode(ids[:cut]).endswith(BAD):
            assert own == len(prompt)
        if name == "fallback" and prompt.endswith(BAD):  # `decode` gives up on the whole run
            own = max(
                len(tokenizer.decode(ids[:k]))
                for k in range(cut + 1)
                if whole.startswith(tokenizer.decode(ids[:k]))
            )
        assert stream(tokenizer, ids[:cut], ids[cut:]) == whole[own:], cut


@pytest.mark.parametrize("name", ["byte-level", "fallback"])
def test_the_replacement_character_itself_is_text(name: str) -> None:
    tokenizer = TOKENIZERS[name]
    ids = tokenizer.encode(f"a{BAD}b{BAD}")
    assert stream(tokenizer, [], ids) == f"a{BAD}b{BAD}"
    for cut in range(1, 4):
        split = byte_ids(tokenizer, f"{BAD}".encode())
        assert stream(tokenizer, split[:cut], split[cut:] + ids) in (
            (f"{BAD}a{BAD}b{BAD}", f"{BAD} a{BAD}b{BAD}")
            if cut < 3
            else (f"a{BAD}b{BAD}", f" a{BAD}b{BAD}")
        )


def test_the_report_an_emoji_begun_in_the_prompt() -> None:
    tokenizer = TOKENIZERS["fallback"]
    emoji = byte_ids(tokenizer, "🎉".encode())
    rest = [tokenizer.backend.token_to_id(piece) for piece in ("ab", "sing")]
    assert stream(tokenizer, emoji[:3], emoji[3:] + rest) == "🎉absing"
    assert stream(tokenizer, emoji[:3], rest) == "absing"


@given(st.sampled_from(sorted(TOKENIZERS)), st.integers(0, 2**32), st.integers(0, 12))
def test_any_tokens_give_what_decode_gives(name: str, seed: int, length: int) -> None:
    """From the start of the text, whatever the tokens; but for what decode takes back."""
    tokenizer = TOKENIZERS[name]
    draw = random.Random(seed)
    ids = [draw.randrange(len(tokenizer)) for _ in range(length)]
    for skip in (False, True):
        whole = tokenizer.decode(ids, skip)
        text = stream(tokenizer, [], ids, skip_special_tokens=skip)
        if name == "fallback" and BAD in whole:
            continue
        assert whole.startswith(text)
        assert len(whole) - len(text) <= (1 if name == "byte-level" else 0)
        for cut in range(length):
            before = tokenizer.decode(ids[:cut], skip)
            if whole.startswith(before) and not before.endswith(BAD):
                assert (
                    stream(tokenizer, ids[:cut], ids[cut:], skip_special_tokens=skip)
                    == (text[len(before) :])
                )


@given(st.lists(st.sampled_from(b"\xff\x80\xe6\x97\xa5\xf0\x9f\x8e\x89a\xc0\xed\xa0"), max_size=12))
def test_bytes_in_any_order(data: list[int]) -> None:
    whole = bytes(data).decode("utf-8", "replace")
    tokenizer = TOKENIZERS["byte-level"]
    ids = byte_ids(tokenizer, bytes(data))
    assert tokenizer.decode(ids) == whole
    end = byte_ids(tokenizer, b"z")
    for cut in range(len(ids) + 1):
        shown = stream(tokenizer, ids[:cut], ids[cut:] + end)
        prompt = tokenizer.decode(ids[:cut])
        if (whole + "z").startswith(prompt):
            assert prompt + shown == whole + "z"
        else:  # the output completes a character
            assert prompt[:-1] + shown == whole + "z"


@pytest.mark.parametrize("name", ["byte-level", "fallback"])
@pytest.mark.parametrize("data", [b"\xff", b"\x80", b"\xe6", b"\xe6\x97", b"\xf0\x9f\x8e"])
def test_a_long_run_of_invalid_bytes(
    name: str, data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = TOKENIZERS[name]
    ids = byte_ids(tokenizer, data * 2000)
    num_decoded = 0
    decode = Tokenizer.decode

    def counted(self: Tokenizer, token_ids: Any, *args: Any, **kwargs: Any) -> str:
        nonlocal num_decoded
        num_decoded += len(token_ids)
        return decode(self, token_ids, *args, **kwargs)

    whole = tokenizer.decode(ids)
    monkeypatch.setattr(Tokenizer, "decode", counted)
    detokenizer = IncrementalDetokenizer(tokenizer, [])
    for count, token_id in enumerate(ids, 1):
        detokenizer.update([token_id])
        assert len(detokenizer.text) >= (count - 3) // len(data) - 1  # as it comes, not at the end
    assert num_decoded <= 4 * len(ids)
    assert whole.startswith(detokenizer.text)
    assert len(whole) - len(detokenizer.text) <= 1


def test_a_readable_character_is_streamed_before_a_run_of_bytes_ends() -> None:
    tokenizer = TOKENIZERS["fallback"]
    detokenizer = IncrementalDetokenizer(tokenizer, [])
    for character in "語🎉":
        detokenizer.update(byte_ids(tokenizer, character.encode()))
        assert detokenizer.text.endswith(character)


# --- stop strings -------------------------------------------------------------------------


def reference_stop(text: str, stops: list[str]) -> tuple[str, str | None]:
    """Letter by letter: the first to be complete, the longest of those."""
    for end in range(1, len(text) + 1):
        if complete := [stop for stop in stops if text[:end].endswith(stop)]:
            stop = max(complete, key=len)
            return text[: end - len(stop)], stop
    return text, None


@given(
    st.text("abc", min_size=1, max_size=12),
    st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=4, unique=True),
    st.integers(0, 2**11),
)
def test_stop_strings_in_any_order_and_any_tokens(text: str, stops: list[str], cuts: int) -> None:
    tokenizer = tiny_tokenizer()
    bounds = [0, *(i for i in range(1, len(text)) if cuts >> (i - 1) & 1), len(text)]
    parts = [text[a:b] for a, b in itertools.pairwise(bounds)]
    kept, reason = reference_stop(text, stops)
    for order in (stops, stops[::-1]):
        for include in (False, True):
            detokenizer = IncrementalDetokenizer(
                tokenizer, [], stop=order, include_stop_str_in_output=include
            )
            for part in parts:
                found = detokenizer.update(tokenizer.encode(part))
                visible = detokenizer.visible_text(found is not None)
                assert (kept + (reason or "") if include else kept).startswith(visible)
                if found:
                    break
            assert found == reason
            expected = kept + (reason or "") if include else kept
            assert detokenizer.visible_text(True) == expected


@pytest.mark.parametrize("stops", list(itertools.permutations(["lo", "ell", "o w"])))
def test_the_report_one_token_holds_several_stop_strings(stops: tuple[str, ...]) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.backend.add_tokens([" hello"])
    (token_id,) = tokenizer.encode(" hello")
    detokenizer = IncrementalDetokenizer(tokenizer, [], stop=stops)
    assert detokenizer.update([token_id]) == "ell"
    assert detokenizer.text == " h"


def test_a_stop_string_in_text_that_was_held_back() -> None:
    tokenizer = tiny_tokenizer()
    first, *rest = byte_ids(tokenizer, "é".encode())
    detokenizer = IncrementalDetokenizer(tokenizer, [], stop=["é!", "é"])
    assert detokenizer.update([*tokenizer.encode("ab"), first]) is None
    assert detokenizer.update(rest + tokenizer.encode("!")) == "é"
    assert detokenizer.text == "ab"


# --- text to tokens -----------------------------------------------------------------------

LONG = "the quick brown fox jumps over the lazy dog"


def saved(directory: Path, config: dict[str, Any] | None = None, **changes: Any) -> Path:
    """The tiny tokenizer's files, changed."""
    tokenizer = tiny_tokenizer()
    tokenizer.save(directory)
    path = directory / "tokenizer.json"
    data = json.loads(path.read_text())
    data["model"] |= changes.pop("model", {})
    path.write_text(json.dumps(data | changes))
    path = directory / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | (config or {})))
    return directory


TRUNCATION = {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0}
PADDING = {
    "strategy": {"Fixed": 64}, "direction": "Left", "pad_to_multiple_of": None,
    "pad_id": 0, "pad_type_id": 0, "pad_token": "<|endoftext|>",
}  # fmt: skip


@pytest.mark.parametrize(
    "changes",
    [
        {"truncation": TRUNCATION},
        {"truncation": TRUNCATION | {"direction": "Left", "max_length": 3}},
        {"padding": PADDING},
        {"padding": PADDING | {"strategy": "BatchLongest", "pad_to_multiple_of": 64}},
        {"truncation": TRUNCATION, "padding": PADDING},
        {"model": {"dropout": 0.9}},
    ],
    ids=str,
)
def test_settings_of_a_training_are_not_the_models(tmp_path: Path, changes: dict[str, Any]) -> None:
    expected = tiny_tokenizer()
    chat = [{"role": "user", "content": LONG}]
    for tokenizer in (
        load_tokenizer(saved(tmp_path, **changes)),
        Tokenizer(Backend.from_file(str(tmp_path / "tokenizer.json")), expected.chat_template),
    ):
        assert tokenizer.encode(LONG) == expected.encode(LONG)
        assert tokenizer.encode("ab") == expected.encode("ab")
        assert tokenizer.apply_chat_template(chat) == expected.apply_chat_template(chat)


@pytest.mark.parametrize(
    "config",
    [
        {"model_max_length": 4, "truncation_side": "left", "max_length": 4},
        {"add_bos_token": True},
        {"add_eos_token": True},
        {"add_bos_token": True, "add_eos_token": True},
        {"add_bos_token": False},
        {"split_special_tokens": True},
        {"extra_special_tokens": ["<tool>"]},
        {"additional_special_tokens": ["<tool>", "<|im_end|>"]},
        {"added_tokens_decoder": {"960": {"content": "quick", "special": False}}},
        {"pad_token": "<pad>"},
    ],
    ids=str,
)
def test_settings_that_transformers_applies(tmp_path: Path, config: dict[str, Any]) -> None:
    transformers = pytest.importorskip("transformers")
    directory = saved(tmp_path, config)
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(directory)
    ours = load_tokenizer(directory)
    for text in (LONG, "a<|im_end|>b <tool>x<pad>", "<|im_start|>"):
        assert ours.encode(text) == theirs(text)["input_ids"]
        assert ours.encode(text, add_special_tokens=False) == theirs.encode(
            text, add_special_tokens=False
        )


# --- chat ---


def test_a_template_that_goes_through_parts_gets_parts() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}"
        "{% for part in m['content'] %}[{{ part.text }}]{% endfor %}{% endif %}{% endfor %}"
    )
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    chat = [{"role": "user", "content": parts}, {"role": "user", "content": "c"}]
    assert tokenizer.apply_chat_template(chat, tokenize=False) == "[a][b]c"
