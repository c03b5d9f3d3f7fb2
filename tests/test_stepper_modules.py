"""The view's modules: what they say they share is what they use, alone and joined."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from shutil import which

import pytest

from minivllm.stepper.modules import STATIC, joined, source

VIEW = ["view/limits.js", *(f"view/{path.name}" for path in sorted(STATIC.glob("view/*.js")))]
MODULES = [*VIEW, "page.js", "widget.js"]
GOOD = {
    "main.js": 'import { b, c } from "./parts/index.js";\n\nexport default b + c;\n',
    "parts/index.js": 'export { b } from "./b.js";\nexport { c } from "./c.js";\n',
    "parts/b.js": 'import { a } from "./a.js";\n\nexport const b = a;\n',
    "parts/c.js": 'import { a } from "./a.js";\n\nexport const c = a;\n',
    "parts/a.js": "export const a = 1;\nconst own = 2;\n",
}


def test_a_module_comes_once_and_after_what_it_imports() -> None:
    lines = joined("main.js", GOOD.__getitem__).split("\n")
    assert [line for line in lines if line] == [
        "const a = 1;",
        "const own = 2;",
        "const b = a;",
        "const c = a;",
        "export default b + c;",
    ]


WRONG = {
    "parts/c.js": [
        ('import { own } from "./a.js";\nexport const c = own;\n', "wants own from parts/a.js"),
        ('import { d } from "./b.js";\nexport const c = d;\n', "wants d from parts/b.js"),
        ("export const c = 1;\nconst own = 3;\n", "own is declared in parts/a.js"),
        ("export const c = 1;\nclass b {}\n", "b is declared in parts/b.js and in parts/c.js"),
        ('import { a as c } from "./a.js";\n', "wants as from"),
        ('import * as all from "./a.js";\nexport const c = all;\n', "cannot join 'import"),
        ('import {\n  a,\n} from "./a.js";\nexport const c = a;\n', "cannot join 'import"),
        ('import { a } from "https://a/a.js";\nexport const c = a;\n', "cannot join 'import"),
        ("const c = 1;\nexport { c };\n", "cannot join 'export"),
        ("export const c = 1;\nconst { d } = c;\n", "cannot join 'const"),
        ("export const c = 1;\nvar d = c;\n", "cannot join 'var"),
    ],
    "parts/a.js": [('import { b } from "./b.js";\nexport const a = b;\n', "imports itself")],
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_joined_is_an_error(name: str) -> None:
    for text, message in WRONG[name]:
        with pytest.raises(ValueError, match=re.escape(message)):
            joined("main.js", {**GOOD, name: text}.__getitem__)


def test_a_missing_module_is_an_error() -> None:
    with pytest.raises(OSError, match="nowhere"):
        joined("nowhere.js")


def words(text: str) -> set[str]:
    """The names that a module uses: not in notes, not in strings, no properties."""
    text = re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)
    text = re.sub(r'"(?:[^"\\\n]|\\.)*"|(?<![:\\])//.*', "", text)
    return set(re.findall(r"(?<![\w$#])(?<![\w\])?]\.)([A-Za-z_$][\w$]*)\b(?!:)", text))


@pytest.mark.parametrize("name", MODULES)
def test_a_module_imports_what_it_uses_and_no_more(name: str) -> None:
    """Joined, a forgotten import would go unnoticed; alone, the module would fail when it runs."""
    text = source(name)
    imported: set[str] = set()
    for names in re.findall(r"^import \{(.*)\} from", text, re.MULTILINE):
        imported |= set(names.replace(",", " ").split())
    declared = re.compile(r"^(?:export )?(?:const|let|class) ([\w$]+)", re.MULTILINE)
    own = set(declared.findall(text))
    local = set(re.findall(r"(?:const|let) ([\w$]+)", text)) | own
    others = {n for other in VIEW if other != name for n in declared.findall(source(other))}
    used = words(re.sub(r"^(?:import|export) \{.*\n", "", text, flags=re.MULTILINE))
    assert imported - used == set(), "imported, and not used"
    assert (used & others) - imported - local == set(), "used, and not imported"


@pytest.mark.skipif(which("node") is None, reason="no node")
@pytest.mark.parametrize("entry", ["page.js", "widget.js"])
def test_the_joined_text_is_javascript(entry: str, tmp_path: Path) -> None:
    file = tmp_path / "joined.mjs"
    file.write_text(joined(entry), encoding="utf-8")
    done = subprocess.run(["node", "--check", str(file)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
