"""Text in and out: tokenizer files as people have them, conversations, stops, cut characters."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("tokenizers")
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers

from minivllm import chat
from minivllm.detokenizer import IncrementalDetokenizer
from minivllm.models.config import ModelConfig
from minivllm.models.gguf_file import _eos_token_ids
from minivllm.tokenizer import Tokenizer
from minivllm.tokenizer_files import eos_token_id_of, load_tokenizer, tiny_tokenizer

LONG = "a rather long text of many tokens, longer than eight"


# --- what a tokenizer's file may carry --------------------------------------------------------


@pytest.mark.parametrize(
    "spoil",
    [
        lambda backend: backend.enable_truncation(8),
        lambda backend: backend.enable_truncation(8, stride=2, direction="left"),
        lambda backend: backend.enable_padding(length=64, pad_id=0, pad_token="<|endoftext|>"),
        lambda backend: backend.enable_padding(direction="left", pad_to_multiple_of=32),
        lambda backend: setattr(backend.model, "dropout", 0.9),
    ],
)
def test_what_somebodys_training_had_set_changes_no_prompt(tmp_path: Path, spoil: Any) -> None:
    plain = tiny_tokenizer()
    plain.save(tmp_path)
    backend = Backend.from_file(str(tmp_path / "tokenizer.json"))
    spoil(backend)
    backend.save(str(tmp_path / "tokenizer.json"))
    loaded = load_tokenizer(tmp_path)
    message = [{"role": "user", "content": LONG}]
    for text in (LONG, "hi"):
        assert [loaded.encode(text) for _ in range(5)] == [plain.encode(text)] * 5
    assert loaded.apply_chat_template(message) == plain.apply_chat_template(message)


# --- the end of a sequence ----------------------------------------------------------------------

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 100,
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
}


@pytest.mark.parametrize(
    ("config", "generation", "expected"),
    [
        ({"eos_token_id": 7}, {}, {2, 7}),
        ({"eos_token_id": 7}, {"eos_token_id": [5, 6]}, {2, 5, 6}),
        ({"eos_token_id": [7, 8]}, {"eos_token_id": None}, {2, 7, 8}),
        ({}, {"eos_token_id": 2}, {2}),
        ({}, {}, {2}),
        ({"eos_token_id": 0}, {}, {0, 2}),
    ],
)
def test_stops_are_of_the_tokenizer_and_the_generation_config(
    tmp_path: Path, config: dict, generation: dict, expected: set[int], monkeypatch: Any
) -> None:
    from minivllm.models import loader

    tiny_tokenizer().save(tmp_path)  # its EOS is 2
    (tmp_path / "config.json").write_text(json.dumps({**LLAMA, **config}))
    (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    monkeypatch.setattr(loader, "read_weights", lambda directory: {})
    assert set(loader.load_model(tmp_path).config.eos_token_ids) == expected


@pytest.mark.parametrize("as_dict", [True, False])
def test_the_eos_id_is_found_with_and_without_the_list_of_added_tokens(
    tmp_path: Path, as_dict: bool
) -> None:
    tiny_tokenizer().save(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    config = json.loads(path.read_text())
    del config["added_tokens_decoder"]
    if as_dict:
        config["eos_token"] = {"content": config["eos_token"], "special": True}
    path.write_text(json.dumps(config))
    assert eos_token_id_of(tmp_path) == 2
    path.unlink()
    assert eos_token_id_of(tmp_path) is None


def test_a_gguf_stops_at_the_end_of_a_turn_too() -> None:
    keys = {f"tokenizer.ggml.{name}_token_id": i for i, name in enumerate(("eos", "eot", "eom"))}
    assert _eos_token_ids(keys) == [0, 1, 2]
    assert _eos_token_ids({"tokenizer.ggml.eos_token_id": 4}) == [4]
    keys = {"tokenizer.ggml.eos_token_id": 4, "tokenizer.ggml.eot_token_id": 4}
    assert _eos_token_ids(keys) == [4]
    assert ModelConfig.from_hf({**LLAMA, "eos_token_id": []}, {}).eos_token_ids == ()


# --- conversations ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("plain", "plain"),
        (None, ""),
        ([], ""),
        ([{"type": "text", "text": "one"}], "one"),
        ([{"type": "text", "text": "one"}, "two"], "one\ntwo"),
        ([{"type": "input_text", "text": "a"}, {"type": "refusal", "refusal": "no"}], "a\nno"),
    ],
)
@pytest.mark.parametrize("role", ["user", "tool", "assistant"])
def test_content_may_be_parts(content: Any, text: str, role: str) -> None:
    tokenizer = tiny_tokenizer()
    given_, plain = ({"role": role, "content": c} for c in (content, text))
    assert tokenizer.apply_chat_template([given_]) == tokenizer.apply_chat_template([plain])


@pytest.mark.parametrize(
    ("message", "says"),
    [
        ({"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, "'image_url'"),
        ({"role": "user", "content": [{"type": "text"}]}, "type 'text'"),
        ({"role": "user", "content": [{"text": "x"}]}, "is not text"),
        ({"role": "user", "content": 5}, "got 5"),
        ({"role": "user", "content": b"x"}, "content must be text"),
        ({"content": "x"}, "must have a role"),
        ("hello", "must be a dict"),
    ],
)
def test_what_is_no_text_is_named(message: Any, says: str) -> None:
    with pytest.raises(ValueError, match=f"message 0.*{says}"):
        tiny_tokenizer().apply_chat_template([message])


def test_a_tool_call_reaches_the_template_with_its_arguments_parsed() -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": '{"x": "é"}'}}
    messages = [{"role": "assistant", "content": None, "tool_calls": [call]}]
    template = "{{ messages[0].tool_calls[0].function.arguments | tojson }}"
    assert chat.render(template, messages, {}) == '{"x": "é"}'
    call["function"]["arguments"] = "{"
    with pytest.raises(ValueError, match="tool call's arguments are not JSON"):
        chat.render(template, messages, {})


def test_a_broken_template_is_the_templates_fault() -> None:
    with pytest.raises(ValueError, match=r"template is broken.*line 2.*nosuch"):
        chat.render("x\n{% nosuch %}", [{"role": "user", "content": "x"}], {})
    with pytest.raises(ValueError, match="refuses this conversation: not so"):
        chat.render("{{ raise_exception('not so') }}", [{"role": "user", "content": "x"}], {})
    generation = "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}"
    generation += "{% break %}{% endfor %}"
    twice = [{"role": "user", "content": "x"}] * 2
    assert chat.render(generation, twice, {}) == "x"


# --- stop strings ---------------------------------------------------------------------------------


def detokenized(
    tokenizer: Tokenizer, ids: list[int], stop: list[str], **options: Any
) -> tuple[str, str | None]:
    detokenizer = IncrementalDetokenizer(tokenizer, [3], stop=stop, **options)
    seen = ""
    for token_id in ids:
        reason = detokenizer.update([token_id])
        visible = detokenizer.visible_text(reason is not None)
        assert visible.startswith(seen), "what was streamed is taken back"
        seen = visible
        if reason is not None:
            return detokenizer.text, reason
    return detokenizer.visible_text(True), None


def words(*tokens: str) -> Tokenizer:
    """A tokenizer that has these tokens, and bytes for the rest."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    spelled = [t.replace(" ", "Ġ") for t in tokens]
    vocab = {token: i for i, token in enumerate(dict.fromkeys([*alphabet, *spelled]))}
    backend = Backend(models.BPE(vocab=vocab, merges=[]))
    backend.decoder = decoders.ByteLevel()
    return Tokenizer(backend)


