"""The list of sentences that no code near them binds: what is in it, and what is not."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest

TOOL = Path(__file__).resolve().parents[1] / "tools" / "unbound_claims.py"
spec = importlib.util.spec_from_file_location("unbound_claims", TOOL)
assert spec
assert spec.loader
tool = importlib.util.module_from_spec(spec)
sys.modules["unbound_claims"] = tool
spec.loader.exec_module(tool)

PAGE = """---
title: 99 is no claim
---

# A page

{prose}

```{{code-cell}} ipython3
:tags: [remove-cell]
{code}
```

## Another section

```{{code-cell}} ipython3
far_away = 77
```

## Exercises

- [13. Thirteen](13.ipynb)
"""


def found(tmp_path: Path, prose: str, code: str, **options: Any) -> list[tuple[str, ...]]:
    page = tmp_path / "page.md"
    page.write_text(PAGE.format(prose=prose, code=code))
    return [claim.unbound for claim in tool.claims(page, **options)]


@pytest.mark.parametrize(
    ("prose", "code"),
    [
        ("It took 28 steps.", "assert steps == 28"),
        ("It took eleven steps.", "assert steps == 11"),
        ("The engine computed 20,000 tokens.", "assert tokens == 20_000"),
        ("It rises to 31%.", "assert round(tax, 2) == 0.31"),
        ("A rate of 2.8 is measured.", "assert abs(rate - 2.84) < 0.001"),
        ("`r3` is the victim.", 'assert victim == "r3"'),
        ("`r3` is the victim.", 'assert victim == f"r{i}"'),
        ("See [chapter 17](17.md), figure 12 and vLLM 0.22.1 on an H100.", "pass"),
        ("The knob `max_num_seqs=77` and $n + 77$.", "pass"),
        ("`running` loses `num_computed_tokens`.", 'print("num_computed_tokens")'),
    ],
)
def test_bound(tmp_path: Path, prose: str, code: str) -> None:
    assert found(tmp_path, prose, code) == []


@pytest.mark.parametrize(
    ("prose", "code", "unbound"),
    [
        ("It took 28 steps.", "assert steps == 27", ("28",)),
        ("It took 77 steps.", "pass", ("77",)),  # the number stands in another section
        ("It rises to 31%.", "assert tax == 0.32", ("31%",)),
        ("`r3` is cheaper than `r2`.", 'assert victim == "r3"', ("r2",)),
        ("`r3` is the victim.", 'print("r3")', ("r3",)),  # shown, and asserted by nobody
        ("- First, 41 tokens.\n- Then none.", "pass", ("41",)),
        ("One line says it is\n41.", "pass", ("41",)),
    ],
)
def test_unbound(tmp_path: Path, prose: str, code: str, unbound: tuple[str, ...]) -> None:
    assert found(tmp_path, prose, code) == [unbound]


def test_what_a_figure_says_of_itself_is_a_claim(tmp_path: Path) -> None:
    assert found(tmp_path, "A figure.", 'show(alt="It meets the line at 300.")') == [("300",)]


def test_strict_takes_no_parameter_for_a_proof(tmp_path: Path) -> None:
    prose, code = "The run takes 16 steps.", "run(num_gpu_blocks=16)"
    assert found(tmp_path, prose, code) == []
    assert found(tmp_path, prose, code, strict=True) == [("16",)]


def test_a_printed_number_binds_if_the_notebook_was_executed(tmp_path: Path) -> None:
    code = 'print("steps", count())'
    cell = {"cell_type": "code", "source": code, "outputs": [{"text": ["steps ", "1,234\n"]}]}
    notebook = tmp_path / "page.ipynb"
    notebook.write_text(json.dumps({"cells": [cell]}))
    assert found(tmp_path, "It took 1234 steps.", code) == [("1234",)]
    assert found(tmp_path, "It took 1234 steps.", code, executed=notebook) == []


def test_the_book_can_be_read(capsys: pytest.CaptureFixture[str]) -> None:
    assert tool.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines
    assert all(line.split(":")[0].endswith(".md") for line in lines)
