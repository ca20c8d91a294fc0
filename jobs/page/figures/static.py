"""Figures for papers, by matplotlib: PNG and SVG, on white ground, with their titles. They are as wide
as a column of a journal, with letters that can be read there."""

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

from jobs.page.figures.colours import GRID, GROUPS, INK, KINDS, MUTED, SCALE
from jobs.page.figures.spec import Estimate, Estimates, Figure, Graph, Lines, Matrix, Tree
from jobs.page.wording import scaled, short

FORMATS = ("png", "svg")

_STYLE: Any = {
    "font.size": 7,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": MUTED,
    "text.parse_math": False,
    "svg.hashsalt": "neuralign",
    "svg.fonttype": "none",
}
_KIND_MARKERS = {"neurons": "o", "control": "s", "baseline": "D"}
_MARKERS = ("o", "s", "D", "^", "P", "X", "*", "h")
_WIDTH = 85 / 25.4
"""Inches: one column."""

_DPI = 300
_SMALL = 6
"""Points: the smallest letters, of names that are many."""

_MOST_ROWS_NAMED = 28


def draw(figure: Figure) -> Iterator[tuple[str, bytes]]:
    """(format, content) of a figure in each format; the same bytes each time."""
    with mpl.rc_context(_STYLE):
        canvas = _canvas(figure)
        title = "\n".join(textwrap.wrap(figure.finding, 50))
        canvas.suptitle(title, fontsize=7.5, x=0.01, ha="left", weight="bold")
        # lay it out once for all formats; how wide labels are is known after the first time only
        for _ in range(2):
            canvas.draw_without_rendering()
        canvas.set_layout_engine("none")
        if isinstance(figure.body, Graph):
            _name_nodes(canvas, figure.body)
        for form in FORMATS:
            content = io.BytesIO()
            metadata = {"Date": None} if form == "svg" else None
            canvas.savefig(content, format=form, dpi=_DPI, metadata=metadata)
            yield form, content.getvalue()


def _canvas(figure: Figure) -> Canvas:
    body = figure.body
    if isinstance(body, Estimates):
        return _estimates(body)
    if isinstance(body, Matrix):
        return _matrix(body)
    if isinstance(body, Lines):
        return _lines(body)
    return _tree(body) if isinstance(body, Tree) else _graph(body)


def _estimates(body: Estimates) -> Canvas:
    labels = ["\n".join(textwrap.wrap(row.label, 30)) for row in body.rows]
    lines = sum(label.count("\n") + 1 for label in labels)
    canvas = Canvas(figsize=(_WIDTH, 1.0 + 0.08 * len(labels) + 0.115 * lines))
    canvas.set_layout_engine("constrained")
    axes = canvas.subplots()
    axes.axvline(body.nothing, color=MUTED, linewidth=0.8)
    for label, value in body.marks:
        axes.axvline(value, color=GROUPS[2], linestyle="--", linewidth=1, label=label)
    for place, row in enumerate(body.rows):
        if row.chance:
            low, high = row.chance
            axes.barh(place, high - low, left=low, height=0.6, color=GRID)
    for (name, kind, chosen), places in body.series().items():
        rows = [body.rows[place] for place in places]
        axes.errorbar(
            [row.value or 0.0 for row in rows],
            places,
            xerr=np.array([_reach(row) for row in rows]).T,
            fmt=_KIND_MARKERS[kind],
            color=KINDS[kind],
            markerfacecolor="white" if chosen else KINDS[kind],
            markersize=3.5,
            linewidth=0.6 if chosen else 1.1,
            capsize=1.5,
            label=name,
        )
    axes.set_yticks(range(len(labels)), labels)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.set_xlabel(body.axis)
    if len(body.series()) > 1 or body.marks:
        canvas.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=_SMALL)
    return canvas


def _reach(row: Estimate) -> tuple[float, float]:
    """How far an interval reaches to either side of its value."""
    if row.value is None or row.low is None or row.high is None:
        return 0.0, 0.0
    return row.value - row.low, row.high - row.value


def _matrix(body: Matrix) -> Canvas:
    n = len(body.names)
    canvas = Canvas(figsize=(_WIDTH, 1.15 * _WIDTH))
    canvas.set_layout_engine("constrained")
    axes = canvas.subplots()
    axes.set_facecolor(GRID)
    known = body.values[np.isfinite(body.values)]
    top, least = (float(known.max()), float(known.min())) if known.size else (1.0, 0.0)
    norm = (
        PowerNorm(0.5, vmin=0, vmax=top or 1.0)
        if body.root
        else Normalize(least, top if top > least else least + 1)
    )
    image = axes.imshow(body.values, cmap=SCALE, norm=norm)
    starts = [place for place in range(1, n) if body.groups[place] != body.groups[place - 1]]
    if len(starts) < n - 1:
        for start in starts:
            axes.axhline(start - 0.5, color="white", linewidth=0.5)
            axes.axvline(start - 0.5, color="white", linewidth=0.5)
    ticks = [(float(place), name) for place, name in enumerate(body.names)]
    if n > _MOST_ROWS_NAMED:
        ticks = _with_room(body, [0, *starts, n], n / _MOST_ROWS_NAMED)
    at, names = [place for place, _ in ticks], [short(name) for _, name in ticks]
    axes.set_xticks(at, names, rotation=90, fontsize=_SMALL)
    axes.set_yticks(at, names, fontsize=_SMALL)
    axes.tick_params(length=0)
    canvas.colorbar(image, ax=axes, location="bottom", shrink=0.7, label=body.label)
    return canvas


