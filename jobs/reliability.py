"""Stage `reliability`: whether experts found on one half of the sentences are those found on the other.

The two halves share no sentence, so what they agree on is no accident of the sentences chosen.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from alignment.statistics.correlation import FEWEST_PAIRS, correlate
from jobs.engine.stage import Outcome, Stage
from jobs.experts import SITES_FOLDER
from jobs.similarity import FILE
from storage import sql, tables
from storage.store.commit import write_table
from storage.store.paths import let_read

KIND = "reliability"
RELIABILITY_FILE = "reliability.parquet"

_BOTH_HALVES = """
SELECT
    pooling, measure, threshold,
    list(concept_a ORDER BY concept_a, concept_b) AS concepts_a,
    list(concept_b ORDER BY concept_a, concept_b) AS concepts_b,
    list(coalesce(a.similarity, 0) ORDER BY concept_a, concept_b) AS first,
    list(coalesce(b.similarity, 0) ORDER BY concept_a, concept_b) AS second
FROM similarities_a a JOIN similarities_b b USING (pooling, measure, threshold, concept_a, concept_b)
GROUP BY ALL
ORDER BY ALL
"""


def plan(first: Stage, second: Stage) -> Stage:
    """The stage that compares the similarities from the two halves of a model's sentences."""
    inputs = {"first": first, "second": second}
    return Stage(KIND, first.inputs["experts"].inputs["activations"].label, {}, _run, inputs)


def _run(stage: Stage, store: Path) -> Outcome:
    with duckdb.connect() as connection:
        for half, name in (("first", "similarities_a"), ("second", "similarities_b")):
            similarity = stage.inputs[half]
            paths_by_table = {
                name: similarity.result(store).paths(FILE),
                half: similarity.inputs["experts"].result(store).paths(SITES_FOLDER),
            }
            for table, paths in paths_by_table.items():
                files = let_read(connection, paths)
                connection.from_parquet(files, hive_partitioning=False).create_view(table)
        params = stage.inputs["first"].params
        sql.provide(connection, "thresholds", {"threshold": params["thresholds"]})
        stability = {
            (pooling, threshold): value
            for pooling, threshold, value in connection.sql(sql.query("half_stability")).fetchall()
        }
        groups = connection.sql(_BOTH_HALVES).to_arrow_table().to_pylist()
    same = {name: params[name] for name in ("model", "revision", "concept_set")}
    rows = [
        {**same, **_row(group), "stability": stability.get((group["pooling"], group["threshold"]))}
        for group in groups
    ]
    table = pa.Table.from_pylist(rows, tables.RELIABILITY)
    return Outcome([write_table(stage.folder(store), RELIABILITY_FILE, table)])


def _row(group: dict[str, Any]) -> dict[str, Any]:
    names = sorted({*group["concepts_a"], *group["concepts_b"]})
    number = {name: index for index, name in enumerate(names)}
    x, y = (np.array(group[half], np.float64) for half in ("first", "second"))
    row = {name: group[name] for name in ("pooling", "measure", "threshold")}
    row |= {"n_pairs": len(x), "rho": None, "ci_low": None, "ci_high": None, "of_all": None}
    if len(x) < FEWEST_PAIRS or np.ptp(x) == 0 or np.ptp(y) == 0:
        return row
    first, second = (
        np.array([number[name] for name in group[side]]) for side in ("concepts_a", "concepts_b")
    )
    found = correlate(x[None], y, first, second).interval(0)
    # Spearman-Brown: what two samples as large as the whole would agree
    of_all = 2 * found.value / (1 + found.value) if found.value > 0 else found.value
    return {**row, "rho": found.value, "ci_low": found.low, "ci_high": found.high, "of_all": of_all}


if __name__ == "__main__":
    from jobs.commands.main import run_file

    run_file("reliability")
