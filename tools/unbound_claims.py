"""List the book's sentences that state a number, or name a request, unknown to the code near them.

    python tools/unbound_claims.py                       every chapter
    python tools/unbound_claims.py --strict book/06*.md  only assertions and assignments bind
    python tools/unbound_claims.py --executed DIR        printed numbers bind too; DIR has executed
                                                         notebooks: _build/jupyter_execute/book

Near is: between the same two `##` headings. A number is bound if a cell there contains it, or
prints it; a request's name, if an assertion there mentions it. That is a hint for editors, not a
proof: a bound sentence can be wrong (an assertion about the victim says nothing of the others), and
an unbound one right. So a person reads the list, and the exit status is 0 whatever it holds.
"""

from __future__ import annotations

import argparse
import ast
import json
import keyword
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NUMBER_WORDS = {
    "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10,
    "eleven": 11, "twelve": 12, "thirteen": 13, "fourteen": 14, "fifteen": 15, "sixteen": 16,
    "seventeen": 17, "eighteen": 18, "nineteen": 19, "twenty": 20,
}  # fmt: skip
"""`one` and `two` are left out: they are seldom counts."""

NUMBER = re.compile(r"(?<![\w.$§])\d[\d,]*(?:\.\d+)?(?:\s?%)?(?![\w-]*\])")
NAME = re.compile(r"`([A-Za-z]\w*)`")
LINK = re.compile(r"!?\[([^\]]*)\]\([^)]*\)")
NOISE = (
    re.compile(r"\$[^$]*\$"),  # a formula
    re.compile(r"`[^`]*[=:./][^`]*`"),  # code: a knob with its value, a file with its line
    re.compile(r"\b[\w/]+\.py:\d+"),
    re.compile(
        r"(?i)\b(?:chapters?|exercises?|cards?|figures?|fig\.|tables?|parts?|v|vllm)\s*\d[\d.]*"
    ),
    re.compile(r"\b\d+\.\d+\.\d+\b"),  # a release
    re.compile(r"\b(?:19|20)\d\d\b"),
    re.compile(r"about (?:\d+|a quarter of an) minutes"),  # what a chapter takes to read
    re.compile(r"\b[A-Za-z]+-?\d+[A-Za-z]*(?:-\d+\w*)*\b"),  # H100, GPT-3, Llama-3-8B
    re.compile(r"\b\d+(?:-bit|[BMK]\b)"),
)
SENTENCE = re.compile(r"(?<=[.!?:])(?:[)\"*]*)\s+(?=[A-Z`*(\"])")


@dataclass
class Evidence:
    """What the code of a section mentions."""

    numbers: set[float] = field(default_factory=set)
    strings: set[str] = field(default_factory=set)
    stems: set[str] = field(default_factory=set)
    """What an f-string begins with: f"r{i}" speaks of r0, r1, ..."""

    def add(self, tree: ast.AST) -> None:
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr) and node.values:
                first = node.values[0]
                if isinstance(first, ast.Constant) and isinstance(first.value, str):
                    self.stems.add(first.value)
            elif isinstance(node, ast.Constant):
                if isinstance(node.value, str):
                    self.strings.add(node.value)
                elif isinstance(node.value, (int, float)) and not isinstance(node.value, bool):
                    self.numbers.add(float(node.value))

    def has_number(self, text: str) -> bool:
        """Whether `text`, as the prose writes it, is one of the numbers, or one of them rounded."""
        digits = text.rstrip("% ").replace(",", "")
        value = float(NUMBER_WORDS[text]) if text in NUMBER_WORDS else float(digits)
        wanted = [value, value / 100] if text.endswith("%") else [value]
        decimals = len(digits.partition(".")[2]) if text not in NUMBER_WORDS else 0
        places = [decimals, decimals + 2]
        return any(
            number == target or (number != int(number) and round(number, place) == round(target, 9))
            for number in self.numbers
            for target, place in zip(wanted, places)
        )

    def has_name(self, name: str) -> bool:
        stem = name.rstrip("0123456789")
        return name in self.strings or (stem != name and stem in self.stems)


@dataclass(frozen=True)
class Claim:
    """A sentence with something that nothing near it knows."""

    where: str
    unbound: tuple[str, ...]
    sentence: str

    def __str__(self) -> str:
        return f"{self.where}: {', '.join(self.unbound)}: {self.sentence}"


@dataclass
class Section:
    sentences: list[tuple[int, str]] = field(default_factory=list)
    in_code: Evidence = field(default_factory=Evidence)
    asserted: Evidence = field(default_factory=Evidence)