def _with_room(body: Matrix, edges: Sequence[int], room: float) -> list[tuple[float, str]]:
    """The middles and names of the groups that are at least so many rows from the last one."""
    kept: list[tuple[float, str]] = []
    for low, high in pairwise(edges):
        middle = (low + high - 1) / 2
        if not kept or middle - kept[-1][0] >= room:
            kept.append((middle, body.groups[low]))
    return kept


def _lines(body: Lines) -> Canvas:
    canvas = Canvas(figsize=(_WIDTH, 0.8 + 1.4 * len(body.panels)))
    canvas.set_layout_engine("constrained")
    names = list(dict.fromkeys(line.name for panel in body.panels for line in panel.lines))
    all_axes = np.atleast_1d(canvas.subplots(len(body.panels), sharex=True))
    handles: dict[str, Any] = {}
    for axes, panel in zip(all_axes, body.panels, strict=True):
        axes.axhline(panel.nothing, color=MUTED, linewidth=0.8)
        for line in panel.lines:
            place = names.index(line.name)
            colour = GROUPS[place % len(GROUPS)]
            x = [body.at(each) for each in line.x]
            y = np.array(line.y, np.float64)
            (handles[line.name],) = axes.plot(
                x, y, color=colour, marker=_MARKERS[place // len(GROUPS) % len(_MARKERS)],
                linestyle=("-", "--", ":")[place % 3], markersize=2, linewidth=1,
            )  # fmt: skip
            if line.low:
                low, high = np.array(line.low, np.float64), np.array(line.high, np.float64)
                axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
        axes.set_ylabel("\n".join(textwrap.wrap(panel.axis, 22)))
        if panel.percent:
            axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    all_axes[-1].set_xlabel(body.x_axis)
    if body.log:
        all_axes[-1].set_xscale("log")
        ticks = body.ticks()
        all_axes[-1].set_xticks([body.at(x) for x in ticks], [scaled(x) for x in ticks])
        all_axes[-1].minorticks_off()
    else:
        all_axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    canvas.legend(
        handles.values(),
        handles.keys(),
        loc="outside lower center",
        ncols=2,
        frameon=False,
        fontsize=_SMALL,
    )
    return canvas


def _groups(body: Tree | Graph) -> Iterator[tuple[str, str, str, list[int]]]:
    """(group, colour, marker, places) of each group."""
    for group, places in body.palette.members(body.groups):
        colour, symbol = body.palette.place(group, len(GROUPS))
        shown = MUTED if colour is None else GROUPS[colour]
        yield group, shown, _MARKERS[symbol % len(_MARKERS)], places


def _tree(body: Tree) -> Canvas:
    n = len(body.names)
    canvas = Canvas(figsize=(_WIDTH, 1.2 + 0.095 * n))
    canvas.set_layout_engine("constrained")
    axes = canvas.subplots()
    for joint in body.joints:
        axes.plot(*zip(*joint, strict=True), color=MUTED, linewidth=0.5)
    for group, colour, marker, places in _groups(body):
        axes.scatter(
            [body.start] * len(places),
            places,
            color=colour,
            marker=marker,
            s=8,
            label=short(group),
            zorder=3,
            clip_on=False,
        )
    axes.set_yticks(range(n), map(short, body.names), fontsize=_SMALL)
    axes.tick_params(axis="y", length=0, pad=4)
    axes.spines["left"].set_visible(False)
    axes.set_ylim(n - 0.5, -0.5)
    axes.set_xlim(left=body.start)
    axes.set_xlabel(body.axis)
    _legend(canvas, body.groups)
    return canvas


def _graph(body: Graph) -> Canvas:
    canvas = Canvas(figsize=(_WIDTH, 1.2 * _WIDTH))
    canvas.set_layout_engine("constrained")
    axes = canvas.subplots()
    most = max((value for _, _, value in body.edges), default=1.0)
    for first, second, value in body.edges:
        axes.plot(*body.places[[first, second]].T, color=MUTED, alpha=0.5, linewidth=0.2 + value / most)
    for group, colour, marker, places in _groups(body):
        axes.scatter(
            body.places[places, 0], body.places[places, 1], color=colour, marker=marker, s=12,
            label=short(group), edgecolor=INK, linewidth=0.3, zorder=3,
        )  # fmt: skip
    axes.margins(0.12, 0.05)
    axes.set_axis_off()
    _legend(canvas, body.groups)
    return canvas


def _name_nodes(canvas: Canvas, body: Graph) -> None:
    """Name the nodes whose names lie on no other."""
    (axes,) = canvas.axes
    kept: list[Bbox] = []
    for name, place in zip(body.names, body.places, strict=True):
        text = axes.annotate(
            short(name), place, (0, 2.5), textcoords="offset points", ha="center", fontsize=_SMALL
        )
        box = text.get_window_extent()
        if (
            box.count_overlaps(kept)
            or not canvas.bbox.containsx(box.x0)
            or not canvas.bbox.containsx(box.x1)
        ):
            text.remove()
        else:
            kept.append(box)


def _legend(canvas: Canvas, groups: Sequence[str]) -> None:
    if len(set(groups)) > 1:
        canvas.legend(
            loc="outside lower center",
            ncols=4,
            frameon=False,
            fontsize=_SMALL,
            columnspacing=1,
            handletextpad=0.2,
        )
