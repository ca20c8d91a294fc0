"""Differences between representations, on the same pairs and resamples as their alignment."""

from __future__ import annotations

from operator import itemgetter
from pathlib import Path
from typing import Any

import duckdb
import numpy as np

from alignment.arrays import Floats
from alignment.statistics.resampling import IntervalEstimate
from jobs import alignment, similarity
from jobs.results.rows import group_rows
from jobs.sources.human_judgments import Judgments
from storage.database import check_tables, open_store, run_query
from storage.store import manifest


def compute_differences(
    store: Path, rows: list[dict[str, Any]], reference: dict[str, Any]
) -> list[IntervalEstimate | None]:
    """Agreement of each row minus that of `reference`, which is one of them; None without agreement.

    All are rows of the table `alignment`, of one run and human set.
    """
    stages = {stage.fingerprint: stage for stage in manifest.completed(store, alignment.KIND)}
    stage = stages[reference["run"]]
    inputs = [
        input_stage
        for input_stage in manifest.completed(store, similarity.KIND)
        if input_stage.folder.name in stage.inputs.values()
    ]
    params = stage.params
    settings = alignment.AgreementSettings(
        [reference["agreement"]], params["interval"], params["resamples"], params["seed"]
    )
    runs = {run.fingerprint: run for run in (stage, *inputs)}
    for run in runs.values():
        check_tables(run)
    with open_store(store, runs) as connection:
        judgments = _read_judgments(connection, reference)
        concepts = alignment.create_common_concepts(connection, judgments.concepts)
        ((comparison,), _) = alignment.make_comparisons(judgments, concepts, settings)
        key = itemgetter(*similarity.REPRESENTATION_KEY)
        matrices: dict[Any, Floats] = {}
        for values in group_rows(rows, *similarity.FAMILY_KEY):
            family = dict(zip(similarity.FAMILY_KEY, values, strict=True))
            columns, family_matrices = alignment.load_similarity_matrices(family, connection, concepts)
            matrices |= zip(map(key, columns), family_matrices, strict=True)
    estimates = comparison.estimate(np.stack([matrices[key(row)] for row in rows]))
    # one row can be both the best and the median hidden state
    reference_index = next(index for index, row in enumerate(rows) if row is reference)
    return [
        None if row["rho"] is None else estimates.difference(index, estimates, reference_index)
        for index, row in enumerate(rows)
    ]


def _read_judgments(connection: duckdb.DuckDBPyConnection, row: dict[str, Any]) -> Judgments:
    """The human judgments that a row of the table `alignment` was compared with."""
    name = row["human_set"]
    triplets = run_query(connection, "FROM human_triplets").to_pylist()
    pairs = run_query(connection, "FROM human_pairs").to_pylist()
    return Judgments(
        name,
        scores={
            (pair["concept_a"], pair["concept_b"]): pair["score"]
            for pair in pairs
            if pair["human_set"] == name
        },
        triplets=[
            (triplet["concept_a"], triplet["concept_b"], triplet["odd"])
            for triplet in triplets
            if triplet["human_set"] == name
        ],
        are_triplets=row["agreement"] == alignment.TRIPLETS,
    )
