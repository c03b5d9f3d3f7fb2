"""Answers to exercise 9, right and wrong, as the text of the answer cell."""

SCHEDULER = """
from minivllm.core import RequestStatus, Scheduler


class SwappingScheduler(Scheduler):
    def __init__(self, config):
        super().__init__(config)
        self.cpu_free = list(range(config.num_cpu_blocks))
        self.cpu_blocks = {{}}

    def _preempt_request(self, request, output):
        size = self.config.block_size
        num_blocks = {num_blocks}
        if {no_room}:
            super()._preempt_request(request, output)
            return
        {before}
        ids = self.kv_cache_manager.get_block_ids(request.request_id)[:num_blocks]
        cpu = [self.cpu_free.pop() for _ in ids]
        self.cpu_blocks[request.request_id] = cpu
        output.blocks_to_swap_out += {out}
        {free}
        {computed}
        request.status = RequestStatus.PREEMPTED
        request.num_preemptions += 1
        output.preempted_req_ids.append(request.request_id)
        self.waiting.prepend_request(request)

    def _swap_in(self, request):
        cpu = self.cpu_blocks.pop(request.request_id)
        ids = self.kv_cache_manager.get_block_ids(request.request_id)
        {back}
        return {pairs}

    def _free_request(self, request):
        {abort}
        super()._free_request(request)
"""


def swap(**changes: str) -> str:
    parts = {
        "num_blocks": "-(-request.num_computed_tokens // size)",
        "no_room": "num_blocks > len(self.cpu_free)",
        "before": "pass",
        "out": "list(zip(ids, cpu))",
        "free": "self.kv_cache_manager.free(request)",
        "computed": "pass",
        "back": "self.cpu_free += cpu",
        "pairs": "list(zip(cpu, ids))",
        "abort": "self.cpu_free += self.cpu_blocks.pop(request.request_id, [])",
        **changes,
    }
    return SCHEDULER.format(**parts)


MANAGER = """
from minivllm.core import KVCacheManager, RequestStatus, Scheduler
from minivllm.core.kv_cache_manager import cdiv


class SwappingManager(KVCacheManager):
    def __init__(self, config):
        super().__init__(config.num_gpu_blocks, config.block_size, config.enable_prefix_caching)
        self.pool = set(range(config.num_cpu_blocks))
        self.kept = {}

    def swap_out(self, request):
        blocks = self.req_to_blocks[request.request_id][
            : cdiv(request.num_computed_tokens, self.block_size)
        ]
        if len(blocks) > len(self.pool):
            return None
        kept = sorted(self.pool)[: len(blocks)]
        self.pool -= set(kept)
        pairs = [(block.block_id, cpu) for block, cpu in zip(blocks, kept)]
        KVCacheManager.free(self, request)
        self.kept[request.request_id] = kept
        return pairs

    def swap_in(self, request):
        kept = self.kept.pop(request.request_id)
        self.pool |= set(kept)
        return list(zip(kept, self.get_block_ids(request.request_id)))

    def free(self, request):
        super().free(request)
        self.pool |= set(self.kept.pop(request.request_id, ()))


class SwappingScheduler(Scheduler):
    def __init__(self, config, **options):
        super().__init__(config, **options)
        self.kv_cache_manager = SwappingManager(config)

    def _preempt_request(self, request, output):
        computed = request.num_computed_tokens
        pairs = self.kv_cache_manager.swap_out(request)
        furthest = request.max_num_computed_tokens
        super()._preempt_request(request, output)
        if pairs is not None:
            # Bring back what the parent forgot; its free() found the blocks gone already.
            self.kv_cache_manager.pool -= {cpu for _, cpu in pairs}
            self.kv_cache_manager.kept[request.request_id] = [cpu for _, cpu in pairs]
            request.num_computed_tokens = computed
            request.max_num_computed_tokens = furthest
            output.blocks_to_swap_out.extend(pairs)

    def _swap_in(self, request):
        return self.kv_cache_manager.swap_in(request)
"""

