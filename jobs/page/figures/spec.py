"""What a figure shows, independent of the renderer: `interactive` (Plotly) or `static` (matplotlib)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from alignment.arrays import Floats
from jobs.page.figures.colors import GROUPS, MUTED


class IntervalCell(NamedTuple):
    """A table cell with a 95% CI; sorts by the lower bound."""

    low: float
    high: float


class RoundedCell(NamedTuple):
    """A table cell with a number that is shown with two decimals."""

    value: float


Cell = str | int | float | IntervalCell | RoundedCell | None

NEURONS, CONTROL, BASELINE = "neurons", "control", "baseline"
NO_DOMAIN = "(no domain)"

_MAX_TICKS = 8
_MAX_PAIRS_IN_TABLE = 20
_VALUES = "Values"


@dataclass(frozen=True)
class IntervalRow:
    """A value with its 95% CI. `kind` is neurons, control or baseline; `is_maximum` marks the best of
    several, selected by this very value; `null_range` holds 95% of the null distribution."""

    label: str
    value: float | None
    low: float | None = None
    high: float | None = None
    kind: str = NEURONS
    is_maximum: bool = False
    null_range: tuple[float, float] | None = None


@dataclass(frozen=True)
class IntervalPlot:
    """A forest plot: one value and interval per row, with a line at the null value and at each of
    the labeled `references`."""

    rows: Sequence[IntervalRow]
    axis: str
    null_value: float
    references: Sequence[tuple[str, float]] = ()

    def series(self) -> dict[tuple[str, str, bool], list[int]]:
        """Indices of the rows with a value, by (legend name, kind, is_maximum)."""
        series: dict[tuple[str, str, bool], list[int]] = {}
        for kind in (NEURONS, CONTROL, BASELINE):
            for is_maximum in (False, True):
                indices = [
                    index
                    for index, row in enumerate(self.rows)
                    if (row.kind, row.is_maximum) == (kind, is_maximum) and row.value is not None
                ]
                if indices:
                    name = f"{kind}, best of several" if is_maximum else kind
                    series[name, kind, is_maximum] = indices
        return series


@dataclass(frozen=True)
class Heatmap:
    """A symmetric matrix, NaN where unknown. `groups` has the group of each row; a square-root scale
    makes small values visible."""

    names: Sequence[str]
    groups: Sequence[str]
    values: Floats
    label: str
    sqrt_scale: bool = False


@dataclass(frozen=True)
class Line:
    """Values over x, optionally with 95% CIs."""

    name: str
    x: Sequence[float]
    y: Sequence[float | None]
    low: Sequence[float | None] = ()
    high: Sequence[float | None] = ()

    def points(self) -> Iterable[tuple[float, float | None, float | None, float | None]]:
        """(x, y, low, high) of every point."""
        none = [None] * len(self.x)
        return zip(self.x, self.y, self.low or none, self.high or none, strict=True)


@dataclass(frozen=True)
class Panel:
    """Lines with a common vertical axis, which always includes `baseline`."""

    axis: str
    lines: Sequence[Line]
    baseline: float = 0.0
    percent: bool = False


@dataclass(frozen=True)
class LinePlot:
    """Panels over one horizontal axis. On a log axis, 0 is drawn to the left of all other values."""

    panels: Sequence[Panel]
    x_axis: str
    log: bool = False

    def x_values(self) -> list[float]:
        """All distinct values of x, in ascending order."""
        return sorted({x for panel in self.panels for line in panel.lines for x in line.x})

    def x_position(self, x: float) -> float:
        """The coordinate of x: on a log axis 0 is as far from the smallest value as the next one is."""
        if x or not self.log:
            return x
        smallest, *larger = [value for value in self.x_values() if value] or [1.0]
        return smallest * smallest / larger[0] if larger else smallest / 10

    def x_ticks(self) -> list[float]:
        """Ticks of a log axis: the values themselves, or powers of ten if there are too many; ticks too
        close to the previous one are skipped."""
        candidates = self.x_values()
        smallest = min(filter(None, candidates), default=1.0)
        powers = [power for n in range(16) if smallest <= (power := 10.0**n) <= candidates[-1]]
        if len(candidates) > _MAX_TICKS and len(powers) > 2:
            candidates = [*(x for x in candidates if x == 0), *powers]
        logs = [np.log10(self.x_position(x)) for x in candidates]
        spacing = (logs[-1] - logs[0]) / _MAX_TICKS
        ticks, last = candidates[:1], logs[0]
        for x, log in zip(candidates[1:], logs[1:], strict=True):
            if log - last > 0.9 * spacing:
                ticks.append(x)
                last = log
        return ticks


def group_style(number: int, symbols: Sequence[str]) -> tuple[str, str]:
    """Color and symbol of a group or a line. Distinguishable colors are few, so groups with the same
    color differ in their symbol."""
    return GROUPS[number % len(GROUPS)], symbols[number // len(GROUPS) % len(symbols)]


class Palette:
    """Colors and symbols of groups, the same in every figure."""

    def __init__(self, groups: Sequence[str]) -> None:
        self._order = [group for group in dict.fromkeys(groups) if group != NO_DOMAIN]

    def styles(
        self, groups: Sequence[str], symbols: Sequence[str]
    ) -> Iterable[tuple[str, str, str, list[int]]]:
        """(group, color, symbol, indices of its members) in the palette's order; NO_DOMAIN last."""
        for number, group in enumerate([*self._order, NO_DOMAIN]):
            indices = [index for index, name in enumerate(groups) if name == group]
            if indices:
                style = (MUTED, symbols[0]) if group == NO_DOMAIN else group_style(number, symbols)
                yield group, *style, indices


