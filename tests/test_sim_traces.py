"""Public traces, each in the form in which it is published, and what is said about them."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minivllm.core import SchedulerConfig
from minivllm.sim import Arrival, FixedCost, Simulation, Trace, simulate
from minivllm.sim.__main__ import main
from minivllm.sim.trace_formats import FORMATS, split_name
from minivllm.sim.workload import gap

AZURE_2023 = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:50.9951690,396,109
2023-11-16 18:15:51.2224670,879,55
"""
AZURE_2024 = """TIMESTAMP,ContextTokens,GeneratedTokens
2024-05-10 00:00:00.009930+00:00,2162,5
2024-05-10 00:00:00.017335+00:00,2399,6
2024-05-10 00:00:01+00:00,76,15
2024-05-10 00:00:02.5+00:00,76,0
"""
BURSTGPT = """Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type
5,ChatGPT,472,18,490,Conversation log
45,GPT-4,1087,230,1317,Conversation log
1106,ChatGPT,0,0,0,API log
"""
BURSTGPT_3 = """Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type
5.5,12,1.2,ChatGPT,472,18,490,Conversation log
"""  # noqa: E501
MOONCAKE = """{"timestamp": 27482, "input_length": 6955, "output_length": 52, "hash_ids": [46, 47, 48, 49, 50, 51, 52, 53, 54, 55, 56, 57, 2111, 2112]}
{"timestamp": 30535, "input_length": 6472, "output_length": 26, "hash_ids": [46, 47, 48, 49, 50, 51, 52, 53, 54, 55, 56, 57, 2353]}
"""  # noqa: E501
SHAREGPT = [
    {"id": "a_0", "conversations": [{"from": "human", "value": "x" * 400},
                                    {"from": "gpt", "value": "y" * 80},
                                    {"from": "human", "value": "and?"}]},
    {"id": "b_3", "conversations": [{"from": "gpt", "value": "the end of another answer"}]},
    {"id": "c_0", "conversations": [{"from": "system", "value": "be brief"},
                                    {"from": "human", "value": "z" * 40},
                                    {"from": "gpt", "value": "w" * 8}]},
]  # fmt: skip

PUBLISHED = {
    "azure": ("conv.csv", AZURE_2023,
              [(0, 374, 44, ""), (4.314579, 396, 109, ""), (4.541877, 879, 55, "")]),
    "azure 2024": ("week.csv", AZURE_2024,
                   [(0, 2162, 5, ""), (0.007405, 2399, 6, ""), (0.99007, 76, 15, "")]),
    "burstgpt": ("b.csv", BURSTGPT, [(0, 472, 18, "ChatGPT"), (40, 1087, 230, "GPT-4")]),
    "burstgpt 3": ("b3.csv", BURSTGPT_3, [(0, 472, 18, "ChatGPT")]),
    "mooncake": ("m.jsonl", MOONCAKE, [(0, 6955, 52, ""), (3.053, 6472, 26, "")]),
    "sharegpt": ("s.json", json.dumps(SHAREGPT), [(0, 100, 20, ""), (0, 10, 2, "")]),
}  # fmt: skip


@pytest.mark.parametrize("by_name", [False, True], ids=["by columns", "by name"])
@pytest.mark.parametrize("form", PUBLISHED)
def test_a_published_trace_is_read(form: str, by_name: bool, tmp_path: Path) -> None:
    name, text, expected = PUBLISHED[form]
    path = tmp_path / name
    path.write_text(text)
    trace = Trace.load(f"{form.split()[0]}:{path}" if by_name else str(path))
    found = [(a.time, a.prompt_len, a.output_len, a.kind) for a in trace.arrivals]
    assert found == expected
    assert trace.has_times == (form != "sharegpt")


def test_what_was_done_to_a_trace_is_said(tmp_path: Path) -> None:
    said = {}
    for form, (name, text, _) in PUBLISHED.items():
        (tmp_path / name).write_text(text)
        said[form] = " ".join(Trace.load(tmp_path / name).notes)
    assert "TIMESTAMP: taken as relative" in said["azure"]
    assert "1 rows without prompt or output tokens" in said["azure 2024"]
    assert "Timestamp: taken as relative" in said["burstgpt"]
    assert "1 rows without" in said["burstgpt"]
    assert "timestamp: taken as relative" in said["mooncake"]
    for words in ("no arrival times", "4 characters a token", "1 conversations without"):
        assert words in said["sharegpt"]


