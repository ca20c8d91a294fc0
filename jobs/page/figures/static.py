"""Figures for papers, by matplotlib: PNG and SVG on white, one journal column wide, with titles."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.colors import Normalize, PowerNorm
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import MaxNLocator, PercentFormatter
from matplotlib.transforms import Bbox

from jobs.page.figures import spec
from jobs.page.figures.colors import GRID, GROUPS, INK, KINDS, MUTED, SCALE
from jobs.page.wording import si_format, truncate

FORMATS = ("png", "svg")

_SMALL = 6
"""Points: the smallest font size, for dense labels."""

_STYLE: Any = {
    "font.size": 7,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": MUTED,
    "text.parse_math": False,
    "legend.frameon": False,
    "legend.fontsize": _SMALL,
    "svg.hashsalt": "neuralign",
    "svg.fonttype": "none",
}
_KIND_MARKERS = {"neurons": "o", "control": "s", "baseline": "D"}
_MARKERS = ("o", "s", "D", "^", "P", "X", "*", "h")
_WIDTH = 85 / 25.4
"""Inches: one journal column."""

_DPI = 300
_MAX_LABELED_ROWS = 28


def draw(figure: spec.Figure, formats: Sequence[str] = FORMATS) -> Iterator[tuple[str, bytes]]:
    """(format, content) of a figure in every format; deterministic to the byte."""
    with mpl.rc_context(_STYLE):
        canvas = _canvas(figure)
        title = "\n".join(textwrap.wrap(figure.finding, 50))
        canvas.suptitle(title, fontsize=7.5, x=0.01, ha="left", weight="bold")
        # Label widths are known after the first pass only; the layout is then fixed for all formats.
        for _ in range(2):
            canvas.draw_without_rendering()
        canvas.set_layout_engine("none")
        if isinstance(figure.body, spec.GraphPlot):
            _label_nodes(canvas, figure.body)
        for image_format in formats:
            content = io.BytesIO()
            metadata = {"Date": None} if image_format == "svg" else None
            canvas.savefig(content, format=image_format, dpi=_DPI, metadata=metadata)
            yield image_format, content.getvalue()


def _canvas(figure: spec.Figure) -> Canvas:
    body = figure.body
    if isinstance(body, spec.IntervalPlot):
        return _interval_plot(body)
    if isinstance(body, spec.Heatmap):
        return _heatmap(body)
    if isinstance(body, spec.LinePlot):
        return _line_plot(body)
    return _dendrogram(body) if isinstance(body, spec.Dendrogram) else _graph(body)


def _interval_plot(body: spec.IntervalPlot) -> Canvas:
    labels = ["\n".join(textwrap.wrap(row.label, 32)) for row in body.rows]
    n_lines = sum(label.count("\n") + 1 for label in labels)
    canvas = Canvas(figsize=(_WIDTH, 1.0 + 0.08 * len(labels) + 0.115 * n_lines), layout="constrained")
    axes = canvas.subplots()
    axes.axvline(body.null_value, color=MUTED, linewidth=0.8)
    for label, value in body.references:
        axes.axvline(value, color=GROUPS[2], linestyle="--", linewidth=1, label=label)
    for height, row in enumerate(body.rows):
        if row.null_range:
            low, high = row.null_range
            axes.barh(height, high - low, left=low, height=0.6, color=GRID)
    for (name, kind, is_maximum), indices in body.series().items():
        rows = [body.rows[index] for index in indices]
        axes.errorbar(
            [row.value or 0.0 for row in rows],
            indices,
            xerr=np.array([_error_bars(row) for row in rows]).T,
            fmt=_KIND_MARKERS[kind],
            color=KINDS[kind],
            markerfacecolor="white" if is_maximum else KINDS[kind],
            markersize=3.5,
            linewidth=0.6 if is_maximum else 1.1,
            capsize=1.5,
            label=name,
        )
    axes.set_yticks(range(len(labels)), labels)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.set_xlabel(body.axis)
    if len(body.series()) > 1 or body.references:
        canvas.legend(loc="outside lower center", ncols=2)
    return canvas


def _error_bars(row: spec.IntervalRow) -> tuple[float, float]:
    """Lengths of the interval below and above the value."""
    if row.value is None or row.low is None or row.high is None:
        return 0.0, 0.0
    return row.value - row.low, row.high - row.value


def _heatmap(body: spec.Heatmap) -> Canvas:
    n = len(body.names)
    canvas = Canvas(figsize=(_WIDTH, 1.15 * _WIDTH), layout="constrained")
    axes = canvas.subplots()
    axes.set_facecolor(GRID)
    finite = body.values[np.isfinite(body.values)]
    high, low = (float(finite.max()), float(finite.min())) if finite.size else (1.0, 0.0)
    norm: Normalize = PowerNorm(0.5, vmin=0, vmax=high or 1.0)
    if not body.sqrt_scale:
        norm = Normalize(low, high if high > low else low + 1)
    image = axes.imshow(body.values, cmap=SCALE, norm=norm)
    starts = [row for row in range(1, n) if body.groups[row] != body.groups[row - 1]]
    if len(starts) < n - 1:
        for start in starts:
            axes.axhline(start - 0.5, color="white", linewidth=0.5)
            axes.axvline(start - 0.5, color="white", linewidth=0.5)
    ticks = [(float(row), name) for row, name in enumerate(body.names)]
    if n > _MAX_LABELED_ROWS:
        ticks = _spaced_group_ticks(body, [0, *starts, n], n / _MAX_LABELED_ROWS)
    positions, names = [position for position, _ in ticks], [truncate(name) for _, name in ticks]
    axes.set_xticks(positions, names, rotation=90, fontsize=_SMALL)
    axes.set_yticks(positions, names, fontsize=_SMALL)
    axes.tick_params(length=0)
    canvas.colorbar(image, ax=axes, location="bottom", shrink=0.7, label=body.label)
    return canvas


def _spaced_group_ticks(
    body: spec.Heatmap, boundaries: Sequence[int], spacing: float
) -> list[tuple[float, str]]:
    """(middle, name) of the groups that are at least `spacing` rows from the previous label."""
    ticks: list[tuple[float, str]] = []
    for start, end in pairwise(boundaries):
        middle = (start + end - 1) / 2
        if not ticks or middle - ticks[-1][0] >= spacing:
            ticks.append((middle, body.groups[start]))
    return ticks


def _line_plot(body: spec.LinePlot) -> Canvas:
    canvas = Canvas(figsize=(_WIDTH, 0.8 + 1.4 * len(body.panels)), layout="constrained")
    names = list(dict.fromkeys(line.name for panel in body.panels for line in panel.lines))
    all_axes = np.atleast_1d(canvas.subplots(len(body.panels), sharex=True))
    handles: dict[str, Any] = {}
    for axes, panel in zip(all_axes, body.panels, strict=True):
        axes.axhline(panel.baseline, color=MUTED, linewidth=0.8)
        for line in panel.lines:
            number = names.index(line.name)
            color, marker = spec.group_style(number, _MARKERS)
            x = [body.x_position(value) for value in line.x]
            y = np.array(line.y, np.float64)
            style = {"color": color, "marker": marker, "linestyle": ("-", "--", ":")[number % 3]}
            (handles[line.name],) = axes.plot(x, y, markersize=2, linewidth=1, **style)
            if line.low:
                low, high = np.array(line.low, np.float64), np.array(line.high, np.float64)
                axes.fill_between(x, low, high, color=color, alpha=0.15, linewidth=0)
        axes.set_ylabel("\n".join(textwrap.wrap(panel.axis, 22)))
        if panel.percent:
            axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    all_axes[-1].set_xlabel(body.x_axis)
    if body.log:
        all_axes[-1].set_xscale("log")
        ticks = body.x_ticks()
        all_axes[-1].set_xticks([body.x_position(x) for x in ticks], [si_format(x) for x in ticks])
        all_axes[-1].minorticks_off()
    else:
        all_axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    canvas.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=2)
    return canvas


def _dendrogram(body: spec.Dendrogram) -> Canvas:
    n = len(body.names)
    canvas = Canvas(figsize=(_WIDTH, 1.2 + 0.095 * n), layout="constrained")
    axes = canvas.subplots()
    for bracket in body.brackets:
        axes.plot(*zip(*bracket, strict=True), color=MUTED, linewidth=0.5)
    for group, color, marker, indices in body.palette.styles(body.groups, _MARKERS):
        x = [body.x_start] * len(indices)
        style: dict[str, Any] = {"color": color, "marker": marker, "label": truncate(group)}
        axes.scatter(x, indices, s=8, zorder=3, clip_on=False, **style)
    axes.set_yticks(range(n), map(truncate, body.names), fontsize=_SMALL)
    axes.tick_params(axis="y", length=0, pad=4)
    axes.spines["left"].set_visible(False)
    axes.set_ylim(n - 0.5, -0.5)
    axes.set_xlim(left=body.x_start)
    axes.set_xlabel(body.axis)
    _legend(canvas, body.groups)
    return canvas


def _graph(body: spec.GraphPlot) -> Canvas:
    canvas = Canvas(figsize=(_WIDTH, 1.2 * _WIDTH), layout="constrained")
    axes = canvas.subplots()
    highest = max((value for _, _, value in body.edges), default=1.0)
    for first, second, value in body.edges:
        x, y = body.positions[[first, second]].T
        axes.plot(x, y, color=MUTED, alpha=0.5, linewidth=0.2 + value / highest)
    for group, color, marker, indices in body.palette.styles(body.groups, _MARKERS):
        x, y = body.positions[indices].T
        style: dict[str, Any] = {"color": color, "marker": marker, "label": truncate(group)}
        axes.scatter(x, y, s=12, edgecolor=INK, linewidth=0.3, zorder=3, **style)
    axes.margins(0.12, 0.05)
    axes.set_axis_off()
    _legend(canvas, body.groups)
    return canvas


def _label_nodes(canvas: Canvas, body: spec.GraphPlot) -> None:
    """Label the nodes whose labels neither overlap another one nor cross the edge."""
    (axes,) = canvas.axes
    boxes: list[Bbox] = []
    for name, position in zip(body.names, body.positions, strict=True):
        text = axes.annotate(
            truncate(name), position, (0, 2.5), textcoords="offset points", ha="center", fontsize=_SMALL
        )
        box = text.get_window_extent()
        if box.count_overlaps(boxes) or not all(map(canvas.bbox.containsx, (box.x0, box.x1))):
            text.remove()
        else:
            boxes.append(box)


def _legend(canvas: Canvas, groups: Sequence[str]) -> None:
    if len(set(groups)) > 1:
        canvas.legend(loc="outside lower center", ncols=4, columnspacing=1, handletextpad=0.2)