def test_the_earliest_stop_string_wins_and_the_longest_at_a_tie() -> None:
    tokenizer = words(" hello")
    hello = [tokenizer.backend.token_to_id("Ġhello")]
    for stop in (["lo", "ell"], ["ell", "lo"], ["ll", "ell"]):
        assert detokenized(tokenizer, hello, stop) == (" h", "ell"), stop
    assert detokenized(tokenizer, hello, ["lo", "ll", "ell"], include_stop_str_in_output=True) == (
        " hell",
        "ell",
    )


@settings(max_examples=200, deadline=None)
@given(
    text=st.text("abc", max_size=12),
    stop=st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=4),
    seed=st.randoms(use_true_random=False),
)
def test_the_order_of_the_list_decides_nothing(text: str, stop: list[str], seed: Any) -> None:
    tokenizer = words()
    ids = [tokenizer.backend.token_to_id(c) for c in text]
    shuffled = sorted(stop, key=lambda _: seed.random())
    found, reason = detokenized(tokenizer, ids, stop)
    assert (found, reason) == detokenized(tokenizer, ids, shuffled)
    if reason is None:
        assert found == text
        assert not any(s in text for s in stop)
    else:  # whoever is whole first ends it
        ends = [text.find(s) + len(s) for s in stop if s in text]
        assert len(found) + len(reason) == min(ends)
        assert text.startswith(found + reason)


