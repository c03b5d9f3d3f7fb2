"""Answers to exercise 4, right and wrong, as the text of the answer cell."""

Row = tuple[str, int, int, int]

A = {"num_gpu_blocks": 200, "block_size": 4, "max_num_batched_tokens": 32}


def case(step: object, id_: str, rows: list[Row], **config: object) -> dict:
    requests = [
        {"request_id": r, "arrival_step": at, "num_prompt_tokens": prompt, "max_tokens": output}
        for r, at, prompt, output in rows
    ]
    return {"config": A | config, "requests": requests, "step": step, "request_id": id_}


LONG: list[Row] = [("r0", 0, 50, 4)]
TOO_LONG = case(1, "r0", [("r0", 0, 60, 4)], max_model_len=40, admission_control=False)
CASES = {
    "gap": case(1, "r0", LONG),
    "long_prefill_token_threshold": case(1, "r0", LONG, long_prefill_token_threshold=10),
    "max_num_batched_tokens": case(1, "r0", [("r0", 0, 90, 4)]),
    "max_model_len": TOO_LONG,
}


def binding(**changes: object) -> str:
    return f"binding = {CASES | changes}"


T, B, G = "long_prefill_token_threshold", "max_num_batched_tokens", "gap"
R0 = [(10, T), (10, T), (7, G), (1, G), (1, G)]
R1 = [(10, T), (10, T), (10, T), (1, G), (1, G)]
R2 = [None, (4, B), (7, B), (2, G), (1, G)]


def grants(r0: object = R0, r1: object = R1, r2: object = R2) -> str:
    return f"grants = {{'r0': {r0}, 'r1': {r1}, 'r2': {r2}}}"


SIGNATURE = (
    "def clamp(num_tokens, num_computed_tokens, token_budget, long_prefill_token_threshold, "
    "max_model_len):\n"
)


def clamp(body: str) -> str:
    return SIGNATURE + "\n".join(f"    {line}" for line in body.strip().splitlines()) + "\n"


def plain(rows: list[Row], **config: object) -> dict:
    answer = case(0, "", rows, **config)
    return {key: answer[key] for key in ("config", "requests")}


SEEN_A = plain([("r0", 0, 9, 4)])
SEEN_B = plain([("r0", 0, 30, 4), ("r1", 0, 30, 4), ("r2", 1, 40, 3)], max_num_batched_tokens=20)
CRAMPED: list[Row] = [("r0", 0, 10, 16), ("r1", 0, 13, 16), ("r2", 1, 9, 16)]
SEEN_C = plain(CRAMPED, num_gpu_blocks=12, enable_prefix_caching=False)


def exposing(**changes: object) -> str:
    return f"exposing = { ({'A': SEEN_A, 'B': SEEN_B, 'C': SEEN_C} | changes) }"


ROOM = case(4, "r0", [("r0", 0, 8, 12)], max_model_len=20, num_speculative_tokens=4)
DRAFTS: list[Row] = [("r0", 0, 4, 12), ("r1", 0, 4, 12)]

