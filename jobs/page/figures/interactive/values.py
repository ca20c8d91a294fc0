"""Interval and line plots, for Plotly."""

from __future__ import annotations

import textwrap
from itertools import groupby
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from jobs.page.figures.colors import BACKGROUND, GRID, GROUPS, KINDS, MUTED
from jobs.page.figures.interactive.text import MAX_TICKS, SYMBOLS, escape_for_template, escape_label
from jobs.page.figures.spec import IntervalPlot, IntervalRow, Line, LinePlot, Panel, group_style
from jobs.page.wording import format_interval, si_format

_LINE_HEIGHT, _ROW_HEIGHT = 16, 28
_LABEL_CHARACTERS, _LABEL_SIZE = 36, 12
_VALUE_WIDTH = 130
"""Pixels for the values on the right."""

_LEGEND, _REFERENCES = 44, 20
"""Pixels above the rows for the legend, and for the labels of reference lines."""

_KIND_SYMBOLS = {"neurons": "circle", "control": "square", "baseline": "diamond"}


def interval_plot(body: IntervalPlot) -> go.Figure:
    """Labels are on separate lines above the intervals, to fit narrow pages."""
    labels = [textwrap.wrap(row.label, _LABEL_CHARACTERS) or [""] for row in body.rows]
    ends = np.cumsum([_ROW_HEIGHT + _LINE_HEIGHT * len(lines) for lines in labels])
    figure = go.Figure()
    for row, end in zip(body.rows, ends, strict=True):
        if row.null_range:
            low, high = row.null_range
            box = {"x0": low, "x1": high, "y0": 6 - end, "y1": 20 - end}
            figure.add_shape(type="rect", **box, fillcolor=GRID, line_width=0, layer="below")
    for (name, kind, is_maximum), indices in body.series().items():
        rows = [body.rows[index] for index in indices]
        color, symbol = KINDS[kind], _KIND_SYMBOLS[kind] + ("-open" if is_maximum else "")
        figure.add_scatter(
            x=[row.value for row in rows],
            y=[13 - int(ends[index]) for index in indices],
            name=name,
            mode="markers",
            marker={"color": color, "size": 10, "symbol": symbol, "line": {"width": 1.5}},
            error_x={
                "array": [_error(row.value, row.high) for row in rows],
                "arrayminus": [_error(row.low, row.value) for row in rows],
                "color": color,
                "thickness": 1 if is_maximum else 2,
                "width": 4,
            },
            customdata=[f"{escape_label(row.label)}<br>{_value(row)}" for row in rows],
            hovertemplate="%{customdata}<extra></extra>",
        )
    for row, lines, end in zip(body.rows, labels, ends, strict=True):
        position = {"y": 22 - int(end), "xref": "paper", "yanchor": "bottom"}
        style = {"showarrow": False, "font_size": _LABEL_SIZE, **position}
        label = "<br>".join(map(escape_label, lines))
        figure.add_annotation(x=0, text=label, xanchor="left", align="left", bgcolor=BACKGROUND, **style)
        figure.add_annotation(x=1, text=_value(row), xanchor="right", font_color=MUTED, **style)
    figure.add_vline(x=body.null_value, line={"color": MUTED, "width": 1})
    for label, value in body.references:
        figure.add_vline(x=value, line={"color": GROUPS[2], "width": 2, "dash": "dash"})
        style = {"y": 0, "yanchor": "bottom", "showarrow": False, "font": {"color": GROUPS[2]}}
        figure.add_annotation(x=value, xanchor="right", yshift=2, text=escape_label(label), **style)
    has_legend = len(body.series()) > 1
    references = _REFERENCES if body.references else 0
    above = (_LEGEND if has_legend else 8) + references
    figure.update_layout(
        height=int(ends[-1]) + 50 + above,
        margin={"l": 12, "r": 12, "t": above, "b": 50},
        showlegend=has_legend,
        meta={"values": _VALUE_WIDTH},
        legend={"orientation": "h", "x": 0, "y": 1 + references / int(ends[-1]), "yanchor": "bottom"},
    )
    figure.update_xaxes(
        title=escape_label(body.axis), range=_range(body), zeroline=False, nticks=MAX_TICKS + 2
    )
    figure.update_yaxes(visible=False, range=[-int(ends[-1]), 0])
    return figure