@dataclass(frozen=True)
class Dendrogram:
    """A tree drawn from left to right. Leaf i is in row i and starts at `x_start`; each bracket has
    four (distance, row) corners. `palette` covers all groups on the page."""

    names: Sequence[str]
    groups: Sequence[str]
    palette: Palette
    brackets: Sequence[Sequence[tuple[float, float]]]
    axis: str
    x_start: float = 0.0


@dataclass(frozen=True)
class GraphPlot:
    """Nodes at `positions` of shape (nodes, 2), and edges (node, node, weight). `palette` covers all
    groups on the page."""

    names: Sequence[str]
    groups: Sequence[str]
    palette: Palette
    positions: Floats
    edges: Sequence[tuple[int, int, float]]
    label: str


Plot = IntervalPlot | Heatmap | LinePlot | Dendrogram | GraphPlot


@dataclass(frozen=True)
class Figure:
    """A plot under a title that states the finding; `note` is the caption."""

    name: str
    finding: str
    note: str
    body: Plot


@dataclass(frozen=True)
class DataTable:
    """A table; one with a title is collapsible."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    title: str = ""

    def is_numeric(self, column: int) -> bool:
        """Whether a column has only numbers, which are right-aligned."""
        cells = [row[column] for row in self.rows if row[column] is not None]
        return bool(cells) and not any(isinstance(cell, str) for cell in cells)


@dataclass(frozen=True)
class Section:
    """A section of the page. `missing` lists what the store lacks and how to add it."""

    anchor: str
    title: str
    lead: Sequence[str] = ()
    figures: Sequence[Figure] = ()
    tables: Sequence[DataTable] = ()
    missing: Sequence[str] = ()


def value_table(body: Plot) -> DataTable:
    """The values of a plot as a table, for screen readers and for copying."""
    if isinstance(body, IntervalPlot):
        if any(row.null_range for row in body.rows):
            null_rows: list[list[Cell]] = [
                [row.label, row.value, *(row.null_range or (None, None))] for row in body.rows
            ]
            return DataTable(["", body.axis, "null 95% low", "null 95% high"], null_rows, _VALUES)
        rows: list[list[Cell]] = [[row.label, row.value, row.low, row.high] for row in body.rows]
        return DataTable(["", body.axis, "95% CI low", "95% CI high"], rows, _VALUES)
    if isinstance(body, LinePlot):
        columns = ["panel", "line", body.x_axis, "value", "95% CI low", "95% CI high"]
        points: list[list[Cell]] = [
            [panel.axis, line.name, *point]
            for panel in body.panels
            for line in panel.lines
            for point in line.points()
        ]
        return DataTable(columns, points, _VALUES)
    if isinstance(body, Heatmap):
        return _pair_table(body.names, _upper_triangle(body.values), body.label)
    if isinstance(body, GraphPlot):
        return _pair_table(body.names, body.edges, body.label)
    leaves: list[list[Cell]] = [
        [number, *leaf] for number, leaf in enumerate(zip(body.names, body.groups, strict=True), 1)
    ]
    return DataTable(["position", "concept", "domain"], leaves, "Leaf order")


def _pair_table(names: Sequence[str], edges: Iterable[tuple[int, int, float]], label: str) -> DataTable:
    """The pairs with the highest values."""
    ranked = sorted(edges, key=lambda edge: -edge[2])
    rows: list[list[Cell]] = [
        [names[first], names[second], value] for first, second, value in ranked[:_MAX_PAIRS_IN_TABLE]
    ]
    title = _VALUES if len(ranked) == len(rows) else f"{len(rows)} highest of {len(ranked):,} values"
    return DataTable(["", "", label], rows, title)


def _upper_triangle(values: Floats) -> Iterable[tuple[int, int, float]]:
    for first, second in zip(*np.triu_indices(len(values), 1), strict=True):
        if np.isfinite(values[first, second]):
            yield int(first), int(second), float(values[first, second])
