"""What chapters share besides figures: quoted code, and a scheduler that runs alone."""

from __future__ import annotations

import base64
import re
import textwrap
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minivllm.core import Request, SamplingParams, Scheduler, SchedulerConfig
from minivllm.runs.drive import drive, drive_scenario
from minivllm.runs.explain import explain
from minivllm.runs.scenarios import SCENARIOS
from minivllm.stepper.session import record
from minivllm.viz.source import excerpt, excerpt_of_file
from minivllm.viz.words import download, link, say, table, tell

ROOT = Path(__file__).resolve().parents[1]


def quoted() -> int:
    first = 1
    if first:
        second = 2
    return first + second


def test_an_excerpt_is_the_lines_asked_for_without_their_indentation() -> None:
    found = excerpt(quoted, "if first", "second = 2")
    assert repr(found) == "if first:\n    second = 2"
    assert found._repr_markdown_() == f"{found.caption}\n\n```python\n{found.code}\n```"
    assert repr(excerpt(quoted, "first = 1", "= 1")) == "first = 1"


def test_an_excerpt_says_what_it_leaves_out_and_keeps_its_line_numbers() -> None:
    whole = excerpt(quoted, "first = 1", "return first")
    short = excerpt(quoted, "first = 1", "return first", without=[("if first", "second = 2")])
    assert repr(short) == "first = 1\n# (2 lines left out)\nreturn first + second"
    assert short.caption == whole.caption
    one = excerpt(quoted, "first = 1", "return first", without=[("first = 1", "= 1")])
    assert repr(one).startswith("# (1 line left out)\nif first")
    with pytest.raises(ValueError, match="'third' is in 0 lines"):
        excerpt(quoted, "first = 1", "return first", without=[("third", "third")])


def test_an_excerpt_of_a_file_needs_no_import() -> None:
    found = excerpt_of_file("models/attention/triton.py", "block = tl.load(table", "slot = ")
    assert repr(found).splitlines()[0].startswith("block = tl.load(table")
    with pytest.raises(ValueError, match="'nowhere' is in 0 lines of models"):
        excerpt_of_file("models/attention/triton.py", "nowhere", "slot = ")


QUOTED = [
    (lambda: excerpt(Scheduler._preempt_request, "assert request.status", "prepend_request"),
     "minivllm/core/scheduler.py", "Scheduler._preempt_request"),
    (lambda: excerpt(Request.num_tokens.fget, "return len(", "num_output_placeholders"),
     "minivllm/core/request.py", "Request.num_tokens"),
    (lambda: excerpt(Request, "def num_tokens(", "def num_tokens("),
     "minivllm/core/request.py", "Request"),
    (lambda: excerpt_of_file("models/attention/triton.py", "scores = tl.dot", "highest = new"),
     "minivllm/models/attention/triton.py", "paged_attention_kernel"),
    (lambda: excerpt_of_file("models/attention/triton.py", "DECODE_KEYS = ", "DECODE_KEYS"),
     "minivllm/models/attention/triton.py", ""),
    (lambda: excerpt_of_file("models/cpu_kernels.c", "for (int64_t panel = 0; panel < out_features",
                             "to[k * PANEL + o] = "), "minivllm/models/cpu_kernels.c", "pack"),
    (lambda: excerpt_of_file("models/cpu_kernels.c", "places[t] = keys + (table[block]",
                             "places[t] = keys"), "minivllm/models/cpu_kernels.c", "find_keys"),
    (lambda: excerpt_of_file("models/cpu_kernels.c", '"GCC unroll 4") for (int64_t k',
                             "sums[r][v] += of_row"), "minivllm/models/cpu_kernels.c", "tile"),
]  # fmt: skip


@pytest.mark.parametrize(("quote", "path", "name"), QUOTED)
def test_an_excerpt_says_where_it_is_and_it_is_there(quote, path: str, name: str) -> None:
    found = quote()
    assert (found.path, found.name) == (path, name)
    lines = (ROOT / path).read_text(encoding="utf-8").splitlines()
    numbers = [int(number) for number in re.findall(r"\d+", found.caption.rpartition(",")[2])]
    there = "\n".join(lines[numbers[0] - 1 : numbers[-1]])
    assert textwrap.dedent(there) == found.code
    # The function really has those lines: its definition stands before them, no other between.
    before = [re.findall(rf"\b{name.rpartition('.')[2]}\(", line) for line in lines[: numbers[0]]]
    assert any(before) or not name or name == "Request"