def _value(row: IntervalRow) -> str:
    """The value and interval at the right of a row."""
    if row.value is not None and (row.null_range or row.low is None):
        return f"{row.value:.3f}" if row.null_range else f"{row.value:.2f}"
    return format_interval(row.value, row.low, row.high)


def _error(low: float | None, high: float | None) -> float:
    """The length of an error bar."""
    return 0.0 if low is None or high is None else high - low


def _range(body: IntervalPlot) -> list[float]:
    values = [body.null_value, *(value for _, value in body.references)]
    for row in body.rows:
        bounds = (row.value, row.low, row.high, *(row.null_range or ()))
        values += [value for value in bounds if value is not None]
    padding = (max(values) - min(values) or 1.0) * 0.05
    return [min(values) - padding, max(values) + padding]


def line_plot(body: LinePlot) -> go.Figure:
    """Panels in one column; a line has the same color in all of them."""
    figure = make_subplots(rows=len(body.panels), cols=1, shared_xaxes=True, vertical_spacing=0.09)
    names = list(dict.fromkeys(line.name for panel in body.panels for line in panel.lines))
    in_legend: set[str] = set()
    for row, panel in enumerate(body.panels, 1):
        for line in panel.lines:
            number = names.index(line.name)
            color, symbol = group_style(number, SYMBOLS)
            if line.low:
                figure.add_scatter(
                    **_band(body, line),
                    fillcolor=color,
                    legendgroup=escape_label(line.name),
                    row=row,
                    col=1,
                )
            figure.add_scatter(
                x=[body.x_position(x) for x in line.x],
                y=list(line.y),
                name=escape_label(line.name),
                legendgroup=escape_label(line.name),
                showlegend=line.name not in in_legend,
                mode="lines+markers",
                line={"color": color, "width": 2, "dash": ("solid", "dash", "dot")[number % 3]},
                marker={"symbol": symbol, "size": 6},
                customdata=[_hover_text(body, panel, *point) for point in line.points()],
                hovertemplate=f"{escape_for_template(line.name)}<br>%{{customdata}}<extra></extra>",
                row=row,
                col=1,
            )
            in_legend.add(line.name)
        figure.add_hline(y=panel.baseline, line={"color": MUTED, "width": 1}, row=row, col=1)
        axis = "<br>".join(map(escape_label, textwrap.wrap(panel.axis, 28)))
        style = {"automargin": True, "rangemode": "tozero", "tickformat": "~%" if panel.percent else ""}
        figure.update_yaxes(title={"text": axis, "standoff": 6}, row=row, col=1, **style)
    figure.update_xaxes(title=escape_label(body.x_axis), row=len(body.panels), col=1)
    if body.log:
        ticks = body.x_ticks()
        positions, labels = [body.x_position(x) for x in ticks], [si_format(x) for x in ticks]
        figure.update_xaxes(type="log", tickmode="array", tickvals=positions, ticktext=labels)
    elif len(body.x_values()) < 10:
        figure.update_xaxes(dtick=1)
    figure.update_layout(
        height=300 * len(body.panels) + 90,
        margin={"l": 10, "r": 12, "t": 30 + 22 * -(-len(names) // 2), "b": 50},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
    )
    return figure


def _hover_text(
    body: LinePlot, panel: Panel, x: float, value: float | None, low: float | None, high: float | None
) -> str:
    if low is not None:
        text = format_interval(value, low, high)
    elif panel.percent and value is not None:
        text = f"{value:.1%}"
    else:
        text = "–" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
    return f"{escape_label(body.x_axis)} {x:,.0f}<br>{text}"


def _band(body: LinePlot, line: Line) -> dict[str, Any]:
    """The outline of a line's confidence band."""
    xs: list[float | None] = []
    ys: list[float | None] = []
    # Points without an interval interrupt the band.
    for has_interval, points in groupby(line.points(), lambda point: point[2] is not None):
        run = [(body.x_position(x), low, high) for x, _, low, high in points]
        if has_interval:
            xs += [*(x for x, _, _ in run), *(x for x, _, _ in reversed(run)), None]
            ys += [*(high for _, _, high in run), *(low for _, low, _ in reversed(run)), None]
    style = {"fill": "toself", "mode": "none", "opacity": 0.18, "hoverinfo": "skip", "showlegend": False}
    return {"x": xs, "y": ys, **style}
