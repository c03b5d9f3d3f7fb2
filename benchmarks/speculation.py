"""What proposing tokens by look-up gains at batch 1, and what it costs at a full batch.

    python benchmarks/speculation.py                 two minutes
    python benchmarks/speculation.py --tokens 5      another number of proposed tokens

Two engines, with proposals and without, take turns on the same prompts; a ratio is taken within
each round, so what else the machine does hits both. CPU seconds (`time.process_time`) are printed
beside wall seconds. At batch 1 the text repeats itself: functions to be copied with one name
changed. The full batch decodes texts that do not.
"""

from __future__ import annotations

import argparse
import statistics
import time

from minivllm import LLMEngine, SamplingParams
from minivllm.core.releases import NEWEST
from minivllm.models.loader import DEFAULT_MODEL, LoadedModel, load_model

FUNCTIONS = "".join(
    f"def {name}(values, start):\n"
    f'    """Return the {what} of all values, beginning with start."""\n'
    f"    result = start\n    for value in values:\n        result = {how}\n    return result\n\n\n"
    for name, what, how in (
        ("total", "sum", "result + value"),
        ("product", "product", "result * value"),
        ("largest", "maximum", "max(result, value)"),
        ("smallest", "minimum", "min(result, value)"),
    )
)
COPY = FUNCTIONS + "# The same functions once more, for lists.\n\n" + FUNCTIONS[:60]
TOPICS = ["rivers", "clocks", "bread", "salt", "islands", "engines", "letters", "winter"]


def engine(model: LoadedModel, batch: int, num_tokens: int) -> LLMEngine:
    """With `num_tokens` proposed at batch 1, fewer in a larger one; 0: without a proposer."""
    how = {
        "method": "ngram",
        "num_speculative_tokens": num_tokens,
        "prompt_lookup_min": 2,
        "prompt_lookup_max": 4,
        "num_speculative_tokens_per_batch_size": [(1, 2, num_tokens), (3, 4, 2), (5, 1024, 0)],
    }
    return LLMEngine(
        model,
        vllm_version=NEWEST,
        max_num_seqs=batch,
        max_model_len=1024,
        enable_prefix_caching=False,
        speculative_config=how if num_tokens else None,
    )


def run(engine: LLMEngine, prompts: list[str], num_outputs: int) -> tuple[float, float, int, list]:
    """Seconds of wall and of CPU that the decodes took, steps, and the tokens."""
    params = SamplingParams(temperature=0.0, max_tokens=num_outputs, ignore_eos=True)
    for index, prompt in enumerate(prompts):
        engine.add_request(str(index), prompt, params)
    outputs = {}
    while not (outputs and all(o.outputs[0].token_ids for o in outputs.values())) or len(
        outputs
    ) < len(prompts):
        outputs |= {output.request_id: output for output in engine.step()}
    start, cpu, steps = time.perf_counter(), time.process_time(), engine.scheduler.step
    while engine.has_unfinished_requests():
        outputs |= {output.request_id: output for output in engine.step()}
    took = time.perf_counter() - start, time.process_time() - cpu
    tokens = [outputs[str(index)].outputs[0].token_ids for index in range(len(prompts))]
    return *took, engine.scheduler.step - steps, tokens


def main() -> None:
    """Print both comparisons."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=8, help="proposed at batch 1")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=16, help="of the full batch")
    args = parser.parse_args()
    model = load_model(DEFAULT_MODEL)
    for title, prompts, num_outputs in (
        ("batch 1, a text that repeats itself", [COPY], 160),
        (
            f"full batch of {args.batch}",
            [f"{i}. Write about {TOPICS[i % 8]}:" for i in range(args.batch)],
            40,
        ),
    ):
        engines = [engine(model, len(prompts), k) for k in (0, args.tokens)]
        walls, cpus = [], []
        for round_ in range(args.rounds + 1):
            order = engines if round_ % 2 else engines[::-1]
            took = {id(one): run(one, prompts, num_outputs) for one in order}
            plain, guessing = (took[id(one)] for one in engines)
            assert plain[3] == guessing[3], "the tokens differ"
            if round_:  # the first one warms up
                walls.append(plain[0] / guessing[0])
                cpus.append(plain[1] / guessing[1])
        stats = engines[1].scheduler.stats
        print(f"{title}: {plain[2]} steps without, {guessing[2]} with; the same tokens")
        print(f"  {stats.num_draft_tokens} proposed, {stats.num_accepted_tokens} accepted")
        for name, ratios in (("wall", walls), ("CPU", cpus)):
            spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
            print(f"  times as fast, by {name}: {statistics.median(ratios):.2f} ({spread})")


if __name__ == "__main__":
    main()
