"""A scenario: the knobs, who arrives when, and what to look for. One JSON object, one link.

A link can come from anyone, so a scenario is untrusted: every value is checked for its type and
its range, all problems are listed at once, and nothing in it is ever executed.
"""

from __future__ import annotations

import base64
import binascii
import json
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any
from zlib import crc32

from minivllm.core.config import POLICIES, PREEMPTION_MODES, SchedulerConfig
from minivllm.core.releases import RELEASES
from minivllm.core.request import Request
from minivllm.core.sampling_params import SamplingParams
from minivllm.core.victim import VICTIM_POLICIES
from minivllm.runs.guesses import ACCEPTANCE_RATE

SCENARIO_VERSION = 1

VOCAB_SIZE = 32_000
"""Token ids of the simulated model lie below this."""

LIMITS: dict[str, tuple[int, int]] = {
    "json_bytes": (2, 65_536),
    "requests": (0, 500),
    "arrival_step": (0, 10_000),
    "num_prompt_tokens": (1, 16_384),
    "all_prompt_tokens": (0, 131_072),
    "max_tokens": (1, 4_096),
    "min_tokens": (0, 4_096),
    "arrival_time": (0, 1_000_000),
    "priority": (-1_000_000, 1_000_000),
    "seed": (0, 2**32 - 1),
    "step": (0, 10_000),
    "token_id": (0, 2**31 - 1),
    "num_gpu_blocks": (1, 4_096),
    "num_cpu_blocks": (0, 4_096),
    "block_size": (1, 1_024),
    "max_model_len": (2, 32_768),
    "max_num_batched_tokens": (1, 65_536),
    "max_num_seqs": (1, 1_024),
    "long_prefill_token_threshold": (0, 65_536),
    "max_num_active_seqs": (1, 1_024),
    "max_num_queued_reqs": (0, 1_024),
    "max_num_queued_tokens": (0, 1_048_576),
    "prefill_schedule_interval": (1, 1_000),
    "num_speculative_tokens": (0, 64),
    "num_lookahead_tokens": (0, 64),
}
"""Smallest and largest value of each number in a scenario, ends included."""

CHOICES: dict[str, tuple[str | None, ...]] = {
    "vllm_version": RELEASES,
    "policy": POLICIES,
    "preemption_mode": PREEMPTION_MODES,
    "victim": (None, *VICTIM_POLICIES),
}
KNOBS = tuple(knob.name for knob in fields(SchedulerConfig))
INT_KNOBS = tuple(name for name in KNOBS if name in LIMITS)
OPTIONAL_KNOBS = tuple(name for name in INT_KNOBS if getattr(SchedulerConfig, name, 0) is None)
"""Numbers that need not be set: None is allowed too."""
SHARE_KNOBS = ("watermark",)
"""Numbers from 0 to below 1."""
ROWS_KNOBS = ("num_speculative_tokens_per_batch_size",)
"""Lists of rows of three numbers; None is allowed too."""
ROWS = "null or rows [from, to, tokens] of integers from 0 to 1024"
BOOL_KNOBS = tuple(
    name for name in KNOBS if name not in (*LIMITS, *CHOICES, *SHARE_KNOBS, *ROWS_KNOBS)
)

SCENARIO_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,39}")
REQUEST_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,31}")
MAX_CHARACTERS = {"title": 120, "question": 400}


