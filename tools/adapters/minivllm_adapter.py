"""minivllm's scheduler behind the pipe of `python -m minivllm.conformance run`: the one to copy.

    python -m minivllm.conformance run TRACES.jsonl.gz -- python tools/adapters/minivllm_adapter.py

What the messages mean is told in `minivllm.runs.under_test`.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from minivllm.core import RequestStatus, Scheduler, SchedulerOutput
from minivllm.runs.conformance import make_request, make_scheduler

HELLO = {
    "protocol": 1,
    "minor": 1,
    "name": "minivllm",
    "decides": [
        *("refusals", "who", "tokens", "drafts", "order"),
        *("preemption", "admission", "block_ids", "cache_hits"),
    ],
    "lacks": [],
}


def step(scheduler: Scheduler, message: dict[str, Any]) -> tuple[SchedulerOutput, dict[str, Any]]:
    """Plan one step; the plan, and what it decides."""
    added = [make_request(spec) for spec in message["add"]]
    refused = [r.request_id for r in added if not scheduler.add_request(r)]
    scheduler.finish_requests(message["abort"], RequestStatus.FINISHED_ABORTED)
    output = scheduler.schedule()
    planned = {id_: scheduler.requests[id_] for id_ in output.num_scheduled_tokens}
    admitted = [*output.scheduled_new_reqs, *output.scheduled_resumed_reqs]
    admitted.sort(key=scheduler.running.index)
    drafts = output.scheduled_spec_decode_tokens
    return output, {
        "scheduled": list(output.num_scheduled_tokens.items()),
        "sampling": {
            id_: request.next_output_index
            for id_, request in planned.items()
            if request.num_computed_tokens >= len(request.all_token_ids)
        },
        "preempted": output.preempted_req_ids,
        "admitted": [request.request_id for request in admitted],
        "cached": {request.request_id: request.num_cached_tokens for request in admitted},
        "block_ids": {id_: scheduler.kv_cache_manager.get_block_ids(id_) for id_ in planned},
        "refused": refused,
        "drafts": {id_: len(tokens) for id_, tokens in drafts.items()},
        "padded": [r.request_id for r in admitted if r.request_id in drafts],
        "propose": output.num_spec_tokens_to_schedule,
    }


def main() -> None:
    """Answer until the input ends."""
    plans: list[SchedulerOutput] = []
    for line in sys.stdin:
        message = json.loads(line)
        answer: dict[str, Any] = HELLO
        if message["op"] == "begin":
            workload = {"config": message["config"], "vllm": message["release"]}
            scheduler, plans, answer = make_scheduler(workload), [], {}
        elif message["op"] == "step":
            plan, answer = step(scheduler, message)
            plans.append(plan)
        elif message["op"] == "tokens":
            outputs = scheduler.update_from_output(plans.pop(0), message["tokens"])
            if "drafts" in message:
                scheduler.update_draft_token_ids(message["drafts"])
            answer = {"finished": [o.request_id for o in outputs if o.finish_reason]}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
