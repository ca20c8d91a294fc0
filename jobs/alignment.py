"""Stage `alignment`: how well each representation's similarities agree with human judgments.

All representations of a sweep are compared on the very same pairs, with the same resamples.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from alignment.correlation import FEWEST_PAIRS, spearman
from jobs import sentences
from jobs.similarity import FILE
from jobs.stage import Outcome, Stage
from storage import schemas, sql
from storage.commit import write_table
from storage.human import Pairs

KIND = "alignment"
ALIGNMENT_FILE = "alignment.parquet"
PAIRS_FILE = "human-pairs.parquet"


def plan(
    name: str,
    texts: Stage,
    similarities: list[Stage],
    human: list[Pairs],
    resamples: int,
    seed: int,
) -> Stage:
    """The stage that compares all representations of a sweep with all its human data."""
    params = {
        "human": {pairs.name: pairs.sha256 for pairs in human},
        "resamples": resamples,
        "seed": seed,
    }
    inputs = {f"similarity {number}": stage for number, stage in enumerate(similarities)}

    def run(stage: Stage, store: Path) -> Outcome:
        return _run(stage, store, human)

    return Stage(KIND, name, params, run, {"sentences": texts, **inputs})


def _run(stage: Stage, store: Path, human: list[Pairs]) -> Outcome:
    concepts = sentences.read_concept_names(stage.inputs["sentences"], store)
    by_word = {name.lower(): name for name in concepts}
    paths = [
        str(path)
        for name, each in stage.inputs.items()
        if name != "sentences"
        for path in each.result(store).paths(FILE)
    ]
    rows: list[dict[str, Any]] = []
    rated: list[dict[str, Any]] = []
    notes = []
    with duckdb.connect() as connection:
        connection.from_parquet(paths).create("similarity")
        for pairs in human:
            found = [
                (*sorted((by_word[first], by_word[second])), score)
                for (first, second), score in pairs.among(list(by_word)).items()
            ]
            columns = ("concept_a", "concept_b", "score")
            rated += [{"human_set": pairs.name, **dict(zip(columns, row, strict=True))} for row in found]
            if len(found) < FEWEST_PAIRS:
                notes.append(
                    f"{pairs.name} rates {len(found)} pairs of these concepts; a correlation needs "
                    f"{FEWEST_PAIRS}"
                )
                continue
            connection.execute("DROP TABLE IF EXISTS human")
            values = [list(column) for column in zip(*found, strict=True)]
            sql.provide(connection, "human", dict(zip(columns, values, strict=True)))
            groups = connection.sql(sql.query("comparable")).to_arrow_table().to_pylist()
            rows += [_row(group, pairs.name, stage) for group in groups]
    folder = stage.folder(store)
    files = [
        write_table(folder, ALIGNMENT_FILE, pa.Table.from_pylist(rows, schemas.ALIGNMENT)),
        write_table(folder, PAIRS_FILE, pa.Table.from_pylist(rated, schemas.HUMAN_PAIRS)),
    ]
    return Outcome(files, notes)


def _row(group: dict[str, Any], human_set: str, stage: Stage) -> dict[str, Any]:
    concepts = sorted({*group["concepts_a"], *group["concepts_b"]})
    number = {name: index for index, name in enumerate(concepts)}
    described = {name: group[name] for name in schemas.ALIGNMENT.names if name in group}
    result = {
        **described,
        "human_set": human_set,
        "n_pairs": len(group["scores"]),
        "n_concepts": len(concepts),
        "rho": None,
        "ci_low": None,
        "ci_high": None,
    }
    try:
        found = spearman(
            np.array(group["similarities"]),
            np.array(group["scores"]),
            np.array([number[name] for name in group["concepts_a"]]),
            np.array([number[name] for name in group["concepts_b"]]),
            stage.params["resamples"],
            stage.params["seed"],
        )
    except ValueError:
        # too few pairs, or all of them the same: there is no correlation to report
        return result
    return {**result, "rho": found.rho, "ci_low": found.ci_low, "ci_high": found.ci_high}


if __name__ == "__main__":
    from jobs.cli import run_file

    run_file("alignment")
