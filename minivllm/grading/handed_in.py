"""Find what was handed in: folders, a course system's export of them, zip files.

Recognised, as the systems export them:

- a folder for each submission, as Moodle, GitHub Classroom or a `git clone` for each make them,
  with the notebooks in it, in `exercises/`, or further in (a repository inside);
- Canvas's flat download, whose files are `lovelaceada_12345_67890_04_the_clamp.ipynb`, with `LATE_`
  and a `-1` for another attempt; Moodle's without folders; Blackboard's;
- files in a DIR whose names have more than one person's name beside the exercise's, as Google
  Classroom's may (`Ada - 04_the_clamp.ipynb`);
- nbgrader's tree, `submitted/STUDENT/ASSIGNMENT/`, from its course folder too, and the folders
  `STUDENT+ASSIGNMENT+TIMESTAMP` of its exchange: of several the newest counts;
- a zip file in place of any folder.

A notebook is known by its name, with what browsers and editors add to it (`04_the_clamp (1).ipynb`,
`Copy of …`), else by the exercise that its own metadata name. Symbolic links are not followed: one
that was handed in could point at the solutions.
"""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from minivllm.grading.judge import ROOT, exercises
from minivllm.grading.submission import MAX_NOTEBOOK, exercise_in

MAX_DEPTH = 6  # folders below a submission's own
MAX_LISTED = 20_000  # files and folders looked at below one DIR
MAX_UNPACKED = 200_000_000  # bytes of the notebooks in one zip file

RENAMED = {
    "Canvas's renamed files": re.compile(
        r"(?P<who>[^_]+)_(?:LATE_)?(?P<user>\d+)_(?P<attempt>\d+)_.+"
    ),
    "Moodle's files without folders": re.compile(
        r"(?P<who>.+?)_(?P<user>\d+)_assignsubmission_file_(?P<attempt>).+"
    ),
    "Blackboard's renamed files": re.compile(
        r".+?_(?P<who>[^_]+)(?P<user>)_attempt_(?P<attempt>\d{4}(?:-\d\d){5})_.+"
    ),
}
PEOPLE = "files named for people"
COPY = re.compile(r"(?i)\bcopy of\b|-?\bcopy\d*\b|\(\d+\)|-\d+$")  # what editors and browsers add
EXCHANGE = re.compile(r"(?P<who>[^+]+)\+[^+]+\+20\d\d-\d\d-\d\d.*")
TIME = re.compile(r"20\d\d\D?\d\d\D?\d\d(?:\D?\d\d){0,3}")
HIDDEN = (".", "__")  # .git, .ipynb_checkpoints, __MACOSX
NOTHING = "no notebook named like an exercise"


@dataclass
class HandedIn:
    """One submission.

    Attributes:
        name: Who handed it in, as far as names of folders and files tell.
        folder: Where it was found.
        notebooks: The file of each exercise that is there.
        recognised: As what it was recognised.
    """

    name: str
    folder: Path
    notebooks: dict[str, Path]
    recognised: str = "a folder"


def find_submissions(
    folders: Iterable[Path], names: list[str], scratch: Path
) -> tuple[list[HandedIn], list[str]]:
    """The submissions in `folders`, and what was passed over.

    Args:
        names: Of the exercises, "04_the_clamp".
        scratch: An empty folder for what zip files hold; keep it while the notebooks are read.

    Raises:
        FileNotFoundError: There is no notebook of an exercise.
    """
    search = Search(names, scratch)
    found = [one for folder in folders for one in search.look_at(folder)]
    passed_over = list(dict.fromkeys(search.passed_over))
    if not found:
        raise FileNotFoundError("; ".join(passed_over) or "no folder to look in")
    called = [one.name for one in found]
    for one in found:  # two of the same name are told apart by their paths
        if called.count(one.name) > 1:
            own = one.recognised in (*RENAMED, PEOPLE)
            one.name = str(one.folder / one.name if own else one.folder)
    return found, passed_over


