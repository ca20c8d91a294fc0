"""A finished sweep, printed: alignment, nearest concepts and where to look next."""

from __future__ import annotations

from math import isqrt
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from alignment.statistics.correlation import FEWEST_PAIRS
from alignment.statistics.resampling import FEWEST_SURE
from cluster.models.weights import RANDOM_INIT
from jobs.alignment import TRIPLETS
from jobs.representations.embeddings import CENTRED_COSINE, HIDDEN_STATE, INPUT_EMBEDDING, WORD_VECTORS
from jobs.representations.sentence_encoder import ENCODED_WORD, SENTENCE_ENCODER
from jobs.similarity import EXPERTS
from storage.store.activation_files import POOLINGS

_QUESTION = (
    "SELECT revision, layer, count(*) AS experts FROM experts WHERE pooling = 'max' AND ap > 0.5 "
    "GROUP BY ALL ORDER BY ALL"
)
STATISTICS = {
    "spearman": "Spearman's rho",
    "kendall": "Kendall's tau-b",
    "pearson": "Pearson's r",
    TRIPLETS: "share predicted",
}
INTERVALS = {
    "jackknife": "each concept left out in turn",
    "concept-bootstrap": "concepts resampled",
    "pair-bootstrap": "pairs resampled, which is too narrow",
}
SURE_OF_FEW = "91 to 98"
"""In how many of 100 simulated studies of few concepts a 95% interval held the truth."""
Labelled = tuple[str, dict[str, Any]]
"""A row of a table, and what it is called where it is shown."""

_SHOWN_LAYERS, _CELLS_IN_ROW = 6, 3
_FOOTNOTE = (
    "All rows of a table are on the same pairs. Intervals (95%) allow for pairs that share a concept. "
    "What is best is chosen on these very pairs, so it is flattered. All equal: so are the "
    "similarities of all pairs, which leaves no correlation; few differ: too few for an interval. "
    "States are the hidden states after a layer: the mean of a sentence's tokens, or the last; *: less "
    "the mean over all concepts."
)


def print_summary(console: Console, summary: dict[str, Any]) -> None:
    """Print what a sweep found on a concept set, to fit 80 columns."""

    def say(line: str) -> None:
        # names come from the user: brackets in them are no markup
        console.print(line, markup=False)

    few = []
    for human_set in summary["human_sets"]:
        rows = [
            row
            for row in summary["alignment"]
            if row["human_set"] == human_set and row["agreement"] in (summary["agreement"], TRIPLETS)
        ]
        if rows:
            say(_title(human_set, rows[0], summary["headline_threshold"]))
            console.print(_alignment_table(rows, summary["headline_threshold"]))
            _print_layers(console, rows, summary["headline_threshold"])
            print_of_few(console, rows[0]["n_concepts"])
            say("")
        else:
            few.append(f"{human_set} {summary['human_pairs'].get(human_set, 0)}")
    if few:
        say(
            f"Too few rated pairs for a correlation (fewer than {FEWEST_PAIRS}, or of concepts that "
            f"some representation lacks): {', '.join(few)}."
        )
    say(_FOOTNOTE)
    _print_controls(console, summary)
    nearest = summary["nearest"]
    say(f"\nNearest concepts by shared experts ({nearest['of']}):")
    for name, found in nearest["concepts"].items():
        shown = ", ".join(f"{other} {value:.2f}" for other, value in found if value)
        say(f"  {name:12} {shown or '(shares no experts)'}")


def print_next(console: Console, store: Path, pages: list[Path]) -> None:
    """Print where to look at what a sweep found; it has a page for each concept set."""
    question = _QUESTION if len(pages) == 1 else _QUESTION.replace("SELECT", "SELECT concept_set,")
    console.print("\nWhere to look next:")
    for line in (
        *(f"  page      {page}" for page in pages),
        f"  details   neuralign serve {store}",
        f"  status    neuralign status {store}",
        f'  SQL       neuralign sql {store} "{question}"',
    ):
        console.print(line, markup=False, soft_wrap=True)


