"""The core, and the commands that need no model, run on a bare Python."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

FORBID = """
import sys

class OnlyOurs:
    def find_spec(self, name, path=None, target=None):
        root = name.partition(".")[0]
        if root != "minivllm" and root not in sys.stdlib_module_names:
            raise ImportError(f"third-party import of {name}")

sys.meta_path.insert(0, OnlyOurs())
"""


def run(code):
    program = FORBID + textwrap.dedent(code)
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)


def test_the_hook_forbids():
    done = run("import numpy")
    assert done.returncode != 0
    assert "third-party import of numpy" in done.stderr


@pytest.mark.parametrize(
    "code",
    [
        "import minivllm; minivllm.SamplingParams(max_tokens=1)",
        "import pkgutil, importlib, minivllm.core\n"
        "for module in pkgutil.walk_packages(minivllm.core.__path__, 'minivllm.core.'):\n"
        "    importlib.import_module(module.name)",
        "import minivllm.conformance",
    ],
)
def test_standard_library_is_enough(code):
    done = run(code)
    assert done.returncode == 0, done.stderr


def test_core_imports_nothing_of_ours_but_core():
    done = run(
        """
        import minivllm.core
        loaded = [m for m in sys.modules if m.startswith("minivllm.")]
        assert all(m.startswith("minivllm.core") for m in loaded), loaded
        """
    )
    assert done.returncode == 0, done.stderr
