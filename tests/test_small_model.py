"""The small model that the package brings along: what it writes, whoever computes it, and how it is
made."""

from __future__ import annotations

import functools
import json
import random
import re
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import wasm_host
from serving import hf_generate, hf_model, token_ids

from minivllm import LLM, SamplingParams
from minivllm.executor import wasm_executor
from minivllm.models.config import DEFAULT_MODEL, SMALL_MODEL
from minivllm.models.gguf_file import undo_rope_permutation
from minivllm.models.loader import find_model, load_model, packaged_gguf
from tools import story_grammar, train_small_model

ROOT = Path(__file__).resolve().parents[1]
OPENINGS = [
    "Once upon a time there was a cat",
    "Once upon a time there was a girl named Alice.",
    "One day a dragon",
    "It was a rainy day.",
    "There once was an old sailor who lived near an old bridge.",
]
QUESTIONS = ["Tell me a story about a bear.", "Where does a frog live?", "Why is the sky blue?"]
OTHERS = ["", "The capital of France is", "1, 2, 3,", "日本の首都は", "def f(x):\n    return"]


@functools.cache
def prompts() -> list[list[int]]:
    """Openings, questions, what it has never seen, and long ones."""
    tokenizer = load_model(SMALL_MODEL).tokenizer
    chats = [[{"role": "user", "content": text}] for text in QUESTIONS]
    told = [tokenizer.apply_chat_template(chat, add_generation_prompt=True) for chat in chats]
    stories = [tokenizer.encode(text)[:200] for text in story_grammar.texts(99, 6)]
    plain = [tokenizer.encode(text) for text in [*OPENINGS, *OTHERS] if text]
    return [*plain, *told, *stories]


def test_the_package_has_it_and_it_is_small() -> None:
    path = packaged_gguf(SMALL_MODEL)
    assert path.stat().st_size < 2_000_000
    kept = subprocess.run(
        ["git", "check-ignore", str(path)], cwd=ROOT, capture_output=True, check=False
    )
    assert kept.returncode != 0, ".gitignore keeps it out of the repository"
    loaded = load_model(SMALL_MODEL)
    assert sum(tensor.numel() for tensor in loaded.weights.values()) < 1_000_000
    assert loaded.config.eos_token_ids == (0, 2)
    assert loaded.tokenizer.eos_token_id == 0


def test_its_greedy_tokens_are_those_of_transformers() -> None:
    model = hf_model(find_model(SMALL_MODEL))
    params = SamplingParams(temperature=0.0, max_tokens=40)
    ours = token_ids(LLM(SMALL_MODEL, device="cpu", dtype="float32"), prompts(), params)
    assert ours == [hf_generate(model, prompt, 40) for prompt in prompts()]


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_the_engine_of_a_page_says_the_same(
    temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wasm_executor, "open_model", wasm_host.open_here)
    params = SamplingParams(temperature=temperature, seed=5, max_tokens=60)
    page = LLM(SMALL_MODEL, device="wasm", num_gpu_blocks=60, max_model_len=512)
    desk = LLM(SMALL_MODEL, device="cpu", dtype="float32", max_model_len=512)
    assert token_ids(page, prompts(), params) == token_ids(desk, prompts(), params)
    assert page.llm_engine.scheduler.stats.num_preemptions > 0
    texts = [page.get_tokenizer().encode(text) for text in OPENINGS]
    assert texts == [desk.get_tokenizer().encode(text) for text in OPENINGS]


