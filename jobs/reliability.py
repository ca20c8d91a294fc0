"""Stage `reliability`: split-half reliability of experts and of their similarities.

The halves have no sentence in common, so agreement between them is not due to individual sentences.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from alignment.statistics.correlation import MIN_PAIRS, correlate
from jobs.engine.stage import Stage, StageOutput
from jobs.experts import EXPERTS_FOLDER
from storage import sql, tables
from storage.store.commit import write_table

KIND = "reliability"

_BOTH_HALVES = """
SELECT
    pooling, measure, threshold,
    list(concept_a ORDER BY concept_a, concept_b) AS concepts_a,
    list(concept_b ORDER BY concept_a, concept_b) AS concepts_b,
    list(coalesce(a.similarity, 0) ORDER BY concept_a, concept_b) AS first,
    list(coalesce(b.similarity, 0) ORDER BY concept_a, concept_b) AS second
FROM first_similarity a JOIN second_similarity b
    USING (pooling, measure, threshold, concept_a, concept_b)
GROUP BY ALL
ORDER BY ALL
"""


def plan(first: Stage, second: Stage) -> Stage:
    """The stage that compares two similarity stages, one per half of the sentences."""
    inputs = {"first": first, "second": second}
    return Stage(KIND, first.inputs["experts"].inputs["activations"].label, {}, _run, inputs)


def _run(stage: Stage, store: Path) -> StageOutput:
    with duckdb.connect() as connection:
        for half, similarity in stage.inputs.items():
            experts = similarity.inputs["experts"]
            for name, input_stage, file in (
                ("similarity", similarity, tables.SIMILARITY.file),
                ("experts", experts, EXPERTS_FOLDER),
            ):
                paths = input_stage.read_manifest(store).paths(file)
                sql.scan_parquet(connection, paths).create_view(f"{half}_{name}")
        params = stage.inputs["first"].params
        sql.create_table(connection, "thresholds", {"threshold": params["thresholds"]})
        stability = {
            (pooling, threshold): value
            for pooling, threshold, value in connection.sql(sql.read_query("half_stability")).fetchall()
        }
        groups = connection.sql(_BOTH_HALVES).to_arrow_table().to_pylist()
    ids = {name: params[name] for name in ("model", "revision", "concept_set")}
    rows = [
        {**ids, **_make_row(group), "stability": stability.get((group["pooling"], group["threshold"]))}
        for group in groups
    ]
    table = pa.Table.from_pylist(rows, tables.RELIABILITY.schema)
    return StageOutput([write_table(stage.folder(store), tables.RELIABILITY.file, table)])


def _make_row(group: dict[str, Any]) -> dict[str, Any]:
    names = sorted({*group["concepts_a"], *group["concepts_b"]})
    index = {name: number for number, name in enumerate(names)}
    x, y = (np.array(group[half], np.float64) for half in ("first", "second"))
    row = {name: group[name] for name in ("pooling", "measure", "threshold")}
    row |= {"n_pairs": len(x), "rho": None, "ci_low": None, "ci_high": None, "of_all": None}
    if len(x) < MIN_PAIRS or np.ptp(x) == 0 or np.ptp(y) == 0:
        return row
    first, second = (
        np.array([index[name] for name in group[column]]) for column in ("concepts_a", "concepts_b")
    )
    rho = correlate(x[None], y, first, second).interval(0)
    # Spearman-Brown: the reliability of all sentences, twice as many as a half.
    corrected = 2 * rho.value / (1 + rho.value) if rho.value > 0 else rho.value
    return {**row, "rho": rho.value, "ci_low": rho.low, "ci_high": rho.high, "of_all": corrected}


if __name__ == "__main__":
    from jobs.commands.main import run_stage

    run_stage("reliability")
