"""Stage `pseudo_concepts`: experts of the concepts vs. those of other words of the same sentences, with
equally many positives."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from jobs import sentences
from jobs.engine.stage import Stage, StageOutput
from jobs.experts import EXPERTS_FOLDER
from jobs.scoring.labelings import read_pseudo_concepts
from storage import sql, tables
from storage.store.commit import write_table

KIND = "pseudo_concepts"
_NOTE_THRESHOLD = 0.5
"""That of the papers; the notes are of the sweep's threshold that is nearest to it."""

OVER_ALL_TOKENS = ("max", "mean", "last")
"""Poolings in which the words of pseudo-concepts have the same part as those of concepts."""


def plan(matched_experts: Stage, pseudo_experts: Stage, thresholds: Sequence[float]) -> Stage:
    """The stage that compares the experts of the pseudo-concepts with those of the concepts, found with
    as many sentences."""
    inputs = {"concept": matched_experts, "pseudo": pseudo_experts}
    label = matched_experts.inputs["activations"].label
    return Stage(KIND, label, {"thresholds": sorted(thresholds)}, _run, inputs)


def _run(stage: Stage, store: Path) -> StageOutput:
    activations_stage = stage.inputs["concept"].inputs["activations"]
    sentences_stage = activations_stage.inputs["sentences"]
    pseudo = read_pseudo_concepts(sentences_stage, store, stage.inputs["pseudo"].params["seed"])
    words: dict[str, Sequence[Any]] = {
        "concept": sentences.read_concept_names(sentences_stage, store),
        "word": pseudo.words,
        "n_positives": [len(ids) for ids in pseudo.sentence_ids],
    }
    with duckdb.connect() as connection:
        for name, experts in stage.inputs.items():
            paths = experts.read_manifest(store).paths(EXPERTS_FOLDER)
            sql.scan_parquet(connection, paths).create_view(f"{name}_experts")
        sql.create_table(connection, "words", words)
        sql.create_table(connection, "poolings", {"pooling": activations_stage.params["poolings"]})
        sql.create_table(connection, "thresholds", {"threshold": stage.params["thresholds"]})
        rows = connection.sql(sql.read_query("pseudo_concepts")).to_arrow_table().to_pylist()
    ids = {name: activations_stage.params[name] for name in ("model", "revision", "concept_set")}
    table = pa.Table.from_pylist([ids | row for row in rows], tables.PSEUDO_CONCEPTS.schema)
    file = write_table(stage.folder(store), tables.PSEUDO_CONCEPTS.file, table)
    return StageOutput([file], _make_notes(rows, stage.params["thresholds"]))


def _make_notes(rows: list[dict[str, Any]], thresholds: Sequence[float]) -> list[str]:
    """One line per pooling over all tokens: how often a concept has more experts."""
    threshold = min(thresholds, key=lambda value: abs(value - _NOTE_THRESHOLD))
    notes = []
    for pooling in OVER_ALL_TOKENS:
        counts = [
            (row["concept_n_experts"], row["n_experts"])
            for row in rows
            if (row["pooling"], row["threshold"]) == (pooling, threshold)
        ]
        if counts:
            own, other = np.median(counts, axis=0)
            n_more = sum(concept > pseudo for concept, pseudo in counts)
            notes.append(
                f"{pooling} pooling: {n_more} of {len(counts)} concepts have more neurons with AP > "
                f"{threshold} than their pseudo-concept (another word, with equally many sentences); "
                f"median {own:.0f} against {other:.0f}"
            )
    return notes


if __name__ == "__main__":
    from jobs.commands.main import run_stage

    run_stage("pseudo_concepts")
