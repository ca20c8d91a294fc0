"""Models and baselines side by side: how well each agrees with one human data set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from alignment.statistics.resampling import Interval
from jobs.alignment import TRIPLETS
from jobs.results.differences import differences
from jobs.results.summary import (
    INTERVALS,
    STATISTICS,
    Labelled,
    headline,
    is_shown,
    print_of_few,
    with_interval,
)
from jobs.similarity import EXPERTS
from storage.assets import ASSETS
from storage.database import ask, open_store
from storage.errors import UserError
from storage.readers.human import known_set, known_sets

JACCARD = "jaccard"

_RUNS = """
SELECT human_set, agreement, run, list(DISTINCT threshold ORDER BY threshold) AS thresholds,
    any_value(concept_set) FILTER (representation = 'experts') AS concepts
FROM alignment JOIN runs USING (run)
GROUP BY human_set, agreement, run, finished
ORDER BY finished
"""


def print_comparison(
    console: Console,
    store: Path,
    human_set: str,
    agreement: str | None,
    threshold: float,
    against: str | None,
) -> None:
    """Print the last comparison of each of a store's concept sets with a human data set, best first, to
    fit 80 columns; with `against`, a row's label or a part of it, how much better each row is than that.

    Raises UserError where the store has none, naming what it has.
    """
    with open_store(store) as connection:
        found = ask(connection, _RUNS).to_pylist()
        runs = [run for run in found if run["human_set"] == human_set]
        if not runs:
            there = ", ".join(dict.fromkeys(run["human_set"] for run in found)) or "none"
            raise UserError(
                f"{store}: holds no comparison with {human_set!r}; it has: {there}. A set with fewer "
                "than 10 rated pairs of the concepts has none"
            )
        measures = list(dict.fromkeys(run["agreement"] for run in runs))
        if agreement is not None and agreement not in measures:
            raise UserError(
                f"{store}: has no {agreement} for {human_set!r}; it has {', '.join(measures)}"
            )
        # the last of each concept set
        asked = agreement or runs[0]["agreement"]
        last = {_name(run["concepts"]): run for run in runs if run["agreement"] == asked}
        shown = [run for run in last.values() if threshold in run["thresholds"]]
        if not shown:
            known = sorted(
                {each for run in last.values() for each in run["thresholds"] if each is not None}
            )
            there = ", ".join(map(str, known))
            raise UserError(f"{store}: has no experts at the threshold {threshold}; it has {there}")
        for run in shown:
            rows = [
                row
                for row in ask(connection, f"FROM alignment WHERE run = '{run['run']}'").to_pylist()
                if (row["human_set"], row["agreement"]) == (human_set, asked)
            ]
            of = f"{_name(run['concepts'])}, " if len(last) > 1 else ""
            _print(console, store, rows, threshold, of, against)
    older = len({each["run"] for each in runs}) - len(shown)
    if older:
        console.print(f"{older} more runs: SQL shows them.", markup=False)


def _name(concept_set: str | None) -> str:
    """The name of a concept set, without the start of its hash."""
    return (concept_set or "").rpartition("@")[0]


def _print(
    console: Console,
    store: Path,
    rows: list[dict[str, Any]],
    threshold: float,
    of: str,
    against: str | None,
) -> None:
    """Print the rows of one run, under a title that begins with what they are `of`."""
    by = sorted({row["measure"] for row in rows if row["representation"] == EXPERTS})
    measure = JACCARD if JACCARD in by else by[0]
    shown = headline([row for row in rows if is_shown(row, measure)], threshold)
    # those without a value come last
    shown.sort(key=lambda each: (each[1]["rho"] is None, -(each[1]["rho"] or 0)))
    first = rows[0]
    human_set = first["human_set"]
    things = TRIPLETS if first["agreement"] == TRIPLETS else "pairs"
    if against is None:
        name, meaning = "p", "p permutes the concepts"
        last = ["-" if row["p"] is None else f"{row['p']:.4f}" for _, row in shown]
    else:
        label, other = _one_of(shown, against)
        name, meaning = "difference", f"Difference: less that of {label}"
        apart = differences(store, shown, other)
        last = [
            "" if row is other else _apart(each) for (_, row), each in zip(shown, apart, strict=True)
        ]
    console.print(
        f"{of}{human_set}: {STATISTICS[first['agreement']]} on the same "
        f"{first['n_pairs']} {things} of {first['n_concepts']} concepts, AP > {threshold}",
        markup=False,
    )
    table = Table(box=None, pad_edge=False)
    table.add_column("representation")
    for column in ("", "95% interval", name):
        table.add_column(column, justify="right")
    for (label, row), cell in zip(shown, last, strict=True):
        value = "-" if row["rho"] is None else f"{row['rho']:.2f}"
        interval = with_interval(row["rho"], row["ci_low"], row["ci_high"]).removeprefix(value).strip()
        table.add_row(escape(label), *map(escape, (value, interval, cell)))
    console.print(table)
    console.print(
        f"Intervals: {INTERVALS[first['ci_by']]}. {meaning}. What is best is chosen on these very "
        "pairs. *: less the mean over all concepts.",
        markup=False,
    )
    print_of_few(console, first["n_concepts"])
    if first["ceiling"] is not None:
        source = first["ceiling_source"]
        console.print(f"People with people: {first['ceiling']:.2f} ({source}).", markup=False)
    if human_set in known_sets():
        asset = ASSETS[human_set]
        console.print(f"{human_set}: {asset.citation}; {asset.licence}.", markup=False)
    if len(by) > 1:
        console.print(f"Experts are compared by {measure}; SQL shows {', '.join(by)}.", markup=False)


def _one_of(shown: list[Labelled], against: str) -> Labelled:
    """The row whose label is so, or has that in it."""
    same = [each for each in shown if each[0].casefold() == against.casefold()]
    found = same or [each for each in shown if against.casefold() in each[0].casefold()]
    if len(found) != 1:
        labels = "; ".join(label for label, _ in found or shown)
        raise UserError(f"--against {against!r}: {'several' if found else 'none'} of the rows: {labels}")
    if found[0][1]["rho"] is None:
        raise UserError(f"--against {against!r}: {found[0][0]} has no value to compare with")
    return found[0]


def _apart(found: Interval | None) -> str:
    return "-" if found is None else with_interval(found.value, found.low, found.high, sign="+")


def print_human_sets(console: Console) -> None:
    """Print the human data sets that packages carry, with citation and licence; of one whose package is
    not there, how to install it."""
    for name in known_sets():
        asset = ASSETS[name]
        try:
            human = known_set(name)
        except UserError as error:
            told, below = f"{name}:", [str(error)]
        else:
            ceiling = "" if human.ceiling is None else f"; people with people {human.ceiling.value}"
            told, below = f"{name}: {human.kind}{ceiling}", []
        console.print(told, markup=False)
        for line in (*below, asset.citation, f"{asset.licence}; {asset.requirement}"):
            console.print(Padding(Text(line), (0, 0, 0, 4), expand=False))