def _some(names: Sequence[str], most: int = 3) -> str:
    """The first few names, and how many more there are."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


class ScenarioError(ValueError):
    """What is wrong with an untrusted object, all of it.

    Args:
        errors: one `{"field": ..., "message": ...}` for each problem; the message names the
            value, the limit and the knob.
    """

    def __init__(self, errors: Sequence[Mapping[str, str]]) -> None:
        self.errors = [dict(error) for error in errors]
        fields: dict[str, list[str]] = {}  # by message: what is wrong with many is said once
        for error in self.errors:
            fields.setdefault(error["message"], []).append(error["field"])
        super().__init__("; ".join(f"{_some(names)}: {says}" for says, names in fields.items()))


class Checker:
    """Collects the problems of one object; what a method returns is safe to use afterwards."""

    def __init__(self) -> None:
        self.errors: list[dict[str, str]] = []

    def error(self, field_: str, message: str) -> None:
        """Note one problem."""
        self.errors.append({"field": field_, "message": message})

    def done(self) -> None:
        """Raise `ScenarioError` if there was any problem."""
        if self.errors:
            raise ScenarioError(self.errors)

    def mapping(self, value: object, field_: str, known: Sequence[str]) -> dict[str, Any]:
        """`value` as a dict whose keys are all `known`; {} after a problem."""
        if not isinstance(value, Mapping):
            self.error(field_, f"must be an object, got {shown(value)}")
            return {}
        for key in value:
            if key not in known:
                where = f"{field_}.{key}" if field_ and isinstance(key, str) else str(key)
                self.error(
                    where[:100], f"unknown key {shown(key)}; the keys are {', '.join(known)}"
                )
        return {key: value[key] for key in known if key in value}

    def integer(self, value: object, field_: str, name: str, default: int = 0) -> int:
        """`value` if it is an int within `LIMITS[name]`, else `default`."""
        low, high = LIMITS[name]
        if type(value) is not int:  # a bool is an int too, and is not meant
            self.error(field_, f"{name} must be an integer, got {shown(value)}")
        elif not low <= value <= high:
            self.error(field_, f"{name} must lie in {low} to {high}, got {shown(value)}")
        else:
            return value
        return default

    def text(self, value: object, field_: str, max_length: int) -> str:
        """`value` if it is a string of printable characters, not too long, else ''."""
        text = self.text_block(value, field_, max_length)
        if not text.isprintable():
            self.error(field_, "must have no control characters and no line breaks")
            return ""
        return text

    def text_block(self, value: object, field_: str, max_length: int) -> str:
        """`value` if it is a string, of whatever characters, not too long, else ''."""
        if not isinstance(value, str):
            self.error(field_, f"must be a string, got {shown(value)}")
        elif len(value) > max_length:
            self.error(field_, f"must have at most {max_length} characters, got {len(value)}")
        else:
            return value
        return ""

    def identifier(self, value: object, field_: str, pattern: re.Pattern[str]) -> str:
        """`value` if it is a string that `pattern` matches whole, else ''."""
        if isinstance(value, str) and pattern.fullmatch(value):
            return value
        self.error(field_, f"must match {pattern.pattern}, got {shown(value)}")
        return ""

    def knobs(self, value: object, field_: str) -> dict[str, Any]:
        """The valid ones among `value`, a mapping of `SchedulerConfig` knobs."""
        data = self.mapping(value, field_, KNOBS)
        before = len(self.errors)
        good = {}
        for name, knob in data.items():
            where = f"{field_}.{name}" if field_ else name
            if name in OPTIONAL_KNOBS and knob is None:
                pass
            elif name in INT_KNOBS:
                self.integer(knob, where, name)
            elif name in SHARE_KNOBS:
                if type(knob) not in (int, float) or not 0 <= knob < 1:  # NaN fails it
                    self.error(where, f"{name} must lie in 0 to below 1, got {shown(knob)}")
            elif name in ROWS_KNOBS:
                if knob is not None and not _are_rows(knob):
                    self.error(where, f"{name} must be {ROWS}, got {shown(knob)}")
            elif name in CHOICES:
                if not any(knob is choice or knob == choice for choice in CHOICES[name]):
                    allowed = ", ".join(
                        "null" if choice is None else choice for choice in CHOICES[name]
                    )
                    self.error(where, f"{name} must be one of {allowed}; got {shown(knob)}")
            elif type(knob) is not bool:
                self.error(where, f"{name} must be true or false, got {shown(knob)}")
            if len(self.errors) == before:
                good[name] = knob
            before = len(self.errors)
        return good

    def together(self, config: Mapping[str, Any], field_: str) -> None:
        """Note what knobs that are valid alone are not together, if all are."""
        if self.errors:
            return
        try:
            SchedulerConfig(**config)
        except ValueError as error:
            name = str(error).split("=")[0].split(" ")[0]
            self.error(f"{field_}.{name}" if field_ else name, str(error))


def _are_rows(value: object) -> bool:
    low, high = LIMITS["max_num_seqs"]
    return (
        isinstance(value, (list, tuple))
        and len(value) <= high
        and all(
            isinstance(row, (list, tuple))
            and len(row) == 3
            and all(type(number) is int and low - 1 <= number <= high for number in row)
            for row in value
        )
    )


def shown(value: object) -> str:
    """A value as an error message shows it: JSON-like, and short whatever it is."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10**18:
        return f"an integer of {value.bit_length()} bits"
    if isinstance(value, str) and len(value) > 40:
        value = value[:40] + "…"
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):
        text = type(value).__name__
    return text if len(text) <= 60 else text[:60] + "…"


