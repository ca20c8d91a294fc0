"""Console summary of a finished sweep, to fit 80 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from alignment.statistics.correlation import MIN_PAIRS
from alignment.statistics.resampling import MIN_CONCEPTS_FOR_COVERAGE
from alignment.statistics.steering import attribution_correlation
from jobs import steering
from jobs.actions.output import text_table
from jobs.alignment import FROM_RATERS, TRIPLETS
from jobs.engine.stage import Stage
from jobs.interventions.effects import DIFFERENCE
from jobs.interventions.neurons import BY_AP, CLAMP, CONTROL_OF, NONE
from jobs.representations.embeddings import WORD_VECTORS
from jobs.results.rows import (
    SMALL_SAMPLE_COVERAGE,
    Row,
    describe_comparison,
    format_estimate,
    group_rows,
    headline_rows,
)
from storage import tables

_QUERY = (
    "SELECT revision, layer, count(*) AS experts FROM experts WHERE pooling = 'max' AND ap > 0.5 "
    "GROUP BY ALL ORDER BY ALL"
)
_MAX_NEAREST, _MAX_NEIGHBORS = 4, 3
LEGEND = (
    "The best rows are selected on the same pairs (optimistic). constant: all similarities are equal, "
    "so the correlation is undefined; n/a: too few distinct values for a CI. States: hidden states "
    "after a layer, mean over a sentence's tokens, last token, or last token of the word (concept); *: "
    "less the mean over concepts; **: standardized over concepts."
)


def print_summary(console: Console, summary: dict[str, Any]) -> None:
    """Print the results on one concept set: agreement, hierarchy and nearest concepts.

    One human set is shown in detail, the first with enough pairs; the others have a line each.
    """
    threshold = summary["headline_threshold"]
    n_sentences = f"{summary['n_sentences']:,} sentences"
    names = ", ".join(summary["models"])
    console.print(f"{summary['sweep']}: {names}; {summary['n_concepts']} concepts, {n_sentences}\n")
    statistics = (summary["agreement"], TRIPLETS)
    rows_by_set = group_rows(
        [row for row in summary["alignment"] if row["agreement"] in statistics], "human_set"
    )
    compared = [name for name in summary["human_sets"] if name in rows_by_set]
    if compared:
        _print_agreement(console, rows_by_set[compared[0]], summary["differences"], threshold)
    for name in compared[1:]:
        _print_first_row(console, rows_by_set[name], threshold)
    too_few = [
        f"{name} {summary['human_pairs'].get(name, 0)}"
        for name in summary["human_sets"]
        if name not in rows_by_set
    ]
    if too_few:
        console.print(f"Too few rated pairs (minimum: {MIN_PAIRS}): {', '.join(too_few)}.")
    _print_hierarchy(console, summary["hierarchy"], threshold)
    nearest = summary["nearest"]["concepts"]
    found = {
        name: [neighbor for neighbor, value in neighbors if value] for name, neighbors in nearest.items()
    }
    texts = [
        f"{name}: {', '.join(neighbors[:_MAX_NEIGHBORS])}"
        for name, neighbors in found.items()
        if neighbors
    ]
    if texts:
        _print_indented(console, "Nearest:", "; ".join(texts[:_MAX_NEAREST]) + ".")


def _print_agreement(
    console: Console, rows: list[Row], differences: list[Row], threshold: float
) -> None:
    """Print the headline rows of a human set, and how the first differs from the references."""
    first = rows[0]
    console.print("Do expert neurons group concepts the way people do?")
    console.print(f"{first['human_set']}: {describe_comparison(first, threshold)}, with 95% CI.\n")
    selection = headline_rows(rows, threshold)
    lines = [(label, _format_agreement(row), remark) for label, row, remark in selection]
    if first["ceiling"] is not None:
        is_published = first["ceiling_source"] != FROM_RATERS
        label = f"noise ceiling, {'published' if is_published else 'from raters'}"
        lines.append((label, f"{first['ceiling']:.2f}", "of all pairs" if is_published else ""))
    widths = [max(len(line[column]) for line in lines) for column in (0, 1)]
    for label, estimate, remark in lines:
        line = f"  {label:{widths[0]}}  {estimate:{widths[1]}}  "
        fits = len(line) + len(remark) <= console.width
        console.print((line + remark if fits else line).rstrip())
        if not fits:
            console.print(f"{'':{widths[0] + 4}}{remark}")
    console.print()
    for label, row, _ in selection[:1]:
        _print_differences(console, label, row, differences)
    print_coverage_warning(console, first["n_concepts"])


def _format_agreement(row: Row) -> str:
    """Agreement with its 95% CI or, of several seeds, their mean with the lowest and highest."""
    if "seed_range" in row:
        low, high = row["seed_range"]
        return f"{row['rho']:.2f}, {low:.2f} to {high:.2f}"
    return format_estimate(row["rho"], row["ci_low"], row["ci_high"])


def _print_differences(console: Console, label: str, row: Row, differences: list[Row]) -> None:
    """Print how the agreement of a row differs from that of the references."""
    key = {field.name: row[field.name] for field in tables.ALIGNMENT.key}
    texts = [
        f"vs. {item['reference']} {_format_difference(item)}"
        for item in differences
        if key.items() <= item.items()
    ]
    if texts:
        text = f"{label[0].upper()}{label[1:]} {'; '.join(texts)}."
        console.print(textwrap.fill(text, console.width))


def _format_difference(row: Row) -> str:
    low, high = row["difference_low"], row["difference_high"]
    return format_estimate(row["difference"], low, high, sign="+")


def _print_first_row(console: Console, rows: list[Row], threshold: float) -> None:
    """Print the first headline row of a human set in a line."""
    for label, row, _ in headline_rows(rows, threshold)[:1]:
        items = TRIPLETS if row["agreement"] == TRIPLETS else "pairs"
        estimate = format_estimate(row["rho"], row["ci_low"], row["ci_high"])
        console.print(f"{row['human_set']}, {row['n_pairs']:,} {items}: {label} {estimate}.")


def _print_indented(console: Console, label: str, text: str) -> None:
    """Print a label and a text beside it, whose lines begin in one column."""
    indent = " " * (len(label) + 1)
    console.print(textwrap.fill(f"{label} {text}", console.width, subsequent_indent=indent))


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
    """Print the dose-response tables of one model, the side effects of all interventions on the neurons
    of highest AP, and how well attributions predict measured effects."""
    rows = steering.read_doses(stage, store)
    clamped = [row for row in rows if row["intervention"] in (NONE, CLAMP)]
    console.print(
        f"\nSteering {stage.label}, {stage.params['pooling']} pooling: {rows[0]['n_concepts']} "
        f"concepts, {rows[0]['n_prompts']} prompts. Change in log P (nats) with k neurons clamped to "
        "their on value at every token; n: concepts with k neurons; moved: displacement of what the "
        "layers write; gain: share of concepts whose word gains. random: random neurons that displace "
        "the same layers as far as those above; difference: those above minus random, paired by concept "
        "and prompt."
    )
    names = ("selection", "k", "n", "moved", "own word", "others' words", "gain")
    cells = [
        (
            *_dose_cells(label, row, suffix),
            _format_effect(row, f"change{suffix}", "+.1f"),
            _format_effect(row, f"others{suffix}", "+.1f"),
            "" if suffix else f"{row['positive']:.0%}",
        )
        for label, row, suffix in _with_differences(clamped, "selection")
        if row["k"]
    ]
    console.print(text_table("lrrrrrr", names, cells, "ellipsis"))
    _print_texts(console, clamped)
    _print_side_effects(console, rows)
    counts = {row["n_concepts"] for row in rows}
    console.print(
        "95% CIs generalize over concepts and, of the effects after prompts, over prompts."
        + (" Some concepts have too few neurons for a large k." if len(counts) > 1 else "")
    )
    _print_attribution_correlation(console, steering.read_neurons(stage, store))
    console.print(f"  figure    {figure}", soft_wrap=True)


def _print_texts(console: Console, rows: list[Row]) -> None:
    """Print in how many sampled texts the word is."""
    if all(row["containing"] is None for row in rows):
        return
    console.print("\nShare of sampled texts with the word")
    cells = [
        (*_dose_cells(label, row, suffix), _format_effect(row, f"containing{suffix}", ".0%"))
        for label, row, suffix in _with_differences(rows, "selection")
    ]
    console.print(text_table("lrrrr", ("selection", "k", "n", "moved", "in texts"), cells, "ellipsis"))


def _print_side_effects(console: Console, rows: list[Row]) -> None:
    """Print what clamping, damping and ablating the neurons of highest AP does in sentences."""
    shown = [row for row in rows if CONTROL_OF.get(row["selection"], row["selection"]) == BY_AP]
    if not any(row["log_perplexity"] is not None for row in shown):
        return
    console.print(
        "\nThe neurons of highest AP clamped, dampened by AurA's factor or ablated (set to 0): change "
        "in log P of the word in its own sentences; change in log perplexity (nats per token) of other "
        "concepts' sentences"
    )
    names = ("intervention", "k", "n", "moved", "own sentences", "perplexity")
    cells = [
        (
            *_dose_cells(label, row, suffix),
            _format_effect(row, f"in_sentences{suffix}", "+.2f"),
            _format_effect(row, f"log_perplexity{suffix}", "+.2f"),
        )
        for label, row, suffix in _with_differences(shown, "intervention")
    ]
    console.print(text_table("lrrrrr", names, cells, "ellipsis"))


def _with_differences(rows: list[Row], name: str) -> Iterator[tuple[str, Row, str]]:
    """Every dose's label, which is the named column or "random", and row, followed by the rows of the
    differences of a selection from its control. The last value ends the names of a row's columns."""
    for _, doses in group_rows(rows, "intervention").items():
        for selection, of_selection in group_rows(doses, "selection").items():
            is_control = selection in CONTROL_OF
            for row in of_selection:
                yield "  random" if is_control else row[name], row, ""
            if is_control:
                for row in doses:
                    if row["selection"] == CONTROL_OF[selection] and row["n_compared"]:
                        yield "  difference", row, DIFFERENCE


