"""Figures for papers, by matplotlib: PNG and SVG, on white ground, with their titles."""

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
from matplotlib.ticker import MaxNLocator

from jobs.page.colours import GRID, GROUPS, INK, KINDS, MUTED, SCALE
from jobs.page.figure import (
    Estimates,
    Figure,
    Graph,
    Lines,
    Matrix,
    Tree,
)

FORMATS = ("png", "svg")

_STYLE: Any = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": MUTED,
    "text.parse_math": False,
    "svg.hashsalt": "neuralign",
    "svg.fonttype": "none",
}
_KIND_MARKERS = {"neurons": "o", "control": "o", "baseline": "D"}
_MARKERS = ("o", "s", "D", "^", "P", "X", "*", "h")
_WIDTH = 7.0
_FEWEST_NAMES_LEFT_OUT = 120


def draw(figure: Figure) -> Iterator[tuple[str, bytes]]:
    """(format, content) of a figure in each format; the same bytes each time."""
    with mpl.rc_context(_STYLE):
        canvas = _canvas(figure)
        canvas.suptitle("\n".join(textwrap.wrap(figure.finding, 84)), fontsize=10, x=0.01, ha="left")
        # lay it out once for all formats
        canvas.draw_without_rendering()
        canvas.set_layout_engine("none")
        for form in FORMATS:
            content = io.BytesIO()
            metadata = {"Date": None} if form == "svg" else None
            canvas.savefig(content, format=form, dpi=150, metadata=metadata)
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
    labels = ["\n".join(textwrap.wrap(row.label, 44)) for row in body.rows]
    canvas = Canvas(figsize=(_WIDTH, 1.4 + 0.27 * sum(label.count("\n") + 1 for label in labels)))
    canvas.set_layout_engine("constrained")
    axes = canvas.subplots()
    axes.axvline(body.nothing, color=MUTED, linewidth=0.8)
    for label, value in body.marks:
        axes.axvline(value, color=GROUPS[2], linestyle="--", linewidth=1.2, label=label)
    seen: set[str] = set()
    for place, row in enumerate(body.rows):
        if row.chance:
            low, high = row.chance
            axes.barh(place, high - low, left=low, height=0.6, color=GRID)
        if row.value is None:
            continue
        bars = None
        if row.low is not None and row.high is not None:
            bars = [[row.value - row.low], [row.high - row.value]]
        axes.errorbar(
            row.value,
            place,
            xerr=bars,
            fmt=_KIND_MARKERS[row.kind],
            color=KINDS[row.kind],
            markerfacecolor="white" if row.kind == "control" else KINDS[row.kind],
            markersize=5,
            capsize=2,
            label=None if row.kind in seen else row.kind,
        )
        seen.add(row.kind)
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.set_xlabel(body.axis)
    if len(seen) > 1 or body.marks:
        canvas.legend(loc="outside lower right", ncols=4, frameon=False, fontsize=8)
    return canvas


def _matrix(body: Matrix) -> Canvas:
    n = len(body.names)
    side = min(max(5.0, 2.5 + 0.12 * n), 14.0)
    canvas = Canvas(figsize=(side + 1, side))
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
    if n <= _FEWEST_NAMES_LEFT_OUT:
        axes.set_xticks(range(n), body.names, rotation=90, fontsize=6)
        axes.set_yticks(range(n), body.names, fontsize=6)
    starts = [place for place in range(1, n) if body.groups[place] != body.groups[place - 1]]
    if len(starts) < n - 1:
        for start in starts:
            axes.axhline(start - 0.5, color="white", linewidth=0.6)
            axes.axvline(start - 0.5, color="white", linewidth=0.6)
        edges = [0, *starts, n]
        for low, high in pairwise(edges):
            axes.annotate(
                body.groups[low],
                (1.01, (low + high - 1) / 2),
                xycoords=("axes fraction", "data"),
                va="center",
                fontsize=7,
            )
    axes.tick_params(length=0)
    canvas.colorbar(image, ax=axes, shrink=0.5, pad=0.12, label=body.label)
    return canvas