def test_an_excerpt_of_what_is_in_no_file_of_ours_names_none() -> None:
    found = excerpt(textwrap.dedent, "def dedent", "def dedent")
    assert found.path == ""
    assert found._repr_markdown_().startswith("```python\n")


@pytest.mark.parametrize(
    ("first", "last"), [("third", "return"), ("first", "return"), ("if first", "first = 1")]
)
def test_an_excerpt_that_is_not_there_is_an_error(first: str, last: str) -> None:
    with pytest.raises(ValueError, match="quoted"):
        excerpt(quoted, first, last)


@pytest.mark.parametrize("name", ["cramped", "head-of-line", "priority-inversion"])
def test_a_driven_scheduler_decides_as_the_stepper_does(name: str) -> None:
    """With prefix caching off, what the tokens say changes nothing."""
    scheduler = drive_scenario(name)
    recorded = record(SCENARIOS[name])["steps"]
    assert len(scheduler.history) == len(recorded)
    for own, other in zip(scheduler.history.steps, recorded):
        assert own["scheduled"] == other["scheduled"]
        assert own["events"] == other["events"]
        assert own["blocks"] == other["blocks"]


@settings(max_examples=50, deadline=None)
@given(
    arrivals=st.lists(
        st.tuples(st.integers(0, 20), st.integers(1, 30), st.integers(1, 12)), max_size=8
    )
)
def test_everyone_driven_gets_all_tokens(arrivals: list[tuple[int, int, int]]) -> None:
    requests = [
        (step, Request(str(i), [i] * prompt, SamplingParams(max_tokens=output)))
        for i, (step, prompt, output) in enumerate(arrivals)
    ]
    config = SchedulerConfig(num_gpu_blocks=12, block_size=4, max_num_batched_tokens=16)
    scheduler = drive(Scheduler(config), requests)
    assert not scheduler.has_unfinished_requests()
    for step, request in requests:
        assert request.num_output_tokens == request.max_tokens
        assert (request.metrics.arrival_step or 0) >= step
    tokens = [token for _, request in requests for token in request.output_token_ids]
    assert len(set(tokens)) == len(tokens)


def test_a_run_that_would_not_end_is_stopped() -> None:
    config = SchedulerConfig(num_gpu_blocks=1, block_size=4, admission_control=False)
    scheduler = drive(Scheduler(config), [(0, Request("r", [1] * 9))], max_steps=7)
    assert scheduler.step == 7
    assert scheduler.has_unfinished_requests()


def test_a_scenario_is_driven_under_other_knobs() -> None:
    assert drive_scenario("cramped").stats.num_preemptions > 0
    assert drive_scenario(SCENARIOS["cramped"], num_gpu_blocks=64).stats.num_preemptions == 0


def test_a_step_is_told_in_its_own_sentences() -> None:
    snapshot = drive_scenario("cramped").history[5]
    words = tell(snapshot)
    assert repr(words).splitlines() == [f"- {sentence}" for sentence in explain(snapshot)]
    assert words._repr_html_().count("<li>") == len(explain(snapshot))


def test_a_table_shows_every_cell_and_escapes_it() -> None:
    words = table(["name", "n"], [["a<b", 1], ["c", 20]])
    assert repr(words).splitlines() == ["name   n", "a<b    1", "c     20"]
    markup = words._repr_html_()
    assert "a&lt;b" in markup
    assert markup.count("<tr>") == 3
    assert markup.count("text-align:right") == 3  # the numbers, and their heading


def test_a_cell_may_be_a_link() -> None:
    words = table(["where"], [[link("a_b.py:1", "https://example.org/?a=1&b=2")]])
    assert '<a href="https://example.org/?a=1&amp;b=2">a_b.py:1</a>' in words._repr_html_()
    assert repr(words) == "where\na_b.py:1"


def test_a_message_is_escaped() -> None:
    assert say("1 < 2")._repr_html_() == "<blockquote><p>1 &lt; 2</p></blockquote>"


def test_a_download_holds_its_file() -> None:
    text = '{"a": "ä"}'
    markup = download("run.json", text, "the run")._repr_html_()
    assert 'download="run.json"' in markup
    data = markup.split("base64,")[1].split('"')[0]
    assert base64.b64decode(data).decode() == text


def test_a_row_that_does_not_fit_its_header_is_an_error() -> None:
    with pytest.raises(ValueError, match="2 cells, the header 1"):
        table(["only"], [[1, 2]])
