"""Values with their intervals, and lines over x, by Plotly."""

from __future__ import annotations

import textwrap
from itertools import groupby
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from jobs.page.figures.colours import GRID, GROUND, GROUPS, KINDS, MUTED
from jobs.page.figures.interactive.text import MOST_TICKS, SYMBOLS, in_template, plain
from jobs.page.figures.spec import Estimate, Estimates, Line, Lines, Panel
from jobs.page.wording import interval, number, scaled

_LINE_HEIGHT, _ROW_HEIGHT = 16, 28
_LABEL_LETTERS, _LABEL_SIZE = 36, 12
_VALUE_WIDTH = 130
"""Pixels for values at the right."""

_LEGEND, _MARKED = 44, 20
"""Pixels above the values for the legend, and for the names of marks."""

_KIND_SYMBOLS = {"neurons": "circle", "control": "square", "baseline": "diamond"}


def estimates(body: Estimates) -> go.Figure:
    """Each label on lines of its own above its interval, so that it fits a narrow page."""
    wrapped = [textwrap.wrap(row.label, _LABEL_LETTERS) or [""] for row in body.rows]
    ends = np.cumsum([_ROW_HEIGHT + _LINE_HEIGHT * len(words) for words in wrapped])
    figure = go.Figure()
    for row, end in zip(body.rows, ends, strict=True):
        if row.chance:
            low, high = row.chance
            box = {"x0": low, "x1": high, "y0": 6 - end, "y1": 20 - end}
            figure.add_shape(type="rect", **box, fillcolor=GRID, line_width=0, layer="below")
    for (name, kind, chosen), places in body.series().items():
        rows = [body.rows[place] for place in places]
        colour, symbol = KINDS[kind], _KIND_SYMBOLS[kind] + ("-open" if chosen else "")
        figure.add_scatter(
            x=[row.value for row in rows],
            y=[13 - int(ends[place]) for place in places],
            name=name,
            mode="markers",
            marker={"color": colour, "size": 10, "symbol": symbol, "line": {"width": 1.5}},
            error_x={
                "array": [_beyond(row.value, row.high) for row in rows],
                "arrayminus": [_beyond(row.low, row.value) for row in rows],
                "color": colour,
                "thickness": 1 if chosen else 2,
                "width": 4,
            },
            customdata=[f"{plain(row.label)}<br>{_value(row)}" for row in rows],
            hovertemplate="%{customdata}<extra></extra>",
        )
    for row, words, end in zip(body.rows, wrapped, ends, strict=True):
        shared: dict[str, Any] = {
            "xref": "paper",
            "y": 22 - int(end),
            "yanchor": "bottom",
            "showarrow": False,
        }
        figure.add_annotation(
            x=0,
            xanchor="left",
            align="left",
            text="<br>".join(map(plain, words)),
            font={"size": _LABEL_SIZE},
            bgcolor=GROUND,
            **shared,
        )
        figure.add_annotation(
            x=1,
            xanchor="right",
            text=_value(row),
            font={"color": MUTED, "size": _LABEL_SIZE},
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
    names = body.series()
    above = (_LEGEND if len(names) > 1 else 8) + (_MARKED if body.marks else 0)
    figure.update_layout(
        height=int(ends[-1]) + 50 + above,
        margin={"l": 12, "r": 12, "t": above, "b": 50},
        showlegend=len(names) > 1,
        meta={"values": _VALUE_WIDTH},
        legend={
            "orientation": "h",
            "y": 1 + (_MARKED / int(ends[-1]) if body.marks else 0),
            "yanchor": "bottom",
            "x": 0,
        },
    )
    figure.update_xaxes(
        title=plain(body.axis), range=_range(body), zeroline=False, nticks=MOST_TICKS + 2
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


def lines(body: Lines) -> go.Figure:
    """Panels, one below the other; a line has the same colour in all of them."""
    figure = make_subplots(rows=len(body.panels), cols=1, shared_xaxes=True, vertical_spacing=0.09)
    names = list(dict.fromkeys(line.name for panel in body.panels for line in panel.lines))
    seen: set[str] = set()
    for row, panel in enumerate(body.panels, 1):
        for line in panel.lines:
            place = names.index(line.name)
            colour, symbol = GROUPS[place % len(GROUPS)], SYMBOLS[place // len(GROUPS) % len(SYMBOLS)]
            if line.low:
                figure.add_scatter(
                    **_band(body, line), fillcolor=colour, legendgroup=plain(line.name), row=row, col=1
                )
            figure.add_scatter(
                x=[body.at(x) for x in line.x],
                y=list(line.y),
                name=plain(line.name),
                legendgroup=plain(line.name),
                showlegend=line.name not in seen,
                mode="lines+markers",
                line={"color": colour, "width": 2, "dash": ("solid", "dash", "dot")[place % 3]},
                marker={"symbol": symbol, "size": 6},
                customdata=[_told(body, panel, *each) for each in _with_intervals(line)],
                hovertemplate=f"{in_template(line.name)}<br>%{{customdata}}<extra></extra>",
                row=row,
                col=1,
            )
            seen.add(line.name)
        figure.add_hline(y=panel.nothing, line={"color": MUTED, "width": 1}, row=row, col=1)
        axis = "<br>".join(map(plain, textwrap.wrap(panel.axis, 28)))
        figure.update_yaxes(
            title={"text": axis, "standoff": 6},
            automargin=True,
            rangemode="tozero",
            tickformat="~%" if panel.percent else "",
            row=row,
            col=1,
        )
    figure.update_xaxes(title=plain(body.x_axis), row=len(body.panels), col=1)
    if body.log:
        ticks = body.ticks()
        at, told = [body.at(x) for x in ticks], [scaled(x) for x in ticks]
        figure.update_xaxes(type="log", tickmode="array", tickvals=at, ticktext=told)
    elif len(body.all_x()) < 10:
        figure.update_xaxes(dtick=1)
    figure.update_layout(
        height=300 * len(body.panels) + 90,
        margin={"l": 10, "r": 12, "t": 30 + 22 * -(-len(names) // 2), "b": 50},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
    )
    return figure


def _with_intervals(line: Line) -> list[tuple[float, float | None, float | None, float | None]]:
    none = [None] * len(line.x)
    return list(zip(line.x, line.y, line.low or none, line.high or none, strict=True))


def _told(
    body: Lines, panel: Panel, x: float, value: float | None, low: float | None, high: float | None
) -> str:
    """A point as hovering tells it."""
    if low is not None:
        told = interval(value, low, high)
    elif panel.percent and value is not None:
        told = f"{value:.1%}"
    else:
        told = "–" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
    return f"{plain(body.x_axis)} {x:,.0f}<br>{told}"


def _band(body: Lines, line: Line) -> dict[str, Any]:
    """The outline of a line's intervals."""
    xs: list[float | None] = []
    ys: list[float | None] = []
    # a band for each run of points: between points that are apart nothing is known
    for is_known, points in groupby(_with_intervals(line), lambda point: point[2] is not None):
        run = [(body.at(x), low, high) for x, _, low, high in points]
        if is_known:
            xs += [*(x for x, _, _ in run), *(x for x, _, _ in reversed(run)), None]
            ys += [*(high for _, _, high in run), *(low for _, low, _ in reversed(run)), None]
    return {
        "x": xs,
        "y": ys,
        "fill": "toself",
        "mode": "none",
        "opacity": 0.18,
        "hoverinfo": "skip",
        "showlegend": False,
    }
