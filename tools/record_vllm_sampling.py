"""Record what vLLM's offline interface answers, for tests/test_sampling_params.py.

    export VLLM_CPU_KVCACHE_SPACE=1
    python tools/record_vllm_sampling.py MODEL_DIR tests/data/vllm-sampling.json.gz

Runs tests/offline_script.py. Needs vLLM (a CPU build will do; the file was made by 0.32.0) and a
directory with SmolLM2-135M-Instruct that vLLM loads: the one that minivllm converts its GGUF to,
`python -c "from minivllm.models.loader import *; print(find_model(DEFAULT_MODEL))"`.
"""

from __future__ import annotations

import argparse
import gzip
import inspect
import json
import os
import runpy
from pathlib import Path

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")

SCRIPT = Path(__file__).resolve().parents[1] / "tests" / "offline_script.py"


def main() -> None:
    """Run the script and write what came out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="directory of SmolLM2-135M-Instruct")
    parser.add_argument("output", type=Path)
    args = parser.parse_args()

    import vllm

    recorded = runpy.run_path(str(SCRIPT))["main"](args.model)
    keywords = inspect.signature(vllm.SamplingParams).parameters
    recorded["vllm"] = vllm.__version__
    recorded["keywords"] = [name for name in keywords if not name.startswith("_")]
    data = json.dumps(recorded, ensure_ascii=False, separators=(",", ":")).encode()
    args.output.write_bytes(gzip.compress(data, mtime=0))
    print(f"{len(recorded['results'])} kinds of requests by vLLM {vllm.__version__}")


if __name__ == "__main__":
    main()
