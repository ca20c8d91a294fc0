"""Heatmap, dendrogram and graph of concepts, for Plotly."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import plotly.graph_objects as go

from jobs.page.figures.colors import INK, MUTED, SCALE
from jobs.page.figures.interactive.text import MAX_TICKS, SYMBOLS, escape_for_template, escape_label
from jobs.page.figures.spec import Dendrogram, GraphPlot, Heatmap
from jobs.page.wording import truncate

_GRAPH_MARGIN = 0.16
_COLOR_BAR_TICKS = 4


def heatmap(body: Heatmap) -> go.Figure:
    """Colored cells; the page labels as many rows as fit."""
    values = body.values.astype(np.float32)
    names = [escape_label(name) for name in body.names]
    finite = values[np.isfinite(values)]
    high, low = (float(finite.max()), float(finite.min())) if finite.size else (1.0, 0.0)
    z, color_bar = values, {}
    if body.sqrt_scale:
        z, low = np.sqrt(np.maximum(values, 0)), 0.0
        ticks = np.linspace(0, np.sqrt(high or 1.0), _COLOR_BAR_TICKS)
        color_bar = {"tickvals": ticks, "ticktext": [f"{tick**2:.2g}" for tick in ticks]}
        high = float(np.sqrt(high or 1.0))
    figure = go.Figure(
        go.Heatmap(
            x=names,
            y=names,
            z=z,
            zmin=low,
            zmax=high if high > low else low + 1,
            customdata=values,
            colorscale=SCALE,
            hoverongaps=False,
            hovertemplate=(
                f"%{{y}} – %{{x}}<br>{escape_for_template(body.label)} "
                "%{customdata:.3g}<extra></extra>"
            ),
            colorbar={
                "title": {"text": escape_label(body.label), "side": "top"},
                "orientation": "h",
                "thickness": 12,
                "y": 1.0,
                "yanchor": "bottom",
                "len": 0.8,
                "tickfont": {"size": 11},
                "tickangle": 0,
                **color_bar,
            },
        )
    )
    n = len(names)
    starts = [row for row in range(1, n) if body.groups[row] != body.groups[row - 1]]
    if len(starts) < n - 1:
        for start in starts:
            line = {"color": MUTED, "width": 1}
            figure.add_shape(type="line", x0=start - 0.5, x1=start - 0.5, y0=-0.5, y1=n - 0.5, line=line)
            figure.add_shape(type="line", y0=start - 0.5, y1=start - 0.5, x0=-0.5, x1=n - 0.5, line=line)
    figure.update_layout(
        height=700,
        margin={"l": 10, "r": 10, "t": 64, "b": 10},
        meta={"matrix": n, "names": list(body.names), "groups": _group_ticks(body, starts)},
    )
    axis = _concept_axis(body.names)
    figure.update_xaxes(type="category", tickangle=-90, **axis)
    figure.update_yaxes(type="category", autorange="reversed", **axis)
    return figure


def _concept_axis(names: Sequence[str]) -> dict[str, Any]:
    """An axis with the names of concepts at 0, 1, ..., without ticks and grid."""
    labels = [escape_label(truncate(name)) for name in names]
    ticks = {"tickmode": "array", "tickvals": list(range(len(names))), "ticktext": labels, "ticks": ""}
    return {**ticks, "showgrid": False, "automargin": True}


def _group_ticks(body: Heatmap, starts: Sequence[int]) -> dict[str, Any]:
    """Group names at the middle of each group, for pages too narrow for row names."""
    boundaries = [0, *starts, len(body.names)]
    middles = [(start + end - 1) // 2 for start, end in pairwise(boundaries)]
    return {"vals": middles, "text": [escape_label(truncate(body.groups[row])) for row in middles]}


def dendrogram(body: Dendrogram) -> go.Figure:
    """Brackets, and a group symbol in front of every name."""
    figure = go.Figure()
    _add_lines(figure, body.brackets, width=1.2)
    for group, color, symbol, indices in body.palette.styles(body.groups, SYMBOLS):
        figure.add_scatter(
            x=[body.x_start] * len(indices),
            y=indices,
            name=escape_label(truncate(group)),
            mode="markers",
            marker={"color": color, "symbol": symbol, "size": 8},
            customdata=[[escape_label(body.names[index]), body.names[index]] for index in indices],
            hovertemplate=f"%{{customdata[0]}}<br>{escape_for_template(group)}<extra></extra>",
            cliponaxis=False,
        )
    n = len(body.names)
    legend = {"orientation": "h", "x": 0, "y": 1, "yanchor": "top"}
    figure.update_layout(
        height=16 * n + 150,
        margin={"l": 10, "r": 24, "t": 10, "b": 50},
        showlegend=len(set(body.groups)) > 1,
        legend=legend | {"xref": "container", "yref": "container"},
    )
    end = max((x for bracket in body.brackets for x, _ in bracket), default=1.0)
    margin = (end - body.x_start) * 0.02
    x_range = [body.x_start - margin / 2, end + margin]
    figure.update_xaxes(title=escape_label(body.axis), zeroline=False, range=x_range, nticks=MAX_TICKS)
    axis = _concept_axis(body.names) | {"tickfont": {"size": 11}, "ticklabelstandoff": 6}
    figure.update_yaxes(range=[n - 0.5, -0.5], zeroline=False, **axis)
    return figure


def _add_lines(
    figure: go.Figure, lines: Iterable[Sequence[Any]], width: float, opacity: float | None = None
) -> None:
    """Add lines through (x, y) points, as one trace."""
    points = [point for line in lines for point in (*line, (None, None))]
    style = {"mode": "lines", "hoverinfo": "skip", "showlegend": False, "opacity": opacity}
    line = {"color": MUTED, "width": width}
    figure.add_scatter(x=[x for x, _ in points], y=[y for _, y in points], line=line, **style)


def graph(body: GraphPlot) -> go.Figure:
    """Nodes in the color of their group; links in three widths."""
    figure = go.Figure()
    highest = max((value for _, _, value in body.edges), default=1.0)
    widths = {1: (0.0, 1 / 3), 2.5: (1 / 3, 2 / 3), 5: (2 / 3, 2.0)}
    for width, (low, high) in widths.items():
        edges = [(a, b) for a, b, value in body.edges if low <= value / highest < high]
        _add_lines(figure, [body.positions[[*edge]].tolist() for edge in edges], width, opacity=0.55)
    neighbors: dict[int, list[str]] = {}
    for first, second, value in sorted(body.edges, key=lambda edge: -edge[2]):
        for node, neighbor in ((first, second), (second, first)):
            neighbors.setdefault(node, []).append(f"{escape_label(body.names[neighbor])} {value:.3g}")
    for group, color, symbol, indices in body.palette.styles(body.groups, SYMBOLS):
        hover_text = {
            index: [escape_label(body.names[index]), escape_label(group), *neighbors.get(index, [])[:6]]
            for index in indices
        }
        figure.add_scatter(
            x=body.positions[indices, 0].tolist(),
            y=body.positions[indices, 1].tolist(),
            name=escape_label(truncate(group)),
            mode="markers+text",
            text=[escape_label(truncate(body.names[index])) for index in indices],
            textposition="top center",
            textfont={"size": 11},
            marker={"color": color, "symbol": symbol, "size": 11, "line": {"color": INK, "width": 0.8}},
            customdata=[["<br>".join(hover_text[index]), body.names[index]] for index in indices],
            hovertemplate="%{customdata[0]}<extra></extra>",
        )
    figure.update_layout(
        height=720,
        margin={"l": 5, "r": 5, "t": 10, "b": 10},
        legend={"orientation": "h", "y": -0.02, "yanchor": "top", "x": 0},
        showlegend=len(set(body.groups)) > 1,
        meta={"graph": True},
    )
    # Leaves space for labels at the edges.
    low, high = body.positions.min(axis=0), body.positions.max(axis=0)
    margin = np.maximum(high - low, 1e-3) * _GRAPH_MARGIN
    (left, bottom), (right, top) = (low - margin).tolist(), (high + margin).tolist()
    figure.update_xaxes(visible=False, range=[left, right])
    figure.update_yaxes(visible=False, range=[bottom, top])
    return figure