def parse_json(text: str) -> Any:
    """Strict JSON: not too long, no NaN, no key twice in an object.

    Raises:
        ScenarioError: saying what was wrong.
    """
    checker = Checker()
    limit = LIMITS["json_bytes"][1]
    if not isinstance(text, str):
        raise ScenarioError([{"field": "", "message": f"must be JSON text, got {shown(text)}"}])
    if len(text) > limit or len(text.encode("utf-8", "surrogatepass")) > limit:
        raise ScenarioError(
            [
                {
                    "field": "",
                    "message": f"{len(text)} characters of JSON; the limit is {limit} bytes",
                }
            ]
        )

    def no_constant(name: str) -> None:
        raise ValueError(f"{name} is not JSON")

    def no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        data = dict(pairs)
        if len(data) < len(pairs):
            keys = [key for key, _ in pairs]
            raise ValueError(f"key {shown(next(k for k in keys if keys.count(k) > 1))} given twice")
        return data

    try:
        return json.loads(text, parse_constant=no_constant, object_pairs_hook=no_duplicates)
    except RecursionError:
        checker.error("", "not usable JSON: nested too deeply")
    except ValueError as error:
        checker.error("", f"not usable JSON: {error}")
    raise ScenarioError(checker.errors)


# --- requests -------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ScenarioRequest:
    """One arrival.

    The prompt is `prompt_token_ids`, or `num_prompt_tokens` made-up tokens, the first
    `num_prefix_tokens` of which are the same for everyone in `prefix_group`.
    """

    request_id: str
    arrival_step: int = 0
    num_prompt_tokens: int = 1
    prompt_token_ids: tuple[int, ...] | None = None
    max_tokens: int = 16
    min_tokens: int = 0
    priority: int = 0
    arrival_time: int | None = None
    """Breaks ties among equal priorities; None: the order of arrival does."""
    prefix_group: str | None = None
    num_prefix_tokens: int = 0

    @classmethod
    def from_dict(cls, data: object, *, default_arrival_step: int = 0) -> ScenarioRequest:
        """A checked request.

        Raises:
            ScenarioError: listing every problem.
        """
        checker = Checker()
        request = check_request(checker, data, "request", default_arrival_step)
        checker.done()
        return request

    def to_dict(self) -> dict[str, Any]:
        """JSON-serialisable; what has its default value is left out."""
        data: dict[str, Any] = {
            "request_id": self.request_id,
            "arrival_step": self.arrival_step,
        }
        if self.prompt_token_ids is not None:
            data["prompt_token_ids"] = list(self.prompt_token_ids)
        else:
            data["num_prompt_tokens"] = self.num_prompt_tokens
        data["max_tokens"] = self.max_tokens
        for name in ("min_tokens", "priority"):
            if getattr(self, name):
                data[name] = getattr(self, name)
        if self.arrival_time is not None:
            data["arrival_time"] = self.arrival_time
        if self.prefix_group is not None:
            data["prefix_group"] = self.prefix_group
            data["num_prefix_tokens"] = self.num_prefix_tokens
        return data

    def token_ids(self, seed: int) -> list[int]:
        """The prompt."""
        if self.prompt_token_ids is not None:
            return list(self.prompt_token_ids)
        prefix = [
            token_id(seed, f"g:{self.prefix_group}", i) for i in range(self.num_prefix_tokens)
        ]
        own = range(self.num_prefix_tokens, self.num_prompt_tokens)
        return prefix + [token_id(seed, f"p:{self.request_id}", i) for i in own]

    def make_request(self, seed: int) -> Request:
        """The scheduler's request; only `max_tokens` ends it."""
        return Request(
            self.request_id,
            self.token_ids(seed),
            SamplingParams(max_tokens=self.max_tokens, min_tokens=self.min_tokens, ignore_eos=True),
            priority=self.priority,
            arrival_time=self.arrival_time,
        )


