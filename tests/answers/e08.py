"""Answers to exercise 8, right and wrong, as the text of the answer cell."""

from __future__ import annotations

BY_HAND = {
    "batch_size": [2, 3, 3, 2, 2, 1, 0, 0, 1, 1],
    "blocks_in_use": [5, 7, 8, 7, 5, 3, 0, 0, 2, 2],
    "preemptions": [0, 0, 0, 1, 0, 0, 0, 0, 0, 0],
    "avg_batch_size": 15 / 8,
    "mean_kv_cache_usage": 39 / 80,
}


def by_hand(**changes: object) -> str:
    return f"by_hand = {BY_HAND | changes}"


def stats(init: str = "", on_step: str = "", avg: str = "", mean: str = "") -> str:
    """A collector with some of its lines replaced."""
    return f"""
class Stats:
    def __init__(self):
        self.num_preemptions = 0
        self.batches = []
        self.shares = []
        {init}

    def on_step(self, scheduler, output):
        batch = len(output.num_scheduled_tokens)
        share = scheduler.kv_cache_manager.usage
        preemptions = len(output.preempted_req_ids)
        {on_step}
        self.num_preemptions += preemptions
        self.batches.append(batch)
        self.shares.append(share)

    @property
    def avg_batch_size(self):
        batches = [batch for batch in self.batches if batch]
        {avg}
        return sum(batches) / len(batches) if batches else 0.0

    @property
    def mean_kv_cache_usage(self):
        {mean}
        return sum(self.shares) / len(self.shares) if self.shares else 0.0
"""


RUN = '''
from minivllm.core import Request, SamplingParams, Scheduler, SchedulerConfig


def run(stats, rows, **config):
    """Run rows of (arrival step, prompt token ids, output tokens); what each step showed."""
    scheduler = Scheduler(SchedulerConfig(block_size=4, **config))
    rows, seen = sorted(rows, key=lambda row: row[0]), []
    while rows or scheduler.has_unfinished_requests():
        while rows and rows[0][0] <= scheduler.step:
            _, prompt, output = rows.pop(0)
            params = SamplingParams(max_tokens=output, ignore_eos=True)
            scheduler.add_request(Request(f"r{len(rows)}", prompt, params))
        output = scheduler.schedule()
        stats.on_step(scheduler, output)
        free = scheduler.kv_cache_manager.block_pool.get_num_free_blocks()
        seen.append((scheduler, output, free))
        sampled = {}
        for id_ in output.num_scheduled_tokens:
            request = scheduler.requests[id_]
            if request.is_caught_up:
                sampled[id_] = 7
        scheduler.update_from_output(output, sampled)
    return seen


def own(start, length):
    return list(range(start, start + length))


CRAMPED = dict(num_gpu_blocks=10, enable_prefix_caching=False)
CRAMPED_ROWS = [(0, own(0, 10), 16), (0, own(100, 13), 16), (1, own(200, 9), 16),
                (2, own(300, 11), 14), (60, own(400, 5), 3)]
NARROW = dict(num_gpu_blocks=40, max_num_batched_tokens=2)
NARROW_ROWS = [(0, own(0, 5), 6), (0, own(10, 5), 6), (0, own(20, 5), 6), (1, own(30, 5), 6)]
CUT = dict(num_gpu_blocks=11, long_prefill_token_threshold=8, enable_prefix_caching=False)
CUT_ROWS = [(0, own(0, 32), 4), (0, own(100, 11), 5), (0, own(200, 4), 4), (2, own(300, 7), 3)]
SHARED = dict(num_gpu_blocks=20)
SHARED_ROWS = [(i, own(0, 16) + own(100 * (i + 1), 3), 5) for i in range(3)]
RUNS = [(CRAMPED_ROWS, CRAMPED), (NARROW_ROWS, NARROW), (CUT_ROWS, CUT), (SHARED_ROWS, SHARED)]
'''