RIGHT = {
    "04a": {
        "the room met by proposed tokens, the front door shut": binding(max_model_len=ROOM),
        "each met by proposed tokens": binding(
            gap=case(1, "r0", [("r0", 0, 8, 12)], num_speculative_tokens=4),
            long_prefill_token_threshold=case(
                3,
                "r0",
                [("r0", 0, 8, 12)],
                num_speculative_tokens=4,
                long_prefill_token_threshold=3,
            ),
            max_num_batched_tokens=case(
                1, "r1", DRAFTS, num_speculative_tokens=4, max_num_batched_tokens=8
            ),
            max_model_len=ROOM,
        ),
        "one long prompt": binding(),
        "beside decodes": binding(
            max_num_batched_tokens=case(
                2, "r1", [("r0", 0, 5, 9), ("r1", 1, 80, 4)], long_prefill_token_threshold=40
            ),
            gap=case(3, "r1", [("r0", 0, 5, 9), ("r1", 1, 70, 4)]),
        ),
        "threshold below everything": binding(
            long_prefill_token_threshold=case(
                3,
                "x",
                [("x", 0, 300, 2), ("y", 0, 4, 9)],
                max_num_batched_tokens=256,
                long_prefill_token_threshold=16,
            ),
            max_model_len=case(
                2,
                "b",
                [("a", 0, 6, 30), ("b", 1, 200, 4)],
                max_model_len=30,
                max_num_batched_tokens=21,
                admission_control=False,
            ),
        ),
    },
    "04b": {
        "a table": grants(),
        "worked out": """
need = {"r0": [0, 27, 4], "r1": [0, 31, 3], "r2": [1, 13, 3]}
grants = {name: [] for name in need}
for step in range(5):
    left = 24
    for name, request in need.items():
        limits = {"gap": request[1], "long_prefill_token_threshold": 10,
                  "max_num_batched_tokens": left}
        n = min(limits.values())
        if step < request[0] or n == 0:
            grants[name].append(None)
            continue
        grants[name].append((n, min(limits, key=limits.get)))
        left -= n
        request[1] -= n
        if request[1] == 0:
            request[1] = 1
""",
    },
    "04c": {
        "as the engine": clamp("""
n = num_tokens - num_computed_tokens
if 0 < long_prefill_token_threshold < n:
    n = long_prefill_token_threshold
n = min(n, token_budget)
return max(0, min(n, max_model_len - 1 - num_computed_tokens))
"""),
        "one min": clamp("""
caps = [num_tokens - num_computed_tokens, token_budget, max_model_len - 1 - num_computed_tokens]
if long_prefill_token_threshold:
    caps.append(long_prefill_token_threshold)
return min(caps) if min(caps) > 0 else 0
"""),
        "by the last position": clamp("""
threshold = long_prefill_token_threshold or float("inf")
end = min(num_tokens, max_model_len - 1, num_computed_tokens + token_budget,
          num_computed_tokens + threshold)
return int(end - num_computed_tokens) if end > num_computed_tokens else 0
"""),
        "token by token": clamp("""
n = 0
while (
    num_computed_tokens + n < min(num_tokens, max_model_len - 1)
    and n < token_budget
    and (long_prefill_token_threshold == 0 or n < long_prefill_token_threshold)
):
    n += 1
return n
"""),
    },
    "04d": {
        "three small ones": exposing(),
        "one for all": exposing(
            A=plain(CRAMPED, num_gpu_blocks=12, max_num_batched_tokens=16),
            B=plain(CRAMPED, num_gpu_blocks=12, max_num_batched_tokens=7),
            C=plain(CRAMPED, num_gpu_blocks=12, max_num_batched_tokens=16),
        ),
    },
}