SLOTS = """
from minivllm.core import Scheduler


class SwappingScheduler(Scheduler):
    def __init__(self, config):
        Scheduler.__init__(self, config)
        self.slots = [None] * config.num_cpu_blocks

    def _preempt_request(self, request, output):
        table = self.kv_cache_manager.get_block_ids(request.request_id)
        empty = [i for i, owner in enumerate(self.slots) if owner is None]
        computed = request.num_computed_tokens
        before = request.max_num_computed_tokens
        super()._preempt_request(request, output)
        {cut}
        if len(table) <= len(empty):
            for gpu, cpu in zip(table, empty):
                self.slots[cpu] = request.request_id
                output.blocks_to_swap_out.append((gpu, cpu))
            request.num_computed_tokens = computed
            request.max_num_computed_tokens = before

    def _swap_in(self, request):
        mine = [i for i, owner in enumerate(self.slots) if owner == request.request_id]
        table = self.kv_cache_manager.get_block_ids(request.request_id)
        self._forget(request)
        return [(cpu, gpu) for cpu, gpu in zip(mine, table)]

    def _forget(self, request):
        self.slots = [None if owner == request.request_id else owner for owner in self.slots]

    def finish_requests(self, request_ids, status):
        ended = super().finish_requests(request_ids, status)
        self.slots = [None if owner in ended else owner for owner in self.slots]
        return ended
"""

COSTS = """
from minivllm.sim import StepLoad, roofline


def others():
    load = StepLoad()
    for _ in range(32):
        load.add(1, 1000, True)
    return load


def swap(tokens, gpu="h100", block_size=16):
    cost = roofline("llama-3-8b", gpu, block_size=block_size)
    blocks = -(-tokens // block_size)
    return {swap}


def recompute(tokens, gpu="h100"):
    cost = roofline("llama-3-8b", gpu)
    load = others()
    load.add(tokens, tokens, True)
    return {recompute}


costs = {{
    "swap_seconds": {{tokens: swap(tokens) for tokens in (256, 1024, 4096)}},
    "recompute_seconds": {{tokens: recompute(tokens) for tokens in (256, 1024, 4096)}},
    "block_size": {{
        gpu: {size}(
            b for b in map((2).__pow__, range(9)) if swap(1024, gpu, b) < recompute(1024, gpu)
        )
        for gpu in ("a10", "a100-80", "h100")
    }},
}}
"""


def costs(**changes: str) -> str:
    parts = {
        "swap": 'cost.parts(StepLoad(swap_blocks=2 * blocks))["swap"]',
        "recompute": "cost.step_time(load) - cost.step_time(others())",
        "size": "min",
        **changes,
    }
    return COSTS.format(**parts)


ROUNDED = """
costs = {
    "swap_seconds": {"256": 0.011, "1024": 0.045, "4096": 0.18},
    "recompute_seconds": {"256": 0.0012, "1024": 0.019, "4096": 0.097},
    "block_size": {"a10": 8, "a100-80": 16, "h100": 64},
}
"""

RIGHT = {
    "09a": {
        "in the scheduler": swap(),
        "in a manager of its own": MANAGER,
        "slots with owners": SLOTS.format(
            cut="table = table[: -(-computed // self.config.block_size)]"
        ),
    },
    "09b": {
        "asked of the model": costs(),
        "the parts by hand": costs(
            swap="2 * blocks * (64 * 5e-6 + block_size * 131072 / cost.hardware.pcie_bandwidth)"
        ),
        "two digits": ROUNDED,
    },
}

