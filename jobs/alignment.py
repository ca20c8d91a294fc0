"""Stage `alignment`: how well each representation's similarities agree with human judgments.

All representations of a sweep are compared on the very same pairs, with the same resamples.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from alignment.statistics.correlation import FEWEST_PAIRS, benjamini_hochberg, correlate, mantel
from alignment.statistics.rank_correlation import Measure, rater_ceiling
from alignment.statistics.resampling import Estimates, Method
from alignment.statistics.triplets import chance_of_share, share_predicted
from jobs.engine.stage import Outcome, Stage
from jobs.representations.embeddings import WORD_VECTORS
from jobs.similarity import FILE
from jobs.sources.human_judgments import Judgments
from storage import sql, tables
from storage.store.commit import FileRecord, write_table
from storage.store.paths import let_read

KIND = "alignment"
ALIGNMENT_FILE = "alignment.parquet"
PAIRS_FILE = "human-pairs.parquet"
TRIPLETS_FILE = "human-triplets.parquet"
DROPPED_FILE = "human-dropped.parquet"
TRIPLETS = "triplets"

Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class How:
    """How agreement is measured and how its intervals and p values are had."""

    measures: list[Measure]
    method: Method
    resamples: int
    seed: int


@dataclass(frozen=True)
class Task:
    """The pairs (or triplets) of one human set among the concepts that every representation has."""

    human: Judgments
    how: How
    measure: Measure | None  # None for triplets
    concepts: list[str]
    members: Integers
    scores: Floats

    def estimates(self, matrices: Floats) -> Estimates:
        """Agreement of similarity matrices of shape (representations, concepts, concepts)."""
        how = self.how
        if self.measure is None:
            first, second, odd = self.members.T
            others = np.stack([matrices[:, first, odd], matrices[:, second, odd]], axis=2)
            alike = matrices[:, first, second]
            return share_predicted(alike, others, self.members, how.method, how.resamples, how.seed)
        first, second = self.members.T
        x = matrices[:, first, second]
        return correlate(
            x, self.scores, first, second, self.measure, how.method, how.resamples, how.seed
        )

    def p_values(self, matrices: Floats) -> Floats:
        """p of each matrix's agreement; NaN where there is none."""
        how, measure = self.how, self.measure
        if measure is None:
            return np.array(
                [chance_of_share(each, self.members, how.resamples, how.seed) for each in matrices]
            )
        first, second = self.members.T
        return np.array(
            [
                mantel(each, self.scores, first, second, measure, how.resamples, how.seed)
                for each in matrices
            ]
        )


def plan(name: str, texts: Stage, similarities: list[Stage], human: list[Judgments], how: How) -> Stage:
    """The stage that compares all representations of a sweep with all its human data."""
    params = {
        "human": {each.name: each.identity for each in human},
        "measures": list(how.measures),
        "interval": how.method,
        "resamples": how.resamples,
        "seed": how.seed,
    }
    inputs = {f"similarity {number}": stage for number, stage in enumerate(similarities)}

    def run(stage: Stage, store: Path) -> Outcome:
        return _run(stage, store, human, how)

    return Stage(KIND, name, params, run, {"sentences": texts, **inputs})


def _run(stage: Stage, store: Path, human: list[Judgments], how: How) -> Outcome:
    paths = [
        path
        for name, each in stage.inputs.items()
        if name != "sentences"
        for path in each.result(store).paths(FILE)
    ]
    # the sweep's first word vectors are what the others are compared with
    reference = next(
        (
            each.params["model"]
            for each in stage.inputs.values()
            if each.params.get("representation") == WORD_VECTORS
        ),
        None,
    )
    rows: list[dict[str, Any]] = []
    notes = []
    with duckdb.connect() as connection:
        connection.from_parquet(let_read(connection, paths), hive_partitioning=False).create(
            "similarity"
        )
        for judgments in human:
            notes += judgments.notes
            common = common_concepts(connection, judgments.concepts)
            tasks, why_not = tasks_of(judgments, common, how)
            notes += why_not
            for task in tasks:
                rows += _rows(connection, task, reference)
    return Outcome([*_judgment_files(stage.folder(store), human), _file(stage, store, rows)], notes)


def _file(stage: Stage, store: Path, rows: list[dict[str, Any]]) -> FileRecord:
    table = pa.Table.from_pylist(rows, tables.ALIGNMENT)
    return write_table(stage.folder(store), ALIGNMENT_FILE, table)


def _judgment_files(folder: Path, human: list[Judgments]) -> list[FileRecord]:
    pairs = [
        {"human_set": each.name, "concept_a": first, "concept_b": second, "score": score}
        for each in human
        for (first, second), score in each.scores.items()
    ]
    triplets = [
        {"human_set": each.name, "number": n, "concept_a": first, "concept_b": second, "odd": odd}
        for each in human
        for n, (first, second, odd) in enumerate(each.triplets)
    ]
    dropped = [
        {"human_set": each.name, "number": n, "words": list(lost.words), "reason": lost.reason}
        for each in human
        for n, lost in enumerate(each.dropped)
    ]
    return [
        write_table(folder, name, pa.Table.from_pylist(rows, schema))
        for name, rows, schema in (
            (PAIRS_FILE, pairs, tables.HUMAN_PAIRS),
            (TRIPLETS_FILE, triplets, tables.HUMAN_TRIPLETS),
            (DROPPED_FILE, dropped, tables.HUMAN_DROPPED),
        )
    ]


def common_concepts(connection: duckdb.DuckDBPyConnection, judged: set[str]) -> list[str]:
    """Those of the judged concepts that every representation in the table `similarity` has; they are in
    the table `common` from here on."""
    connection.execute("DROP TABLE IF EXISTS judged")
    connection.execute("DROP TABLE IF EXISTS common")
    sql.provide(connection, "judged", {"concept": pa.array(sorted(judged), pa.string())})
    connection.sql(sql.query("common_concepts")).create("common")
    return [name for (name,) in connection.sql("FROM common ORDER BY concept").fetchall()]


