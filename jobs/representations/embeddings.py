"""Stage `similarity`, for what the experts are compared with: concepts as vectors, by cosine.

Word vectors, GloVe's or a file's; the model's input embeddings; the model's hidden states of each layer,
the mean of a sentence's tokens or the last, averaged over a concept's sentences, as they are and less
the mean over all concepts. Sentence encoders are in `jobs.representations.sentence_encoder`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from alignment.statistics.vectors import centred, cosine_matrix
from jobs import activations, sentences
from jobs.engine.stage import Outcome, Stage
from jobs.similarity import FILE, KIND, complete
from storage.assets import ASSETS
from storage.errors import UserError
from storage.readers.word_vectors import read_glove, read_vectors
from storage.store.activation_files import RESIDUAL
from storage.store.commit import write_table
from storage.store.fingerprint import hash_file

GLOVE = "glove-50"
WORD_VECTORS = "word vectors"
INPUT_EMBEDDING = "input embedding"
HIDDEN_STATE = "hidden state"
COSINE = "cosine"
CENTRED_COSINE = "centred cosine"

Vectors = npt.NDArray[np.floating[Any]]
WordVectors = dict[str, Vectors]


def plan_glove(texts: Stage) -> Stage:
    """The stage that compares the concepts' GloVe vectors."""
    return _plan_word_vectors(GLOVE, ASSETS[GLOVE].sha256, read_glove, texts)


def plan_word_vectors(name: str, path: Path, texts: Stage) -> Stage:
    """The stage that compares the concepts' vectors of a file. Raises UserError where there is none."""
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    return _plan_word_vectors(name, hash_file(path), partial(read_vectors, path), texts)


def _plan_word_vectors(
    name: str, sha256: str, read: Callable[[list[str]], WordVectors], texts: Stage
) -> Stage:
    params = {
        "model": name,
        "revision": None,
        "identity": sha256,
        "concept_set": texts.params["concept_set"],
        "representation": WORD_VECTORS,
    }

    def run(stage: Stage, store: Path) -> Outcome:
        return _run_word_vectors(stage, store, read)

    return Stage(KIND, name, params, run, {"sentences": texts})


def plan_embeddings(read: Stage, input_embedding: bool, contextual: bool) -> Stage:
    """The stage that compares a model's own embeddings of the concepts."""
    params = {
        **{name: read.params[name] for name in ("model", "revision", "concept_set")},
        "input_embedding": input_embedding,
        "contextual": contextual,
    }
    return Stage(KIND, f"{read.label}-embeddings", params, _run_embeddings, {"activations": read})


def _run_word_vectors(stage: Stage, store: Path, read: Callable[[list[str]], WordVectors]) -> Outcome:
    names = sentences.read_concept_names(stage.inputs["sentences"], store)
    # one of zeros stands for no vector, and has no direction
    vectors = {
        name: vector
        for name, vector in read(names).items()
        if np.isfinite(vector).all() and vector.any()
    }
    found = [name for name in names if name in vectors]
    if len(found) < 2:
        raise UserError(f"{stage.label}: has vectors for {len(found)} of the {len(names)} concepts")
    matrix = np.stack([vectors[name] for name in found])
    rows = compare(found, matrix, stage, representation=WORD_VECTORS, measure=COSINE)
    missing = [name for name in names if name not in vectors]
    notes = [f"{stage.label}: no word vector for {', '.join(missing)}"] if missing else []
    return Outcome([write_table(stage.folder(store), FILE, rows)], notes)


def _run_embeddings(stage: Stage, store: Path) -> Outcome:
    read = stage.inputs["activations"]
    texts = read.inputs["sentences"]
    names = sentences.read_concept_names(texts, store)
    tables = []
    if stage.params["input_embedding"]:
        vectors = activations.read_input_embeddings(read, store)
        matrix = np.array([vectors[name] for name in names])
        tables.append(compare(names, matrix, stage, representation=INPUT_EMBEDDING, measure=COSINE))
    if stage.params["contextual"]:
        for row in activations.read_sites(read, store):
            if row["site"] != RESIDUAL:
                continue
            place = {name: row[name] for name in ("pooling", "layer")}
            states = activations.site_files(read, store, **place, site=RESIDUAL)
            matrix = concept_means(states.read(), *sentences.read_memberships(texts, store)[:2])
            place["representation"] = HIDDEN_STATE
            tables.append(compare(names, matrix, stage, **place, measure=COSINE))
            tables.append(compare(names, centred(matrix), stage, **place, measure=CENTRED_COSINE))
    return Outcome([write_table(stage.folder(store), FILE, pa.concat_tables(tables))])


def concept_means(states: Vectors, ids: Any, members: Any) -> Vectors:
    """Mean over each concept's sentences of states of shape (width, sentences): (concepts, width)."""
    order = np.argsort(members, kind="stable")
    starts = np.flatnonzero(np.diff(np.asarray(members)[order], prepend=-1))
    sums = np.add.reduceat(states[:, np.asarray(ids)[order]].astype(np.float64), starts, axis=1)
    means: Vectors = (sums / np.bincount(members)).T
    return means


def compare(names: list[str], vectors: Vectors, stage: Stage, **place: Any) -> pa.Table:
    """Rows of the `similarity` table for each two concepts, by the cosine of their vectors.

    Raises UserError for a vector that is zero or not finite.
    """
    order = sorted(range(len(names)), key=lambda index: names[index])
    first, second = np.triu_indices(len(names), 1)
    try:
        cosines = cosine_matrix(vectors[order])[first, second]
    except ValueError as error:
        where = ", ".join(map(str, place.values()))
        raise UserError(f"{stage.name}: {where}: {error}") from error
    ordered = pa.array([names[index] for index in order])
    rows = pa.table(
        {
            "concept_a": ordered.take(pa.array(first)),
            "concept_b": ordered.take(pa.array(second)),
            "similarity": cosines,
        }
    )
    constant = {name: stage.params[name] for name in ("model", "revision", "concept_set")}
    return complete(rows, {**constant, **place})
