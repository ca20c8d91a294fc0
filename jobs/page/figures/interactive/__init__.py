"""Figures for the page, by Plotly: as JSON that its script draws."""

from __future__ import annotations

import json
from typing import Any

from jobs.page.figures.colours import GRID, INK
from jobs.page.figures.interactive import concepts, values
from jobs.page.figures.spec import Estimates, Figure, Lines, Matrix, Tree

_FONT = {"family": "system-ui, sans-serif", "size": 13, "color": INK}


def draw(figure: Figure) -> dict[str, Any]:
    """A figure as Plotly's JSON: data and layout, without its title, which the page gives."""
    body = figure.body
    if isinstance(body, Estimates):
        drawn = values.estimates(body)
    elif isinstance(body, Lines):
        drawn = values.lines(body)
    elif isinstance(body, Matrix):
        drawn = concepts.matrix(body)
    elif isinstance(body, Tree):
        drawn = concepts.tree(body)
    else:
        drawn = concepts.graph(body)
    drawn.update_layout(
        template="none",
        font=_FONT,
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        hoverlabel={"align": "left", "font": {"size": 13}},
        hovermode="closest",
        dragmode=False,
    )
    axes = {"gridcolor": GRID, "zerolinecolor": GRID, "linecolor": GRID, "fixedrange": True}
    drawn.update_xaxes(**axes)
    drawn.update_yaxes(**axes)
    made: dict[str, Any] = json.loads(drawn.to_json())
    return made
