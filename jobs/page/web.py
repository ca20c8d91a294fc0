"""Figures for the page, by Plotly: as JSON that its script draws."""

from __future__ import annotations

import html
import json
import textwrap
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from jobs.page.colours import GRID, GROUPS, INK, KINDS, MUTED, SCALE
from jobs.page.figure import (
    Estimate,
    Estimates,
    Figure,
    Graph,
    Line,
    Lines,
    Matrix,
    Tree,
)
from jobs.page.said import interval, number

_FONT = {"family": "system-ui, sans-serif", "size": 13, "color": INK}
_LINE_HEIGHT, _ROW_HEIGHT = 16, 28
_LABEL_LETTERS = 34
_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "star", "hexagon")
_KIND_SYMBOLS = {"neurons": "circle", "control": "circle-open", "baseline": "diamond"}
_MOST_TICKS = 5
_LONGEST_NAME = 22
_AROUND_GRAPH = 0.16


def draw(figure: Figure) -> dict[str, Any]:
    """A figure as Plotly's JSON: data and layout, without its title, which the page gives."""
    body = figure.body
    if isinstance(body, Estimates):
        drawn = _estimates(body)
    elif isinstance(body, Matrix):
        drawn = _matrix(body)
    elif isinstance(body, Lines):
        drawn = _lines(body)
    elif isinstance(body, Tree):
        drawn = _tree(body)
    else:
        drawn = _graph(body)
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


def plain(text: str) -> str:
    """Text as Plotly shows it to the letter: it takes some HTML in names and labels for markup."""
    return html.escape(text, quote=False)