def printed_numbers(notebook: Path) -> dict[str, set[float]]:
    """Of an executed notebook: each cell's source, and the numbers in its output."""
    found: dict[str, set[float]] = {}
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        text = []
        for output in cell.get("outputs", []):
            text += [output.get("text", ""), output.get("data", {}).get("text/plain", "")]
        words = " ".join("".join(part) for part in text)
        numbers = {float(n.rstrip("% ").replace(",", "")) for n in NUMBER.findall(words)}
        found["".join(cell["source"]).strip()] = numbers
    return found


def _sections(text: str, printed: dict[str, set[float]]) -> tuple[list[Section], set[str]]:
    """The page's sections, and every string of its code."""
    sections, strings = [Section()], set()
    lines = iter(enumerate(text.splitlines(), 1))
    paragraph: list[str] = []
    start = 0

    def close() -> None:
        if paragraph:
            words = LINK.sub(r"\1", " ".join(paragraph))
            sections[-1].sentences.extend((start, one) for one in SENTENCE.split(words))
            paragraph.clear()

    if text.startswith("---"):
        next(lines)
        for _, line in lines:
            if line == "---":
                break
    for number, line in lines:
        fence = re.match(r"(`{3,}|:{3,})(.*)", line)
        if fence and "admonition" not in fence[2] and fence[2]:
            close()
            body = []
            for _, inner in lines:
                if inner.startswith(fence[1]):
                    break
                body.append(inner)
            if "code-cell" in fence[2]:
                source = "\n".join(row for row in body if not row.startswith(":")).strip()
                tree = ast.parse(source)
                section = sections[-1]
                section.in_code.add(tree)
                section.in_code.numbers |= printed.get(source, set())
                for node in ast.walk(tree):
                    if isinstance(node, (ast.Assert, ast.Assign)):
                        section.asserted.add(node)
                    if isinstance(node, ast.keyword) and node.arg == "alt":
                        for alt in ast.walk(node.value):
                            if isinstance(alt, ast.Constant) and isinstance(alt.value, str):
                                sentences = SENTENCE.split(alt.value)
                                section.sentences += [(number, one) for one in sentences]
                strings |= {
                    n.value
                    for n in ast.walk(tree)
                    if isinstance(n, ast.Constant) and isinstance(n.value, str)
                }
        elif line.startswith("## "):
            close()
            if line == "## Exercises":
                break
            sections.append(Section())
        elif not line.strip() or line.startswith(("|", "#", ":", "```", "$$")):
            close()
        else:
            item = re.match(r"\s*(?:[-*]|\d+\.)\s+(.*)", line)
            if item:
                close()
            start = start if paragraph else number
            paragraph.append(item[1] if item else line.strip())
    close()
    return sections, strings


def _is_request(name: str, strings: set[str]) -> bool:
    """Whether the page's code has it as data, and it is no knob, attribute or keyword."""
    if re.fullmatch(r"r\d+", name):
        return True
    return name in strings and "_" not in name and not keyword.iskeyword(name)


def claims(path: Path, *, strict: bool = False, executed: Path | None = None) -> Iterator[Claim]:
    """The sentences of a page that nothing near them binds, in the page's order.

    Args:
        path: a chapter, as a MyST Markdown notebook.
        strict: only what assertions and assignments mention binds a number.
        executed: the same chapter as an executed notebook, whose outputs bind numbers too.
    """
    printed = printed_numbers(executed) if executed else {}
    sections, strings = _sections(path.read_text(encoding="utf-8"), printed)
    for section in sections:
        numbers = section.asserted if strict else section.in_code
        for line, sentence in section.sentences:
            bare = sentence
            names = [n for n in NAME.findall(bare) if _is_request(n, strings)]
            for noise in NOISE:
                bare = noise.sub(" ", bare)
            bare = re.sub(r"`[^`]*`", " ", bare)
            mentioned = [n.rstrip(", ") for n in NUMBER.findall(bare)]
            mentioned += [w for w in re.findall(r"[a-z]+", bare.lower()) if w in NUMBER_WORDS]
            unbound = [n for n in mentioned if not numbers.has_number(n)]
            unbound += [n for n in names if not section.asserted.has_name(n)]
            if unbound:
                yield Claim(f"{path.name}:{line}", tuple(dict.fromkeys(unbound)), sentence)


def main(arguments: Iterable[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("pages", nargs="*", type=Path, help="default: every chapter")
    parser.add_argument("--strict", action="store_true", help="only assertions bind a number")
    parser.add_argument("--executed", type=Path, help="folder of executed notebooks")
    args = parser.parse_args(list(arguments) if arguments is not None else None)
    total = 0
    for page in args.pages or sorted((ROOT / "book").glob("[0-9]*.md")):
        notebook = args.executed / f"{page.stem}.ipynb" if args.executed else None
        if notebook and not notebook.exists():
            parser.error(f"--executed: {notebook} does not exist")
        for claim in claims(page, strict=args.strict, executed=notebook):
            total += 1
            print(claim)
    print(f"{total} sentences to read", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