def _dose_cells(label: str, row: Row, suffix: str) -> tuple[str, int, int, str]:
    if suffix:
        return label, row["k"], row["n_compared"], ""
    return label, row["k"], row["n_concepts"], f"{row['displacement']:.1f}"


def print_coverage_warning(console: Console, n_concepts: int) -> None:
    """Print the actual coverage of 95% CIs if they are estimated from few concepts."""
    if n_concepts < MIN_CONCEPTS_FOR_COVERAGE:
        console.print(
            f"With fewer than {MIN_CONCEPTS_FOR_COVERAGE} concepts, 95% CIs may cover "
            f"{SMALL_SAMPLE_COVERAGE}%."
        )


def _print_hierarchy(console: Console, rows: list[Row], threshold: float) -> None:
    """Print how well the experts of the first model recover the domains, beside word vectors."""
    defined = [row for row in rows if row["auc"] is not None]
    selection = headline_rows(defined, threshold, "auc")
    if not selection:
        return
    _, row, _ = selection[0]
    vectors = [(label, each) for label, each, _ in selection if each["representation"] == WORD_VECTORS]
    text = f"within- vs. between-domain AUC {_format_auc(row)}, {row['n_domains']} domains"
    text += "".join(f"; {label} {_format_auc(each)}" for label, each in vectors) + "."
    if row["recovered"] is not None:
        others = "".join(
            f"{label} {each['recovered']:.0%}, "
            for label, each in vectors
            if each["recovered"] is not None
        )
        text += (
            f" Members closest to their own domain's name: {row['recovered']:.0%} ({others}chance "
            f"{row['recovered_by_chance']:.0%})."
        )
    _print_indented(console, "Hierarchy:", text)


def _format_auc(row: Row) -> str:
    return format_estimate(row["auc"], row["auc_low"], row["auc_high"], no_interval="no overlap")


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
