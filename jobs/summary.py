"""A finished sweep, printed: alignment, nearest concepts and where to look next."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from alignment.correlation import FEWEST_PAIRS
from cluster.weights import RANDOM_INIT
from jobs.baselines import HIDDEN_STATE
from jobs.similarity import EXPERTS


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
    nearest = summary["nearest"]
    console.print(f"\nNearest concepts by shared experts ({nearest['of']}):")
    for name, found in nearest["concepts"].items():
        shown = ", ".join(f"{other} {value:.2f}" for other, value in found)
        console.print(f"  {name:12} {shown}", markup=False)
    console.print("\nWhere to look next:")
    console.print(f"  picture   {picture}", soft_wrap=True)
    console.print(f"  status    neuralign status {store}", soft_wrap=True)
    question = (
        "SELECT layer, count(*) AS experts FROM experts WHERE concept = 'bird' AND ap > 0.5 "
        "GROUP BY layer ORDER BY layer"
    )
    console.print(f'  SQL       neuralign sql {store} "{question}"', soft_wrap=True, markup=False)


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
    """The rows that answer whether neurons align better than embeddings: the experts of each model and
    pooling at one threshold, each baseline, of hidden states the layer that aligns best, and last the
    random-weights control."""
    models = {row["model"] for row in rows if row["representation"] == EXPERTS}
    shown = []
    for control in (False, True):
        for row in rows:
            if row["representation"] != EXPERTS or row["threshold"] != threshold:
                continue
            if (row["revision"] == RANDOM_INIT) is control:
                name = "random weights" if control else "neurons"
                label = f"{name}, {row['pooling']} pooling, AP > {threshold}"
                shown.append((_with_model(label, row, models), row))
        if not control:
            shown += _baselines(rows, models)
    return shown


def _baselines(rows: list[dict[str, Any]], models: set[str]) -> list[tuple[str, dict[str, Any]]]:
    shown = []
    hidden: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        if row["representation"] == HIDDEN_STATE and row["rho"] is not None:
            hidden.setdefault((row["model"], row["revision"]), []).append(row)
        elif row["representation"] not in (EXPERTS, HIDDEN_STATE):
            label = f"{row['representation']} ({row['measure']})"
            shown.append((_with_model(label, row, models), row))
    for candidates in hidden.values():
        best = max(candidates, key=lambda row: row["rho"])
        label = f"best of {len(candidates)} hidden states (L{best['layer']}, {best['measure']})"
        shown.append((_with_model(label, best, models), best))
    return shown


def _with_model(label: str, row: dict[str, Any], models: set[str]) -> str:
    """Name the model only where there are several."""
    if len(models) == 1 or row["model"] not in models:
        return label
    return f"{row['model']}@{row['revision']}: {label}"
