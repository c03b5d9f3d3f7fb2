"""The executor of a page: our C kernels as WebAssembly, no PyTorch and no NumPy.

`minivllm/models/wasm_model.c` is the arithmetic; this file is the bookkeeping around it. Whoever
holds the instance is behind one interface, `Machine`: JavaScript in a page, wasmtime in the tests.
All requests of a step go through the kernels together, so what a plan says is what runs.

A token's logits do not depend on the batch, by a single bit, with `batch_invariant` or without:
these kernels add up in one order only.
"""

from __future__ import annotations

import gc
import json
import struct
import weakref
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from minivllm.bad_words import completing
from minivllm.byte_level_bpe import open_tokenizer
from minivllm.core.kv_cache_manager import cdiv
from minivllm.core.output import SchedulerOutput
from minivllm.core.request import Request
from minivllm.core.sampling_params import SamplingParams
from minivllm.executor.abstract import ExecutorArgs, SampledTokens, Told
from minivllm.logprobs import prompt_rows_wanted
from minivllm.models.config import DEFAULT_MODEL, ModelConfig
from minivllm.noise import FreshSeeds, uniform_noise
from minivllm.tokenizer import Tokenizer

LOGITS_AT_ONCE = 64
"""Of so many prompt tokens the logits are in memory at once: a row has the whole vocabulary."""

_GROUPS = {
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "o": ("self_attn.o_proj",),
    "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "down": ("mlp.down_proj",),
}
"""The matrices that lie together in memory, by their names in the file."""
_LAYER = ("input_layernorm", "qkv", "o", "post_attention_layernorm", "gate_up", "down")
"""Of each layer, as `layer_weights` in `cpu_kernels.c` has them."""
_FLOATS, _BYTES = 0, 2
"""Of matrices, as `kind` in `cpu_kernels.c` has them."""


class Machine(Protocol):
    """An instance of `wasm_model.c` and its memory."""

    def call(self, name: str, *args: float) -> Any:
        """Call an exported function."""

    def write(self, address: int, data: bytes | array[Any]) -> None:
        """Copy into its memory."""

    def read(self, address: int, size: int) -> bytes:
        """Copy out of its memory."""


class ModelFile(Protocol):
    """A model as `tools/live_model.py` writes it: one file of parts, and a table of contents."""

    contents: Mapping[str, Any]

    def part(self, offset: int, size: int) -> bytes:
        """Some bytes of the file."""

    def stage(self, machine: Machine, address: int, offset: int, size: int) -> None:
        """Copy some bytes of the file into a machine's memory."""


def _not_here(name: str) -> tuple[Machine, ModelFile]:
    raise ValueError(f"device='wasm' runs in the book's pages; here, leave it out (model {name!r})")


open_model: Callable[[str], tuple[Machine, ModelFile]] = _not_here
"""Gets a machine for a model and the model's file; the page's Python sets it."""


def _the_books_model() -> str:
    return DEFAULT_MODEL


default_model: Callable[[], str] = _the_books_model
"""Names the model of an engine that is given none; the page's Python sets it."""

_models: dict[str, WasmModel] = {}
"""Loaded ones: engines of the same model share its weights."""


class Memory:
    """Bytes in a machine's memory, given back when nothing refers to them.

    Raises:
        MemoryError: if there are not so many.
    """

    def __init__(self, machine: Machine, size: int, what: str) -> None:
        self.machine, self.size = machine, size
        if size >= 1 << 32 or not (address := _allocate(machine, size)):
            raise MemoryError(
                f"the page has no {size / 1e6:,.0f} MB for {what}: ask for less (num_gpu_blocks, "
                f"max_model_len), or restart Python in this page"
            )
        self.address = address
        weakref.finalize(self, machine.call, "free", self.address)

    @classmethod
    def of(cls, machine: Machine, data: bytes | array[Any]) -> Memory:
        """A copy of some data."""
        made = cls(machine, max(len(memoryview(data).cast("B")), 1), "a step")
        machine.write(made.address, data)
        return made

    def read(self, kind: str, count: int, start: int = 0) -> array[Any]:
        """`count` numbers from the `start`-th on, of an `array`'s kind."""
        numbers = array(kind)
        begin = self.address + start * numbers.itemsize
        numbers.frombytes(self.machine.read(begin, count * numbers.itemsize))
        return numbers


def _allocate(machine: Machine, size: int) -> int:
    address: int = machine.call("malloc", size) & 0xFFFFFFFF
    if not address:
        gc.collect()  # an engine that nobody refers to may hold its cache in a circle
        address = machine.call("malloc", size) & 0xFFFFFFFF
    return address


