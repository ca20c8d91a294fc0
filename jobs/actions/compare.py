"""`neuralign compare`: how well models and baselines align with one human data set."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from alignment.statistics.resampling import IntervalEstimate
from jobs import alignment
from jobs.actions.output import stdout_console, text_table
from jobs.actions.summary import LEGEND, print_coverage_warning
from jobs.results import rows as results
from jobs.results.differences import compute_differences
from jobs.results.published import CAVEAT, SOURCE, find_published
from jobs.results.rows import LabeledRow, Row, format_estimate
from jobs.similarity import EXPERTS
from storage.assets import ASSETS
from storage.database import check_tables, open_store, run_query
from storage.errors import UserError
from storage.readers.human import builtin_human_sets
from storage.store import layout, manifest
from storage.store.paths import parse_store_path

JACCARD = "jaccard"

_RUNS = """
SELECT human_set, agreement, run, list(DISTINCT threshold ORDER BY threshold) AS thresholds,
    any_value(regexp_replace(concept_set, '@[^@]*$', '')) FILTER (representation = 'experts') AS set_name
FROM alignment JOIN runs USING (run)
GROUP BY human_set, agreement, run, finished
ORDER BY finished
"""


def print_comparison(
    store: str, human: str, agreement: str | None, threshold: float, against: str | None
) -> None:
    """Print the latest comparison of each concept set with a human data set, to fit 80 columns.

    `against` is the label of a row, or part of it: the table then has differences from this row.
    """
    console, root = stdout_console(), layout.check_store(parse_store_path(store))
    stages = {stage.fingerprint: stage for stage in manifest.completed(root, alignment.KIND)}
    for stage in stages.values():
        check_tables(stage)
    with open_store(root, stages) as connection:
        all_runs = run_query(connection, _RUNS).to_pylist()
        runs = [run for run in all_runs if run["human_set"] == human]
        if not runs:
            available = ", ".join(dict.fromkeys(run["human_set"] for run in all_runs)) or "none"
            raise UserError(
                f"{root}: no comparison with {human!r}; available: {available}. A set with fewer than "
                "10 rated pairs of the concepts is not compared"
            )
        statistics = list(dict.fromkeys(run["agreement"] for run in runs))
        statistic = agreement or statistics[0]
        if statistic not in statistics:
            raise UserError(f"{root}: no {statistic} for {human!r}; available: {', '.join(statistics)}")
        latest = {run["set_name"] or "": run for run in runs if run["agreement"] == statistic}
        selection = {name: run for name, run in latest.items() if threshold in run["thresholds"]}
        if not selection:
            thresholds = {value for run in latest.values() for value in run["thresholds"]} - {None}
            available = ", ".join(map(str, sorted(thresholds)))
            raise UserError(f"{root}: no experts at the threshold {threshold}; available: {available}")
        for name, run in selection.items():
            all_rows = run_query(connection, f"FROM alignment WHERE run = '{run['run']}'").to_pylist()
            key = human, statistic
            rows = [row for row in all_rows if (row["human_set"], row["agreement"]) == key]
            _print_run(console, root, rows, threshold, f"{name}, " if len(latest) > 1 else "", against)
    n_older = len({run["run"] for run in runs}) - len(selection)
    if n_older:
        console.print(f"{n_older} older runs not shown; query the view `alignment`.")


def _print_run(
    console: Console, store: Path, rows: list[Row], threshold: float, prefix: str, against: str | None
) -> None:
    """Print the rows of one run, to fit 80 columns; the title begins with `prefix`."""
    measures = sorted(
        {row["measure"] for row in rows if row["representation"] == EXPERTS} - results.ALL_NEURONS.keys()
    )
    measure = JACCARD if JACCARD in measures else measures[0]
    rows_of_measure = [row for row in rows if results.uses_measure(row, measure)]
    groups = results.group_rows(rows_of_measure, "subset")
    selection = results.select_rows(groups.pop(alignment.ALL_PAIRS), threshold)
    # undefined values last
    selection.sort(key=lambda labeled: (labeled[1]["rho"] is None, -(labeled[1]["rho"] or 0)))
    first, human_set = selection[0][1], rows[0]["human_set"]
    if against is None:
        column, meaning = "q", "q: permutation test over concepts, corrected for all rows of the run"
        cells = ["-" if row["q"] is None else f"{row['q']:.4f}" for _, row in selection]
    else:
        label, reference = _find_reference(selection, against)
        column, meaning = "difference", f"Difference: relative to {label}"
        compared = [row for _, row in selection]
        differences = compute_differences(store, compared, reference)
        cells = [
            "" if row is reference else _format_difference(item)
            for row, item in zip(compared, differences, strict=True)
        ]
    console.print(f"{prefix}{human_set}: {results.describe_comparison(first, threshold)}")
    lines = []
    for (label, row), cell in zip(selection, cells, strict=True):
        value = "-" if row["rho"] is None else f"{row['rho']:z.2f}"
        interval = format_estimate(row["rho"], row["ci_low"], row["ci_high"]).removeprefix(value).strip()
        lines.append((label, value, interval, cell))
    console.print(text_table("lrrr", ("representation", "", "95% CI", column), lines, "ellipsis"))
    method = results.INTERVAL_METHODS[first["ci_by"]]
    console.print(f"All rows use the same pairs. CIs: {method}. {meaning}. {LEGEND}")
    print_coverage_warning(console, first["n_concepts"])
    for name, subset in groups.items():
        for line in _describe_subset(name, results.select_rows(subset, threshold)):
            console.print(line)
    if first["ceiling"] is not None:
        console.print(f"Human noise ceiling: {first['ceiling']:.2f} ({first['ceiling_source']}).")
    _print_published(console, [row for row in rows if row["threshold"] == threshold])
    if human_set in builtin_human_sets():
        asset = ASSETS[human_set]
        console.print(f"{human_set}: {asset.citation}; {asset.license}.")
    if len(measures) > 1:
        others = ", ".join(measures)
        console.print(f"Similarity of experts: {measure}; the view `alignment` has {others}.")


def _print_published(console: Console, rows: list[Row]) -> None:
    """Print what was published about the models of the rows, beside their values here."""
    if values := find_published(rows):
        lines = [(value.label, f"{value.published:.2f}", value.here) for value in values]
        console.print(text_table("lrr", (SOURCE, "published", "here [95% CI]"), lines))
        console.print(CAVEAT)


def _describe_subset(name: str, selection: list[LabeledRow]) -> Iterator[str]:
    """A line for the first row of neurons on a subset of the pairs."""
    for label, row in selection[:1]:
        if row["representation"] == EXPERTS:
            estimate = format_estimate(row["rho"], row["ci_low"], row["ci_high"])
            yield f"Only {row['n_pairs']} pairs, {name}: {label} {estimate}."


def _format_difference(item: IntervalEstimate | None) -> str:
    return "-" if item is None else format_estimate(item.value, item.low, item.high, sign="+")


def _find_reference(selection: list[LabeledRow], against: str) -> LabeledRow:
    """The row with this label, or else the only one whose label contains it; of vectors compared in
    several ways, the one without a treatment."""
    name = against.casefold()
    exact = [labeled for labeled in selection if labeled[0].casefold() == name]
    containing = [labeled for labeled in selection if name in labeled[0].casefold()]
    plain = [labeled for labeled in containing if not labeled[0].endswith("*")]
    matches = exact or plain or containing
    if len(matches) != 1:
        labels = "; ".join(label for label, _ in matches or selection)
        problem = "ambiguous; it matches" if matches else "no row matches; rows"
        raise UserError(f"--against {against!r}: {problem}: {labels}")
    if matches[0][1]["rho"] is None:
        raise UserError(f"--against {against!r}: {matches[0][0]} has no value to compare with")
    return matches[0]
