"""What the tests of the engine share: prompts, engines, and transformers as the reference."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from minivllm import LLM, SamplingParams
from minivllm.models.loader import DEFAULT_MODEL, LoadedModel, find_model, load_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NUM_NEW_TOKENS = 10
GREEDY = SamplingParams(temperature=0.0, max_tokens=NUM_NEW_TOKENS)


@functools.cache
def smollm2() -> LoadedModel:
    """The default model, opened once."""
    return load_model(DEFAULT_MODEL)


def build(model: str | LoadedModel = "tiny-random", **kwargs: Any) -> LLM:
    """An LLM with few enough positions that a small cache will do."""
    return LLM(model, **{"dtype": "float32", "device": "cpu", "max_model_len": 512, **kwargs})


def token_ids(llm: LLM, prompts: list[Any], params: Any = GREEDY, **kwargs: Any) -> list[list[int]]:
    """Output tokens of each prompt."""
    outputs = llm.generate(prompts, params, use_tqdm=False, **kwargs)
    return [output.outputs[0].token_ids for output in outputs]


@functools.cache
def hf_model(directory: Path) -> PreTrainedModel:
    """transformers' own model of a directory, in float32."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    return model.eval()


@torch.inference_mode()
def hf_generate(model: PreTrainedModel, ids: list[int], n: int = NUM_NEW_TOKENS) -> list[int]:
    """What transformers' `generate` adds to a prompt, greedily."""
    output = model.generate(
        torch.tensor([ids]),
        attention_mask=torch.ones(1, len(ids), dtype=torch.long),
        max_new_tokens=n,
        do_sample=False,
        pad_token_id=0,
    )
    return output[0, len(ids) :].tolist()


REFERENCE = Path(__file__).parent / "data" / "smollm2-greedy.json"
"""What transformers makes of each prompt: `python tests/serving.py` writes it, test_tokens.py asks
transformers about some of it again."""


@functools.cache
def smollm2_reference() -> tuple[list[list[int]], list[list[int]]]:
    """The 64 prompts as token ids, and what transformers makes of each."""
    expected = json.loads(REFERENCE.read_text(encoding="utf-8"))
    prompts = smollm2_prompts()
    assert len(prompts) == len(expected), "python tests/serving.py writes them anew"
    return prompts, expected


def write_reference() -> None:
    """Ask transformers about every prompt: a minute."""
    model = hf_model(find_model(DEFAULT_MODEL))
    rows = [json.dumps(hf_generate(model, prompt)) for prompt in smollm2_prompts()]
    REFERENCE.write_text("[" + ",\n".join(rows) + "]\n", encoding="utf-8")


def smollm2_prompts() -> list[list[int]]:
    """Short ones, chats, long ones, ones that begin alike, code, and other scripts."""
    tokenizer = smollm2().tokenizer
    subjects = ["The sea", "A compiler", "My neighbour", "Copper", "The number 17", "Rain",
                "An old clock", "The violin", "Bread", "A scheduler"]  # fmt: skip
    texts = [f"{subject} is" for subject in subjects]
    texts += [
        "Once upon a time",
        "1, 2, 3, 4,",
        "def fibonacci(n):\n    ",
        "Dear Sir,\n\n",
        "a",
        "¿",
    ]
    texts += ["for i in range(10):\n    print(i)\n\n# prints", "SELECT name FROM", "日本の首都は",
              "La capitale de la France est", "\n\n\n", "Zürich, Genève,", "2 + 2 =",
              "<html>\n  <body>\n", "Roses are red,"]  # fmt: skip
    shared = (
        "You are a careful librarian. You know every book in the house, where it stands, who has "
        "borrowed it and when it is due back. You answer in one short sentence, you never guess, "
        "and you are friendly even to people who bring books back late. Here is a question: "
    )
    texts += [shared + f"{subject} - is there a book about it?" for subject in subjects]
    texts += [shared * 2 + f"Who wrote about {subject.lower()}?" for subject in subjects[:8]]
    prompts = [tokenizer.encode(text) for text in texts]
    paragraph = (
        "In the morning the fog lay over the harbour, and the boats went out one after another, "
        "slowly, with their bells ringing. Nobody on the pier could see them for long. "
    )
    prompts += [  # about 330 to 400 tokens
        tokenizer.encode(f"Chapter {number}. " + paragraph * (9 + number % 3))
        for number in range(5)
    ]
    prompts += [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": f"Tell me one thing about {subject.lower()}."}],
            add_generation_prompt=True,
        )
        for subject in [*subjects, "Paris", "Sugar", "A haiku", "Gravity", "Chess", "Tea"]
    ]
    assert len(prompts) >= 64
    return prompts


if __name__ == "__main__":
    write_reference()