class WasmModel:
    """A model's weights in a machine's memory, and its tokenizer.

    Raises:
        ValueError: if it has parts that the kernels do not compute.
    """

    def __init__(self, machine: Machine, file: ModelFile) -> None:
        self.machine = machine
        contents = file.contents
        about = {**contents["config"], "eos_token_ids": tuple(contents["config"]["eos_token_ids"])}
        self.config = config = ModelConfig(**about)
        if config.qkv_bias or config.o_bias or config.mlp_bias or config.qk_norm:
            raise ValueError(f"{contents['name']} has biases or norms of heads: not in a page")
        self._tokenizer: Tokenizer | None = None
        self._texts = [
            file.part(*contents["texts"][name]).decode()
            for name in ("tokenizer.json", "tokenizer_config.json")
        ]
        self.frequencies = array("f", contents["rope_frequencies"])
        tensors = contents["tensors"]
        matrices = [tensor for tensor in tensors.values() if len(tensor["shape"]) == 2]
        kinds = {_BYTES if tensor["kind"] else _FLOATS for tensor in matrices}
        if len(kinds) != 1 or any(t["shape"][0] % machine.call("panel_rows") for t in matrices):
            raise ValueError(
                f"{contents['name']}: the page's kernels take matrices that are all of floats or "
                f"all of blocks, with a multiple of {machine.call('panel_rows')} rows"
            )
        (self.kind,) = kinds
        self._kept: list[Memory] = []

        def matrix(*names: str) -> int:
            sizes = [self._size(tensors[name]) for name in names]
            room = Memory(machine, sum(sizes), "the weights")
            self._kept.append(room)
            address = room.address
            for name, size in zip(names, sizes, strict=True):
                self._load(file, tensors[name], address)
                address += size
            return room.address

        def vector(name: str) -> int:
            room = Memory(machine, tensors[name]["size"], "the weights")
            self._kept.append(room)
            file.stage(machine, room.address, tensors[name]["offset"], tensors[name]["size"])
            return room.address

        self.norm = vector("model.norm.weight")
        self.embed = matrix("model.embed_tokens.weight")
        tied = config.tie_word_embeddings
        self.lm_head = self.embed if tied else matrix("lm_head.weight")
        addresses = []
        for index in range(config.num_hidden_layers):
            prefix = f"model.layers.{index}."
            for name in _LAYER:
                if name in _GROUPS:
                    addresses.append(matrix(*(f"{prefix}{n}.weight" for n in _GROUPS[name])))
                else:
                    addresses.append(vector(f"{prefix}{name}.weight"))
        self.layers = Memory.of(machine, struct.pack(f"<{len(addresses)}I", *addresses))

    def _size(self, tensor: Mapping[str, Any]) -> int:
        """Of a matrix in the machine's memory, in bytes."""
        size: int = self.machine.call("matrix_bytes", tensor["kind"], *tensor["shape"])
        return size

    def _load(self, file: ModelFile, tensor: Mapping[str, Any], address: int) -> None:
        staged = Memory(self.machine, tensor["size"], "the weights")
        file.stage(self.machine, staged.address, tensor["offset"], tensor["size"])
        args = (address, staged.address, tensor["kind"], *tensor["shape"])
        self.machine.call("unpack_matrix", *args)

    def tokenizer(self) -> Tokenizer:
        """Made when somebody first has a text: it is large."""
        if self._tokenizer is None:
            self._tokenizer = open_tokenizer(*self._texts)
        return self._tokenizer


class Logits:
    """Logits [rows, vocab_size] in a machine's memory. `logits[0].tolist()` copies a row out."""

    def __init__(self, machine: Machine, rows: int, vocab_size: int) -> None:
        self.shape = (rows, vocab_size)
        self.memory = Memory(machine, max(4 * rows * vocab_size, 1), "logits")

    def address(self, row: int) -> int:
        """Where a row begins."""
        return self.memory.address + 4 * row * self.shape[1]

    def __getitem__(self, row: int) -> array[float]:
        if not 0 <= row < self.shape[0]:
            raise IndexError(f"there are {self.shape[0]} rows of logits, no row {row}")
        return self.memory.read("f", self.shape[1], row * self.shape[1])


def told_of(logits: Logits, row: int, token_id: int, num_logprobs: int) -> Told:
    """Log probabilities of a row: of the token that is there, then of the likeliest."""
    machine, vocab_size = logits.memory.machine, logits.shape[1]
    k = vocab_size if num_logprobs == -1 else num_logprobs
    room = Memory(machine, 8 * (k + 1), "log probabilities")
    values = room.address + 4 * (k + 1)
    args = (room.address, values, logits.address(row), vocab_size, token_id, k)
    if (rank := machine.call("tell", *args)) < 0:
        raise MemoryError("no memory for log probabilities")
    return room.read("i", k + 1).tolist(), room.read("f", k + 1, k + 1).tolist(), rank


