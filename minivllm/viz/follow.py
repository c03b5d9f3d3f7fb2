"""Figures that follow a stepper in a notebook."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from minivllm.viz.charts import go

if TYPE_CHECKING:
    from minivllm.stepper.widget import SchedulerStepper


def follow(stepper: SchedulerStepper, draw: Callable[[Any], go.Figure]) -> go.FigureWidget:
    """A figure that is drawn anew whenever the stepper shows another step.

    Args:
        stepper: a `SchedulerStepper`.
        draw: makes the figure from it, for example `minivllm.viz.block_table.block_table_map`.

    Returns:
        A figure for the notebook to show; it stays as it is where `draw` finds nothing to draw.

    Raises:
        ValueError: if there is nothing to draw to begin with.
    """
    widget = go.FigureWidget(draw(stepper))

    def redraw(_: Any) -> None:
        try:
            figure = draw(stepper)
        except ValueError:  # before the first step
            return
        with widget.batch_update():
            widget.data = ()
            widget.add_traces(figure.data)
            widget.layout = figure.layout

    stepper.observe(redraw, "snapshot")
    return widget
