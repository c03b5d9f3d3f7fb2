"""“Talk to it”: three prompts, a real model, and a cache that does not hold all their answers.

The build runs it to its end, for the recording that the page begins with
(book/_ext/minivllm_talk.py); in the page a reader's own prompts run, step by step.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import minivllm_model
from minivllm_judge import Ask

from minivllm.stepper.live import LiveSession

PROMPTS = ("Why is the sky blue?", "Write one line about the sea.", "Name three colours.")
SMALL_PROMPTS = (
    "Tell me a story about a cat.",
    "Tell me about a brave girl.",
    "Write a story about a storm.",
)
"""For the small model, which has read nothing but stories."""
MAX_TOKENS = 40
KNOBS = {
    "max_model_len": 128,
    "num_gpu_blocks": 9,
    "max_num_batched_tokens": 64,
    "enable_prefix_caching": False,
    "record": True,
}
"""Nine blocks of 16 tokens: three prompts fit, their answers do not."""


def talk(prompts: Sequence[str]) -> LiveSession:
    """An engine that has been given the prompts, and has not made a step.

    Raises:
        ValueError: if one is empty, or too long for it.
    """
    from minivllm import LLMEngine, SamplingParams

    for name, prompt in zip("ABC", prompts):
        if not prompt.strip():
            raise ValueError(f"Prompt {name} is empty: write something into it.")
    engine = LLMEngine(**KNOBS)
    tokenizer, params = engine.get_tokenizer(), SamplingParams(temperature=0, max_tokens=MAX_TOKENS)
    ready = []
    for name, prompt in zip("ABC", prompts):
        chat = [{"role": "user", "content": prompt.strip()}]
        token_ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True)
        assert not isinstance(token_ids, str)
        if len(token_ids) + MAX_TOKENS > engine.executor.config.max_model_len:
            room = engine.executor.config.max_model_len - MAX_TOKENS
            raise ValueError(
                f"Prompt {name} has {len(token_ids)} tokens, with the words around it that the "
                f"model was trained with; this engine has room for {room}. Make it shorter."
            )
        ready.append((name, token_ids))
    for name, token_ids in ready:
        engine.add_request(name, token_ids, params)
    return LiveSession(engine.scheduler, engine, "Three prompts, nine blocks, a real model")


class TalkSession:
    """What the page asks: `{"type": "talk", "prompts": [...]}` once, then a stepper's messages."""

    def __init__(self) -> None:
        self._live: LiveSession | None = None

    def handle_json(self, text: str) -> str:
        """Answer a message; `{"ask": ...}` where the page has to load the model first."""
        message: Mapping[str, Any] = json.loads(text)
        if message["type"] != "talk":
            assert self._live
            return json.dumps(self._live.handle(message))
        minivllm_model.let_executor_open()
        try:
            self._live = talk(message["prompts"])
        except Ask as ask:
            return json.dumps({"ask": ask.question})
        except (ValueError, MemoryError) as error:
            return json.dumps({"ok": False, "errors": [{"field": "", "message": str(error)}]})
        return json.dumps({"ok": True, **self._live.answer(0, everything=True)})
