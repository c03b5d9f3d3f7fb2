"""`AnyWidget` of a page: no kernel and no comm, so a widget is its HTML form, which the page brings
to life with its own scripts (minivllm/stepper/static/page.js)."""

from __future__ import annotations

import uuid
from typing import Any

import traitlets


class AnyWidget(traitlets.HasTraits):
    """What `SchedulerStepper` builds on."""

    def __init__(self, **traits: Any) -> None:
        super().__init__(**traits)
        self.model_id = uuid.uuid4().hex

    def on_msg(self, callback: Any) -> None:
        """No view sends messages here: the one in the page has a session of its own."""

    def send(self, content: Any) -> None:
        """No view listens."""

    def set_state(self, sync_data: dict[str, Any]) -> None:
        """No view sets anything."""

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        return {}