def _print_layers(console: Console, rows: list[dict[str, Any]], threshold: float) -> None:
    """Print how the experts of single layers agree, of some layers from the first to the last."""
    found = _trained_layers(rows, threshold)
    if not found:
        return
    layers = sorted(next(iter(found.values())), key=lambda row: row["layer"])
    steps = min(_SHOWN_LAYERS, len(layers)) - 1
    shown = [layers[round(step * (len(layers) - 1) / max(1, steps))] for step in range(steps + 1)]
    cells = [
        f"L{row['layer']} {with_interval(row['rho'], row['ci_low'], row['ci_high'])}" for row in shown
    ]
    console.print(f"Neurons of single layers, {shown[0]['pooling']} pooling:", markup=False)
    table = Table(box=None, pad_edge=False, show_header=False)
    for start in range(0, len(cells), _CELLS_IN_ROW):
        table.add_row(*map(escape, cells[start : start + _CELLS_IN_ROW]))
    console.print(table)


def _print_controls(console: Console, summary: dict[str, Any]) -> None:
    """Print how split halves agree and whether the domains show, where the sweep asked."""
    threshold = summary["headline_threshold"]
    found = [row for row in summary["reliability"] if row["threshold"] == threshold]
    halves = sorted(found, key=lambda row: POOLINGS.index(row["pooling"]))
    if halves:
        console.print(
            f"\nExperts from either half of the sentences, AP > {threshold}: Spearman's rho of their "
            f"similarities over {halves[0]['n_pairs']:,} pairs; mean Jaccard of a concept's two sets",
            markup=False,
        )
        table = Table(box=None, pad_edge=False, show_header=False)
        for row in halves:
            label = f"neurons, {row['pooling']} pooling"
            overlap = "-" if row["stability"] is None else f"{row['stability']:.2f}"
            cells = (label, with_interval(row["rho"], row["ci_low"], row["ci_high"]), overlap)
            table.add_row(*map(escape, cells))
        console.print(table)
        # all pairs of the concepts
        print_of_few(console, 1 + isqrt(2 * halves[0]["n_pairs"]))
    trees = [row for row in summary["hierarchy"] if row["auc"] is not None]
    shown = headline(trees, threshold, "auc")
    if shown:
        first = shown[0][1]
        console.print(
            f"\nHierarchy, {first['n_concepts']} concepts of {first['n_domains']} domains: chance that "
            "two of one domain are more alike than two of different ones; share of members most like "
            "their own domain's name",
            markup=False,
        )
        table = Table(box=None, pad_edge=False, show_header=False)
        for label, row in shown:
            named = "" if row["recovered"] is None else f"{row['recovered']:.0%}"
            interval = row["auc"], row["auc_low"], row["auc_high"]
            cells = (label, with_interval(*interval, without="no overlap"), named)
            table.add_row(*map(escape, cells))
        console.print(table)
        print_of_few(console, first["n_concepts"])


def print_of_few(console: Console, concepts: int) -> None:
    """Print what is to be known of the intervals of a table of few concepts."""
    if concepts < FEWEST_SURE:
        console.print(f"Of fewer than {FEWEST_SURE} concepts, 95% intervals may cover {SURE_OF_FEW}%.")


def _title(human_set: str, row: dict[str, Any], threshold: float) -> str:
    things = TRIPLETS if row["agreement"] == TRIPLETS else "pairs"
    return (
        f"Alignment with {human_set}: {STATISTICS[row['agreement']]}, {row['n_pairs']} {things} of "
        f"{row['n_concepts']} concepts, AP > {threshold}"
    )


def _alignment_table(rows: list[dict[str, Any]], threshold: float) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("representation")
    table.add_column("rho", justify="right")
    reference = next((row["reference"] for row in rows if row["reference"]), None)
    if reference:
        table.add_column(f"less that of {reference.split()[0]}", justify="right")
    for label, row in headline(rows, threshold):
        cells = [with_interval(row["rho"], row["ci_low"], row["ci_high"])]
        if reference:
            difference = (row["difference"], row["difference_low"], row["difference_high"])
            cells.append(with_interval(*difference, sign="+") if row["reference"] else "")
        table.add_row(escape(label), *map(escape, cells))
    return table


def with_interval(
    value: float | None,
    low: float | None,
    high: float | None,
    sign: str = "",
    without: str = "few differ",
) -> str:
    """A value and its interval; `without` says why it has none."""
    if value is None:
        return "all equal"
    interval = without if low is None or high is None else f"{low:{sign}.2f}, {high:{sign}.2f}"
    return f"{value:{sign}.2f} [{interval}]"


def is_shown(row: dict[str, Any], measure: str) -> bool:
    """Whether a row is a baseline's, or one of experts that are compared by the measure."""
    return not row["representation"].startswith(EXPERTS) or row["measure"] == measure


def is_chosen(label: str, row: dict[str, Any]) -> bool:
    """Whether a row of the headline is the best of several layers by the very value that it shows."""
    return row["layer"] is not None and _unnamed(label, row).startswith("best ")