# --- characters cut by the end of the prompt, or by tokens ---------------------------------------

SCRIPTS = "absing — naïve Ελλάδα עברית हिन्दी 日本語 한국어 👩‍👩‍👧 🏳️‍🌈 e\u0301 end"


def byte_fallback() -> Tokenizer:
    """A vocabulary as SentencePiece's: pieces of letters, and every other byte on its own."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    tokens = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *letters]
    pieces = [*tokens, "ab", "sing", "▁e", "nd"]
    backend = Backend(models.BPE({t: i for i, t in enumerate(pieces)}, [], unk_token="<unk>"))
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return Tokenizer(backend)


def ids_of(tokenizer: Tokenizer, text: str) -> list[int]:
    """The text in the smallest tokens: letters, or bytes."""
    to_id, ids = tokenizer.backend.token_to_id, []
    for character in text.replace(" ", "▁") if to_id("<0x00>") is not None else text:
        if to_id("<0x00>") is None:
            by_byte = {v: k for k, v in _alphabet().items()}
            ids += [to_id(by_byte[byte]) for byte in character.encode()]
        elif (own := to_id(character)) is not None:
            ids.append(own)
        else:
            ids += [to_id(f"<0x{byte:02X}>") for byte in character.encode()]
    return ids


def _alphabet() -> dict[str, int]:
    from minivllm.tokenizer import byte_level_alphabet

    assert sorted(byte_level_alphabet()) == sorted(pre_tokenizers.ByteLevel.alphabet())
    return byte_level_alphabet()


@pytest.mark.parametrize("make", [byte_fallback, words])
def test_at_every_cut_nothing_is_lost_and_nothing_comes_twice(make: Any) -> None:
    tokenizer = make()
    ids = ids_of(tokenizer, SCRIPTS)
    assert tokenizer.decode(ids) == SCRIPTS
    ends = list(itertools.accumulate(len(ids_of(tokenizer, c)) for c in SCRIPTS))
    for cut in range(1, len(ids)):
        detokenizer = IncrementalDetokenizer(tokenizer, ids[:cut])
        steps = []
        for token_id in ids[cut:]:
            detokenizer.update([token_id])
            steps.append(detokenizer.text)
        num_whole = sum(end <= cut for end in ends)  # characters that the prompt has whole
        assert detokenizer.text == SCRIPTS[num_whole:], cut
        assert "\ufffd" not in "".join(steps)
        assert all(b.startswith(a) for a, b in itertools.pairwise(steps))


def test_the_rest_of_an_emoji_and_what_follows() -> None:
    tokenizer = byte_fallback()
    emoji = ids_of(tokenizer, "😀")
    to_id = tokenizer.backend.token_to_id
    detokenizer = IncrementalDetokenizer(tokenizer, [to_id("a"), *emoji[:3]])
    for token_id in (emoji[3], to_id("ab"), to_id("sing")):
        detokenizer.update([token_id])
    assert detokenizer.text == "😀absing"


@pytest.mark.parametrize("make", [byte_fallback, words])
@pytest.mark.parametrize("byte", [0x80, 0xFF, 0xF0])
def test_bytes_that_are_no_text_are_streamed_at_once(make: Any, byte: int) -> None:
    """One U+FFFD for each, when it is sure; no window grows with their number."""
    tokenizer = make()
    spelled = {value: key for key, value in _alphabet().items()}[byte]
    to_id = tokenizer.backend.token_to_id
    token_id = to_id(f"<0x{byte:02X}>") if to_id("<0x00>") is not None else to_id(spelled)
    detokenizer = IncrementalDetokenizer(tokenizer, [to_id("a")])
    for number in range(1, 2001):
        detokenizer.update([token_id])
        assert number - 1 <= len(detokenizer.text) <= number
        assert len(detokenizer._stream._last) <= 5
    detokenizer.update([to_id("b")])
    assert detokenizer.text == "\ufffd" * 2000 + "b"


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=30))
def test_any_bytes_come_out_as_the_decoder_of_the_whole_says(data: bytes) -> None:
    tokenizer = words()
    spelled = {value: key for key, value in _alphabet().items()}
    ids = [tokenizer.backend.token_to_id(spelled[byte]) for byte in data]
    detokenizer = IncrementalDetokenizer(tokenizer, [tokenizer.backend.token_to_id("a")])
    for token_id in ids:
        detokenizer.update([token_id])
    whole = tokenizer.decode(ids)
    assert whole.startswith(detokenizer.text)
    assert set(whole[len(detokenizer.text) :]) <= {"\ufffd"}  # a character that is not whole yet