def token_id(seed: int, stream: str, position: int) -> int:
    """The simulated model: a token from its stream's name and its position, nothing else.

    So a request says the same whatever shares its batch, however often it is preempted, and in
    any Python.
    """
    return crc32(f"{seed}/{stream}/{position}".encode()) % VOCAB_SIZE


def token_at(seed: int) -> Callable[[Request, int], int]:
    """What the simulated model says: of a request, the output token with an index."""
    return lambda request, index: token_id(seed, f"o:{request.request_id}", index)


def sampled_token_id(seed: int, request: Request) -> int:
    """What the simulated model says next."""
    return token_at(seed)(request, request.num_output_tokens)


def check_request(
    checker: Checker, data: object, where: str, default_arrival_step: int = 0
) -> ScenarioRequest:
    """The checked request; after a problem, one with defaults in the bad places."""
    known = tuple(f.name for f in fields(ScenarioRequest))
    row = checker.mapping(data, where, known)

    def number(name: str, default: int) -> int:
        if name not in row:
            return default
        return checker.integer(row[name], f"{where}.{name}", name, default)

    request_id = ""
    if "request_id" in row:
        request_id = checker.identifier(row["request_id"], f"{where}.request_id", REQUEST_ID)
    elif isinstance(data, Mapping):
        checker.error(f"{where}.request_id", "is missing; give each request an id of its own")

    tokens: tuple[int, ...] | None = None
    if row.get("prompt_token_ids") is not None:
        tokens = _check_token_ids(checker, row["prompt_token_ids"], f"{where}.prompt_token_ids")
        for name in ("num_prompt_tokens", "prefix_group", "num_prefix_tokens"):
            if row.get(name):
                checker.error(f"{where}.{name}", "has no meaning beside prompt_token_ids")
    elif "num_prompt_tokens" not in row and isinstance(data, Mapping):
        checker.error(f"{where}.num_prompt_tokens", "is missing; give it or prompt_token_ids")
    num_prompt_tokens = len(tokens) if tokens else number("num_prompt_tokens", 1)

    group, num_prefix_tokens = None, 0
    if tokens is None:
        if row.get("prefix_group") is not None:
            group = checker.identifier(row["prefix_group"], f"{where}.prefix_group", REQUEST_ID)
        num_prefix_tokens = row.get("num_prefix_tokens", 0)
        if type(num_prefix_tokens) is not int or not 0 <= num_prefix_tokens <= num_prompt_tokens:
            checker.error(
                f"{where}.num_prefix_tokens",
                f"must be an integer from 0 to num_prompt_tokens={num_prompt_tokens}, "
                f"got {shown(num_prefix_tokens)}",
            )
            num_prefix_tokens = 0
        elif bool(num_prefix_tokens) != (group is not None):
            checker.error(f"{where}.num_prefix_tokens", "goes together with prefix_group")

    arrival_step, arrival_time = row.get("arrival_step"), row.get("arrival_time")
    max_tokens, min_tokens = number("max_tokens", 16), number("min_tokens", 0)
    if min_tokens > max_tokens:
        checker.error(
            f"{where}.min_tokens", f"must be at most max_tokens={max_tokens}, got {min_tokens}"
        )
    return ScenarioRequest(
        request_id=request_id,
        arrival_step=default_arrival_step
        if arrival_step is None
        else number("arrival_step", default_arrival_step),
        num_prompt_tokens=num_prompt_tokens,
        prompt_token_ids=tokens,
        max_tokens=max_tokens,
        min_tokens=min_tokens,
        priority=number("priority", 0),
        arrival_time=None if arrival_time is None else number("arrival_time", 0),
        prefix_group=group,
        num_prefix_tokens=num_prefix_tokens,
    )


