"""Gets CodeMirror 6, the editor of the book's live cells.

    python tools/get_codemirror.py

Its npm packages are ES modules that name each other (`from "@codemirror/state"`). A page without a
bundler needs paths instead, so these names are replaced; nothing else is changed. All are MIT.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from tools.npm_package import NpmPackage, get_package  # noqa: E402

PACKAGES = (
    NpmPackage(
        "@codemirror/state",
        "6.7.6",
        "91d75acc955ceeaf86af9396c11cda7694fe6222aac8427fa033d89eff5ac839",
        ("dist/index.js",),
    ),
    NpmPackage(
        "@codemirror/view",
        "6.43.15",
        "f0d5921406f841d211fa0887aabf10626c47676bfc63a4abed2a4d207e27c5ac",
        ("dist/index.js",),
    ),
    NpmPackage(
        "@codemirror/language",
        "6.13.1",
        "e711ec28da046f6c163e777c5466d8ac805ee9ef5f51c511e8729c6789be7f83",
        ("dist/index.js",),
    ),
    NpmPackage(
        "@codemirror/streamparser",
        "6.0.0",
        "b4888c5ab40350e7a1747d765948a8fa45cfd127c479dd4cdef8097046efe14a",
        ("dist/index.js",),
    ),
    NpmPackage(
        "@codemirror/commands",
        "6.11.1",
        "f477f46d8c00278e1b387baebd53bd6556fd5f3c7401ebe2a05543600fcbff0f",
        ("dist/index.js",),
    ),
    NpmPackage(
        "@codemirror/autocomplete",
        "6.20.4",
        "40b9657b137284426bcd829cdee7dc78a748337de997a12b10b5c725f67aa0d0",
        ("dist/index.js",),
    ),
    NpmPackage(
        "@codemirror/lang-python",
        "6.2.1",
        "022a075ece066c3015dce4fbddd4d8b6f597679e756d50e697ec16cd3e5b59ca",
        ("dist/index.js",),
    ),
    NpmPackage(
        "@lezer/common",
        "1.5.5",
        "ed93cee36403124f51eae638b8a032d6694914c19704de7610db7f2a9441c963",
        ("dist/index.js",),
    ),
    NpmPackage(
        "@lezer/highlight",
        "1.2.5",
        "e349eec1ff4382439c1e6286ae937e0203a8349c5192e2e133863391775ac7ff",
        ("dist/index.js",),
    ),
    NpmPackage(
        "@lezer/lr",
        "1.4.12",
        "64382ee7f144221e4c655f2034393c6be9cecaf5ea2ec1c1edeb99424defb272",
        ("dist/index.js",),
    ),
    NpmPackage(
        "@lezer/python",
        "1.1.19",
        "0e00a32717366099c01b38a19ceb73315cd1dd9b335d98b49fea50ab7c5c2a98",
        ("dist/index.js",),
    ),
    NpmPackage(
        "style-mod",
        "4.1.5",
        "c4a44844213a141da55c51a2f81d701acdb9944465328b4a2a6b9626c6d9fc39",
        ("src/style-mod.js",),
    ),
    NpmPackage(
        "w3c-keyname",
        "2.2.8",
        "05d21484026d1f2dd842c843181e391e66d60f1d5dff292d562c3f40302dab36",
        ("index.js",),
    ),
    NpmPackage(
        "crelt",
        "1.0.7",
        "3542299c0278fdc26aceb2b13d31bffbcb89d7367706bbc457130e3fd103c03e",
        ("index.js",),
    ),
    NpmPackage(
        "@marijn/find-cluster-break",
        "1.0.4",
        "5d12b770b64d46632c84fcd18e1d4c09f195ed0f5dbc71f94a41f0af333eaeae",
        ("src/index.js",),
    ),
)

_FROM = re.compile(r'^((?:import|export)\b[^"\';]*\bfrom )[\'"]([^.\'"][^\'"]*)[\'"]', re.MULTILINE)


def get_codemirror() -> dict[str, str]:
    """The modules' text by file name (`codemirror-state.js`), each importing the others by path.

    Raises:
        RuntimeError: saying why they cannot be had.
    """
    names = {package.name: file_name(package.name) for package in PACKAGES}

    def path(found: re.Match[str]) -> str:
        if found[2] not in names:
            raise RuntimeError(f"CodeMirror imports {found[2]}: add it to tools/get_codemirror.py")
        return f'{found[1]}"./{names[found[2]]}"'

    texts = {}
    for package in PACKAGES:
        text = (get_package(package) / package.files[0]).read_text(encoding="utf-8")
        texts[names[package.name]] = _FROM.sub(path, text)
    return texts


def file_name(package: str) -> str:
    """`@codemirror/state` as a file's name."""
    return package.removeprefix("@").replace("/", "-") + ".js"


if __name__ == "__main__":
    try:
        print("\n".join(f"{name}: {len(text):,}" for name, text in get_codemirror().items()))
    except RuntimeError as error:
        sys.exit(str(error))
