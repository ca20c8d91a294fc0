"""What a figure shows, independent of the renderer: `interactive` (Plotly) or `static` (matplotlib)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


class Interval(NamedTuple):
    """A cell that holds a 95% interval; it sorts by its lower end."""

    low: float
    high: float


class Rounded(NamedTuple):
    """A cell that holds a correlation or a share, of which two digits are worth telling."""

    value: float


Cell = str | int | float | Interval | Rounded | None

NEURONS, CONTROL, BASELINE = "neurons", "control", "baseline"
NO_DOMAIN = "(no domain)"

_MOST_TICKS = 8
_NUMBERS = "Numbers"
_SHOWN_PAIRS = 20


@dataclass(frozen=True)
class Estimate:
    """A value with its 95% interval; `kind` is neurons, control or baseline. A `chosen` one is the best
    of several by this very value. `chance` is where 95% of what comes about by chance lies."""

    label: str
    value: float | None
    low: float | None = None
    high: float | None = None
    kind: str = NEURONS
    chosen: bool = False
    chance: tuple[float, float] | None = None


@dataclass(frozen=True)
class Estimates:
    """Values with their intervals, one below the other. `nothing` is the value that says nothing;
    `marks` are labelled values that others are held against."""

    rows: Sequence[Estimate]
    axis: str
    nothing: float
    marks: Sequence[tuple[str, float]] = ()

    def series(self) -> dict[tuple[str, str, bool], list[int]]:
        """The places of the rows that have a value, by what they look like: (name, kind, chosen)."""
        found: dict[tuple[str, str, bool], list[int]] = {}
        for kind in (NEURONS, CONTROL, BASELINE):
            for chosen in (False, True):
                places = [
                    place
                    for place, row in enumerate(self.rows)
                    if (row.kind, row.chosen) == (kind, chosen) and row.value is not None
                ]
                if places:
                    found[f"{kind}, best of several" if chosen else kind, kind, chosen] = places
        return found


@dataclass(frozen=True)
class Matrix:
    """A symmetric matrix, NaN where nothing is known; `groups` names the group of each row. A scale by
    the `root` shows small values."""

    names: Sequence[str]
    groups: Sequence[str]
    values: Floats
    label: str
    root: bool = False


@dataclass(frozen=True)
class Line:
    """Values over x, with their intervals where there are some."""

    name: str
    x: Sequence[float]
    y: Sequence[float | None]
    low: Sequence[float | None] = ()
    high: Sequence[float | None] = ()


@dataclass(frozen=True)
class Panel:
    """Lines that share a vertical axis, which always shows `nothing`; its values may be shares, which
    are told in `percent`."""

    axis: str
    lines: Sequence[Line]
    nothing: float = 0.0
    percent: bool = False


@dataclass(frozen=True)
class Lines:
    """Panels over one horizontal axis. On a `log` one 0, which has no place there, stands to the left of
    all others."""

    panels: Sequence[Panel]
    x_axis: str
    log: bool = False

    def all_x(self) -> list[float]:
        """Every x that is there, in order."""
        return sorted({x for panel in self.panels for line in panel.lines for x in line.x})

    def at(self, x: float) -> float:
        """Where an x is drawn: 0 on a logarithmic axis as far from the least as the next one is."""
        if x or not self.log:
            return x
        least, *others = [each for each in self.all_x() if each] or [1.0]
        return least * least / others[0] if others else least / 10

    def ticks(self) -> list[float]:
        """What is written below a logarithmic axis: each x of a few, if they are far enough apart, or
        powers of ten."""
        told = self.all_x()
        least = min(filter(None, told), default=1.0)
        powers = [each for each in (10.0**n for n in range(16)) if least <= each <= told[-1]]
        if len(told) > _MOST_TICKS and len(powers) > 2:
            told = [*(x for x in told if x == 0), *powers]
        apart = (np.log10(self.at(told[-1])) - np.log10(self.at(told[0]))) / _MOST_TICKS
        kept = told[:1]
        for each in told[1:]:
            if np.log10(self.at(each)) - np.log10(self.at(kept[-1])) > 0.9 * apart:
                kept.append(each)
        return kept


class Palette:
    """Which colour and symbol a group has, the same in all figures: there are more groups than
    colours that all readers tell apart, so groups of one colour have different symbols."""

    def __init__(self, groups: Sequence[str]) -> None:
        order = [group for group in dict.fromkeys(groups) if group != NO_DOMAIN]
        self._numbers = {group: number for number, group in enumerate(order)}

    def place(self, group: str, colours: int) -> tuple[int | None, int]:
        """The number of a group's colour, None for no group at all, and of its symbol."""
        number = self._numbers.get(group)
        return (None, 0) if number is None else (number % colours, number // colours)

    def members(self, groups: Sequence[str]) -> Iterable[tuple[str, list[int]]]:
        """Each group that is there, in the palette's order, and where; those without one last."""
        for group in [*self._numbers, NO_DOMAIN]:
            places = [place for place, each in enumerate(groups) if each == group]
            if places:
                yield group, places


@dataclass(frozen=True)
class Tree:
    """A tree of names from top to bottom: each joint is a bracket of four (distance, place) corners;
    name i is at place i, at the distance `start`. `palette` are all groups of the page."""

    names: Sequence[str]
    groups: Sequence[str]
    palette: Palette
    joints: Sequence[Sequence[tuple[float, float]]]
    axis: str
    start: float = 0.0


@dataclass(frozen=True)
class Graph:
    """Nodes at places in the plane, and edges: two numbers of nodes, and how strong. `palette` are all
    groups of the page."""

    names: Sequence[str]
    groups: Sequence[str]
    palette: Palette
    places: Floats
    edges: Sequence[tuple[int, int, float]]
    label: str


@dataclass(frozen=True)
class Figure:
    """What is drawn, under a title that says what was found; `note` says what is drawn."""

    name: str
    finding: str
    note: str
    body: Estimates | Matrix | Lines | Tree | Graph


@dataclass(frozen=True)
class Table:
    """Rows of a table; `title` says what was found where it stands by itself."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    title: str = ""

    def is_number(self, column: int) -> bool:
        """Whether a column holds numbers: these stand at its right."""
        held = [row[column] for row in self.rows if row[column] is not None]
        return bool(held) and not any(isinstance(cell, str) for cell in held)


@dataclass(frozen=True)
class Section:
    """A part of the page. `missing` says what is not in the store, and how to get it."""

    anchor: str
    title: str
    lead: Sequence[str] = ()
    figures: Sequence[Figure] = ()
    tables: Sequence[Table] = ()
    missing: Sequence[str] = ()


def numbers(body: Estimates | Matrix | Lines | Tree | Graph) -> Table:
    """What a figure shows, as a table: for those who cannot see it, or want the values."""
    if isinstance(body, Estimates):
        if any(row.chance for row in body.rows):
            by_chance: list[list[Cell]] = [
                [row.label, row.value, *(row.chance or (None, None))] for row in body.rows
            ]
            return Table(["", body.axis, "by chance from", "to"], by_chance, _NUMBERS)
        rows: list[list[Cell]] = [[row.label, row.value, row.low, row.high] for row in body.rows]
        return Table(["", body.axis, "95% from", "to"], rows, _NUMBERS)
    if isinstance(body, Lines):
        columns = ["panel", "line", body.x_axis, "value", "95% from", "to"]
        return Table(columns, list(_points(body)), _NUMBERS)
    if isinstance(body, Matrix):
        return _pairs(body.names, _upper(body.values), body.label)
    if isinstance(body, Graph):
        return _pairs(body.names, body.edges, body.label)
    order: list[list[Cell]] = [
        [number + 1, *leaf] for number, leaf in enumerate(zip(body.names, body.groups, strict=True))
    ]
    return Table(["place", "concept", "domain"], order, "Order of the leaves")


def _pairs(names: Sequence[str], edges: Iterable[tuple[int, int, float]], label: str) -> Table:
    """The strongest pairs."""
    best = sorted(edges, key=lambda edge: -edge[2])
    rows: list[list[Cell]] = [
        [names[first], names[second], value] for first, second, value in best[:_SHOWN_PAIRS]
    ]
    title = _NUMBERS if len(best) == len(rows) else f"The {len(rows)} highest of {len(best):,} values"
    return Table(["", "", label], rows, title)


def _upper(values: Floats) -> Iterable[tuple[int, int, float]]:
    for first, second in zip(*np.triu_indices(len(values), 1), strict=True):
        if np.isfinite(values[first, second]):
            yield int(first), int(second), float(values[first, second])


def _points(body: Lines) -> Iterable[list[Cell]]:
    for panel in body.panels:
        for line in panel.lines:
            none = [None] * len(line.x)
            for x, y, low, high in zip(line.x, line.y, line.low or none, line.high or none, strict=True):
                yield [panel.axis, line.name, x, y, low, high]
