"""Answers to exercise 13, right and wrong, as the text of the answer cell."""

ADMIT = """
from minivllm.core import RequestStatus, Scheduler


class AdmittingScheduler(Scheduler):
    def add_request(self, request):
        config = self.config
        asked = {asked}
        longest = {longest}
        blocks = {blocks}
        if {refuse}:
            {status}
            {error}
            {before}
            return False
        {accept}
"""


def admit(**changes: str) -> str:
    parts = {
        "asked": "config.max_model_len if request.max_tokens is None else request.max_tokens",
        "longest": "min(request.num_prompt_tokens + asked, config.max_model_len)",
        "blocks": "-(-(longest - 1) // config.block_size)",
        "refuse": (
            "request.num_prompt_tokens >= config.max_model_len or blocks > config.num_gpu_blocks"
        ),
        "status": "request.status = RequestStatus.FINISHED_IGNORED",
        "error": (
            'request.error = f"{request.num_prompt_tokens} prompt tokens, {blocks} blocks; '
            'there are {config.max_model_len} and {config.num_gpu_blocks}"'
        ),
        "before": "pass",
        "accept": "return super().add_request(request)",
        **changes,
    }
    return ADMIT.format(**parts)


HOOK = """
from minivllm.core import RequestStatus, Scheduler
from minivllm.core.kv_cache_manager import cdiv


class AdmittingScheduler(Scheduler):
    def __init__(self, config, **options):
        super().__init__(config, **options)
        self.slots = config.num_gpu_blocks * config.block_size

    def add_request(self, request):
        reason = self.never_fits(request)
        if reason is None:
            return super().add_request(request)
        request.status = RequestStatus.FINISHED_IGNORED
        request.error = reason
        self.stats.num_refused += 1
        return False

    def never_fits(self, request):
        room = self.config.max_model_len - request.num_prompt_tokens
        if room < 1:
            return f"{request.num_prompt_tokens} >= max_model_len={self.config.max_model_len}"
        output = room if request.max_tokens is None else min(room, request.max_tokens)
        if request.num_prompt_tokens + output > self.slots + 1:
            return f"{request.num_prompt_tokens} + {output} tokens, {self.slots} slots"
        return None
"""

FUNCTION = """
from minivllm import core


def AdmittingScheduler(config):
    scheduler = core.Scheduler(config)
    queue = scheduler.add_request

    def add_request(request):
        computed = 0
        while computed < config.max_model_len - 1:
            computed += 1
            made = computed + 1 - request.num_prompt_tokens
            if request.max_tokens is not None and made >= request.max_tokens:
                break
        too_long = request.num_prompt_tokens > config.max_model_len - 1
        if too_long or computed > config.num_gpu_blocks * config.block_size:
            request.status = core.RequestStatus(7)
            request.error = (
                f"{computed} tokens at the end, {request.num_prompt_tokens} of them the prompt; "
                f"{config.num_gpu_blocks * config.block_size} slots, "
                f"{config.max_model_len} positions."
            )
            return False
        return queue(request)

    scheduler.add_request = add_request
    return scheduler
"""

VLLM = """
vllm = {{
    "smallest_blocks": {smallest},
    "longest_model_len": {longest},
    "refused_by": {{
        "max_model_len 8192 with 300 blocks": "{startup}",
        "prompt 9000": "{front}",
        "prompt 8192": "{border}",
        "prompt 8191": "{below}",
        "prompt 8000, no max_tokens": "{unlimited}",
        "prompt 100, max_tokens 50": "nobody",
    }},
    "output_tokens": {{
        "prompt 9000": 0,
        "prompt 8192": {zero},
        "prompt 8191": {one},
        "prompt 8000, no max_tokens": {rest},
        "prompt 100, max_tokens 50": 50,
    }},
    "ignored_means": "{means}",
    "sets_ignored": {sets},
}}
"""


def vllm(**changes: object) -> str:
    parts: dict[str, object] = {
        "smallest": 512,
        "longest": 4800,
        "startup": "start-up",
        "front": "front door",
        "border": "front door",
        "below": "nobody",
        "unlimited": "nobody",
        "zero": 0,
        "one": 1,
        "rest": 192,
        "means": "length",
        "sets": 0,
        **changes,
    }
    return VLLM.format(**parts)


def limits(*tokens: int, blocks: str = "[4, 4, 4, 5, 5]") -> str:
    return f'limits = {{"max_tokens": {list(tokens)}, "num_gpu_blocks": {blocks}}}'


RIGHT = {
    "13a": {
        "by hand": limits(48, 19, 2, 1),
        "by formula": """
limits = {
    "max_tokens": [12 * 4 + 1 - prompt for prompt in (1, 30, 47, 48)],
    "num_gpu_blocks": [
        (min(p + m, 20) - 1 + 3) // 4 for p, m in ((10, 7), (13, 4), (16, 1), (16, 2), (3, 30))
    ],
}
""",
    },
    "13b": {"blocks": admit(), "slots and a hook": HOOK, "a loop in a function": FUNCTION},
    "13c": {"as upstream": vllm()},
}