def _check_token_ids(checker: Checker, value: object, where: str) -> tuple[int, ...]:
    low, high = LIMITS["num_prompt_tokens"]
    if not isinstance(value, (list, tuple)):
        checker.error(where, f"must be a list of token ids, got {shown(value)}")
        return ()
    if not low <= len(value) <= high:
        checker.error(where, f"must hold {low} to {high} token ids, got {len(value)}")
        return ()
    for index, token in enumerate(value):
        if type(token) is not int or not 0 <= token <= LIMITS["token_id"][1]:
            checker.error(
                f"{where}[{index}]",
                f"a token id must be an integer from 0 to {LIMITS['token_id'][1]}, "
                f"got {shown(token)}",
            )
            return ()
    return tuple(value)


def check_requests(checker: Checker, value: object, where: str) -> list[ScenarioRequest]:
    """The checked list: not too long, no id twice, not too many prompt tokens in all."""
    if not isinstance(value, (list, tuple)):
        checker.error(where, f"must be a list of requests, got {shown(value)}")
        return []
    if len(value) > LIMITS["requests"][1]:
        checker.error(where, f"at most {LIMITS['requests'][1]} requests, got {len(value)}")
        return []
    requests = [check_request(checker, row, f"{where}[{i}]") for i, row in enumerate(value)]
    seen: set[str] = set()
    for index, request in enumerate(requests):
        if request.request_id in seen and request.request_id:
            checker.error(
                f"{where}[{index}].request_id", f"{shown(request.request_id)} is taken already"
            )
        seen.add(request.request_id)
    check_all_prompt_tokens(checker, requests, where)
    return requests


def check_all_prompt_tokens(
    checker: Checker, requests: Sequence[ScenarioRequest], where: str
) -> None:
    """All prompts together must be small enough for a browser tab."""
    total, limit = sum(r.num_prompt_tokens for r in requests), LIMITS["all_prompt_tokens"][1]
    if total > limit:
        checker.error(where, f"all prompts together have {total} tokens; the limit is {limit}")


