"""The page from symptom to knob: what it names exists, and operators find it where they land."""

from __future__ import annotations

import re
from pathlib import Path

BOOK = Path(__file__).resolve().parents[1] / "book"
PAGE = (BOOK / "symptoms.md").read_text(encoding="utf-8")
NAMES = PAGE[PAGE.index("## Names of the metrics and flags") :]
TABLE = PAGE[PAGE.index("## The table") : PAGE.index("## How much work")]
ROWS = [line for line in TABLE.splitlines() if re.match(r"\| \d+ \|", line)]


def listed(pattern: str) -> set[str]:
    return set(re.findall(rf"^\| `({pattern})` \|", NAMES, re.M))


def test_each_metric_and_flag_is_in_the_list_with_its_line() -> None:
    metrics, flags = listed(r"[a-z_]+"), listed(r"--[a-z-]+")
    code = set(re.findall(r"`([^`\n]+)`", PAGE[: PAGE.index("## Names")]))
    assert {name for name in code if name.startswith("--")} <= flags
    knobs = {"max_num_seqs", "max_tokens", "max_model_len", "num_gpu_blocks", "block_size"}
    words = knobs | {"length", "num_preemptions_total", "request_success_total"}
    assert {name for name in code if re.fullmatch(r"[a-z_]+", name)} - words <= metrics
    formula = re.search(r"```text\n(.*?)```", PAGE, re.S)[1]
    used = {name.removesuffix("_total") for name in re.findall(r"\b[a-z]+_[a-z_]+\b", formula)}
    assert used - words <= metrics
    assert all(name in code for name in flags)


def test_each_row_says_all_seven_things_and_the_trees_lead_to_rows() -> None:
    assert [int(row.split("|")[1]) for row in ROWS] == list(range(1, len(ROWS) + 1))
    for row in ROWS:
        number, seen, look, cause, knob, risk, chapter = (
            cell.strip() for cell in row.strip("|").split("|")
        )
        assert seen
        assert look
        assert cause
        assert knob
        assert risk or number == "11"
        for page in re.findall(r"\]\(([^)#]+\.md)\)", chapter):
            assert (BOOK / page).is_file()
        assert re.search(r"\[\d+\]\(", chapter)
    trees = PAGE[: PAGE.index("## The table")]
    assert max(int(n) for n in re.findall(r"row (\d+)", trees)) <= len(ROWS)


def test_operators_find_it_from_where_they_land() -> None:
    landing = ("index", "paths", "06-preemption", "09-seeing-the-engine",
               "10-load-latency-littles-law", "11-admission-and-never-fits", "13-interview-drill",
               "12-gpu-and-vllm", "17-your-own-server", "playground")  # fmt: skip
    missing = [p for p in landing if "(symptoms.md" not in (BOOK / f"{p}.md").read_text()]
    assert not missing