def _short(name: str) -> str:
    """A name as it stands beside its mark; hovering tells the whole."""
    return plain(name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…")


def _in_template(text: str) -> str:
    """Text within a hover template, where a percent sign starts a variable."""
    return plain(text).replace("%", "&#37;")


def _estimates(body: Estimates) -> go.Figure:
    """Each label on lines of its own above its interval, so that it fits a narrow page."""
    wrapped = [textwrap.wrap(row.label, _LABEL_LETTERS) or [""] for row in body.rows]
    ends = np.cumsum([_ROW_HEIGHT + _LINE_HEIGHT * len(lines) for lines in wrapped])
    figure = go.Figure()
    for row, end in zip(body.rows, ends, strict=True):
        if row.chance:
            low, high = row.chance
            box = {"x0": low, "x1": high, "y0": 6 - end, "y1": 20 - end}
            figure.add_shape(type="rect", **box, fillcolor=GRID, line_width=0, layer="below")
    for kind, colour in KINDS.items():
        found = [
            (row, end)
            for row, end in zip(body.rows, ends, strict=True)
            if row.kind == kind and row.value is not None
        ]
        if not found:
            continue
        rows = [row for row, _ in found]
        figure.add_scatter(
            x=[row.value for row in rows],
            y=[13 - int(end) for _, end in found],
            name=kind,
            mode="markers",
            marker={"color": colour, "size": 10, "symbol": _KIND_SYMBOLS[kind], "line": {"width": 1.5}},
            error_x={
                "array": [_beyond(row.value, row.high) for row in rows],
                "arrayminus": [_beyond(row.low, row.value) for row in rows],
                "color": colour,
                "thickness": 2,
                "width": 4,
            },
            customdata=[f"{plain(row.label)}<br>{_value(row)}" for row in rows],
            hovertemplate="%{customdata}<extra></extra>",
        )
    for row, lines, end in zip(body.rows, wrapped, ends, strict=True):
        shared: dict[str, Any] = {
            "xref": "paper",
            "y": 22 - int(end),
            "yanchor": "bottom",
            "showarrow": False,
        }
        figure.add_annotation(
            x=0, xanchor="left", align="left", text="<br>".join(map(plain, lines)), **shared
        )
        figure.add_annotation(
            x=1,
            xanchor="right",
            text=_value(row),
            font={"color": MUTED},
            **shared,
        )
    figure.add_vline(x=body.nothing, line={"color": MUTED, "width": 1})
    for label, value in body.marks:
        figure.add_vline(x=value, line={"color": GROUPS[2], "width": 2, "dash": "dash"})
        figure.add_annotation(
            x=value,
            y=0,
            yanchor="bottom",
            xanchor="right",
            text=plain(label),
            showarrow=False,
            font={"color": GROUPS[2]},
            yshift=2,
        )
    figure.update_layout(
        height=int(ends[-1]) + 110,
        margin={"l": 12, "r": 12, "t": 60, "b": 50},
        showlegend=len({row.kind for row in body.rows}) > 1,
        legend={"orientation": "h", "y": 1, "yanchor": "bottom", "yref": "paper", "x": 0},
    )
    if body.marks:
        figure.update_layout(margin_t=78, legend_y=1.03)
    figure.update_xaxes(
        title=plain(body.axis), range=_range(body), zeroline=False, nticks=_MOST_TICKS + 2
    )
    figure.update_yaxes(visible=False, range=[-int(ends[-1]), 0])
    return figure


def _value(row: Estimate) -> str:
    """A value as it stands beside its mark."""
    if row.chance or row.low is None:
        return number(row.value, 3 if row.chance else 2)
    return interval(row.value, row.low, row.high)


def _beyond(low: float | None, high: float | None) -> float:
    """How far an interval reaches."""
    return 0.0 if low is None or high is None else high - low


def _range(body: Estimates) -> list[float]:
    shown = [body.nothing, *(value for _, value in body.marks)]
    for row in body.rows:
        shown += [
            each for each in (row.value, row.low, row.high, *(row.chance or ())) if each is not None
        ]
    pad = (max(shown) - min(shown) or 1.0) * 0.05
    return [min(shown) - pad, max(shown) + pad]


def _matrix(body: Matrix) -> go.Figure:
    values = body.values.astype(np.float32)
    names = [plain(name) for name in body.names]
    known = values[np.isfinite(values)]
    top, least = (float(known.max()), float(known.min())) if known.size else (1.0, 0.0)
    z, bar = values, {}
    if body.root:
        z, least = np.sqrt(np.maximum(values, 0)), 0.0
        ticks = np.linspace(0, np.sqrt(top or 1.0), _MOST_TICKS)
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
                f"%{{y}} – %{{x}}<br>{_in_template(body.label)} %{{customdata:.3g}}<extra></extra>"
            ),
            colorbar={
                "title": {"text": plain(body.label), "side": "bottom"},
                "orientation": "h",
                "thickness": 12,
                "y": 1.0,
                "yanchor": "bottom",
                "len": 0.9,
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
        margin={"l": 10, "r": 10, "t": 80, "b": 10},
        meta={"matrix": n, "names": list(body.names), "groups": _group_ticks(body, starts)},
    )
    axes = {
        "type": "category",
        "automargin": True,
        "ticks": "",
        "showgrid": False,
        "tickfont": {"size": 9 if n > 30 else 12},
    }
    every = {
        "tickmode": "array",
        "tickvals": list(range(n)),
        "ticktext": [_short(name) for name in body.names],
    }
    figure.update_xaxes(**axes, **every, tickangle=-90)
    figure.update_yaxes(**axes, **every, autorange="reversed")
    return figure


