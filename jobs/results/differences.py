"""Differences of representations to one of them, on the very pairs of a comparison that is done."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import duckdb
import numpy as np

from alignment.statistics.resampling import Interval
from jobs.alignment import KIND, TRIPLETS, How, common_concepts, matrices_of, tasks_of
from jobs.results.summary import Labelled
from jobs.similarity import KIND as SIMILARITY
from jobs.sources.human_judgments import Judgments
from storage.database import ask, open_store
from storage.store import manifest

_FAMILY = ("representation", "model", "revision", "concept_set", "pooling", "measure")
_PLACE = (*_FAMILY, "layer", "site", "threshold", "top")


def differences(store: Path, shown: list[Labelled], other: dict[str, Any]) -> list[Interval | None]:
    """Each row's agreement less that of `other`, with its interval; None for a row without agreement.

    All are rows of the table `alignment`, of one run and human set.
    """
    aligned = next(each for each in manifest.done(store, KIND) if each.fingerprint == other["run"])
    read = set(aligned.inputs.values())
    inputs = [each.fingerprint for each in manifest.done(store, SIMILARITY) if each.folder.name in read]
    params = aligned.params
    how = How([other["agreement"]], params["interval"], params["resamples"], params["seed"])
    with open_store(store, {aligned.fingerprint, *inputs}) as connection:
        judgments = _judgments(connection, other)
        ((task,), _) = tasks_of(judgments, common_concepts(connection, judgments.concepts), how)
        matrices = []
        for _, row in shown:
            places, found = matrices_of({name: row[name] for name in _FAMILY}, connection, task.concepts)
            at = [[place[name] for name in _PLACE] for place in places]
            matrices.append(found[at.index([row[name] for name in _PLACE])])
    estimates = task.estimates(np.stack(matrices))
    (reference,) = (number for number, (_, row) in enumerate(shown) if row is other)
    return [
        None if row["rho"] is None else estimates.difference(number, estimates, reference)
        for number, (_, row) in enumerate(shown)
    ]


def _judgments(connection: duckdb.DuckDBPyConnection, of: dict[str, Any]) -> Judgments:
    """What people said in the comparison that a row of the table `alignment` is of."""
    name = of["human_set"]
    triplets = ask(connection, "FROM human_triplets").to_pylist()
    pairs = ask(connection, "FROM human_pairs").to_pylist()
    return Judgments(
        name,
        "",
        scores={(p["concept_a"], p["concept_b"]): p["score"] for p in pairs if p["human_set"] == name},
        triplets=[
            (t["concept_a"], t["concept_b"], t["odd"]) for t in triplets if t["human_set"] == name
        ],
        of_triplets=of["agreement"] == TRIPLETS,
    )
