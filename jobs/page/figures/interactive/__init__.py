"""Figures for the page, as JSON for Plotly."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import plotly.graph_objects as go

from jobs.page.figures.colors import GRID, INK
from jobs.page.figures.interactive import concepts, values
from jobs.page.figures.spec import Dendrogram, Figure, GraphPlot, Heatmap, IntervalPlot, LinePlot, Plot

_RENDERERS: dict[type[Plot], Callable[[Any], go.Figure]] = {
    IntervalPlot: values.interval_plot,
    LinePlot: values.line_plot,
    Heatmap: concepts.heatmap,
    Dendrogram: concepts.dendrogram,
    GraphPlot: concepts.graph,
}
_FONT = {"family": "system-ui, sans-serif", "size": 13, "color": INK}


def draw(figure: Figure) -> dict[str, Any]:
    """Plotly's data and layout; the page itself shows the title."""
    plot = _RENDERERS[type(figure.body)](figure.body)
    plot.update_layout(
        template="none",
        font=_FONT,
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        hoverlabel={"align": "left", "font": {"size": 13}},
        hovermode="closest",
        dragmode=False,
    )
    axes = {"gridcolor": GRID, "zerolinecolor": GRID, "linecolor": GRID, "fixedrange": True}
    plot.update_xaxes(**axes)
    plot.update_yaxes(**axes)
    result: dict[str, Any] = json.loads(plot.to_json())
    return result
