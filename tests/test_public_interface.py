"""What other people's code relies on changes on purpose or not at all."""

from __future__ import annotations

import re

import pytest

from tools import public_interface


def test_the_interface_is_the_listed_one():
    for module in ("torch", "anywidget"):
        pytest.importorskip(module)
    now, listed = public_interface.listing(), public_interface.FILE.read_text(encoding="utf-8")
    gone = sorted(set(listed.splitlines()) - set(now.splitlines()))
    new = sorted(set(now.splitlines()) - set(listed.splitlines()))
    assert now == listed, (
        "the public interface has changed. If that is meant: say it in CHANGELOG.md, run\n"
        "    python tools/public_interface.py\n"
        "and commit tests/data/public-interface.txt.\n"
        + "\n".join([*(f"- {line}" for line in gone), *(f"+ {line}" for line in new)])
    )


class Thing:
    """Stands in for a public class."""

    width: int = 3

    def method(self, first: str = "a", *, then: object = object()) -> None:
        """A method."""

    def _hidden(self) -> None:
        """No promise."""


Thing.__module__ = "minivllm.thing"


def test_a_name_a_default_and_an_annotation_are_in_the_listing(monkeypatch):
    lines = list(public_interface.described("Thing", Thing))
    assert lines == [
        "Thing()",
        "Thing.method(self, first: str = 'a', *, then: object = <object>) -> None",
        "Thing.width",
    ]
    monkeypatch.setattr(Thing, "extra", property(lambda self: 1), raising=False)
    assert "Thing.extra" in public_interface.described("Thing", Thing)


def test_no_address_of_this_machines_memory_is_in_it():
    assert not re.search(r"0x[0-9a-f]{6}", public_interface.FILE.read_text(encoding="utf-8"))
