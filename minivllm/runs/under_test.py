"""Any scheduler, in any language, behind a pipe: JSON objects, one a line, one answer to each.

    python -m minivllm.conformance run TRACES.jsonl.gz -- COMMAND [ARGUMENT ...]

starts COMMAND and asks it, on its standard input, for one decision after the other; it answers on
its standard output (`tools/adapters/minivllm_adapter.py` is an example of 60 lines):

    {"op": "hello", "protocol": 1, "minor": 1}
        {"protocol": 1, "minor": 1, "name": "…", "decides": [classes], "lacks": [features]}
    {"op": "begin", "release": "0.33.0", "config": {…}}         a new, empty scheduler
        {}
    {"op": "step", "add": [requests], "abort": [ids]}           plan one step
        {"scheduled": [[id, tokens], …], "sampling": {id: index}, "preempted": [ids],
         "admitted": [ids], "cached": {id: tokens}, "block_ids": {id: [ids]},
         "refused": [ids], "drafts": {id: number}, "padded": [ids], "propose": number}
    {"op": "tokens", "tokens": {id: token}, "drafts": {id: [tokens]}}   what that step sampled
        {"finished": [ids]}

`config` and the requests are those of the traces (`trace.schema.json`). `decides` names the classes
of decision that the scheduler can tell (`agreement.CLASSES`), `lacks` the features that it does not
have (`agreement.FEATURES`): both count as not supported, never as wrong. `sampling` names who has
computed its last known token in this step, and which of its output tokens comes out, from 0. With
`async_scheduling`, the tokens of a step come after the next step's plan. The end of the input is
the end of the run.

Version 1.1 has words for whom a full queue refuses and for proposed tokens. A scheduler that
answers `hello` without `minor` knows none of them, and is not asked about `queue_caps` and
`speculative_tokens`. Where a workload does not need the words, they may be left out.

- `refused`: whom the queue caps of `config` turned away among `add`. They never come again.
- `drafts` of a step, with `num_speculative_tokens`: how many of a request's tokens are proposed
  ones, the first of those that it was told last. With `async_scheduling` it is told none: so many
  places the plan keeps for them. `padded` names those whose `drafts` stand for no proposed token
  at all: newcomers that are padded to the size of the others.
- `propose`: how many tokens to propose to each request after this step.
- `tokens` of a request in `drafts`: a list, the proposed tokens that were right and one more. With
  `num_speculative_tokens` the runner counts output tokens by itself, and the numbers in `sampling`
  may be null.
- `drafts` beside `tokens`: what is proposed to each request for its next step.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import tempfile
import threading
from collections.abc import Mapping, Sequence
from queue import Empty, Queue
from typing import Any, NoReturn, TextIO

from minivllm.core.output import TokenIds
from minivllm.runs.agreement import CLASSES, FEATURES, FIELDS, QUEUE_CAPS, Step
from minivllm.runs.conformance import Model, release_of, sampled_token, trace_config

PROTOCOL, MINOR = 1, 1
NOT_ASKED = ("speculative_tokens", "queue_caps")
"""Features that 1.0, which has no `minor`, had no words for."""
MAX_LINE = 10_000_000
"""Characters in an answer."""


class UnderTestError(Exception):
    """The scheduler under test hangs, has died, or answers what no scheduler can."""


class SchedulerUnderTest:
    """A process that decides.

    Args:
        command: to start it.
        timeout: seconds that it has for each answer.

    Raises:
        UnderTestError: if it cannot be started, or its first answer is none.
    """

    def __init__(self, command: Sequence[str], timeout: float = 10.0) -> None:
        self.command, self.timeout = list(command), timeout
        self._start()

    def _start(self) -> None:
        self._where = "at the first message"
        options: Any = {"encoding": "utf-8", "errors": "replace"}
        self._stderr = tempfile.TemporaryFile("w+", **options)  # noqa: SIM115
        try:
            self._process = subprocess.Popen(
                self.command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._stderr,
                **options,
            )
        except OSError as error:
            self._stderr.close()
            raise UnderTestError(f"cannot start {' '.join(self.command)}: {error}") from None
        self._answers: Queue[str | None] = Queue()
        reading = (self._process.stdout, self._answers)
        threading.Thread(target=self._read, args=reading, daemon=True).start()
        try:
            self._say_hello()
        except UnderTestError:
            self.close()
            raise

    def _say_hello(self) -> None:
        hello = self.ask({"op": "hello", "protocol": PROTOCOL, "minor": MINOR})
        if hello.get("protocol") != PROTOCOL:
            raise UnderTestError(
                f"{self} speaks protocol {hello.get('protocol')!r}; this runner speaks {PROTOCOL}"
            )
        self.name = str(hello.get("name") or self.command[0])
        self.decides = self._names(hello, "decides", CLASSES)
        self.lacks = self._names(hello, "lacks", FEATURES)
        minor = hello.get("minor", 0)
        if not _is_int(minor):
            raise UnderTestError(f"{self}: 'minor' must be a number, got {_short(minor)}")
        if minor < MINOR:
            self.lacks = [*self.lacks, *NOT_ASKED]
        if "who" not in self.decides:
            raise UnderTestError(f"{self} must decide 'who' at least; its 'decides' lacks it")

    def _names(self, hello: Mapping[str, Any], field: str, known: Mapping[str, Any]) -> list[str]:
        names = hello.get(field, [])
        if not isinstance(names, list) or any(name not in known for name in names):
            raise UnderTestError(
                f"{self}: {field!r} must be a list of {', '.join(known)}; got {_short(names)}"
            )
        return names

    def __enter__(self) -> SchedulerUnderTest:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __str__(self) -> str:
        return f"the scheduler under test ({' '.join(self.command)})"

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):  # what was still to be written cannot be
                if stream is not None:
                    stream.close()
        self._stderr.close()

    def restart(self) -> None:
        """End the process and start another, which knows nothing of what was.

        Raises:
            UnderTestError: if it cannot be started, or its first answer is none.
        """
        self.close()
        self._start()

    @staticmethod
    def _read(stdout: TextIO, answers: Queue[str | None]) -> None:
        with contextlib.suppress(ValueError):  # closed meanwhile
            while line := stdout.readline(MAX_LINE):
                answers.put(line)
        answers.put(None)

    def ask(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """Send a message; its answer.

        Raises:
            UnderTestError: if there is none in time, or it is no JSON object.
        """
        stdin = self._process.stdin
        assert stdin is not None
        try:
            stdin.write(json.dumps(message) + "\n")
            stdin.flush()
            line = self._answers.get(timeout=self.timeout)
        except Empty:
            raise UnderTestError(
                f"{self} hangs: no answer to {message['op']!r} in {self.timeout:g} s, "
                f"{self._where}. Give it more with --timeout"
            ) from None
        except OSError:
            line = None
        if line is None:
            raise UnderTestError(f"{self} has died, {self._where}{self._last_words()}")
        try:
            answer = json.loads(line)
        except (ValueError, RecursionError):
            answer = None
        if not isinstance(answer, dict):
            raise UnderTestError(
                f"{self} must answer {message['op']!r} with one JSON object on one line, "
                f"{self._where}; got {_short(line)}"
            )
        return answer

    def _last_words(self) -> str:
        """How it ended, and what it wrote to stderr last."""
        try:
            code = self._process.wait(timeout=1)
        except subprocess.TimeoutExpired:
            return " (it closed its output)"
        self._stderr.seek(0)
        lines = self._stderr.read().strip().splitlines()
        said = "".join(f"\n    {line[:200]}" for line in lines[-5:])
        return f" (exit status {code}){', saying' if said else ''}{said}"

    def run(self, workload: dict[str, Any], num_steps: int, label: str) -> list[Step]:
        """Its steps for a workload: at most `num_steps`, fewer if all requests have finished.

        Raises:
            UnderTestError: naming `label` and the step.
        """
        requests = {spec["id"]: spec for spec in workload["requests"]}
        release = release_of(workload)
        model = Model(workload, trace_config(workload["config"], release))
        self._drafts = model.config.num_speculative_tokens
        self._has_caps = any(workload["config"].get(name) is not None for name in QUEUE_CAPS)
        last_arrival = max((spec["arrival_step"] for spec in requests.values()), default=0)
        unfinished: set[str] = set()
        steps: list[Step] = []
        in_flight: list[dict[str, TokenIds]] = []
        self._where = f"{label}, at its begin"
        self.ask({"op": "begin", "release": release, "config": workload["config"]})
        while len(steps) < num_steps and (len(steps) <= last_arrival or unfinished):
            now = len(steps)
            self._where = f"{label}, step {now}"
            add = [spec for spec in requests.values() if spec["arrival_step"] == now]
            abort = [id_ for when, id_ in workload["aborts"] if when == now]
            unfinished = (unfinished | {spec["id"] for spec in add}) - set(abort)
            step = self.ask({"op": "step", "add": add, "abort": abort})
            sampling = self._check(step, {spec["id"] for spec in add}, unfinished)
            unfinished -= set(step["refused"])
            steps.append(step)
            if self._drafts:
                in_flight.append(self._verified(step, model))
                proposed = model.propose(now, sampling, step["propose"])
            else:
                index_of = model.index_of
                in_flight.append({k: sampled_token(index_of[k], i) for k, i in sampling.items()})
            if len(in_flight) > model.num_ahead:
                message: dict[str, Any] = {"op": "tokens", "tokens": in_flight.pop(0)}
                if self._drafts and not model.num_ahead:
                    message["drafts"] = proposed
                answer = self.ask(message)
                finished: Any = answer.get("finished")
                if not _is_list_of(finished, str) or not set(finished) <= requests.keys():
                    self._refuse("finished", "a list of ids of requests", finished)
                unfinished -= set(finished)
        return steps

    def _verified(self, step: Step, model: Model) -> dict[str, TokenIds]:
        """What each request gets that samples in a step, if tokens are proposed."""
        tokens: dict[str, TokenIds] = {}
        for id_ in step["sampling"]:
            number = step["drafts"].get(id_)
            drafts = None
            if number is not None:
                told = [] if id_ in step["padded"] else model.proposed.get(id_, [])[:number]
                if len(told) < number and not (model.num_ahead or id_ in step["padded"]):
                    self._refuse(f"drafts.{id_}", f"at most the {len(told)} proposed", number)
                drafts = [*told, *[-1] * (number - len(told))]
            tokens[id_] = model.sample(id_, drafts)
        return tokens

    def _check(self, step: Step, added: set[str], unfinished: set[str]) -> dict[str, int]:
        """Refuse what is no decision; who samples, and which of its tokens."""
        if not self._has_caps:
            step["refused"] = []
        if not _is_list_of(step.get("refused"), str) or not set(step["refused"]) <= added:
            self._refuse("refused", "ids of requests that were just added", step.get("refused"))
        unfinished = unfinished - set(step["refused"])
        scheduled: Any = step.get("scheduled")
        if not isinstance(scheduled, list) or not all(
            isinstance(row, list) and len(row) == 2 and isinstance(row[0], str) and _is_int(row[1])
            for row in scheduled
        ):
            self._refuse("scheduled", "a list of [id, tokens]", scheduled)
        ids = [row[0] for row in scheduled]
        if len(set(ids)) < len(ids) or not set(ids) <= unfinished:
            self._refuse("scheduled", "unfinished requests, each at most once", scheduled)
        sampling: Any = step.get("sampling")
        counted_here = (None,) if self._drafts else ()
        if not isinstance(sampling, dict) or not all(
            number in counted_here or _is_int(number) for number in sampling.values()
        ):
            self._refuse("sampling", "an object of id: number of the output token", sampling)
        if not set(sampling) <= set(ids):
            self._refuse("sampling", "among the scheduled", sampling)
        if self._drafts:
            self._check_drafts(step, dict(scheduled))
        else:
            step["drafts"] = {}
        for name in self.decides:
            field = FIELDS.get(name, "scheduled")
            if field in ("preempted", "admitted") and not _is_list_of(step.get(field), str):
                self._refuse(field, "a list of ids", step.get(field))
            if field in ("cached", "block_ids") and not isinstance(step.get(field), dict):
                self._refuse(field, "an object by id", step.get(field))
        return sampling

    def _check_drafts(self, step: Step, num_tokens: dict[str, int]) -> None:
        """Refuse what says nothing about proposed tokens."""
        drafts: Any = step.get("drafts")
        if not isinstance(drafts, dict) or not all(
            _is_int(number) and 0 < number < num_tokens.get(id_, 0)
            for id_, number in drafts.items()
        ):
            wanted = "an object of id: a number below that of the request's scheduled tokens"
            self._refuse("drafts", wanted, drafts)
        padded: Any = step.get("padded")
        if not _is_list_of(padded, str) or not set(padded) <= set(drafts):
            self._refuse("padded", "ids among the drafts", padded)
        most: Any = step.get("propose")
        if not _is_int(most) or most > self._drafts:
            wanted = f"a number up to num_speculative_tokens={self._drafts}"
            self._refuse("propose", wanted, most)

    def _refuse(self, field: str, wanted: str, got: object) -> NoReturn:
        problem = f"{field!r} must be {wanted}, {self._where}; got {_short(got)}"
        raise UnderTestError(f"{self}: {problem}")


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_list_of(value: object, kind: type) -> bool:
    return isinstance(value, list) and all(isinstance(item, kind) for item in value)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 120 else text[:120] + "…"