WRONG = {
    "09a": {
        "nothing but the class": (
            "from minivllm.core import Scheduler\n\n\nclass SwappingScheduler(Scheduler): pass\n",
            "no block was copied",
        ),
        "the computed tokens are still forgotten": (
            swap(computed="request.num_computed_tokens = 0"),
            "computed more than once|KeyError",
        ),
        "nothing comes back": (swap(pairs="[]"), "who brings its blocks back"),
        "back into the blocks it had": (
            swap(
                out="self.had.setdefault(request.request_id, ids) and list(zip(ids, cpu))",
                before="self.had = getattr(self, 'had', {})",
                pairs="list(zip(cpu, self.had.pop(request.request_id)))",
            ),
            "the blocks? that (it has now|stands at its place)|handed to somebody else",
        ),
        "full blocks only": (
            swap(num_blocks="request.num_computed_tokens // size"),
            "the last one too",
        ),
        "frees before it looks": (
            swap(before="self.kv_cache_manager.free(request)", free="pass"),
            "not what was computed for it",
        ),
        "no fallback": (swap(no_room="False"), "IndexError.*pop from empty list"),
        "invents blocks beyond the pool": (
            swap(no_room="False").replace(
                "[self.cpu_free.pop() for _ in ids]",
                "[self.config.num_cpu_blocks + i for i, _ in enumerate(ids)]",
            ),
            "num_cpu_blocks",
        ),
        "the pool is never given back": (
            swap(back="pass"),
            "go back to the pool|nobody has to lose",
        ),
        "the aborted keep their place in the pool": (swap(abort="pass"), "aborted"),
        "whole tables": (SLOTS.format(cut="pass"), "holds? nothing yet"),
        "whole tables, in the scheduler": (
            swap(num_blocks="len(self.kv_cache_manager.get_block_ids(request.request_id))"),
            "holds? nothing yet",
        ),
        "no counter": (
            swap().replace("request.num_preemptions += 1", "pass"),
            "num_preemptions. has grown by 0",
        ),
        "a victim that just fits is turned away": (
            swap(no_room="num_blocks >= len(self.cpu_free)"),
            "exactly fits was not let in",
        ),
        "tells nobody": (
            swap().replace("output.preempted_req_ids.append(request.request_id)", "pass"),
            "preempted_req_ids. has got .. more",
        ),
        "no status": (
            swap().replace("request.status = RequestStatus.PREEMPTED", "pass"),
            "its status is RUNNING",
        ),
        "behind those who wait": (
            swap().replace("self.waiting.prepend_request", "self.waiting.add_request"),
            "at the head of WAITING",
        ),
        "pairs the wrong way round": (swap(out="list(zip(cpu, ids))"), "GPU block, CPU block"),
        "the blocks on the GPU are not freed": (
            swap(free="pass"),
            "does not come to its end|not what was computed|raised",
        ),
        "calls the core's own": (
            swap().replace(
                "ids = self.kv_cache_manager.get_block_ids",
                "self.kv_cache_manager.swap_out(request)\n        ids = "
                "self.kv_cache_manager.get_block_ids",
            ),
            "AttributeError",
        ),
    },
    "09b": {
        "one way": (costs(swap='cost.parts(StepLoad(swap_blocks=blocks))["swap"]'), "one way"),
        "bytes over bandwidth": (
            costs(swap="2 * tokens * 131072 / cost.hardware.pcie_bandwidth"),
            "takes a moment to start",
        ),
        "milliseconds": (
            ROUNDED.replace("0.011,", "11.3,").replace("0.045,", "45.2,").replace("0.18}", "181}"),
            "not milliseconds",
        ),
        "a step of its own": (
            costs(recompute="cost.step_time(load) - 0 * cost.step_time(others())").replace(
                "load = others()", "load = StepLoad()"
            ),
            "computes nothing else",
        ),
        "the arithmetic alone": (
            costs(recompute="2 * cost.model.body_params * tokens / 989.5e12 / 0.6"),
            "arithmetic to spare",
        ),
        "the whole step": (costs(recompute="cost.step_time(load)"), "with and without the victim"),
        "a step for each token": (
            costs(recompute="tokens * cost.step_time(others())"),
            "one step for each token",
        ),
        "any block size that will do": (costs(size="max"), "with smaller blocks it is too"),
        "smaller is always better": (
            ROUNDED.replace('"h100": 64', '"h100": 16'),
            "still cheaper",
        ),
    },
}