def _group_ticks(body: Matrix, starts: Sequence[int]) -> dict[str, Any]:
    """Names of the groups at their middle: all that there is room for on a narrow page."""
    edges = [0, *starts, len(body.names)]
    middles = [(low + high - 1) // 2 for low, high in pairwise(edges)]
    return {"vals": middles, "text": [_short(body.groups[place]) for place in middles]}


def _lines(body: Lines) -> go.Figure:
    figure = make_subplots(rows=len(body.panels), cols=1, shared_xaxes=True, vertical_spacing=0.09)
    names = list(dict.fromkeys(line.name for panel in body.panels for line in panel.lines))
    seen: set[str] = set()
    for row, panel in enumerate(body.panels, 1):
        for line in panel.lines:
            place = names.index(line.name)
            colour, symbol = GROUPS[place % len(GROUPS)], _SYMBOLS[place // len(GROUPS) % len(_SYMBOLS)]
            about = f"{_in_template(line.name)}<br>{_in_template(body.x_axis)}"
            if line.low:
                figure.add_scatter(
                    **_band(line), fillcolor=colour, legendgroup=plain(line.name), row=row, col=1
                )
            figure.add_scatter(
                x=list(line.x),
                y=list(line.y),
                name=plain(line.name),
                legendgroup=plain(line.name),
                showlegend=line.name not in seen,
                mode="lines+markers",
                line={"color": colour, "width": 2, "dash": ("solid", "dash", "dot")[place % 3]},
                marker={"symbol": symbol, "size": 6},
                customdata=[interval(*each) for each in _with_intervals(line)],
                hovertemplate=(
                    f"{about} %{{x:,}}<br>%{{customdata}}<extra></extra>"
                    if line.low
                    else f"{about} %{{x:,}}<br>%{{y:.3~g}}<extra></extra>"
                ),
                row=row,
                col=1,
            )
            seen.add(line.name)
        figure.add_hline(y=panel.nothing, line={"color": MUTED, "width": 1}, row=row, col=1)
        label = "<br>".join(map(plain, textwrap.wrap(panel.axis, 28)))
        figure.update_yaxes(
            title={"text": label, "standoff": 6}, automargin=True, rangemode="tozero", row=row, col=1
        )
    figure.update_xaxes(title=plain(body.x_axis), row=len(body.panels), col=1)
    steps = {x for panel in body.panels for line in panel.lines for x in line.x}
    if body.log:
        figure.update_xaxes(type="log", dtick=1, exponentformat="SI")
    elif len(steps) < 10:
        figure.update_xaxes(dtick=1)
    figure.update_layout(
        height=300 * len(body.panels) + 90,
        margin={"l": 10, "r": 12, "t": 30 + 22 * -(-len(names) // 2), "b": 50},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
    )
    return figure


def _with_intervals(line: Line) -> list[tuple[float | None, float | None, float | None]]:
    none = [None] * len(line.x)
    return list(zip(line.y, line.low or none, line.high or none, strict=True))


def _band(line: Line) -> dict[str, Any]:
    """The outline of a line's intervals."""
    known = [
        (x, low, high)
        for x, low, high in zip(line.x, line.low, line.high, strict=True)
        if low is not None and high is not None
    ]
    return {
        "x": [x for x, _, _ in known] + [x for x, _, _ in reversed(known)],
        "y": [high for _, _, high in known] + [low for _, low, _ in reversed(known)],
        "fill": "toself",
        "mode": "none",
        "opacity": 0.18,
        "hoverinfo": "skip",
        "showlegend": False,
    }


def _groups(body: Tree | Graph) -> Iterator[tuple[str, str, str, list[int]]]:
    """(group, colour, symbol, places) of each group."""
    for group, places in body.palette.members(body.groups):
        colour, symbol = body.palette.place(group, len(GROUPS))
        shown = MUTED if colour is None else GROUPS[colour]
        yield group, shown, _SYMBOLS[symbol % len(_SYMBOLS)], places


def _tree(body: Tree) -> go.Figure:
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
            name=plain(group),
            mode="markers",
            marker={"color": colour, "symbol": symbol, "size": 8},
            customdata=[[plain(body.names[place]), body.names[place]] for place in places],
            hovertemplate=f"%{{customdata[0]}}<br>{_in_template(group)}<extra></extra>",
            cliponaxis=False,
        )
    n = len(body.names)
    figure.update_layout(
        height=16 * n + 150,
        margin={"l": 10, "r": 12, "t": 10, "b": 50},
        showlegend=len(set(body.groups)) > 1,
        legend={"orientation": "h", "y": 1, "yanchor": "bottom", "x": 0},
    )
    figure.update_xaxes(title=plain(body.axis), zeroline=False)
    figure.update_yaxes(
        tickmode="array",
        tickvals=list(range(n)),
        ticktext=[_short(name) for name in body.names],
        tickfont={"size": 11},
        ticks="",
        range=[n - 0.5, -0.5],
        showgrid=False,
        zeroline=False,
        automargin=True,
        ticklabelstandoff=6,
    )
    return figure


def _graph(body: Graph) -> go.Figure:
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
            name=plain(group),
            mode="markers+text",
            text=[_short(body.names[place]) for place in places],
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
        meta={"graph": len(body.names)},
    )
    # room for names at the edges
    low, high = body.places.min(axis=0), body.places.max(axis=0)
    around = np.maximum(high - low, 1e-3) * _AROUND_GRAPH
    (left, bottom), (right, top) = (low - around).tolist(), (high + around).tolist()
    figure.update_xaxes(visible=False, range=[left, right])
    figure.update_yaxes(visible=False, range=[bottom, top])
    return figure