# --- scenarios ------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """Knobs, arrivals and a question, with a JSON form for links (`from_dict`, `to_fragment`)."""

    name: str
    title: str
    question: str
    """One line: what to look for."""
    config: Mapping[str, Any]
    """The knobs that are set; the others have `SchedulerConfig`'s defaults."""
    requests: tuple[ScenarioRequest, ...]
    seed: int = 0
    step: int | None = None
    """Open at this step: the most telling one."""
    acceptance_rate: float = ACCEPTANCE_RATE
    """How often a proposed token is right, 0 to 1: matters with `num_speculative_tokens`."""
    version: int = field(default=SCENARIO_VERSION, repr=False)

    def scheduler_config(self) -> SchedulerConfig:
        """The knobs, all of them."""
        return SchedulerConfig(**self.config)

    def with_knobs(self, **knobs: Any) -> Scenario:
        """The same arrivals under other knobs.

        Raises:
            ScenarioError: on a knob that does not exist or a value that is not allowed.
        """
        checker = Checker()
        config = {**self.config, **checker.knobs(knobs, "")}
        checker.together(config, "")
        checker.done()
        return replace(self, config=config)

    def to_dict(self) -> dict[str, Any]:
        """JSON-serialisable; the inverse of `from_dict`."""
        data: dict[str, Any] = {
            "version": self.version,
            "name": self.name,
            "title": self.title,
            "question": self.question,
            "config": dict(self.config),
            "requests": [request.to_dict() for request in self.requests],
            "seed": self.seed,
        }
        if self.step is not None:
            data["step"] = self.step
        if self.acceptance_rate != ACCEPTANCE_RATE:
            data["acceptance_rate"] = self.acceptance_rate
        return data

    def to_json(self) -> str:
        """Compact JSON."""
        return json.dumps(self.to_dict(), separators=(",", ":"), ensure_ascii=False)

    def to_fragment(self) -> str:
        """Base64url of the JSON, without padding: `page.html#stepper=` and this is a link."""
        return base64.urlsafe_b64encode(self.to_json().encode()).decode().rstrip("=")

    @classmethod
    def from_dict(cls, data: object) -> Scenario:
        """A checked scenario.

        Raises:
            ScenarioError: listing every problem, each with its field.
        """
        checker = Checker()
        row = checker.mapping(data, "", tuple(f.name for f in fields(cls)))
        if isinstance(data, Mapping):
            if type(row.get("version")) is not int or row["version"] != SCENARIO_VERSION:
                checker.error(
                    "version",
                    f"is {shown(row.get('version'))}; this code reads version {SCENARIO_VERSION}",
                )
            if "config" not in row:
                checker.error("config", "is missing; it needs num_gpu_blocks at least")
            if "requests" not in row:
                checker.error("requests", "is missing; give a list, which may be empty")
        config = checker.knobs(row.get("config", {}), "config")
        knobs = row.get("config")
        if isinstance(knobs, Mapping) and "num_gpu_blocks" not in knobs:
            low, high = LIMITS["num_gpu_blocks"]
            checker.error(
                "config.num_gpu_blocks", f"is missing; give a number from {low} to {high}"
            )
        checker.together(config, "config")
        requests = check_requests(checker, row.get("requests", []), "requests")
        name = checker.identifier(row.get("name", "scenario"), "name", SCENARIO_NAME)
        title = checker.text(row.get("title", ""), "title", MAX_CHARACTERS["title"])
        question = checker.text(row.get("question", ""), "question", MAX_CHARACTERS["question"])
        seed = checker.integer(row.get("seed", 0), "seed", "seed")
        step = row.get("step")
        if step is not None:
            checker.integer(step, "step", "step")
        rate = row.get("acceptance_rate", ACCEPTANCE_RATE)
        if type(rate) not in (int, float) or not 0 <= rate <= 1:  # NaN fails it
            checker.error("acceptance_rate", f"must lie in 0 to 1, got {shown(rate)}")
        checker.done()
        return cls(
            name=name,
            title=title,
            question=question,
            config=config,
            requests=tuple(requests),
            seed=seed,
            step=step,
            acceptance_rate=rate,
        )

    @classmethod
    def from_json(cls, text: str) -> Scenario:
        """A checked scenario from JSON text.

        Raises:
            ScenarioError: also if the text is no JSON, or longer than `LIMITS["json_bytes"]`.
        """
        return cls.from_dict(parse_json(text))

    @classmethod
    def from_fragment(cls, fragment: str) -> Scenario:
        """The inverse of `to_fragment`.

        Raises:
            ScenarioError: also if `fragment` is not base64url.
        """
        limit = LIMITS["json_bytes"][1]
        if len(fragment) > limit * 4 // 3 + 4:
            message = f"{len(fragment)} characters; the scenario in it may have {limit} bytes"
            raise ScenarioError([{"field": "", "message": message}])
        try:
            raw = fragment.encode("ascii")
            raw += b"=" * (-len(raw) % 4)
            text = base64.b64decode(raw, altchars=b"-_", validate=True).decode("utf-8")
        except (UnicodeError, binascii.Error) as error:
            message = f"the link holds no scenario: {error}"
            raise ScenarioError([{"field": "", "message": message}]) from None
        return cls.from_json(text)


