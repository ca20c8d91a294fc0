"""Stage `alignment`: how well each representation's similarities agree with human judgments.

All representations of a sweep are compared on the very same pairs, with the same resamples.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from alignment.correlation import FEWEST_PAIRS, Correlation, spearman
from jobs import sentences
from jobs.baselines import WORD_VECTORS
from jobs.similarity import FILE
from jobs.stage import Outcome, Stage
from storage import schemas, sql
from storage.commit import write_table
from storage.human import Pairs
from storage.place import let_read

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
        "human": {pairs.name: pairs.identity for pairs in human},
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
        path
        for name, each in stage.inputs.items()
        if name != "sentences"
        for path in each.result(store).paths(FILE)
    ]
    rows: list[dict[str, Any]] = []
    rated: list[dict[str, Any]] = []
    notes = []
    with duckdb.connect() as connection:
        connection.from_parquet(let_read(connection, paths), hive_partitioning=False).create(
            "similarity"
        )
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
            rows += _rows(groups, pairs.name, stage)
    folder = stage.folder(store)
    files = [
        write_table(folder, ALIGNMENT_FILE, pa.Table.from_pylist(rows, schemas.ALIGNMENT)),
        write_table(folder, PAIRS_FILE, pa.Table.from_pylist(rated, schemas.HUMAN_PAIRS)),
    ]
    return Outcome(files, notes)


def _rows(groups: list[dict[str, Any]], human_set: str, stage: Stage) -> list[dict[str, Any]]:
    correlations = [_correlate(group, stage) for group in groups]
    reference = _reference(groups, correlations)
    return [
        _row(group, human_set, correlation, reference)
        for group, correlation in zip(groups, correlations, strict=True)
    ]


def _correlate(group: dict[str, Any], stage: Stage) -> Correlation | None:
    """The correlation of one representation; None where all its similarities are equal."""
    concepts = sorted({*group["concepts_a"], *group["concepts_b"]})
    number = {name: index for index, name in enumerate(concepts)}
    try:
        return spearman(
            np.array(group["similarities"], np.float64),
            np.array(group["scores"], np.float64),
            np.array([number[name] for name in group["concepts_a"]]),
            np.array([number[name] for name in group["concepts_b"]]),
            stage.params["resamples"],
            stage.params["seed"],
        )
    except ValueError:
        return None


def _reference(
    groups: list[dict[str, Any]], correlations: list[Correlation | None]
) -> tuple[str, Correlation] | None:
    """The baseline that others are compared with: word vectors, where the sweep has them."""
    for group, correlation in zip(groups, correlations, strict=True):
        if group["representation"] == WORD_VECTORS and correlation is not None:
            return f"{group['model']} {WORD_VECTORS}", correlation
    return None


def _row(
    group: dict[str, Any],
    human_set: str,
    correlation: Correlation | None,
    reference: tuple[str, Correlation] | None,
) -> dict[str, Any]:
    row = dict.fromkeys(schemas.ALIGNMENT.names)
    row |= {name: group[name] for name in row if name in group}
    row |= {
        "human_set": human_set,
        "n_pairs": len(group["scores"]),
        "n_concepts": len({*group["concepts_a"], *group["concepts_b"]}),
    }
    if correlation is not None:
        interval = correlation.interval
        row |= {"rho": interval.value, "ci_low": interval.low, "ci_high": interval.high}
    if correlation is not None and reference is not None and correlation is not reference[1]:
        difference = correlation.minus(reference[1])
        row |= {
            "reference": reference[0],
            "difference": difference.value,
            "difference_low": difference.low,
            "difference_high": difference.high,
        }
    return row


if __name__ == "__main__":
    from jobs.cli import run_file

    run_file("alignment")