def tasks_of(judgments: Judgments, concepts: list[str], how: How) -> tuple[list[Task], list[str]]:
    """What is to be measured on a human set, and what cannot be, and why."""
    number = {name: index for index, name in enumerate(concepts)}
    groups = [group for group in judgments.groups if all(name in number for name in group)]
    if reason := why_not(judgments, groups):
        return [], [reason]
    members = np.array([[number[name] for name in group] for group in groups])
    if judgments.of_triplets:
        nothing = np.zeros(0)
        return [Task(judgments, how, None, concepts, members, nothing)], []
    scores = np.array([judgments.scores[first, second] for first, second in groups])
    return [Task(judgments, how, each, concepts, members, scores) for each in how.measures], []


def why_not(judgments: Judgments, groups: Sequence[tuple[str, ...]]) -> str | None:
    """Why these pairs or triplets of a human set give no agreement; None where they do."""
    if len(groups) < FEWEST_PAIRS:
        there = judgments.counted(len(groups))
        return f"{judgments.name}: {there} to compare with; {FEWEST_PAIRS} are needed"
    if not judgments.of_triplets and len({judgments.scores[a, b] for a, b in groups}) == 1:
        return f"{judgments.name}: all scores are equal, so nothing can agree with them"
    return None


def _rows(
    connection: duckdb.DuckDBPyConnection, task: Task, vectors: str | None
) -> list[dict[str, Any]]:
    """Rows of the `alignment` table, family after family; `vectors` are the word vectors that they are
    compared with."""
    families = connection.sql(sql.query("families")).to_arrow_table().to_pylist()
    queries = [(family, connection.cursor()) for family in families]
    reference: tuple[str, Estimates] | None = None
    for query in queries:
        if _called(query[0]) == f"{vectors} {WORD_VECTORS}":
            _, matrices = matrices_of(*query, task.concepts)
            estimates = task.estimates(matrices)
            if np.isfinite(estimates.values[0]):
                reference = _called(query[0]), estimates
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = [pool.submit(_family_rows, *query, task, reference) for query in queries]
        return [row for rows in found for row in rows.result()]


def _called(family: dict[str, Any]) -> str:
    return f"{family['model']} {family['representation']}"


def _family_rows(
    family: dict[str, Any],
    connection: duckdb.DuckDBPyConnection,
    task: Task,
    reference: tuple[str, Estimates] | None,
) -> list[dict[str, Any]]:
    places, matrices = matrices_of(family, connection, task.concepts)
    estimates = task.estimates(matrices)
    p = task.p_values(matrices)
    q = benjamini_hochberg(p)
    ceiling, source = _ceiling(task)
    rows = []
    for one, place in enumerate(places):
        interval = estimates.interval(one)
        undefined = place.pop("undefined")
        row = dict.fromkeys(tables.ALIGNMENT.names) | place
        row |= {
            "human_set": task.human.name,
            "agreement": task.measure or TRIPLETS,
            "n_pairs": len(task.members),
            "n_undefined": _n_undefined(undefined, task),
            "n_concepts": len(np.unique(task.members)),
            "rho": _finite(interval.value),
            "ci_low": interval.low,
            "ci_high": interval.high,
            "ci_by": task.how.method,
            "p": _finite(p[one]),
            "q": _finite(q[one]),
            "ceiling": ceiling,
            "ceiling_source": source,
        }
        compared = reference is not None and _called(family) != reference[0]
        if reference is not None and compared and row["rho"] is not None:
            name, theirs = reference
            difference = estimates.difference(one, theirs, 0)
            row |= {
                "reference": name,
                "difference": difference.value,
                "difference_low": difference.low,
                "difference_high": difference.high,
            }
        rows.append(row)
    return rows


def matrices_of(
    family: dict[str, Any], connection: duckdb.DuckDBPyConnection, concepts: list[str]
) -> tuple[list[dict[str, Any]], Floats]:
    """Where each representation of a family is read, and its similarities as symmetric matrices."""
    table: pa.Table = connection.sql(sql.query("matrices"), params=family).to_arrow_table()
    n = len(concepts)
    ends = np.triu_indices(n, 1)
    matrices = np.zeros((table.num_rows, n, n))
    for matrix, row in zip(matrices, table.column("similarities"), strict=True):
        matrix[ends] = row.values.to_numpy()
    matrices += matrices.transpose(0, 2, 1)
    return table.drop_columns("similarities").to_pylist(), matrices


def _n_undefined(undefined: list[bool], task: Task) -> int | None:
    """How many of the rated pairs have no similarity; None for triplets."""
    if task.measure is None:
        return None
    n = len(task.concepts)
    square = np.zeros((n, n), np.bool_)
    square[np.triu_indices(n, 1)] = undefined
    return int(square[task.members.min(axis=1), task.members.max(axis=1)].sum())


def _ceiling(task: Task) -> tuple[float | None, str | None]:
    """From the raters of these very pairs where the data has them, else as published."""
    human = task.human
    if human.raters and task.measure:
        groups = [tuple(task.concepts[end] for end in ends) for ends in task.members]
        ratings = np.array([human.raters[first, second] for first, second in groups]).T
        value = _finite(rater_ceiling(task.measure, ratings))
        return value, "its raters: each with the mean of the others"
    if human.ceiling is None or task.measure not in ("spearman", None):
        return None, None
    return human.ceiling.value, human.ceiling.source


def _finite(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None


if __name__ == "__main__":
    from jobs.commands.main import run_file

    run_file("alignment")
