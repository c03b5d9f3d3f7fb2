"""A conversation as text: what may stand in a message, and the template that writes it down."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

TEXT_PARTS = ("text", "input_text", "output_text", "refusal")
"""Content parts that hold text, each under `text` or under its own name."""


def render(
    template: str,
    conversation: Sequence[Mapping[str, Any]],
    variables: Mapping[str, Any],
) -> str:
    """Write a conversation down as a chat template says.

    Args:
        template: Jinja, with what transformers adds to it: `break` and `continue`,
            `{% generation %}`, `raise_exception`, `strftime_now` and a `tojson` that keeps
            characters as they are.
        conversation: messages, as OpenAI's API has them (see `plain_message`).
        variables: what the template may refer to.

    Raises:
        ValueError: if a message is not usable, the template is broken, or it refuses.
    """
    import jinja2
    import jinja2.ext
    import jinja2.nodes
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(jinja2.ext.Extension):
        """Marks what the assistant said, for training; here it is what stands inside."""

        tags = {"generation"}

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return jinja2.nodes.Scope(body, lineno=line)

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    to_json: Callable[..., str] = lambda value, **kw: json.dumps(value, ensure_ascii=False, **kw)  # noqa: E731
    environment.filters["tojson"] = to_json
    try:
        tree = environment.parse(template)
        compiled = environment.from_string(template)
    except jinja2.TemplateSyntaxError as error:
        raise ValueError(
            f"the chat template is broken, whatever the conversation: line {error.lineno}: "
            f"{error.message}. Pass another with chat_template=..."
        ) from error
    takes_parts = any(_is_content(loop.iter) for loop in tree.find_all(jinja2.nodes.For))
    messages = []
    for index, message in enumerate(conversation):
        plain = plain_message(message, index)
        if takes_parts and isinstance(message.get("content"), (list, tuple)):
            texts = (_content([part], f"message {index}") for part in message["content"])
            plain["content"] = [{"type": "text", "text": text} for text in texts]
        messages.append(plain)
    try:
        return compiled.render(messages=messages, **variables)
    except jinja2.TemplateError as error:
        raise ValueError(f"the chat template refuses this conversation: {error}") from error
    except TypeError as error:  # `None + '...'`, say: a message lacks what the template expects
        raise ValueError(f"the chat template fails on this conversation: {error}") from error


def _is_content(expression: Any) -> bool:
    """Whether a template's expression is `message.content` or `message["content"]`: a template
    that goes through it expects parts (vllm/entrypoints/chat_utils.py)."""
    index = getattr(expression, "arg", None)
    return "content" in (getattr(expression, "attr", None), getattr(index, "value", None))


def plain_message(message: Mapping[str, Any], index: int = 0) -> dict[str, Any]:
    """A message whose `content` is text, and whose tool calls have their arguments parsed.

    `content` may be a string, None (empty: an assistant that only calls tools), or a list of
    parts: their texts are joined by line breaks, as vLLM does for templates that expect a
    string (vllm/entrypoints/chat_utils.py).

    Raises:
        ValueError: naming the message and what in it is not usable.
    """
    where = f"message {index}"
    if not isinstance(message, Mapping):
        raise ValueError(f"{where} must be a dict with role and content, got {message!r:.80}")
    if not isinstance(message.get("role"), str):
        raise ValueError(f"{where} must have a role ('user', say), got {message.get('role')!r:.80}")
    plain = {**message, "content": _content(message.get("content"), f"{where} ({message['role']})")}
    if message.get("tool_calls"):
        plain["tool_calls"] = [_tool_call(call, where) for call in message["tool_calls"]]
    return plain


def _content(content: object, where: str) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, Mapping):
        content = [content]
    if not isinstance(content, Sequence) or isinstance(content, (bytes, bytearray)):
        raise ValueError(
            f"{where}: content must be text, a list of parts or None, got {content!r:.80}"
        )
    texts = []
    for part in content:
        if isinstance(part, str):
            texts.append(part)
            continue
        kind = part.get("type") if isinstance(part, Mapping) else None
        text = None
        if isinstance(part, Mapping) and kind in TEXT_PARTS:
            text = part.get("text", part.get(str(kind)))
        if not isinstance(text, str):
            what = f"a part of type {kind!r}" if kind is not None else f"{part!r:.80}"
            raise ValueError(
                f"{where}: {what} is not text, and this engine reads text alone; the parts it "
                f"takes are {{'type': 'text', 'text': '...'}}"
            )
        texts.append(text)
    return "\n".join(texts)


def _tool_call(call: object, where: str) -> object:
    """A call whose arguments, JSON in OpenAI's API, are what templates expect: an object."""
    if not isinstance(call, Mapping):
        return call
    function = call.get("function")
    if not isinstance(function, Mapping) or not isinstance(function.get("arguments"), str):
        return call
    try:
        arguments = json.loads(function["arguments"] or "{}")
    except ValueError as error:
        raise ValueError(f"{where}: a tool call's arguments are not JSON: {error}") from error
    return {**call, "function": {**function, "arguments": arguments}}