def headline(rows: list[dict[str, Any]], threshold: float | None, value: str = "rho") -> list[Labelled]:
    """The rows that answer whether neurons align better than embeddings, with their labels: the
    experts of each model and pooling at one threshold, each baseline, of the hidden states the best
    and the median, and last the random-weights control. What is best has the highest `value`."""
    experts = [
        row
        for row in sorted(rows, key=lambda row: POOLINGS.index(row["pooling"] or POOLINGS[0]))
        if row["representation"] == EXPERTS and row["threshold"] == threshold
    ]
    neurons = [
        (f"{row['pooling']} pooling", row)
        for row in sorted(experts, key=lambda row: row["revision"] == RANDOM_INIT)
        if row["layer"] is None and row["site"] is None
    ]
    shown = [(f"neurons, {text}", row) for text, row in neurons if row["revision"] != RANDOM_INIT]
    shown += _controls(rows, threshold)
    shown += _best_layers(rows, threshold, value)
    shown += _baselines(rows, value)
    shown += [
        (f"random weights, {text}", row) for text, row in neurons if row["revision"] == RANDOM_INIT
    ]
    models = {(row["model"], row["revision"]) for row in experts if row["revision"] != RANDOM_INIT}
    if len(models) == 1:
        return shown
    return [(_named(label, row), row) for label, row in shown]


def _controls(rows: list[dict[str, Any]], threshold: float | None) -> list[Labelled]:
    """The experts that were found as a control, by the first pooling."""
    prefix = f"{EXPERTS}, "
    found = [
        row for row in rows if row["representation"].startswith(prefix) and row["threshold"] == threshold
    ]
    pooling = min((row["pooling"] for row in found), key=POOLINGS.index, default=None)
    return [
        (f"neurons, {pooling}, {row['representation'].removeprefix(prefix)}", row)
        for row in found
        if row["pooling"] == pooling
    ]


def _trained_layers(
    rows: list[dict[str, Any]], threshold: float | None
) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """The rows of single layers of each trained model, by the first pooling."""
    experts = [
        row
        for row in rows
        if (row["representation"], row["threshold"]) == (EXPERTS, threshold)
        and row["revision"] != RANDOM_INIT
    ]
    first = min((row["pooling"] for row in experts), key=POOLINGS.index, default=None)
    layers: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in experts:
        if row["pooling"] == first and row["layer"] is not None:
            layers.setdefault((row["model"], row["revision"]), []).append(row)
    return layers


def _best_layers(rows: list[dict[str, Any]], threshold: float | None, value: str) -> list[Labelled]:
    """The layer of each trained model whose neurons agree best, by the first pooling."""
    best = []
    for layers in _trained_layers(rows, threshold).values():
        found = [row for row in layers if row[value] is not None]
        if found:
            row = max(found, key=lambda row: row[value])
            place = f"L{row['layer']}, {row['pooling']}"
            best.append((f"best neurons of {len(layers)} layers ({place})", row))
    return best


def _baselines(rows: list[dict[str, Any]], value: str) -> list[Labelled]:
    shown = []
    hidden: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: row["representation"] != WORD_VECTORS):
        if row["representation"] == HIDDEN_STATE and row[value] is not None:
            hidden.setdefault((row["model"], row["revision"], row["pooling"]), []).append(row)
        elif row["representation"] in (WORD_VECTORS, SENTENCE_ENCODER):
            shown.append((f"{row['model']} {row['representation']}", row))
        elif row["representation"] == ENCODED_WORD:
            shown.append((f"{row['model']} of the word alone", row))
        elif row["representation"] == INPUT_EMBEDDING:
            shown.append((INPUT_EMBEDDING, row))
    for candidates in hidden.values():
        ordered = sorted(candidates, key=lambda row: row[value])
        for name, row in (("best", ordered[-1]), ("median", ordered[len(ordered) // 2])):
            place = f"L{row['layer']}" + ("*" if row["measure"] == CENTRED_COSINE else "")
            shown.append((f"{name} of {len(ordered)} {row['pooling']} states ({place})", row))
    return shown


def _unnamed(label: str, row: dict[str, Any]) -> str:
    return label.removeprefix(f"{row['model']}@{row['revision']}: ")


def _named(label: str, row: dict[str, Any]) -> str:
    if row["representation"] in (WORD_VECTORS, SENTENCE_ENCODER, ENCODED_WORD):
        return label
    return f"{row['model']}@{row['revision']}: {label}"
