"""Extra exercise X2's driver: calls of the student's pool, and what it holds after each."""

from __future__ import annotations

from typing import Any


def play(make: Any, cases: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """For each case what each call returned, the free queue and the counts after it."""
    return [_states(make, case["num_blocks"], case["calls"]) for case in cases]


def _states(make: Any, num_blocks: int, calls: list[Any]) -> list[dict[str, Any]]:
    pool, states = make(num_blocks), []
    for name, argument in calls:
        state: dict[str, Any] = {}
        try:
            returned = getattr(pool, name)(argument)
            state["returned"] = list(returned) if name == "get_new_blocks" else None
        except ValueError:
            state["returned"] = "ValueError"
        except Exception as error:
            state["problem"] = f"your code raises {type(error).__name__}: {error}"
        try:
            state["free_queue"] = list(pool.free_queue)
            state["ref_cnt"] = [pool.ref_cnt[block] for block in range(1, num_blocks + 1)]
        except Exception as error:
            state.setdefault("problem", f"free_queue and ref_cnt cannot be read ({error!r})")
        states.append(state)
    return states
