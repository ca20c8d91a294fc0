"""Console summary of a finished sweep, to fit 80 columns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import isqrt
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from alignment.statistics.correlation import MIN_PAIRS
from alignment.statistics.resampling import MIN_CONCEPTS_FOR_COVERAGE
from alignment.statistics.steering import attribution_correlation
from jobs import steering
from jobs.actions.output import text_table
from jobs.alignment import TRIPLETS
from jobs.engine.stage import Stage
from jobs.results.rows import (
    SMALL_SAMPLE_COVERAGE,
    Row,
    describe_comparison,
    format_estimate,
    group_rows,
    select_rows,
    single_layer_rows,
)
from storage.store.activation_files import POOLINGS

_QUERY = (
    "SELECT revision, layer, count(*) AS experts FROM experts WHERE pooling = 'max' AND ap > 0.5 "
    "GROUP BY ALL ORDER BY ALL"
)
_MAX_LAYERS, _LAYERS_PER_LINE = 6, 3
LEGEND = (
    "The best rows are selected on the same pairs (optimistic). constant: all similarities are equal, "
    "so the correlation is undefined; n/a: too few distinct values for a CI. States: hidden states "
    "after a layer, mean over a sentence's tokens or last token; *: mean-centered."
)


def print_summary(console: Console, summary: dict[str, Any]) -> None:
    """Print the results on one concept set: alignment, reliability, hierarchy and nearest concepts."""
    threshold = summary["headline_threshold"]
    too_few = []
    statistics = (summary["agreement"], TRIPLETS)
    alignment = [row for row in summary["alignment"] if row["agreement"] in statistics]
    rows_by_set = group_rows(alignment, "human_set")
    for human_set in summary["human_sets"]:
        if rows := rows_by_set.get(human_set):
            console.print(f"Alignment with {human_set}: {describe_comparison(rows[0], threshold)}")
            console.print(_alignment_table(rows, threshold))
            _print_layers(console, rows, threshold)
            print_coverage_warning(console, rows[0]["n_concepts"])
            console.print()
        else:
            too_few.append(f"{human_set} {summary['human_pairs'].get(human_set, 0)}")
    if too_few:
        console.print(
            f"Too few rated pairs for a correlation (minimum: {MIN_PAIRS}, of concepts that every "
            f"representation covers): {', '.join(too_few)}."
        )
    console.print(
        "All rows of a table use the same pairs. 95% CIs account for pairs that share a concept. "
        f"{LEGEND}"
    )
    _print_reliability(console, summary["reliability"], threshold)
    _print_hierarchy(console, summary["hierarchy"], threshold)
    nearest = summary["nearest"]
    console.print(f"\nNearest concepts by shared experts ({nearest['of']}):")
    for name, neighbors in nearest["concepts"].items():
        text = ", ".join(f"{neighbor} {value:.2f}" for neighbor, value in neighbors if value)
        console.print(f"  {name:12} {text or '(no shared experts)'}")


def print_next_steps(console: Console, store: Path, pages: list[Path]) -> None:
    """Print the report of each concept set, and the commands that explore the results."""
    query = _QUERY if len(pages) == 1 else _QUERY.replace("SELECT", "SELECT concept_set,")
    console.print("\nNext steps:")
    for line in (
        *(f"  report    {page}" for page in pages),
        f"  explore   neuralign serve {store}",
        f"  status    neuralign status {store}",
        f'  query     neuralign sql {store} "{query}"',
    ):
        console.print(line, soft_wrap=True)


def print_steering(console: Console, stage: Stage, store: Path, figure: Path) -> None:
    """Print the dose-response table of one model, and how well attributions predict measured effects."""
    rows = steering.read_doses(stage, store)
    console.print(
        f"\nSteering {stage.label}, {stage.params['pooling']} pooling: {rows[0]['n_concepts']} "
        f"concepts, {rows[0]['n_prompts']} prompts. Change in log P (nats) with k neurons clamped to "
        "their on value at every token; share of concepts whose word gains; share of texts with the word"
    )
    names = ("selection", "k", "own word", "others' words", "gain", "in texts")
    cells = [
        (
            row["selection"],
            row["k"],
            _format_effect(row, "change", "+.1f") if row["k"] else "",
            _format_effect(row, "others", "+.1f") if row["k"] else "",
            f"{row['positive']:.0%}" if row["k"] else "",
            _format_effect(row, "containing", ".0%"),
        )
        for row in rows
    ]
    console.print(text_table("lrrrrr", names, cells, "ellipsis"))
    counts = {row["n_concepts"] for row in rows}
    console.print(
        "95% CIs generalize over prompts and concepts."
        + (" Some concepts have too few neurons for a large k." if len(counts) > 1 else "")
    )
    _print_attribution_correlation(console, steering.read_neurons(stage, store))
    console.print(f"  figure    {figure}", soft_wrap=True)


def print_coverage_warning(console: Console, n_concepts: int) -> None:
    """Print the actual coverage of 95% CIs if they are estimated from few concepts."""
    if n_concepts < MIN_CONCEPTS_FOR_COVERAGE:
        console.print(
            f"With fewer than {MIN_CONCEPTS_FOR_COVERAGE} concepts, 95% CIs may cover "
            f"{SMALL_SAMPLE_COVERAGE}%."
        )


def _print_cells(console: Console, rows: Iterable[Sequence[str]]) -> None:
    table = Table(box=None, pad_edge=False, show_header=False)
    for cells in rows:
        table.add_row(*cells)
    console.print(table)


def _alignment_table(rows: list[Row], threshold: float) -> Table:
    names = ["representation", "rho [95% CI]"]
    lines = []
    reference = next((row["reference"] for row in rows if row["reference"]), None)
    if reference:
        names.append(f"vs. {reference.split()[0]}")
    for label, row in select_rows(rows, threshold):
        cells = [label, format_estimate(row["rho"], row["ci_low"], row["ci_high"])]
        if reference:
            difference = (row["difference"], row["difference_low"], row["difference_high"])
            cells.append(format_estimate(*difference, sign="+") if row["reference"] else "")
        lines.append(cells)
    return text_table("lrr"[: len(names)], names, lines, "ellipsis")


def _print_layers(console: Console, rows: list[Row], threshold: float) -> None:
    """Print the alignment of single layers, evenly spaced from the first to the last."""
    models = single_layer_rows(rows, threshold)
    if not models:
        return
    layers = sorted(models[0], key=lambda row: row["layer"])
    steps = min(_MAX_LAYERS, len(layers)) - 1
    sample = [layers[round(step * (len(layers) - 1) / max(1, steps))] for step in range(steps + 1)]
    cells = [
        f"L{row['layer']} {format_estimate(row['rho'], row['ci_low'], row['ci_high'])}" for row in sample
    ]
    console.print(f"Neurons of single layers, {sample[0]['pooling']} pooling:")
    starts = range(0, len(cells), _LAYERS_PER_LINE)
    _print_cells(console, [cells[start : start + _LAYERS_PER_LINE] for start in starts])


def _print_reliability(console: Console, rows: list[Row], threshold: float) -> None:
    halves = [row for row in rows if row["threshold"] == threshold]
    halves.sort(key=lambda row: POOLINGS.index(row["pooling"]))
    if not halves:
        return
    n_pairs = halves[0]["n_pairs"]
    console.print(
        f"\nSplit-half reliability, AP > {threshold}: Spearman's rho between the halves' similarities "
        f"of {n_pairs:,} pairs; mean Jaccard of a concept's two expert sets"
    )
    cells = [
        (
            f"neurons, {row['pooling']} pooling",
            format_estimate(row["rho"], row["ci_low"], row["ci_high"]),
            "-" if row["stability"] is None else f"{row['stability']:.2f}",
        )
        for row in halves
    ]
    _print_cells(console, cells)
    # all pairs of n concepts: n (n - 1) / 2
    print_coverage_warning(console, 1 + isqrt(2 * n_pairs))


def _print_hierarchy(console: Console, rows: list[Row], threshold: float) -> None:
    selection = select_rows([row for row in rows if row["auc"] is not None], threshold, "auc")
    if not selection:
        return
    first = selection[0][1]
    console.print(
        f"\nHierarchy, {first['n_concepts']} concepts in {first['n_domains']} domains: AUC within vs. "
        "between domain; share of members closest to their own domain's name"
    )
    cells = [
        (
            label,
            format_estimate(row["auc"], row["auc_low"], row["auc_high"], no_interval="no overlap"),
            "" if row["recovered"] is None else f"{row['recovered']:.0%}",
        )
        for label, row in selection
    ]
    _print_cells(console, cells)
    print_coverage_warning(console, first["n_concepts"])


def _print_attribution_correlation(console: Console, neurons: list[Row]) -> None:
    neurons_by_concept = group_rows(neurons, "concept")
    correlations = []
    for rows in neurons_by_concept.values():
        estimated, measured = (
            np.array([row[name] for row in rows]) for name in ("attribution", "change")
        )
        correlation = attribution_correlation(estimated, measured)
        if correlation is not None:
            correlations.append(correlation)
    if correlations:
        max_neurons = max(map(len, neurons_by_concept.values()))
        console.print(
            f"Attribution vs. measured change, the {max_neurons} best experts by AP clamped one at a "
            f"time: mean Spearman's rho {np.mean(correlations):.2f} over {len(correlations)} concepts, "
            f"range {min(correlations):.2f} to {max(correlations):.2f}"
        )


def _format_effect(row: Row, name: str, spec: str) -> str:
    value, low, high = (row[name + suffix] for suffix in ("", "_low", "_high"))
    if value is None:
        return "-"
    interval = "-" if low is None else f"[{low:{spec}}, {high:{spec}}]"
    return f"{value:{spec}} {interval}"
