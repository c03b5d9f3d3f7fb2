"""Citations of vLLM: each is in the table, and the checker notices when one is not.

Whether the table is true to vLLM's files is checked by `make upstream-check`, which downloads them.
"""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).resolve().parents[1] / "tools" / "check_upstream.py"
spec = importlib.util.spec_from_file_location("check_upstream", TOOL)
check_upstream = importlib.util.module_from_spec(spec)
sys.modules["check_upstream"] = check_upstream
spec.loader.exec_module(check_upstream)


@pytest.fixture
def table():
    return json.loads(check_upstream.TABLE.read_text())


def test_every_citation_is_in_the_table_and_every_entry_is_cited(table):
    assert check_upstream.check_table(table) == []


def test_lines_of_vllm_that_chapter_4_shows_are_vllms(table):
    page = TOOL.parents[1] / "book" / "04-one-step-of-the-scheduler.md"
    block = re.search(r"^```python\n((?:\d+  .*\n)+)```$", page.read_text(), re.MULTILINE)
    shown = dict(line.split(maxsplit=1) for line in block[1].splitlines())
    theirs = table["vllm/v1/core/sched/scheduler.py"]
    assert shown == {number: theirs[number] for number in shown}
    assert len(shown) == 10


@pytest.fixture
def source(tmp_path):
    (tmp_path / "minivllm").mkdir()

    def write(text):
        (tmp_path / "minivllm" / "module.py").write_text(text)
        return tmp_path

    return write


def test_what_the_checker_finds(source):
    table = {"vllm/v1/request.py": {"59": "class Request:"}}
    assert check_upstream.check_table(table, source("see vllm/v1/request.py:59")) == []
    assert check_upstream.check_table(table, source("see request.py:59")) == []
    link = "https://github.com/vllm-project/vllm/blob/v0.22.1/vllm/v1/request.py#L59"
    assert check_upstream.check_table(table, source(link)) == []

    (missing, unused) = check_upstream.check_table(table, source("vllm/v1/request.py:60"))
    assert "cites vllm/v1/request.py:60" in missing
    assert "nobody cites vllm/v1/request.py:59" in unused
    with pytest.raises(ValueError, match=r"link to v0\.9\.0"):
        check_upstream.check_table(table, source(link.replace("v0.22.1", "v0.9.0")))
    with pytest.raises(ValueError, match=r"nowhere\.py could be no file"):
        check_upstream.check_table(table, source("nowhere.py:3"))


def test_a_line_that_moved_is_found(tmp_path):
    file = tmp_path / "vllm" / "v1" / "request.py"
    file.parent.mkdir(parents=True)
    file.write_text("import enum\n\nclass Request:\n")
    assert (
        check_upstream.check_files({"vllm/v1/request.py": {"3": "class Request:"}}, tmp_path) == []
    )
    for table in (
        {"vllm/v1/request.py": {"2": "class Request:"}},
        {"vllm/v1/request.py": {"9": "class Request:"}},
        {"vllm/v1/gone.py": {"1": ""}},
    ):
        assert len(check_upstream.check_files(table, tmp_path)) == 1
