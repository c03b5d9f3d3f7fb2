"""No chapter takes longer than it says, nor longer than 25 minutes, at 220 words a minute of prose
and of the code that a reader sees."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

BOOK = Path(__file__).resolve().parents[1] / "book"
CHAPTERS = sorted(path.stem for path in BOOK.glob("[0-9][0-9]-*.md"))
WORDS_A_MINUTE = 220
LONGEST = 25
UNSEEN = ("remove-cell", "remove-input", "hide-input")
NUMBERS = {"ten": 10, "fifteen": 15, "twenty": 20}


def words_of(chapter: str) -> int:
    """The words of a chapter's prose, tables and visible code; links count as their text."""
    text = (BOOK / f"{chapter}.md").read_text(encoding="utf-8")
    text = re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.DOTALL)
    count = 0

    def cell(found: re.Match[str]) -> str:
        nonlocal count
        tags, *code = found[1].split("\n")
        if not any(tag in tags for tag in UNSEEN):
            count += len(re.findall(r"\w+", "\n".join(code)))
        return ""

    text = re.sub(r"^```\{code-cell\}.*?\n(.*?)^```$", cell, text, flags=re.DOTALL | re.M)
    text = re.sub(r"^```\{(stepper|index)\}.*?^```$", "", text, flags=re.DOTALL | re.M)
    text = re.sub(r"\]\([^)]*\)", "]", text)
    return count + len(re.findall(r"[\w'’$\\^{}/.-]*\w[\w'’$\\^{}/.-]*", text))


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_a_chapter_takes_no_longer_than_it_says(chapter: str) -> None:
    minutes = words_of(chapter) / WORDS_A_MINUTE
    assert minutes <= LONGEST
    text = (BOOK / f"{chapter}.md").read_text(encoding="utf-8")
    said = re.search(r"takes\s+about\s+(\w+)\s+minutes", text)
    if said:
        assert minutes <= (NUMBERS.get(said[1]) or int(said[1])), f"{minutes:.1f}"


def test_each_word_of_the_glossary_has_its_meaning_below_it_and_they_are_in_order() -> None:
    text = (BOOK / "glossary.md").read_text(encoding="utf-8")
    entries = text.split("```{glossary}\n")[1].split("\n```")[0].strip("\n").split("\n\n")
    words = [entry.split("\n")[0] for entry in entries]
    for entry in entries:
        assert re.fullmatch(r"\S.*(\n  \S.*)+", entry), entry
    assert words == sorted(words, key=str.lower)
    assert len(set(words)) == len(words)
