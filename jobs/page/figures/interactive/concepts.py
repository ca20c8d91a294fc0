"""Concepts in a matrix, a tree and a graph, by Plotly."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import plotly.graph_objects as go

from jobs.page.figures.colours import GROUPS, INK, MUTED, SCALE
from jobs.page.figures.interactive.text import MOST_TICKS, SYMBOLS, in_template, plain
from jobs.page.figures.spec import Graph, Matrix, Tree
from jobs.page.wording import short

_AROUND_GRAPH = 0.16
_BAR_TICKS = 4


def matrix(body: Matrix) -> go.Figure:
    """Cells in colour; the page names as many rows as it has room for."""
    values = body.values.astype(np.float32)
    names = [plain(name) for name in body.names]
    known = values[np.isfinite(values)]
    top, least = (float(known.max()), float(known.min())) if known.size else (1.0, 0.0)
    z, bar = values, {}
    if body.root:
        z, least = np.sqrt(np.maximum(values, 0)), 0.0
        ticks = np.linspace(0, np.sqrt(top or 1.0), _BAR_TICKS)
        bar = {"tickvals": ticks, "ticktext": [f"{tick**2:.2g}" for tick in ticks]}
        top = float(np.sqrt(top or 1.0))
    figure = go.Figure(
        go.Heatmap(
            x=names,
            y=names,
            z=z,
            zmin=least,
            zmax=top if top > least else least + 1,
            customdata=values,
            colorscale=SCALE,
            hoverongaps=False,
            hovertemplate=(
                f"%{{y}} – %{{x}}<br>{in_template(body.label)} %{{customdata:.3g}}<extra></extra>"
            ),
            colorbar={
                "title": {"text": plain(body.label), "side": "bottom"},
                "orientation": "h",
                "thickness": 12,
                "y": 1.0,
                "yanchor": "bottom",
                "len": 0.8,
                "tickfont": {"size": 11},
                "tickangle": 0,
                **bar,
            },
        )
    )
    n = len(names)
    starts = [place for place in range(1, n) if body.groups[place] != body.groups[place - 1]]
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
    axes = {
        "type": "category",
        "automargin": True,
        "ticks": "",
        "showgrid": False,
    }
    every = {
        "tickmode": "array",
        "tickvals": list(range(n)),
        "ticktext": [plain(short(name)) for name in body.names],
    }
    figure.update_xaxes(**axes, **every, tickangle=-90)
    figure.update_yaxes(**axes, **every, autorange="reversed")
    return figure


def _group_ticks(body: Matrix, starts: Sequence[int]) -> dict[str, Any]:
    """Names of the groups at their middle: all that there is room for on a narrow page."""
    edges = [0, *starts, len(body.names)]
    middles = [(low + high - 1) // 2 for low, high in pairwise(edges)]
    return {"vals": middles, "text": [plain(short(body.groups[place])) for place in middles]}


def _groups(body: Tree | Graph) -> Iterator[tuple[str, str, str, list[int]]]:
    """(group, colour, symbol, places) of each group."""
    for group, places in body.palette.members(body.groups):
        colour, symbol = body.palette.place(group, len(GROUPS))
        shown = MUTED if colour is None else GROUPS[colour]
        yield group, shown, SYMBOLS[symbol % len(SYMBOLS)], places


def tree(body: Tree) -> go.Figure:
    """Brackets, and a mark of its group before each name."""
    figure = go.Figure()
    xs: list[float | None] = []
    ys: list[float | None] = []
    for joint in body.joints:
        xs += [at for at, _ in joint] + [None]
        ys += [place for _, place in joint] + [None]
    figure.add_scatter(
        x=xs, y=ys, mode="lines", line={"color": MUTED, "width": 1.2}, hoverinfo="skip", showlegend=False
    )
    for group, colour, symbol, places in _groups(body):
        figure.add_scatter(
            x=[body.start] * len(places),
            y=places,
            name=plain(short(group)),
            mode="markers",
            marker={"color": colour, "symbol": symbol, "size": 8},
            customdata=[[plain(body.names[place]), body.names[place]] for place in places],
            hovertemplate=f"%{{customdata[0]}}<br>{in_template(group)}<extra></extra>",
            cliponaxis=False,
        )
    n = len(body.names)
    figure.update_layout(
        height=16 * n + 150,
        margin={"l": 10, "r": 24, "t": 10, "b": 50},
        showlegend=len(set(body.groups)) > 1,
        legend={
            "orientation": "h",
            "x": 0,
            "xref": "container",
            "y": 1,
            "yref": "container",
            "yanchor": "top",
        },
    )
    end = max((at for joint in body.joints for at, _ in joint), default=1.0)
    past = (end - body.start) * 0.02
    figure.update_xaxes(
        title=plain(body.axis),
        zeroline=False,
        range=[body.start - past / 2, end + past],
        nticks=MOST_TICKS,
    )
    figure.update_yaxes(
        tickmode="array",
        tickvals=list(range(n)),
        ticktext=[plain(short(name)) for name in body.names],
        tickfont={"size": 11},
        ticks="",
        range=[n - 0.5, -0.5],
        showgrid=False,
        zeroline=False,
        automargin=True,
        ticklabelstandoff=6,
    )
    return figure


def graph(body: Graph) -> go.Figure:
    """Nodes in the colour of their group; links in three widths."""
    figure = go.Figure()
    most = max((value for _, _, value in body.edges), default=1.0)
    widths = {1: (0.0, 1 / 3), 2.5: (1 / 3, 2 / 3), 5: (2 / 3, 2.0)}
    for width, (low, high) in widths.items():
        xs: list[float | None] = []
        ys: list[float | None] = []
        for first, second, value in body.edges:
            if low <= value / most < high:
                xs += [float(body.places[first, 0]), float(body.places[second, 0]), None]
                ys += [float(body.places[first, 1]), float(body.places[second, 1]), None]
        figure.add_scatter(
            x=xs,
            y=ys,
            mode="lines",
            line={"color": MUTED, "width": width},
            opacity=0.55,
            hoverinfo="skip",
            showlegend=False,
        )
    linked: dict[int, list[str]] = {}
    for first, second, value in sorted(body.edges, key=lambda edge: -edge[2]):
        for one, other in ((first, second), (second, first)):
            linked.setdefault(one, []).append(f"{plain(body.names[other])} {value:.3g}")
    for group, colour, symbol, places in _groups(body):
        figure.add_scatter(
            x=[float(body.places[place, 0]) for place in places],
            y=[float(body.places[place, 1]) for place in places],
            name=plain(short(group)),
            mode="markers+text",
            text=[plain(short(body.names[place])) for place in places],
            textposition="top center",
            textfont={"size": 11},
            marker={"color": colour, "symbol": symbol, "size": 11, "line": {"color": INK, "width": 0.8}},
            customdata=[
                [
                    "<br>".join([plain(body.names[place]), plain(group), *linked.get(place, [])[:6]]),
                    body.names[place],
                ]
                for place in places
            ],
            hovertemplate="%{customdata[0]}<extra></extra>",
        )
    figure.update_layout(
        height=720,
        margin={"l": 5, "r": 5, "t": 10, "b": 10},
        legend={"orientation": "h", "y": -0.02, "yanchor": "top", "x": 0},
        showlegend=len(set(body.groups)) > 1,
        meta={"graph": True},
    )
    # room for names at the edges
    low, high = body.places.min(axis=0), body.places.max(axis=0)
    around = np.maximum(high - low, 1e-3) * _AROUND_GRAPH
    (left, bottom), (right, top) = (low - around).tolist(), (high + around).tolist()
    figure.update_xaxes(visible=False, range=[left, right])
    figure.update_yaxes(visible=False, range=[bottom, top])
    return figure