WRONG = {
    "04a": {
        "the stub": ("binding = {}", "not answered yet"),
        "one cap missing": (
            "binding = " + repr({k: v for k, v in CASES.items() if k != "gap"}),
            "missing",
        ),
        "the threshold at admission": (
            binding(
                long_prefill_token_threshold=case(0, "r0", LONG, long_prefill_token_threshold=10)
            ),
            "RUNNING half",
        ),
        "proposed tokens with room left": (
            binding(max_model_len=ROOM | {"step": 2}),
            "What bounds here is gap",
        ),
        "threshold off": (
            binding(long_prefill_token_threshold=case(1, "r0", LONG)),
            "switched off",
        ),
        "threshold equals the budget": (
            binding(
                long_prefill_token_threshold=case(
                    1, "r0", [("r0", 0, 90, 4)], long_prefill_token_threshold=32
                )
            ),
            "neither does max_num_batched_tokens",
        ),
        "threshold larger than the gap": (
            binding(
                long_prefill_token_threshold=case(1, "r0", LONG, long_prefill_token_threshold=30)
            ),
            "loosening it changes nothing",
        ),
        "the budget where the threshold binds": (
            binding(
                max_num_batched_tokens=case(
                    1, "r0", [("r0", 0, 90, 4)], long_prefill_token_threshold=10
                )
            ),
            "What bounds here is long_prefill_token_threshold",
        ),
        "any decode for the gap": (binding(gap=case(5, "r0", [("r0", 0, 9, 9)])), "every decode"),
        "a prompt too long, door guarded": (
            binding(max_model_len=case(1, "r0", [("r0", 0, 60, 4)], max_model_len=40)),
            "one knob turns the guard off",
        ),
        "an output up to max_model_len": (
            binding(max_model_len=case(19, "r0", [("r0", 0, 20, 60)], max_model_len=40)),
            "allowed more|neither does",
        ),
        "no token in that step": (binding(gap=case(1, "r1", [*LONG, ("r1", 5, 4, 4)])), "no token"),
    },
    "04b": {
        "the stub": (grants([None] * 5, [None] * 5, [None] * 5), "not answered yet"),
        "no threshold at admission": (
            grants([(24, B), (3, G), (1, G), (1, G), None]),
            "newcomers too",
        ),
        "the threshold only once": (
            grants([(10, T), (17, G), (1, G), (1, G), (1, G)]),
            "in every step",
        ),
        "the budget for each": (
            grants(r2=[None, (10, T), (3, G), (1, G), (1, G)]),
            "what is left",
        ),
        "no tokens under a cap": (
            grants(r2=[(0, B), (4, B), (7, B), (2, G), (1, G)]),
            "`None` stands for no tokens",
        ),
        "the wrong cap": (grants(r2=[None, (4, T), (7, B), (2, G), (1, G)]), "without which"),
        "not in this step": (grants(r2=[None, None, (4, B), (7, B), (2, G)]), "Walk the clamp"),
        "unknown cap": (grants(r2=[None, (4, "budget"), None, None, None]), "one of"),
    },
    "04c": {
        "the stub": (clamp("..."), "returned nothing"),
        "less than nothing": (
            clamp("""
n = num_tokens - num_computed_tokens
if 0 < long_prefill_token_threshold < n:
    n = long_prefill_token_threshold
return min(n, token_budget, max_model_len - 1 - num_computed_tokens)
"""),
            r"returns -\d+: a request cannot get less than no token",
        ),
        "threshold 0 as a cap": (
            clamp("""
gap = num_tokens - num_computed_tokens
return min(gap, long_prefill_token_threshold, token_budget,
           max_model_len - 1 - num_computed_tokens)
"""),
            "What does a threshold of 0 mean",
        ),
        "without the last position": (
            clamp("""
n = num_tokens - num_computed_tokens
if 0 < long_prefill_token_threshold < n:
    n = long_prefill_token_threshold
return min(n, token_budget, max_model_len - num_computed_tokens)
"""),
            "position max_model_len - 1",
        ),
        "no model length": (
            clamp("""
n = num_tokens - num_computed_tokens
if 0 < long_prefill_token_threshold < n:
    n = long_prefill_token_threshold
return min(n, token_budget)
"""),
            "max_model_len",
        ),
        "max_model_len as a size": (
            clamp("""
n = num_tokens - num_computed_tokens
if 0 < long_prefill_token_threshold < n:
    n = long_prefill_token_threshold
return min(n, token_budget, max_model_len)
"""),
            "max_model_len",
        ),
        "the prompt instead of the gap": (
            clamp("""
n = num_tokens
if 0 < long_prefill_token_threshold < n:
    n = long_prefill_token_threshold
return min(n, token_budget, max_model_len - 1 - num_computed_tokens)
"""),
            "known and not computed",
        ),
        "no budget": (
            clamp("""
n = num_tokens - num_computed_tokens
if 0 < long_prefill_token_threshold < n:
    n = long_prefill_token_threshold
return min(n, max_model_len - 1 - num_computed_tokens)
"""),
            "left of the step's budget",
        ),
        "the threshold as a floor": (
            clamp("""
n = max(num_tokens - num_computed_tokens, long_prefill_token_threshold)
return min(n, token_budget, max_model_len - 1 - num_computed_tokens)
"""),
            "more than the threshold|known and not computed",
        ),
        "one token for a decode only": (
            clamp("return 1"),
            "none of the four caps|cannot|outgrow|position",
        ),
    },
    "04d": {
        "the stub": ('exposing = {"A": None, "B": None, "C": None}', "not answered yet"),
        "a prompt in one step, and no decode": (
            exposing(A=plain([("r0", 0, 9, 1)])),
            "A does here what the real one does",
        ),
        "a threshold set": (
            exposing(A=plain([("r0", 0, 9, 4)], long_prefill_token_threshold=4)),
            "the default",
        ),
        "nobody short of budget": (
            exposing(B=plain([("r0", 0, 30, 4), ("r1", 0, 30, 4)], max_num_batched_tokens=100)),
            "those before it have left",
        ),
        "one request and the budget": (
            exposing(B=plain([("r0", 0, 90, 4)], max_num_batched_tokens=20)),
            "those before it have left",
        ),
        "no preemption": (exposing(C=plain(CRAMPED)), "knows more tokens than its prompt"),
        "long prompts": (
            exposing(C=plain([("r0", 0, 60, 4), ("r1", 1, 70, 4)])),
            "knows more tokens than its prompt",
        ),
    },
}
