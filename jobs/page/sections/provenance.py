"""How the results were made: the sweep file, revisions, versions, counts, durations, what was
dropped, and which controls were run."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from cluster.models.weights import RANDOM_INIT
from jobs.page.figures.spec import Cell, Section, Table
from jobs.page.study import Source
from storage.store.layout import KINDS
from storage.store.manifest import Manifest

_COUNTS = """
SELECT
    (SELECT count(*) FROM concepts WHERE concept_set = $concept_set) AS concepts,
    (SELECT count(DISTINCT domain) FROM concepts WHERE concept_set = $concept_set) AS domains,
    (SELECT count(*) FROM sentences WHERE concept_set = $concept_set) AS sentences,
    (SELECT count(*) FROM experts) AS "scored neurons kept",
    (SELECT count(*) FROM similarity) AS similarities,
    (SELECT count(*) FROM human_pairs) AS "human pairs",
    (SELECT count(*) FROM human_triplets) AS "human triplets"
"""

_DROPPED = """
SELECT 'sentences' AS what, reason, sum(dropped)::BIGINT AS n, first(example) AS example
FROM dropped GROUP BY reason
UNION ALL
SELECT 'human data: ' || human_set, reason, count(*), array_to_string(first(words), ', ')
FROM human_dropped GROUP BY human_set, reason
ORDER BY what, n DESC, reason
"""

_SHOWN_DROPPED = 40


def section(source: Source) -> Section:
    """Everything that one needs to know to make it again."""
    tables = [
        _counts(source),
        _controls(source),
        _asked(source),
        _models(source),
        _dropped(source),
        _notes(source),
        _stages(source),
        _versions(source),
    ]
    missing = []
    if source.study.asked is None:
        missing.append("The sweep file is kept when the sweep is done: run it to its end.")
    lead = [
        f"Concept set {source.concept_set}. Each stage is named by its fingerprint, which holds "
        "everything that it depends on; durations are in seconds, sizes in MB."
    ]
    kept = [each for each in tables if each.rows]
    return Section("made", "How it was made", lead, tables=kept, missing=missing)


def _of(source: Source, kind: str) -> list[Manifest]:
    return [each for each in source.runs if each.kind == kind]


def _asked(source: Source) -> Table:
    rows: list[list[Cell]] = [[key, _text(value)] for key, value in (source.study.asked or {}).items()]
    return Table(["key", "value"], rows, "Sweep file, with its defaults")


def _counts(source: Source) -> Table:
    (row,) = source.ask(_COUNTS, concept_set=source.concept_set)
    return Table(["what", "how many"], [[name, value] for name, value in row.items()], "Counts")


def _controls(source: Source) -> Table:
    """Each control, and what it takes where it was not run."""
    scored = {each.params.get("control") for each in _of(source, "controls")}
    poolings = {pooling for each in _of(source, "activations") for pooling in each.params["poolings"]}
    revisions = {each.params["revision"] for each in _of(source, "activations")}
    controls = [
        ("random weights", RANDOM_INIT in revisions, "baselines: [random-init]"),
        ("without the concept's own word", "context" in poolings, "neurons: {pooling: [max, context]}"),
        ("two halves of the sentences", "half 1" in scored, "controls: [split-half]"),
        ("negatives as long as the positives", "length-matched" in scored, "controls: [length-matched]"),
    ]
    rows: list[list[Cell]] = [
        [name, "run" if is_run else f"not run; to run it: {how}"] for name, is_run, how in controls
    ]
    return Table(["control", "state"], rows, "Controls")


def _models(source: Source) -> Table:
    rows: list[list[Cell]] = [
        [
            each.params["model"],
            each.params["revision"],
            _text(each.params["identity"]),
            each.params["dtype"],
            ", ".join(each.params["poolings"]),
            _text(each.params["sites"]),
        ]
        for each in _of(source, "activations")
    ]
    return Table(["model", "revision", "identity", "computed in", "pooling", "sites"], rows, "Models")


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _dropped(source: Source) -> Table:
    rows = [[row["what"], row["reason"], row["n"], row["example"]] for row in source.ask(_DROPPED)]
    gone = Counter(each.label for each in source.runs for _ in each.dropped)
    rows += [
        [f"raw activations: {label}", "scored, then deleted to save space", n, None]
        for label, n in gone.items()
    ]
    title = "What was dropped, and why"
    if len(rows) > _SHOWN_DROPPED:
        title += f" (the first {_SHOWN_DROPPED} of {len(rows)})"
    return Table(["of", "reason", "how many", "for example"], rows[:_SHOWN_DROPPED], title)


def _notes(source: Source) -> Table:
    rows: list[list[Cell]] = [
        [f"{each.kind} {each.label}", note] for each in _ordered(source) for note in each.notes
    ]
    return Table(["stage", "note"], rows, "What the stages noted")


def _stages(source: Source) -> Table:
    rows: list[list[Cell]] = [
        [
            each.kind,
            each.label,
            each.fingerprint,
            round(each.seconds, 1),
            len(each.kept),
            round(sum(record.bytes for record in each.kept) / 1e6, 2),
            each.finished,
            json.dumps(each.params, sort_keys=True, default=str),
        ]
        for each in _ordered(source)
    ]
    columns = ["stage", "of", "fingerprint", "seconds", "files", "MB", "finished (UTC)", "parameters"]
    return Table(columns, rows, "Stages")


def _ordered(source: Source) -> list[Manifest]:
    return sorted(source.runs, key=lambda each: (KINDS.index(each.kind), each.finished, each.label))


def _versions(source: Source) -> Table:
    """Every version that some stage was made with."""
    found: dict[str, set[str]] = {}
    for each in source.runs:
        for name, version in each.versions.items():
            found.setdefault(name, set()).add(version)
    return Table(
        ["software", "version"],
        [[name, ", ".join(sorted(all_))] for name, all_ in found.items()],
        "Versions",
    )
