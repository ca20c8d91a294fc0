"""What a figure shows, whoever draws it: `jobs.page.web` for the page, `jobs.page.paper` for papers."""

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


Cell = str | int | float | Interval | None

NEURONS, CONTROL, BASELINE = "neurons", "control", "baseline"
NO_DOMAIN = "(no domain)"


@dataclass(frozen=True)
class Estimate:
    """A value with its 95% interval; `kind` is neurons, control or baseline, `chance` where 95% of what
    comes about by chance lies."""

    label: str
    value: float | None
    low: float | None = None
    high: float | None = None
    kind: str = NEURONS
    chance: tuple[float, float] | None = None


@dataclass(frozen=True)
class Estimates:
    """Values with their intervals, one below the other. `nothing` is the value that says nothing;
    `marks`
    are labelled values that others are held against."""

    rows: Sequence[Estimate]
    axis: str
    nothing: float
    marks: Sequence[tuple[str, float]] = ()


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
    """Lines that share a vertical axis, which always shows `nothing`."""

    axis: str
    lines: Sequence[Line]
    nothing: float = 0.0


@dataclass(frozen=True)
class Lines:
    """Panels over one horizontal axis."""

    panels: Sequence[Panel]
    x_axis: str
    log: bool = False


class Palette:
    """Which colour and symbol a group has, the same in all figures: there are more groups than
    colours that
    all readers tell apart, so groups of one colour have different symbols."""

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
            return Table(["", body.axis, "by chance from", "to"], by_chance)
        rows: list[list[Cell]] = [[row.label, row.value, row.low, row.high] for row in body.rows]
        return Table(["", body.axis, "95% from", "to"], rows)
    if isinstance(body, Lines):
        return Table(["panel", "line", body.x_axis, "value", "95% from", "to"], list(_points(body)))
    if isinstance(body, Matrix):
        return _pairs(body.names, _upper(body.values), body.label)
    if isinstance(body, Graph):
        return _pairs(body.names, body.edges, body.label)
    order: list[list[Cell]] = [
        [number + 1, *leaf] for number, leaf in enumerate(zip(body.names, body.groups, strict=True))
    ]
    return Table(["place", "concept", "domain"], order)


_SHOWN_PAIRS = 20


def _pairs(names: Sequence[str], edges: Iterable[tuple[int, int, float]], label: str) -> Table:
    """The strongest pairs."""
    best = sorted(edges, key=lambda edge: -edge[2])[:_SHOWN_PAIRS]
    rows: list[list[Cell]] = [[names[first], names[second], value] for first, second, value in best]
    return Table(["", "", label], rows)


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