def test_tokens_of_conversations_can_be_counted(tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    path.write_text(json.dumps(SHAREGPT))
    trace = Trace.load(path, count_tokens=len)
    assert [(a.prompt_len, a.output_len) for a in trace.arrivals] == [(400, 80), (40, 8)]
    assert not any("characters" in note for note in trace.notes)
    lines = tmp_path / "s.jsonl"
    talks = [
        [{"role": who, "content": text} for who in ("user", "assistant")]
        for text in ("abcd", "abcdefgh")
    ]
    lines.write_text("".join(json.dumps({"messages": talk}) + "\n" for talk in talks))
    assert [a.prompt_len for a in Trace.load(lines).arrivals] == [1, 2]


def test_conversations_arrive_at_a_rate_if_one_is_given() -> None:
    rows = [
        {"conversations": [{"from": "human", "value": "abcd"}, {"from": "gpt", "value": "abcd"}]}
    ]
    trace = Trace.from_rows(50 * rows)
    spread = trace.at_rate(4.0, seed=7)
    rng, time, expected = Random(7), 0.0, []
    for _ in range(50):
        time = round(time + gap(rng, 4.0), 9)
        expected.append(time)
    assert [a.time for a in spread.arrivals] == expected
    assert spread.has_times
    assert not any("arrival times" in note for note in spread.notes)
    with pytest.raises(ValueError, match="rate must be greater than 0"):
        trace.at_rate(0)


@pytest.mark.parametrize(
    ("first", "second", "unit"),
    [
        (1_700_000_000, 1_700_000_002.5, "taken as relative"),
        (1_700_000_000_000, 1_700_000_002_500, "milliseconds"),
        (1_700_000_000_000_000, 1_700_000_002_500_000, "microseconds"),
        (1_700_000_000_000_000_000, 1_700_000_002_500_000_000, "nanoseconds"),
        ("2023-11-14T22:13:20Z", "2023-11-14 23:13:22.500 +0100", "taken as relative"),
        ("2023-11-14 22:13:20", "2023-11-14T22:13:22.5", "taken as relative"),
    ],
)
@pytest.mark.parametrize("in_order", [True, False])
def test_epoch_times_are_relative_and_that_is_said(first, second, unit, in_order) -> None:
    rows = [{"arrival": t, "prompt_len": 5, "output_len": 5} for t in (first, second)]
    trace = Trace.from_rows(rows if in_order else rows[::-1], "t.csv")
    assert [a.time for a in trace.arrivals] == [0, 2.5]
    (note,) = trace.notes
    assert note.startswith("t.csv: arrival: ")
    assert unit in note


def test_times_from_a_start_stay_as_they_are() -> None:
    trace = Trace.from_rows([{"arrival": 3600.25, "prompt_len": 5, "output_len": 5}])
    assert (trace.arrivals[0].time, trace.notes) == (3600.25, ())


# --- prefixes -------------------------------------------------------------------------------


def cached_tokens(arrivals: list[Arrival], num_blocks: int = 10_000) -> list[int]:
    """Of each request, when they come one after another."""
    config = SchedulerConfig(num_gpu_blocks=num_blocks, max_model_len=100_000, block_size=16)
    result = simulate(Trace(tuple(arrivals)), FixedCost(1e-6), config)
    return [r.num_cached_tokens for r in sorted(result.records, key=lambda r: r.index)]


def test_mooncakes_blocks_are_shared_as_its_ids_are(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text(MOONCAKE)
    first, second = Trace.load(path).arrivals
    assert first.prefix_group == second.prefix_group == "46"
    assert first.prefix_len == second.prefix_len == 512
    assert cached_tokens([first, second]) == [0, 12 * 512]


@settings(deadline=None, max_examples=25)
@given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=4), min_size=2, max_size=6))
def test_whatever_branches_what_is_cached_is_the_longest_prefix_seen(branches) -> None:
    """An id stands for its whole path, as a hash of a block in a chain does."""
    known: dict[tuple[int, ...], int] = {}
    arrivals, expected = [], []
    for number, branch in enumerate(branches):
        paths = [tuple(branch[: i + 1]) for i in range(len(branch))]
        expected.append(32 * sum(path in known for path in paths))
        ids = tuple(known.setdefault(path, len(known)) for path in paths)
        arrivals.append(Arrival(float(number), 32 * len(ids) + 1, 1, hash_ids=ids, hash_size=32))
    assert cached_tokens(arrivals) == expected