# --- arrival patterns -----------------------------------------------------------------------

ARRIVAL_PATTERNS: dict[str, tuple[str, ...]] = {
    "as_written": (),
    "all_at_once": (),
    "every": ("every",),
    "poisson": ("per_step", "seed"),
    "burst": ("size", "every"),
}
"""Each kind of arrival pattern, and its parameters."""


def arrival_steps(
    kind: str,
    num_requests: int,
    *,
    every: int = 2,
    per_step: float = 0.5,
    size: int = 4,
    seed: int = 0,
) -> list[int]:
    """When each of `num_requests` requests arrives, in steps.

    Args:
        kind: `all_at_once`; `every`: one every `every` steps; `burst`: `size` at once every
            `every` steps; `poisson`: `per_step` a step on average, with exponential gaps.
        seed: of the Poisson process; the same seed gives the same arrivals.

    Raises:
        ScenarioError: on an unknown kind or a parameter out of range.
    """
    pattern = {"kind": kind, "every": every, "per_step": per_step, "size": size, "seed": seed}
    known = ("kind", *ARRIVAL_PATTERNS.get(kind, ()))
    check_pattern({key: value for key, value in pattern.items() if key in known})
    if kind == "as_written":
        raise ScenarioError([{"field": "kind", "message": "as_written has no steps of its own"}])
    if kind == "every":
        return [index * every for index in range(num_requests)]
    if kind == "burst":
        return [index // size * every for index in range(num_requests)]
    steps = [0] * num_requests
    if kind == "poisson":
        rng, time = random.Random(seed), 0.0
        for index in range(1, num_requests):
            time += rng.expovariate(per_step)
            steps[index] = min(int(time), LIMITS["arrival_step"][1])
    return steps


def check_pattern(data: object) -> dict[str, Any]:
    """A checked arrival pattern, `{"kind": ..., its parameters}`.

    Raises:
        ScenarioError: listing every problem.
    """
    checker = Checker()
    kind = data.get("kind") if isinstance(data, Mapping) else None
    if isinstance(data, Mapping) and not (isinstance(kind, str) and kind in ARRIVAL_PATTERNS):
        checker.error("kind", f"must be one of {', '.join(ARRIVAL_PATTERNS)}; got {shown(kind)}")
        checker.done()
    row = checker.mapping(data, "", ("kind", *ARRIVAL_PATTERNS.get(str(kind), ())))
    limits = {"every": (1, 1000), "size": (1, 500), "seed": LIMITS["seed"]}
    for name, (low, high) in limits.items():
        value = row.get(name, low)
        if type(value) is not int or not low <= value <= high:
            checker.error(name, f"must be an integer from {low} to {high}, got {shown(value)}")
    rate = row.get("per_step", 1.0)
    if type(rate) not in (int, float) or not 0.01 <= rate <= 100:  # NaN fails the comparison
        checker.error("per_step", f"must be a number from 0.01 to 100, got {shown(rate)}")
    checker.done()
    return row


def with_arrival_pattern(scenario: Scenario, kind: str, **parameters: Any) -> Scenario:
    """The same requests, in their order, arriving otherwise (see `arrival_steps`).

    Raises:
        ScenarioError: on an unknown kind or a parameter that it does not have.
    """
    row = check_pattern({"kind": kind, **parameters})
    if kind == "as_written":
        return scenario
    del row["kind"]
    steps = arrival_steps(kind, len(scenario.requests), **row)
    requests = zip(scenario.requests, steps, strict=True)
    return replace(scenario, requests=tuple(replace(r, arrival_step=step) for r, step in requests))