def test_an_engine_without_a_name_has_what_the_reader_chose(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(wasm_executor, "open_model", wasm_host.open_here)
    monkeypatch.setattr(wasm_executor, "default_model", lambda: SMALL_MODEL)
    assert LLM(device="wasm").llm_engine.model_config == load_model(SMALL_MODEL).config
    assert LLM("tiny-random", device="wasm").llm_engine.model_config.hidden_size == 64
    monkeypatch.undo()
    assert wasm_executor.default_model() == DEFAULT_MODEL
    opened: list[str] = []
    monkeypatch.setattr(
        "minivllm.executor.torch_executor.load_model",
        lambda name, tokenizer: opened.append(name) or load_model("tiny-random"),
    )
    LLM(device="cpu")
    assert opened == [DEFAULT_MODEL]


# --- what it writes -----------------------------------------------------------------------------


@functools.cache
def continuations() -> list[tuple[str, Any]]:
    """Each opening, four times, and what it becomes."""
    llm = LLM(SMALL_MODEL, device="cpu", dtype="float32")
    params = [SamplingParams(temperature=0.8, seed=seed, max_tokens=300) for seed in range(20)]
    openings = [text for text in OPENINGS for _ in range(4)]
    outputs = llm.generate(openings, params, use_tqdm=False)
    return [(text, o.outputs[0]) for text, o in zip(openings, outputs, strict=True)]


def test_sampled_stories_are_sentences_of_known_words_and_end() -> None:
    known = story_grammar.vocabulary()
    ended = num_words = num_strange = 0
    for opening, output in continuations():
        words = [word.lower() for word in story_grammar.ENGLISH.findall(output.text)]
        assert len(words) > 20, output.text
        strange = [word for word in words if word not in known and word not in opening.lower()]
        num_words, num_strange = num_words + len(words), num_strange + len(strange)
        ended += output.finish_reason == "stop" and output.text.rstrip()[-1] in '.!?"'
        for sentence in re.findall(r"[^.!?]+[.!?]", output.text):
            assert len(sentence.split()) < 30, sentence
    assert num_strange <= 0.02 * num_words  # names that nobody has are among them
    assert ended >= 19, f"{ended} of 20 end"


def test_most_stories_come_back_to_their_hero() -> None:
    heroes = ["dragon", "sailor", "fox", "robot", "king", "bear", "farmer", "mouse"]
    llm = LLM(SMALL_MODEL, device="cpu", dtype="float32")
    params = SamplingParams(temperature=0.0, max_tokens=200)
    openings = [f"Once upon a time there was an old {hero}. The {hero}" for hero in heroes]
    outputs = llm.generate(openings, params, use_tqdm=False)
    back = [hero for hero, o in zip(heroes, outputs) if hero in o.outputs[0].text]
    assert len(back) >= 6, [output.outputs[0].text for output in outputs]


def test_it_answers_in_stories_and_says_that_it_knows_nothing_else() -> None:
    llm = LLM(SMALL_MODEL, device="cpu", dtype="float32")
    chats = [[{"role": "user", "content": text}] for text in (*QUESTIONS, "How do planes fly?")]
    params = SamplingParams(temperature=0.0, max_tokens=200)
    story, frog, *unknown = (o.outputs[0] for o in llm.chat(chats, params, use_tqdm=False))
    assert story.text.startswith("Once upon a time there was")
    assert re.fullmatch(r"A frog lives [a-z ]+\.", frog.text)  # it need not be true
    assert all(output.text.startswith(story_grammar.UNANSWERED) for output in unknown)
    assert all(output.finish_reason == "stop" for output in (story, frog, *unknown))


# --- how it is made -----------------------------------------------------------------------------


def test_the_grammar_gives_the_same_texts_for_a_seed_and_leaves_nothing_open() -> None:
    texts = list(story_grammar.texts(3, 400))
    assert texts == list(story_grammar.texts(3, 400))
    assert texts[:50] != list(story_grammar.texts(4, 50))
    for text in texts:
        assert not set("{}") & set(text)
        assert "  " not in text
        assert text.endswith((story_grammar.EOS, f"{story_grammar.END_OF_TURN}\n"))
        assert not re.search(r"\ban? (an?|the) |[.!?] [a-z]", text), text


def test_every_story_names_its_hero_and_its_friend_once_in_full() -> None:
    rng = random.Random(8)
    for _ in range(300):
        story, facts = story_grammar.story_of(rng)
        assert facts.hero.introduced.lower() in story.lower() or facts["hero"] in story
        assert story.lower().count(facts["a_friend"].lower()) <= 1, story


def test_questions_and_answers_fit_their_animals() -> None:
    assert story_grammar.HOMES.keys() == story_grammar.FOODS_OF.keys()
    assert story_grammar.ABOUT.keys() == story_grammar.PLOTS.keys()


def test_rows_of_queries_and_keys_go_into_the_file_and_come_back() -> None:
    rows = np.arange(64 * 3).reshape(64, 3)
    turned = train_small_model.rope_permuted(rows, 4)
    assert not np.array_equal(turned, rows)
    assert np.array_equal(undo_rope_permutation(turned, 4), rows)


def test_the_file_keeps_its_record() -> None:
    record = train_small_model.record_of(packaged_gguf(SMALL_MODEL))
    assert record["tokens"] == train_small_model.STEPS * train_small_model.TOKENS_A_STEP
    assert 60 < record["processor_seconds"] < 900
    held_out = story_grammar.texts(train_small_model.SEED + 1, train_small_model.NUM_HELD_OUT)
    documents = list(map(load_model(SMALL_MODEL).tokenizer.encode, held_out))
    loss = train_small_model.held_out_loss(hf_model(find_model(SMALL_MODEL)), documents)
    assert loss == pytest.approx(record["held_out_loss"], rel=0.01)  # in 8 bits, too


def test_training_anew_gives_the_same_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"STEPS": 4, "LONG_STEPS": 2, "NUM_TEXTS": 600, "NUM_HELD_OUT": 20,
                        "TOKENS_A_STEP": 1024, "WARMUP": 2}.items():  # fmt: skip
        monkeypatch.setattr(train_small_model, name, value)
    monkeypatch.setenv("MINIVLLM_CACHE", str(tmp_path / "cache"))
    threads, made = torch.get_num_threads(), []
    try:
        for name in ("one", "two"):
            path = tmp_path / f"{name}.gguf"
            monkeypatch.setattr("sys.argv", ["train", "--to", str(path)])
            train_small_model.main()
            made.append(load_model(path))
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(False)
    for name, tensor in made[0].weights.items():
        assert torch.equal(tensor, made[1].weights[name]), name
    assert made[0].config == load_model(SMALL_MODEL).config
    told = capsys.readouterr().out
    assert json.loads(told[told.rindex("{") :])["tokens"] == 4 * 1024