def meter_test(runs: str = "RUNS", close: str = "abs(a - b) < 1e-9", **changes: str) -> str:
    """A test with some of its lines replaced."""
    lines = {
        "preemptions": "assert stats.num_preemptions == preemptions",
        "batch": "assert close(stats.avg_batch_size, sum(batches) / len(batches))",
        "usage": "assert close(stats.mean_kv_cache_usage, sum(shares) / len(shares))",
        "more": "pass",
        **changes,
    }
    return (
        RUN
        + f"""

def close(a, b):
    return {close}


def test_stats(Stats):
    for rows, config in {runs}:
        stats = Stats()
        seen = run(stats, list(rows), **config)
        preemptions = sum(len(output.preempted_req_ids) for _, output, _ in seen)
        batches = [len(o.num_scheduled_tokens) for _, o, _ in seen if o.num_scheduled_tokens]
        shares = [1 - free / s.config.num_gpu_blocks for s, _, free in seen]
        {lines["preemptions"]}
        {lines["batch"]}
        {lines["usage"]}
        {lines["more"]}
"""
    )


RIGHT = {
    "08a": {
        "fractions": by_hand(),
        "rounded to three places": by_hand(avg_batch_size=1.875, mean_kv_cache_usage=0.488),
    },
    "08b": {
        "lists": stats(),
        "sums": """
class Stats:
    num_preemptions = 0
    avg_batch_size = 0.0
    mean_kv_cache_usage = 0.0

    def __init__(self):
        self.steps = self.nonempty = self.reqs = self.blocks = 0

    def on_step(self, scheduler, output):
        pool = scheduler.kv_cache_manager.block_pool
        self.steps += 1
        self.num_preemptions += len(output.preempted_req_ids)
        self.reqs += len(output.num_scheduled_tokens)
        self.nonempty += bool(output.num_scheduled_tokens)
        self.blocks += scheduler.config.num_gpu_blocks - pool.get_num_free_blocks()
        self.mean_kv_cache_usage = self.blocks / scheduler.config.num_gpu_blocks / self.steps
        if self.nonempty:
            self.avg_batch_size = self.reqs / self.nonempty
""",
        "running means, blocks seen in the tables": """
class Stats:
    def __init__(self):
        self.num_preemptions = self.n = self.m = 0
        self.avg_batch_size = self.mean_kv_cache_usage = 0.0
        self.before = {}

    def on_step(self, scheduler, output):
        for request in [*scheduler.running, *scheduler.waiting]:
            known = self.before.get(request.request_id, 0)
            self.num_preemptions += request.num_preemptions - known
            self.before[request.request_id] = request.num_preemptions
        tables = scheduler.kv_cache_manager.req_to_blocks.values()
        used = len({block.block_id for table in tables for block in table})
        self.n += 1
        share = used / scheduler.config.num_gpu_blocks
        self.mean_kv_cache_usage += (share - self.mean_kv_cache_usage) / self.n
        batch = len(output.num_scheduled_tokens)
        if batch:
            self.m += 1
            self.avg_batch_size += (batch - self.avg_batch_size) / self.m
""",
    },
    "08c": {
        "four runs, values worked out beside": meter_test(),
        "a relative tolerance": meter_test(
            close="a == b or abs(a - b) / max(abs(a), abs(b)) < 1e-6"
        ),
    },
}

