"""Provenance: sweep file, revisions, versions, counts, durations, dropped data and controls."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from cluster.models.weights import is_random_init
from jobs.page.figures.spec import Cell, DataTable, Section
from jobs.page.study_data import StudyData
from storage.store.activation_files import RESIDUAL
from storage.store.layout import STAGE_KINDS
from storage.store.manifest import Manifest

_COUNTS = """
SELECT
    (SELECT count(*) FROM concepts WHERE concept_set = $concept_set) AS concepts,
    (SELECT count(DISTINCT domain) FROM concepts WHERE concept_set = $concept_set) AS domains,
    (SELECT count(*) FROM sentences WHERE concept_set = $concept_set) AS sentences,
    (SELECT count(*) FROM experts) AS "stored expert scores",
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

_SITES = """
SELECT model, site, module, part, count(DISTINCT layer) AS layers, width
FROM sites WHERE site != $residual
GROUP BY ALL ORDER BY model, min(layer), site, module, width
"""

_MAX_DROPPED_ROWS = 40


def section(data: StudyData) -> Section:
    """Everything needed to reproduce the results."""
    tables = [
        _counts(data),
        _controls(data),
        _sweep_file(data),
        _models(data),
        _sites(data),
        _dropped(data),
        _notes(data),
        _stages(data),
        _versions(data),
    ]
    missing = []
    if data.study.config is None:
        missing.append("The sweep file is stored when the sweep finishes: run it to completion.")
    lead = [
        f"Concept set {data.concept_set}. A stage's fingerprint covers everything that it depends on. "
        "Durations are in seconds, sizes in MB."
    ]
    tables = [table for table in tables if table.rows]
    return Section("provenance", "Provenance", lead, tables=tables, missing=missing)


def _sweep_file(data: StudyData) -> DataTable:
    rows: list[list[Cell]] = [[key, _text(value)] for key, value in (data.study.config or {}).items()]
    return DataTable(["key", "value"], rows, "Sweep file, including defaults")


def _counts(data: StudyData) -> DataTable:
    (row,) = data.query(_COUNTS, concept_set=data.concept_set)
    return DataTable(["item", "count"], [[name, value] for name, value in row.items()], "Counts")


def _controls(data: StudyData) -> DataTable:
    """Every control, and how to add the ones that were not run."""
    controls = {stage.params.get("control") for stage in data.stages("controls")}
    activations = data.stages("activations")
    poolings = {pooling for stage in activations for pooling in stage.params["poolings"]}
    revisions = {stage.params["revision"] for stage in activations}
    states = [
        ("random weights", any(map(is_random_init, revisions)), "baselines: [random-init]"),
        ("concept's word masked", "masked" in controls, "baselines: [masked]"),
        ("tokens other than the word's", "context" in poolings, "neurons: {pooling: [max, context]}"),
        ("tokens before the word", "before" in poolings, "neurons: {pooling: [max, before]}"),
        ("split halves of the sentences", "half 1" in controls, "controls: [split-half]"),
        ("length-matched negatives", "length-matched" in controls, "controls: [length-matched]"),
        ("pseudo-concepts", "pseudo-concepts" in controls, "controls: [pseudo-concepts]"),
    ]
    rows: list[list[Cell]] = [
        [name, "run" if is_run else f"not run; to add it: {setting}"] for name, is_run, setting in states
    ]
    return DataTable(["control", "state"], rows, "Controls")


def _models(data: StudyData) -> DataTable:
    rows: list[list[Cell]] = [
        [
            stage.params["model"],
            stage.params["revision"],
            _text(stage.params["identity"]),
            stage.params["dtype"],
            ", ".join(stage.params["poolings"]),
            _text(stage.params["sites"]),
        ]
        for stage in data.stages("activations")
    ]
    return DataTable(["model", "revision", "identity", "dtype", "pooling", "sites"], rows, "Models")


def _sites(data: StudyData) -> DataTable:
    """Where each model's neurons are; module and part are empty in results of earlier versions."""
    columns = ["model", "site", "module", "part", "layers", "width"]
    rows: list[list[Cell]] = [
        [row[name] for name in columns] for row in data.query(_SITES, residual=RESIDUAL)
    ]
    return DataTable([*columns[:-1], "units per layer"], rows, "Sites")


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _dropped(data: StudyData) -> DataTable:
    rows = [[row["what"], row["reason"], row["n"], row["example"]] for row in data.query(_DROPPED)]
    deleted = Counter(stage.label for stage in data.runs for _ in stage.dropped)
    rows += [
        [f"raw activations: {label}", "deleted after scoring to save space", n, None]
        for label, n in deleted.items()
    ]
    title = "Dropped data"
    if len(rows) > _MAX_DROPPED_ROWS:
        title += f" (first {_MAX_DROPPED_ROWS} of {len(rows)} rows)"
    return DataTable(["data", "reason", "count", "example"], rows[:_MAX_DROPPED_ROWS], title)


def _notes(data: StudyData) -> DataTable:
    rows: list[list[Cell]] = [
        [f"{stage.kind} {stage.label}", note] for stage in _ordered(data) for note in stage.notes
    ]
    return DataTable(["stage", "note"], rows, "Stage notes")


def _stages(data: StudyData) -> DataTable:
    rows: list[list[Cell]] = [
        [
            stage.kind,
            stage.label,
            stage.fingerprint,
            round(stage.seconds, 1),
            len(stage.present_records),
            round(sum(record.bytes for record in stage.present_records) / 1e6, 2),
            stage.finished,
            json.dumps(stage.params, sort_keys=True, default=str),
        ]
        for stage in _ordered(data)
    ]
    columns = ["stage", "label", "fingerprint", "seconds", "files", "MB", "finished (UTC)", "parameters"]
    return DataTable(columns, rows, "Stages")


def _ordered(data: StudyData) -> list[Manifest]:
    return sorted(
        data.runs, key=lambda stage: (STAGE_KINDS.index(stage.kind), stage.finished, stage.label)
    )


def _versions(data: StudyData) -> DataTable:
    """Every software version that a stage ran with."""
    versions: dict[str, set[str]] = {}
    for stage in data.runs:
        for name, version in stage.versions.items():
            versions.setdefault(name, set()).add(version)
    rows: list[list[Cell]] = [[name, ", ".join(sorted(numbers))] for name, numbers in versions.items()]
    return DataTable(["software", "version"], rows, "Versions")