WRONG = {
    "13a": {
        "every known token computed": (limits(47, 18, 1, 0), "also computed"),
        "more than the cache": (limits(49, 20, 3, 2), "preempt itself"),
        "too careful": (limits(40, 15, 2, 1), "one more output token still ends"),
        "the last token takes a slot": (
            limits(48, 19, 2, 1, blocks="[5, 5, 5, 5, 5]"),
            "one token too many",
        ),
        "the prompt alone": (limits(48, 19, 2, 1, blocks="[3, 4, 4, 4, 1]"), "holds the prompt"),
        "beyond max_model_len": (
            limits(48, 19, 2, 1, blocks="[4, 4, 4, 5, 8]"),
            "ends at max_model_len",
        ),
    },
    "13b": {
        "nobody is refused": (
            "from minivllm.core import Scheduler\n\n\nclass AdmittingScheduler(Scheduler): pass\n",
            "nobody is refused at all",
        ),
        "the prompt alone": (
            admit(blocks="-(-request.num_prompt_tokens // config.block_size)"),
            "prompt alone",
        ),
        "one token too strict": (
            admit(blocks="-(-longest // config.block_size)"),
            "one token too strict",
        ),
        "rounded down": (
            admit(blocks="(longest - 1) // config.block_size"),
            "rounded down",
        ),
        "the budget refuses": (
            admit(
                refuse="request.num_prompt_tokens > min(config.max_model_len - 1, "
                "config.max_num_batched_tokens) or blocks > config.num_gpu_blocks"
            ),
            "the budget refuses nobody",
        ),
        "no length at all": (
            admit(
                longest="request.num_prompt_tokens + asked",
                refuse="blocks > config.num_gpu_blocks",
            ),
            "max_model_len has no part in it",
        ),
        "a rule of its own": (
            admit(refuse="request.num_prompt_tokens % 3 == 0"),
            "at its longest .* are known .* blocks of",
        ),
        "against the free blocks": (
            admit(
                refuse="request.num_prompt_tokens >= config.max_model_len or blocks > "
                "self.kv_cache_manager.block_pool.get_num_free_blocks()"
            ),
            "does not depend on who is there now",
        ),
        "max_tokens beyond max_model_len": (
            admit(longest="request.num_prompt_tokens + asked"),
            "ends at max_model_len",
        ),
        "memory only": (admit(refuse="blocks > config.num_gpu_blocks"), "memory is minded"),
        "max_model_len only": (
            admit(refuse="request.num_prompt_tokens >= config.max_model_len"),
            "a cache can be smaller",
        ),
        "a prompt of max_model_len": (
            admit().replace("request.num_prompt_tokens >=", "request.num_prompt_tokens >"),
            "exactly max_model_len",
        ),
        "forgets that max_tokens can be None": (admit(asked="request.max_tokens"), "TypeError"),
        "raises": (admit(before='raise ValueError("too long")'), "raised ValueError"),
        "queues it all the same": (
            admit(before="self.requests[request.request_id] = request"),
            "must not be queued",
        ),
        "no status": (admit(status="pass"), "its status is WAITING"),
        "no reason": (admit(error="pass"), "without a word"),
        "no number": (admit(error='request.error = "no"'), "Name two numbers"),
        "a wrong reason": (
            admit(error='request.error = "the server is busy, try again later"'),
            "'the server is busy, try again later'.*what the request needs",
        ),
        "the id is no number": (
            admit(error='request.error = f"{request.request_id} 1 2 3 can never fit"'),
            "Name two numbers",
        ),
        "what it needs alone": (
            admit(error='request.error = f"it needs {blocks} blocks"'),
            "what there is of it",
        ),
        "the blocks of a prompt that is too long": (
            admit(error='request.error = f"{blocks} blocks of {config.num_gpu_blocks}"'),
            "Name two numbers.*max_model_len",
        ),
        "returns nothing": (admit(accept="super().add_request(request)"), "returned None"),
        "asks the core": (
            admit(refuse="self.refusal_reason(request)"),
            "AttributeError.*refusal_reason",
        ),
    },
    "13c": {
        "the last token needs no slot at start-up either": (vllm(smallest=513), "at start-up"),
        "the scheduler ignores it": (vllm(front="scheduler"), "refuses nobody"),
        "the border is let in": (vllm(border="nobody", zero=1), "front door|room for at least one"),
        "one below is refused": (
            vllm(below="front door", one=0),
            "Only the OpenAI server looks at max_tokens",
        ),
        "max_tokens decides at the door": (
            vllm(unlimited="front door", rest=0),
            "Only the OpenAI server looks at max_tokens",
        ),
        "start-up needs a request": (vllm(startup="front door"), "own configuration"),
        "sixteen by default": (vllm(rest=16), "fewer than it gets"),
        "ignored is aborted": (vllm(means="abort"), "shares another"),
        "the scheduler sets it": (vllm(sets=1), "not every name"),
    },
}