def test_the_last_id_may_be_cut_and_the_rest_is_a_requests_own() -> None:
    simulation = Simulation(
        Trace((Arrival(0, 5, 1),)), FixedCost(1.0), SchedulerConfig(num_gpu_blocks=10)
    )
    make = simulation._make_request
    cut = make(0, Arrival(0, 7, 1, hash_ids=(8, 9), hash_size=4)).prompt_token_ids
    longer = make(1, Arrival(0, 10, 1, hash_ids=(8, 9), hash_size=4)).prompt_token_ids
    assert list(cut) == list(longer)[:7]
    assert len(longer) == 10
    assert not set(list(longer)[8:]) & set(cut)


def test_a_trace_with_prefixes_is_saved_and_read(tmp_path: Path) -> None:
    trace = Trace((Arrival(0, 900, 1, hash_ids=(3, 70), hash_size=512), Arrival(1, 5, 5)))
    for name in ("t.csv", "t.jsonl"):
        trace.save(tmp_path / name)
        assert Trace.load(tmp_path / name).arrivals == trace.arrivals


# --- what is refused ------------------------------------------------------------------------


def test_a_missing_column_is_named_with_those_found_and_needed(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("arrival,prompt,output_len\n0,5,5\n")
    with pytest.raises(ValueError) as caught:
        Trace.load(path)
    for words in (
        "t.csv, line 2: prompt_len is missing", "found are arrival, prompt, output_len;",
        "needed are arrival, prompt_len, output_len", "azure: TIMESTAMP, ContextTokens",
    ):  # fmt: skip
        assert words in str(caught.value)
    with pytest.raises(ValueError) as caught:
        Trace.load(f"azure:{path}")
    assert "TIMESTAMP, ContextTokens, GeneratedTokens are missing" in str(caught.value)
    assert "mooncake" not in str(caught.value)


def test_other_separators_are_named(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("arrival;prompt_len;output_len\n0;5;5\n")
    with pytest.raises(ValueError, match=r"separated by ';'"):
        Trace.load(path)


def test_columns_that_fit_two_forms_need_a_name() -> None:
    row = dict.fromkeys([*FORMATS["azure"].needed, *FORMATS["mooncake"].needed], 5)
    with pytest.raises(ValueError, match=r"fit azure, mooncake; name one, as in azure:FILE"):
        Trace.from_rows([row])


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("azure:a/b.csv", ("azure", "a/b.csv")),
        ("Mooncake:x.jsonl", ("mooncake", "x.jsonl")),
        ("a/b.csv", (None, "a/b.csv")),
        ("C:\\traces\\b.csv", (None, "C:\\traces\\b.csv")),
        ("odd/na:me.csv", (None, "odd/na:me.csv")),
    ],
)
def test_a_form_is_named_before_a_colon(source, expected) -> None:
    name, path = split_name(source)
    assert (name, str(path)) == expected


def test_an_unknown_form_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'azur'.*known are minivllm, azure, burstgpt, mooncake"):
        Trace.load("azur:x.csv")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (AZURE_2023 + "soon,1,1\n", ("line 5", "TIMESTAMP", "date and time", "'soon'")),
        (AZURE_2023 + "2023-13-16 18:15:46,1,1\n", ("line 5", "TIMESTAMP", "2023-13-16")),
        (AZURE_2023 + "2023-11-16 18:15:46,-1,1\n", ("line 5", "prompt_len", "-1")),
        (AZURE_2023 + "2023-11-16 18:15:46,1.5,1\n", ("line 5", "ContextTokens", "'1.5'")),
        (AZURE_2023.replace(",44", ","), ("line 2", "GeneratedTokens is missing")),
    ],
)
def test_a_bad_row_is_named_by_its_own_column(text, words, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(text)
    with pytest.raises(ValueError) as caught:
        Trace.load(path)
    for word in ("a.csv", *words):
        assert word in str(caught.value)


# --- on the command line --------------------------------------------------------------------


def test_the_command_line_reads_them_and_says_it(tmp_path: Path, capsys) -> None:
    for form, (name, text, expected) in PUBLISHED.items():
        (tmp_path / name).write_text(text)
        assert main(["--trace", f"{form.split()[0]}:{tmp_path / name}"]) == 0
        out, err = capsys.readouterr()
        assert f"{name}, num_requests {len(expected)}" in out
        assert all(line.startswith("python -m minivllm.sim: note: ") for line in err.splitlines())
        assert ("relative" in err) == (form != "sharegpt")
    assert main(["--trace", str(tmp_path / "s.json"), "--rate", "0.5", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["workload"]["name"] == "s.json at 0.5/s"
    assert "characters a token" in err
    assert "arrival times" not in err
    assert main(["--trace", str(tmp_path / "m.jsonl"), "--rate", "2"]) == 2
    assert "--rate means nothing with --trace" in capsys.readouterr().err