WRONG = {
    "08a": {
        "the stub": (by_hand(**dict.fromkeys(BY_HAND)), "not answered yet"),
        "RUNNING instead of the batch": (
            by_hand(batch_size=[16, 9, 3, 2, 9, 1, 0, 0, 5, 1]),
            "not their tokens",
        ),
        "the free ones": (
            by_hand(blocks_in_use=[3, 1, 0, 1, 3, 5, 8, 8, 6, 6]),
            "how many are free",
        ),
        "all steps for the batch": (by_hand(avg_batch_size=1.5), "divides by all steps"),
        "busy steps for the usage": (by_hand(mean_kv_cache_usage=39 / 64), "leaves out the steps"),
        "blocks, no share": (by_hand(mean_kv_cache_usage=3.9), "number of blocks"),
        "per cent": (by_hand(mean_kv_cache_usage=48.75), "per cent"),
        "no preemption seen": (by_hand(preemptions=[0] * 10), "step 3"),
    },
    "08b": {
        "the stub": ("class Stats:\n    pass", "AttributeError|num_preemptions"),
        "all zero": (
            "class Stats:\n"
            "    num_preemptions = avg_batch_size = mean_kv_cache_usage = 0\n\n"
            "    def on_step(self, scheduler, output):\n        pass",
            "is 0(.0)? after step",
        ),
        "asks the core": (
            """
class Stats:
    def on_step(self, scheduler, output):
        self.num_preemptions = scheduler.stats.num_preemptions
    num_preemptions = avg_batch_size = mean_kv_cache_usage = 0.0
""",
            "keeps no statistics",
        ),
        "all steps for the batch": (stats(avg="batches = self.batches"), "divides by all steps"),
        "RUNNING for the batch": (
            stats(on_step="batch = len(scheduler.running)"),
            "length of RUNNING",
        ),
        "tokens for the batch": (
            stats(on_step="batch = output.total_num_scheduled_tokens"),
            "counts tokens",
        ),
        "preempted requests once": (
            stats(
                init="self.seen = set()",
                on_step="preemptions = len(set(output.preempted_req_ids) - self.seen); "
                "self.seen |= set(output.preempted_req_ids)",
            ),
            "counts each request once",
        ),
        "steps that preempt": (
            stats(on_step="preemptions = bool(output.preempted_req_ids)"),
            "counts the steps that preempted|whole number|a number",
        ),
        "from the living": (
            stats(
                on_step="preemptions = sum(r.num_preemptions for r in scheduler.requests.values())"
                " - self.num_preemptions"
            ),
            "took their count with them",
        ),
        "the null block in use": (
            stats(
                on_step="pool = scheduler.kv_cache_manager.block_pool; "
                "share = 1 - pool.get_num_free_blocks() / len(pool.blocks)"
            ),
            "null block",
        ),
        "shared blocks twice": (
            stats(
                on_step="share = sum(map(len, scheduler.kv_cache_manager.req_to_blocks.values()))"
                " / scheduler.config.num_gpu_blocks"
            ),
            "two requests share",
        ),
        "token slots": (
            stats(
                on_step="share = sum(r.num_computed_tokens for r in scheduler.running)"
                " / scheduler.config.num_gpu_blocks / scheduler.config.block_size"
            ),
            "counts whole|two requests share|Wanted",
        ),
        "the last step": (
            stats(mean="return self.shares[-1] if self.shares else 0.0"),
            "last step",
        ),
        "the peak": (stats(mean="return max(self.shares, default=0.0)"), "peak|last step"),
        "busy steps for the usage": (
            stats(on_step="share = share if batch else None").replace(
                "sum(self.shares) / len(self.shares) if self.shares",
                "sum(s for s in self.shares if s is not None) / len(self.batches) "
                "* len(self.batches) / max(1, len([s for s in self.shares if s is not None])) "
                "if self.shares",
            ),
            "leaves out the steps",
        ),
        "nothing before the first step": (
            stats(avg="return sum(batches) / len(batches)"),
            "ZeroDivisionError",
        ),
        "a collector that steers": (
            stats(on_step="scheduler.running.sort(key=lambda r: r.request_id, reverse=True)"),
            "schedules something else|raised",
        ),
    },
    "08c": {
        "the stub": ("def test_stats(Stats):\n    ...", "wrong collectors pass"),
        "only preemptions > 0": (
            meter_test(
                runs="[(CRAMPED_ROWS, CRAMPED)]",
                preemptions="assert stats.num_preemptions > 0",
                batch="pass",
                usage="pass",
            ),
            "wrong collectors pass",
        ),
        "no batch size": (meter_test(batch="pass"), "of 10 wrong collectors pass"),
        "no usage": (meter_test(usage="pass"), "of 10 wrong collectors pass"),
        "no shared prefix": (meter_test(runs="RUNS[:3]"), "shared block twice"),
        "one preemption a step": (
            meter_test(runs="[RUNS[0], RUNS[1], RUNS[3]]"),
            "preempt two at once",
        ),
        "no pause": (
            meter_test(runs="[(CRAMPED_ROWS[:4], CRAMPED), *RUNS[1:]]"),
            "nobody is scheduled",
        ),
        "floats to the last digit": (meter_test(close="a == b"), "with a tolerance"),
        "refuses everybody": (meter_test(more="assert False"), "refuses a right collector"),
        "raises instead of asserting": (
            meter_test(preemptions="if stats.num_preemptions != preemptions: raise ValueError"),
            "says what is wrong with an assert",
        ),
        "a null block too many": (
            meter_test(usage="assert close(stats.mean_kv_cache_usage, sum(shares) / 99)"),
            "refuses a right collector",
        ),
    },
}