def _lines(body: Lines) -> Canvas:
    canvas = Canvas(figsize=(_WIDTH, 1 + 2.3 * len(body.panels)))
    canvas.set_layout_engine("constrained")
    names = list(dict.fromkeys(line.name for panel in body.panels for line in panel.lines))
    all_axes = np.atleast_1d(canvas.subplots(len(body.panels), sharex=True))
    handles: dict[str, Any] = {}
    for axes, panel in zip(all_axes, body.panels, strict=True):
        axes.axhline(panel.nothing, color=MUTED, linewidth=0.8)
        for line in panel.lines:
            place = names.index(line.name)
            colour = GROUPS[place % len(GROUPS)]
            y = np.array(line.y, np.float64)
            (handles[line.name],) = axes.plot(
                line.x, y, color=colour, marker=_MARKERS[place // len(GROUPS) % len(_MARKERS)],
                linestyle=("-", "--", ":")[place % 3], markersize=3, linewidth=1.4,
            )  # fmt: skip
            if line.low:
                low, high = np.array(line.low, np.float64), np.array(line.high, np.float64)
                axes.fill_between(line.x, low, high, color=colour, alpha=0.15, linewidth=0)
        axes.set_ylabel("\n".join(textwrap.wrap(panel.axis, 30)))
    all_axes[-1].set_xlabel(body.x_axis)
    if body.log:
        all_axes[-1].set_xscale("log")
    else:
        all_axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    canvas.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=3, frameon=False)
    return canvas


def _groups(body: Tree | Graph) -> Iterator[tuple[str, str, str, list[int]]]:
    """(group, colour, marker, places) of each group."""
    for group, places in body.palette.members(body.groups):
        colour, symbol = body.palette.place(group, len(GROUPS))
        shown = MUTED if colour is None else GROUPS[colour]
        yield group, shown, _MARKERS[symbol % len(_MARKERS)], places


def _tree(body: Tree) -> Canvas:
    n = len(body.names)
    canvas = Canvas(figsize=(_WIDTH, 1.5 + 0.14 * n))
    canvas.set_layout_engine("constrained")
    axes = canvas.subplots()
    for joint in body.joints:
        axes.plot(*zip(*joint, strict=True), color=MUTED, linewidth=0.8)
    for group, colour, marker, places in _groups(body):
        axes.scatter(
            [body.start] * len(places),
            places,
            color=colour,
            marker=marker,
            s=18,
            label=group,
            zorder=3,
            clip_on=False,
        )
    axes.set_yticks(range(n), body.names, fontsize=7)
    axes.tick_params(axis="y", length=0, pad=7)
    axes.spines["left"].set_visible(False)
    axes.set_ylim(n - 0.5, -0.5)
    axes.set_xlim(left=body.start)
    axes.set_xlabel(body.axis)
    _legend(canvas, body.groups)
    return canvas


def _graph(body: Graph) -> Canvas:
    canvas = Canvas(figsize=(9, 9))
    canvas.set_layout_engine("constrained")
    axes = canvas.subplots()
    most = max((value for _, _, value in body.edges), default=1.0)
    for first, second, value in body.edges:
        axes.plot(
            *body.places[[first, second]].T, color=MUTED, alpha=0.5, linewidth=0.3 + 3 * value / most
        )
    for group, colour, marker, places in _groups(body):
        axes.scatter(
            body.places[places, 0], body.places[places, 1], color=colour, marker=marker, s=45,
            label=group, edgecolor=INK,
            linewidth=0.5, zorder=3,
        )  # fmt: skip
    for name, place in zip(body.names, body.places, strict=True):
        axes.annotate(name, place, (0, 5), textcoords="offset points", ha="center", fontsize=7)
    axes.set_axis_off()
    _legend(canvas, body.groups)
    return canvas


def _legend(canvas: Canvas, groups: Sequence[str]) -> None:
    if len(set(groups)) > 1:
        canvas.legend(loc="outside lower center", ncols=5, frameon=False, fontsize=7)
