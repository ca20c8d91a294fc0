"""A finished sweep, printed: alignment, nearest concepts and where to look next."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from alignment.correlation import FEWEST_PAIRS
from cluster.weights import RANDOM_INIT
from jobs.baselines import HIDDEN_STATE, INPUT_EMBEDDING, WORD_VECTORS
from jobs.similarity import EXPERTS
from storage.activation_files import POOLINGS

_QUESTION = (
    "SELECT revision, layer, count(*) AS experts FROM experts WHERE pooling = 'max' AND ap > 0.5 "
    "GROUP BY ALL ORDER BY ALL"
)
_FOOTNOTE = (
    "Intervals resample the concepts. The best hidden state is chosen on these very pairs, so it is "
    "flattered. A dash: all similarities are equal, or the pairs are too few."
)


def print_summary(console: Console, summary: dict[str, Any], store: Path, picture: Path) -> None:
    """Print what a sweep found, to fit 80 columns."""
    few = []
    for human_set in summary["human_sets"]:
        rows = [row for row in summary["alignment"] if row["human_set"] == human_set]
        if rows:
            console.print(_alignment_table(human_set, rows, summary))
        else:
            few.append(f"{human_set} {summary['human_pairs'].get(human_set, 0)}")
    if few:
        console.print(
            f"Too few rated pairs for a correlation (fewer than {FEWEST_PAIRS}): {', '.join(few)}."
        )
    console.print(_FOOTNOTE)
    nearest = summary["nearest"]
    console.print(f"\nNearest concepts by shared experts ({nearest['of']}):")
    for name, found in nearest["concepts"].items():
        shown = ", ".join(f"{other} {value:.2f}" for other, value in found)
        console.print(f"  {name:12} {shown}", markup=False)
    console.print("\nWhere to look next:")
    console.print(f"  picture   {picture}", soft_wrap=True)
    console.print(f"  status    neuralign status {store}", soft_wrap=True)
    console.print(f'  SQL       neuralign sql {store} "{_QUESTION}"', soft_wrap=True, markup=False)


def _alignment_table(human_set: str, rows: list[dict[str, Any]], summary: dict[str, Any]) -> Table:
    first = rows[0]
    table = Table(
        title=(
            f"Alignment with {human_set}: {max(row['n_pairs'] for row in rows)} pairs of "
            f"{first['n_concepts']} concepts, Spearman's rho"
        ),
        title_justify="left",
        title_style="bold",
        box=None,
        pad_edge=False,
    )
    table.add_column("representation")
    table.add_column("rho", justify="right")
    table.add_column("95% interval", justify="right")
    table.add_column("pairs", justify="right")
    for label, row in headline(rows, summary["headline_threshold"]):
        if row["rho"] is None:
            rho, interval = "-", "-"
        else:
            rho = f"{row['rho']:.3f}"
            interval = f"[{row['ci_low']:.3f}, {row['ci_high']:.3f}]"
        table.add_row(label, rho, interval, str(row["n_pairs"]))
    return table


def headline(rows: list[dict[str, Any]], threshold: float) -> list[tuple[str, dict[str, Any]]]:
    """The rows that answer whether neurons align better than embeddings, with their labels: the
    experts of each model and pooling at one threshold, each baseline, of the hidden states the best
    and the median, and last the random-weights control."""
    experts = [
        row
        for row in sorted(rows, key=lambda row: POOLINGS.index(row["pooling"] or POOLINGS[0]))
        if row["representation"] == EXPERTS and row["threshold"] == threshold
    ]
    neurons = [
        (f"{row['pooling']} pooling, AP > {threshold}", row)
        for row in sorted(experts, key=lambda row: row["revision"] == RANDOM_INIT)
    ]
    shown = [(f"neurons, {text}", row) for text, row in neurons if row["revision"] != RANDOM_INIT]
    shown += _baselines(rows)
    shown += [
        (f"random weights, {text}", row) for text, row in neurons if row["revision"] == RANDOM_INIT
    ]
    models = {(row["model"], row["revision"]) for row in experts if row["revision"] != RANDOM_INIT}
    if len(models) == 1:
        return shown
    return [(_named(label, row), row) for label, row in shown]


def _baselines(rows: list[dict[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
    shown = []
    hidden: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        if row["representation"] == HIDDEN_STATE and row["rho"] is not None:
            hidden.setdefault((row["model"], row["revision"]), []).append(row)
        elif row["representation"] == WORD_VECTORS:
            shown.append((f"{row['model']} {WORD_VECTORS} ({row['measure']})", row))
        elif row["representation"] == INPUT_EMBEDDING:
            shown.append((f"{INPUT_EMBEDDING} ({row['measure']})", row))
    for candidates in hidden.values():
        ordered = sorted(candidates, key=lambda row: row["rho"])
        for name, row in (("best", ordered[-1]), ("median", ordered[len(ordered) // 2])):
            of = f"{name} of {len(ordered)} hidden states"
            shown.append((f"{of} (L{row['layer']}, {row['measure']})", row))
    return shown


def _named(label: str, row: dict[str, Any]) -> str:
    if row["representation"] == WORD_VECTORS:
        return label
    return f"{row['model']}@{row['revision']}: {label}"