class Search:
    """What is looked for, and what was passed over so far."""

    def __init__(self, names: list[str], scratch: Path) -> None:
        self.names = names
        self.scratch = scratch
        self.passed_over: list[str] = []
        self.num_listed = 0
        self.num_unpacked = 0

    def look_at(self, folder: Path) -> list[HandedIn]:
        """The submissions in a DIR."""
        self.num_listed = 0
        if folder.suffix == ".zip" and folder.is_file() and not folder.is_symlink():
            folder = self._unpacked(folder)
        if folder.is_symlink() or not folder.is_dir():
            self._pass(folder, "not a folder or a zip file, or a symbolic link")
            return []
        found = self._directly_in(folder, people=True)
        if any(one.recognised not in (*RENAMED, PEOPLE) for one in found):
            return found
        tree = folder / "submitted"  # in nbgrader's folder of a course
        folder = tree if not found and tree.is_dir() and not tree.is_symlink() else folder
        children: dict[str, list[Path]] = {}
        for name, child in self._children(folder):
            children.setdefault(name, []).append(child)
        empty = []
        for name, places in children.items():
            below = self._of_one(name, places)
            found += below
            empty += places if not below else []
        for place in empty if found else ():
            self._pass(place, NOTHING)
        if not found:
            self._pass(folder, f"{NOTHING} ({self.names[0]}.ipynb …)")
        return found

    def _of_one(self, name: str, places: list[Path]) -> list[HandedIn]:
        """What is below the folders of one name: one submission where that is beyond doubt."""
        found = [one for place in places for one in self._below(place)]
        first, exchange = places[0], EXCHANGE.fullmatch(places[0].name)
        if any(one.recognised in RENAMED for one in found) or not found:
            return found
        above = first.parent if exchange else first
        paths = [
            one.folder.relative_to(
                above if one.folder.is_relative_to(above) else self.scratch
            ).as_posix()
            for one in found
        ]
        times = [max(TIME.findall(path), default="") for path in paths]
        dated = all(times) and len(set(times)) == len(found)
        num_notebooks = sum(len(one.notebooks) for one in found)
        twice = num_notebooks > len({n for one in found for n in one.notebooks})
        nbgrader = first.parent.name == "submitted"
        parts_of_one = exchange or nbgrader or all(_is_assignment(one) for one in found)
        if len(found) > 1 and not (parts_of_one and (dated or not twice)):
            for one, path in zip(found, paths):
                one.name = f"{name}/{path}" if len(places) == 1 else name
            return found
        whole = HandedIn(name, found[-1].folder, {})
        for _, one in sorted(zip(times, found), key=lambda pair: pair[0]):
            for exercise, notebook in one.notebooks.items():
                if exercise in whole.notebooks:
                    self._pass(whole.notebooks[exercise], "an earlier attempt")
                whole.notebooks[exercise] = notebook
        if exchange or nbgrader:
            whole.recognised = f"nbgrader's {'exchange' if exchange else 'tree'}"
        elif whole.folder not in (first, first / "exercises"):
            whole.recognised = "a folder with the notebooks further in"
        return [whole]

    def _below(self, folder: Path, depth: int = 0) -> list[HandedIn]:
        """The submissions in a folder, or in those in it, as far down as none is found."""
        if folder.is_symlink() or not folder.is_dir():
            return []
        found = self._directly_in(folder)
        if not found and depth < MAX_DEPTH:
            for _, child in self._children(folder):
                found += self._below(child, depth + 1)
        return found

    def _directly_in(self, folder: Path, people: bool = False) -> list[HandedIn]:
        """The submissions whose notebooks are in `folder`, or in `folder/exercises`."""
        for place in (folder, folder / "exercises"):
            found = [] if place.is_symlink() or not place.is_dir() else self._files(place, people)
            if found:
                return found
        return []

    def _files(self, place: Path, people: bool) -> list[HandedIn]:
        """The submissions in a folder: its own, and of those whom its files' names name.

        Args:
            people: Whether names beside the exercise's may be those of several people.
        """
        own = {n: path for n in self.names if os.path.lexists(path := place / f"{n}.ipynb")}
        found: dict[str, HandedIn] = {"": HandedIn(_called(place), place, own)}
        order: dict[Path, list[int]] = {}
        exercise_of = {
            path: self._exercise_of(path)
            for path in self._listed(place)
            if path.suffix == ".ipynb" and path.is_file() and not path.is_symlink()
        }
        beside = {
            path: COPY.sub("", path.stem.replace(exercise, " ")).strip(" _-,.")
            for path, exercise in exercise_of.items()
            if people and not own and exercise and exercise in path.stem
            if not _renamed(path.name)[1]
        }
        several = len({name for name in beside.values() if name}) > 1
        for path, exercise in exercise_of.items():
            if own.get(exercise) == path:
                continue
            if not exercise:
                if path.stem not in exercises():  # of one that --only leaves out, nothing is said
                    self._pass(path, "a notebook of no exercise")
                continue
            system, match = _renamed(path.name)
            who = f"{match['who']}_{match['user']}".rstrip("_") if match else ""
            if several and beside.get(path):
                who, system = beside[path], PEOPLE
            notebooks = found.setdefault(who, HandedIn(who, place, {}, system)).notebooks
            attempt = re.sub(r"\D", "", match["attempt"]) if match else ""
            order[path] = [int(attempt or 0), *map(int, re.findall(r"\d+", path.stem))]
            other = notebooks.get(exercise)
            if other is None or (other in order and order[other] < order[path]):
                notebooks[exercise] = path
            if other is not None:
                left_out = other if notebooks[exercise] == path else path
                self._pass(left_out, f"{notebooks[exercise].name} is graded")
        return [one for one in found.values() if one.notebooks]

    def _exercise_of(self, path: Path) -> str:
        """The exercise of a notebook, by its name or by its metadata; empty if it is of none."""
        for name in self.names:
            if re.search(rf"(?<![0-9]){re.escape(name)}(?![0-9a-z])", path.stem):
                return name
        named = exercise_in(path)
        return named if named in self.names else ""

    def _children(self, folder: Path) -> Iterator[tuple[str, Path]]:
        """Whose they are, and the folders in a folder; a zip file unpacked is one."""
        for path in self._listed(folder):
            if path.suffix == ".zip" and path.is_file() and not path.is_symlink():
                match = _renamed(path.name)[1]
                yield (
                    (f"{match['who']}_{match['user']}" if match else path.stem),
                    self._unpacked(path),
                )
            elif path.is_symlink() or path.is_dir():
                match = EXCHANGE.fullmatch(path.name)
                yield (match["who"] if match else path.name), path

    def _listed(self, folder: Path) -> list[Path]:
        """What is in a folder, in order, without what is hidden."""
        try:
            paths = sorted(path for path in folder.iterdir() if not path.name.startswith(HIDDEN))
        except OSError as error:
            self._pass(folder, f"cannot be read: {error.strerror}")
            return []
        self.num_listed += len(paths)
        if self.num_listed > MAX_LISTED:
            self._pass(folder, f"not looked at: more than {MAX_LISTED:,} files in one DIR")
            return []
        return paths

    def _unpacked(self, path: Path) -> Path:
        """A folder with the notebooks of a zip file, and nothing else of it."""
        self.num_unpacked += 1
        target = self.scratch / str(self.num_unpacked) / path.stem
        target.mkdir(parents=True)
        room = MAX_UNPACKED
        try:
            with zipfile.ZipFile(path) as archive:
                for member in archive.infolist():
                    parts = PurePosixPath(member.filename.replace("\\", "/")).parts
                    if not member.filename.endswith(".ipynb") or any(
                        part.startswith(("/", *HIDDEN)) or ":" in part for part in parts
                    ):
                        continue  # no notebook, hidden, or not below the folder
                    with archive.open(member) as packed:
                        data = packed.read(min(room, MAX_NOTEBOOK + 1))
                    room -= len(data)
                    file = target.joinpath(*parts)
                    file.parent.mkdir(parents=True, exist_ok=True)
                    file.write_bytes(data)
        except Exception as error:  # zlib, lzma, encryption and paths each have their own
            self._pass(path, f"cannot be unpacked: {error!s:.200}")
        return target

    def _pass(self, path: Path, why: str) -> None:
        self.passed_over.append(f"{path}: {why}")


def _renamed(name: str) -> tuple[str, re.Match[str] | None]:
    """The system that renamed a file, and the pieces of its name."""
    for system, pattern in RENAMED.items():
        if match := pattern.fullmatch(name):
            return system, match
    return "a folder", None


def _is_assignment(one: HandedIn) -> bool:
    """Whether a folder is one of several of a student: it has a number, or nbgrader's note."""
    numbers = re.findall(r"\d+", one.folder.name)
    named = all(name.partition("_")[0] in numbers for name in one.notebooks)
    return named or (one.folder / "timestamp.txt").is_file()


def _called(place: Path) -> str:
    """The name of the submission whose notebooks are in `place`."""
    whole = Path(os.path.abspath(place))
    return whole.parent.name if whole.name == "exercises" and whole.parent != ROOT else whole.name