class _Row(NamedTuple):
    """What a step computes of one request."""

    request: Request
    query_len: int
    seq_len: int


class WasmRunner:
    """As `minivllm.runner.ModelRunner`: owns the KV cache and knows the block tables.

    Attributes:
        block_tables: block ids of each running request, by its id.
    """

    def __init__(self, model: WasmModel, config: Any) -> None:
        self.model, self.machine = model, model.machine
        self.block_size = config.block_size
        self.block_tables: dict[str, list[int]] = {}
        self._late: dict[str, int] = {}
        self._prompt_logprobs: dict[str, list[Told]] = {}
        shape, machine = model.config, self.machine
        block_bytes = shape.kv_bytes_per_token(4) * config.block_size
        self._num_blocks = config.num_gpu_blocks + 1  # and the null block
        self._cache = Memory(machine, self._num_blocks * block_bytes, "the KV cache")
        num_cpu_blocks = config.num_cpu_blocks if config.preemption_mode == "swap" else 0
        self._aside = Memory(machine, max(num_cpu_blocks, 1) * block_bytes, "the swap space")
        self._block_bytes = block_bytes
        rope_bytes = 4 * config.max_model_len * shape.head_dim
        self._rope = Memory(machine, 2 * rope_bytes, "the model")
        frequencies = Memory.of(machine, model.frequencies)
        cos, sin = self._rope.address, self._rope.address + rope_bytes
        machine.call(
            "rope_table", cos, sin, frequencies.address, config.max_model_len, shape.head_dim
        )
        about = struct.pack(
            "<8i2fi6I",
            *(shape.num_hidden_layers, shape.hidden_size, shape.intermediate_size),
            *(shape.num_attention_heads, shape.num_key_value_heads, shape.head_dim),
            *(shape.vocab_size, config.block_size, shape.rms_norm_eps, shape.head_dim**-0.5),
            *(model.kind, model.embed, model.norm, model.lm_head),
            *(cos, sin, model.layers.address),
        )
        self._model = Memory.of(machine, about)

    def execute(self, plan: SchedulerOutput) -> tuple[list[Request], Logits]:
        """As `Runner.execute`."""
        self._update_block_tables(plan)
        self._swap(plan)
        scheduled = (
            plan.scheduled_running_reqs + plan.scheduled_resumed_reqs + plan.scheduled_new_reqs
        )
        rows = [
            _Row(r, plan.num_scheduled_tokens[r.request_id], r.num_computed_tokens)
            for r in scheduled
        ]
        rows.sort(key=lambda row: (row.query_len > 1, -row.seq_len))  # as ModelRunner has them
        hidden = self._forward(rows)
        samplers, last = [], []
        end = 0
        for row in rows:
            start, end = end, end + row.query_len
            self._tell_of_prompt(row, hidden, start)
            if row.seq_len >= len(row.request.all_token_ids):
                samplers.append(row.request)
                last.append(end - 1)
        return samplers, self._logits(hidden, last)

    def _forward(self, rows: Sequence[_Row]) -> Memory:
        """Hidden states [T, hidden_size] of a flat batch."""
        token_ids, numbers = array("i"), [array("q") for _ in range(3)]
        positions, slots, owners = numbers
        for owner, (request, query_len, seq_len) in enumerate(rows):
            start, table = seq_len - query_len, self.block_tables[request.request_id]
            known = request.all_token_ids[start:seq_len]
            token_ids.extend(known if known else [self._late[request.request_id]])
            for position in range(start, seq_len):
                positions.append(position)
                block = table[position // self.block_size]
                slots.append(block * self.block_size + position % self.block_size)
                owners.append(owner)
        longest = max((cdiv(row.seq_len, self.block_size) for row in rows), default=0)
        tables = array("q")
        for row in rows:
            blocks = self.block_tables[row.request.request_id][:longest]
            tables.extend(blocks + [0] * (longest - len(blocks)))
        hidden_bytes = 4 * len(token_ids) * self.model.config.hidden_size
        hidden = Memory(self.machine, max(hidden_bytes, 1), "a step")
        if rows:
            given = [Memory.of(self.machine, part) for part in (token_ids, *numbers, tables)]
            args = (hidden.address, self._model.address, self._cache.address, self._num_blocks)
            addresses = (part.address for part in given)
            if not self.machine.call("forward", *args, *addresses, longest, len(token_ids)):
                raise MemoryError(f"no memory for a step of {len(token_ids)} tokens")
        return hidden

    def _logits(self, hidden: Memory, rows: Sequence[int]) -> Logits:
        logits = Logits(self.machine, len(rows), self.model.config.vocab_size)
        which = Memory.of(self.machine, array("i", rows))
        args = (logits.memory.address, self._model.address, hidden.address, which.address)
        if not self.machine.call("compute_logits", *args, len(rows)):
            raise MemoryError(f"no memory for {len(rows)} rows of logits")
        return logits

    def _tell_of_prompt(self, row: _Row, hidden: Memory, first: int) -> None:
        """Keep the log probabilities of a chunk of a prompt, if they are asked for."""
        request, start = row.request, row.seq_len - row.query_len
        num_rows = prompt_rows_wanted(request, start, row.seq_len)
        k = request.sampling_params.prompt_logprobs
        told = self._prompt_logprobs.setdefault(request.request_id, []) if num_rows else []
        del told[start:]  # computed once more, after a preemption
        for done in range(0, num_rows, LOGITS_AT_ONCE):
            places = range(done, min(done + LOGITS_AT_ONCE, num_rows))
            logits = self._logits(hidden, [first + place for place in places])
            for index, place in enumerate(places):
                following = request.prompt_token_ids[start + place + 1]
                told.append(told_of(logits, index, following, k if k is not None else 0))

    def _update_block_tables(self, plan: SchedulerOutput) -> None:
        for request_id in [*plan.finished_req_ids, *plan.preempted_req_ids]:
            self.block_tables.pop(request_id, None)
        for request in plan.scheduled_new_reqs + plan.scheduled_resumed_reqs:
            self.block_tables[request.request_id] = []
        for request_id, block_ids in plan.new_block_ids.items():
            self.block_tables[request_id] += block_ids

    def _swap(self, plan: SchedulerOutput) -> None:
        out = [(gpu, cpu, 1) for gpu, cpu in plan.blocks_to_swap_out]
        into = [(gpu, cpu, 0) for cpu, gpu in plan.blocks_to_swap_in]
        for gpu_block, cpu_block, to_aside in out + into:
            aside = self._aside.address + cpu_block * self._block_bytes
            args = (self._model.address, self._cache.address, self._num_blocks, gpu_block)
            self.machine.call("copy_block", *args, aside, to_aside)

    def keep_tokens(self, requests: Sequence[Request], sampled: Sampled) -> None:
        """As `Runner.keep_tokens`."""
        self._late = {id_: token for id_, token in sampled.read().items() if isinstance(token, int)}

    def pop_prompt_logprobs(self, request: Request) -> list[Told]:
        """As `Runner.pop_prompt_logprobs`."""
        return self._prompt_logprobs.pop(request.request_id, [])

    def forget_requests(self) -> None:
        """Drop every block table: no request goes on."""
        self.block_tables.clear()


@dataclass
class Sampled:
    """What a step samples: here at once."""

    tokens: SampledTokens

    def to_host(self) -> Sampled:
        """As it is."""
        return self

    def read(self) -> SampledTokens:
        """By request id."""
        return self.tokens


@dataclass
class _Counted:
    """How often a request's output has each token it has seen; what is counted stays counted."""

    counts: dict[int, int]
    num_counted: int = field(default=0)

    def count(self, output_token_ids: Sequence[int]) -> dict[int, int]:
        for token_id in output_token_ids[self.num_counted :]:
            self.counts[token_id] = self.counts.get(token_id, 0) + 1
        self.num_counted = len(output_token_ids)
        return self.counts


class WasmSampler(FreshSeeds):
    """As `minivllm.sampler.Sampler`: the same rules, and the same noise for each token."""

    def __init__(self, seed: int | None, machine: Machine) -> None:
        super().__init__(seed)
        self.machine = machine
        self._counted: weakref.WeakKeyDictionary[Request, _Counted] = weakref.WeakKeyDictionary()

    def sample(self, requests: Sequence[Request], logits: Logits) -> SampledTokens:
        """As `Sampler.sample`."""
        return self.sample_on_device(requests, logits).read()

    def sample_on_device(
        self,
        requests: Sequence[Request],
        logits: Logits,
        late_token_ids: Callable[[], Mapping[str, int | list[int]]] = dict,
    ) -> Sampled:
        """As `Sampler.sample_on_device`."""
        sampled = SampledTokens()
        sampled.logprobs = {}
        for row, request in enumerate(requests):
            params, address = request.sampling_params, logits.address(row)
            raw = None
            if params.logprobs is not None and (params.changes_logits or params.temperature > 0):
                raw = Logits(self.machine, 1, logits.shape[1])  # of the logits as they are
                self.machine.write(raw.memory.address, logits[row])
            if params.changes_logits:
                self._change(request, address, logits.shape[1], late_token_ids)
            token_id = self._pick(params, request, address, logits.shape[1])
            sampled[request.request_id] = token_id
            if params.logprobs is not None:
                told = told_of(raw or logits, 0 if raw else row, token_id, params.logprobs)
                sampled.logprobs[request.request_id] = [told]
        return Sampled(sampled)

    def _pick(self, params: SamplingParams, request: Request, address: int, size: int) -> int:
        if params.temperature == 0.0:
            token_id: int = self.machine.call("argmax", address, size)
            return token_id
        noise = uniform_noise(params.seed or 0, request.next_output_index)
        args = (params.temperature, params.top_k, params.top_p, params.min_p, noise)
        token_id = self.machine.call("draw", address, size, *args)
        if token_id < 0:
            raise MemoryError("no memory to draw a token")
        return token_id

    def _change(
        self,
        request: Request,
        address: int,
        size: int,
        late_token_ids: Callable[[], Mapping[str, int | list[int]]],
    ) -> None:
        """Change a row as its request's parameters say, in the order of `LogitsProcessors`."""
        params, machine = request.sampling_params, self.machine

        def ids(of: Iterable[int]) -> tuple[int, int]:
            kept.append(Memory.of(machine, numbers := array("i", of)))
            return kept[-1].address, len(numbers)

        kept: list[Memory] = []  # alive until they are read
        outputs = request.output_token_ids
        if request.next_output_index > len(outputs) and (
            params.has_penalties or request.bad_words_token_ids
        ):
            late = late_token_ids()[request.request_id]
            assert isinstance(late, int)
            outputs = [*outputs, late]
        if params.allowed_token_ids and not machine.call(
            "keep_only", address, size, *ids(params.allowed_token_ids)
        ):
            raise MemoryError("no memory for allowed_token_ids")
        if request.next_output_index < params.min_tokens:
            machine.call("forbid", address, *ids(request.all_stop_token_ids))
        machine.call("forbid", address, *ids(completing(request.bad_words_token_ids, outputs)))
        if params.logit_bias:
            places, count = ids(params.logit_bias)
            kept.append(Memory.of(machine, array("f", params.logit_bias.values())))
            machine.call("add_bias", address, places, kept[-1].address, count)
        if params.has_penalties:
            seen = request.prompt_token_ids if params.repetition_penalty != 1.0 else ()
            counted = self._counted.setdefault(request, _Counted(dict.fromkeys(seen, 0)))
            counts = counted.count(outputs)
            places, count = ids(counts)
            numbers, _ = ids(counts.values())
            penalties = (params.repetition_penalty, params.frequency_penalty)
            machine.call(
                "penalise", address, places, numbers, count, *penalties, params.presence_penalty
            )


class WasmExecutor:
    """As `minivllm.executor.abstract.Executor`.

    Raises:
        ValueError: if the model or a knob cannot be had in a page.
        MemoryError: if the page has no room for the weights or the cache.
    """

    device = "wasm"

    def __init__(self, args: ExecutorArgs) -> None:
        _check(args)
        name = default_model() if args.model is None else str(args.model)
        if name not in _models:
            _models[name] = WasmModel(*open_model(name))
        self.model = _models[name]
        self.model_config = self.model.config
        self.config = args.sizes(self.model_config, 4, "cpu").config
        self.speculative_config, self.proposer = None, None
        self.runner = WasmRunner(self.model, self.config)
        self.sampler = WasmSampler(args.seed, self.model.machine)

    def get_tokenizer(self) -> Tokenizer:
        """As `Executor.get_tokenizer`."""
        return self.model.tokenizer()


def _check(args: ExecutorArgs) -> None:
    """Refuse what a page's engine cannot do.

    Raises:
        ValueError: naming the knob.
    """
    why = {
        "dtype": (str(args.dtype) in ("auto", "float32"), "computes in float32"),
        "device": (args.device in ("auto", "wasm", "cpu"), "has WebAssembly alone"),
        "attention_backend": (args.attention_backend in ("auto", "cpu"), "has the C kernels alone"),
        "speculative_config": (args.speculative_config is None, "proposes no tokens"),
        "tokenizer": (args.tokenizer is None, "has each model's own tokenizer alone"),
    }
    for knob, (is_good, here) in why.items():
        if not is_good:
            value = json.dumps(getattr(args, knob), default=str)
            raise ValueError(f"{knob}={value}: the engine of a page {here}; leave {knob} out")
