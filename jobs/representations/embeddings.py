"""Stage `similarity` for baselines that represent a concept as a vector: cosine similarity.

The vectors are GloVe or other word vectors, the model's input embeddings, or its hidden states after
each layer (of the last token, or the mean over tokens or over those of the concept's word), averaged
over a concept's sentences, compared as they are, less the mean over concepts, and standardized over
concepts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from alignment.arrays import AnyFloats, Floats
from alignment.statistics.vectors import cosine_matrix, standardize, subtract_mean
from jobs import activations, sentences
from jobs.engine.keeping import are_kept
from jobs.engine.stage import Stage, StageOutput
from jobs.similarity import KIND, fill_columns
from storage import tables
from storage.assets import ASSETS
from storage.errors import UserError
from storage.readers.word_vectors import read_glove, read_vectors
from storage.store.activation_files import CONCEPT, RESIDUAL
from storage.store.commit import write_table
from storage.store.fingerprint import hash_file
from storage.store.manifest import read_rows

GLOVE = "glove-50"
WORD_VECTORS = "word vectors"
INPUT_EMBEDDING = "input embedding"
HIDDEN_STATE = "hidden state"
COSINE = "cosine"
CENTRED_COSINE = "centred cosine"
STANDARDIZED_COSINE = "standardized cosine"

VectorLoader = Callable[[list[str]], dict[str, AnyFloats]]


def plan_glove(sentences_stage: Stage) -> Stage:
    """The stage that compares the GloVe vectors of the concepts."""
    return _plan_word_vectors(GLOVE, ASSETS[GLOVE].sha256, read_glove, sentences_stage)


def plan_word_vectors(name: str, path: Path, sentences_stage: Stage) -> Stage:
    """The stage that compares the concepts' vectors in a file. Raises UserError if it does not exist."""
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    return _plan_word_vectors(name, hash_file(path), partial(read_vectors, path), sentences_stage)


def _plan_word_vectors(name: str, sha256: str, load: VectorLoader, sentences_stage: Stage) -> Stage:
    params = {
        "model": name,
        "revision": None,
        "identity": sha256,
        "concept_set": sentences_stage.params["concept_set"],
        "representation": WORD_VECTORS,
    }
    run = partial(_run_word_vectors, load)
    return Stage(KIND, name, params, run, {"sentences": sentences_stage})


def plan_embeddings(activations_stage: Stage, input_embedding: bool, contextual: bool) -> Stage:
    """The stage that compares a model's own embeddings of the concepts."""
    params = {
        **{name: activations_stage.params[name] for name in ("model", "revision", "concept_set")},
        "input_embedding": input_embedding,
        "contextual": contextual,
    }
    label = f"{activations_stage.label}-embeddings"
    return Stage(KIND, label, params, _run_embeddings, {"activations": activations_stage})


def _run_word_vectors(load: VectorLoader, stage: Stage, store: Path) -> StageOutput:
    names = sentences.read_concept_names(stage.inputs["sentences"], store)
    loaded = load(names)
    # a zero vector has no cosine
    vectors = {name: vector for name, vector in loaded.items() if vector.any()}
    covered = [name for name in names if name in vectors]
    if len(covered) < 2:
        raise UserError(f"{stage.label}: has vectors for only {len(covered)} of {len(names)} concepts")
    matrix = np.stack([vectors[name] for name in covered])
    rows = cosine_tables(covered, matrix, stage, representation=WORD_VECTORS)
    missing = [name for name in names if name not in loaded]
    zero = [name for name in names if name in loaded and name not in vectors]
    notes = [
        f"{stage.label}: {problem} for {', '.join(concepts)}"
        for problem, concepts in (("no word vector", missing), ("the word vector is zero", zero))
        if concepts
    ]
    return StageOutput([write_table(stage.folder(store), tables.SIMILARITY.file, rows)], notes)


def _run_embeddings(stage: Stage, store: Path) -> StageOutput:
    activations_stage = stage.inputs["activations"]
    sentences_stage = activations_stage.inputs["sentences"]
    names = sentences.read_concept_names(sentences_stage, store)
    results, notes = [], {}
    if stage.params["input_embedding"]:
        embeddings = activations.read_input_embeddings(activations_stage, store)
        matrix = np.array([embeddings[name] for name in names])
        results.append(cosine_tables(names, matrix, stage, representation=INPUT_EMBEDDING))
    if stage.params["contextual"]:
        for pooling, layer, covered, matrix in _concept_states(activations_stage, store, names):
            if missing := [name for name in names if name not in covered]:
                # Pairs without a similarity would count as 0 in alignment.
                notes[pooling] = _missing_states_note(stage, pooling, missing)
                continue
            key = {"pooling": pooling, "layer": layer, "representation": HIDDEN_STATE}
            results.append(cosine_tables(names, matrix, stage, **key))
    rows = pa.concat_tables(results)
    file = write_table(stage.folder(store), tables.SIMILARITY.file, rows)
    return StageOutput([file], list(notes.values()))


def _missing_states_note(stage: Stage, pooling: str, missing: Sequence[str]) -> str:
    return (
        f"{stage.label}: hidden states with pooling '{pooling}' are not compared: no sentence has a "
        f"state at the word of {', '.join(missing)}"
    )


def _concept_states(
    activations_stage: Stage, store: Path, names: list[str]
) -> Iterator[tuple[str, int, list[str], AnyFloats]]:
    """Pooling and layer of hidden states, the concepts that have any, and their means over each of these
    concepts' sentences, of shape (concepts, width)."""
    if are_kept(activations_stage.params):
        ids, members, _ = sentences.read_memberships(activations_stage.inputs["sentences"], store)
        has_state = ~np.isin(ids, activations.read_missing_states(activations_stage, store))
        for row in activations.read_sites(activations_stage, store):
            if row["site"] == RESIDUAL:
                key = {name: row[name] for name in ("pooling", "layer")}
                states = activations.open_site(activations_stage, store, **key, site=RESIDUAL).read()
                is_used = has_state if key["pooling"] == CONCEPT else np.ones_like(has_state)
                covered = [names[number] for number in np.unique(members[is_used])]
                yield *key.values(), covered, concept_means(states, ids[is_used], members[is_used])
        return
    manifest = activations_stage.read_manifest(store)
    for record in manifest.records(tables.CONCEPT_STATES.file):
        rows = read_rows(manifest.folder, [record])
        # The concepts of a pooling are in the set's order.
        for pooling in rows.column("pooling").unique().to_pylist():
            part = rows.filter(pc.field("pooling") == pooling).combine_chunks()
            vectors = np.stack(part.column("vector").to_numpy())
            yield pooling, part.column("layer")[0].as_py(), part.column("concept").to_pylist(), vectors


def concept_means(states: AnyFloats, sentence_ids: Any, members: Any) -> AnyFloats:
    """Mean over each concept's sentences of states of shape (width, sentences): (concepts, width).

    `sentence_ids` and `members`, concept indices, are parallel arrays; concepts without a sentence have
    no row.
    """
    order = np.argsort(members, kind="stable")
    starts = np.flatnonzero(np.diff(np.asarray(members)[order], prepend=-1))
    sums = np.add.reduceat(states[:, np.asarray(sentence_ids)[order]].astype(np.float64), starts, axis=1)
    means: AnyFloats = (sums / np.unique(members, return_counts=True)[1]).T
    return means


def cosine_tables(
    names: list[str], vectors: AnyFloats, stage: Stage, **representation_key: Any
) -> pa.Table:
    """`cosine_rows` of vectors as they are, less their mean, and standardized over concepts."""
    treated = {
        COSINE: vectors,
        CENTRED_COSINE: subtract_mean(vectors),
        STANDARDIZED_COSINE: standardize(vectors),
    }
    return pa.concat_tables(
        cosine_rows(names, matrix, stage, **representation_key, measure=measure)
        for measure, matrix in treated.items()
    )


def cosine_rows(
    names: list[str], vectors: AnyFloats, stage: Stage, **representation_key: Any
) -> pa.Table:
    """Rows of the `similarity` table for every pair of concepts: the cosine of their vectors.

    `representation_key` has the other key columns. Raises UserError for a vector that is zero or not
    finite.
    """
    try:
        cosines = cosine_matrix(vectors)
    except ValueError as error:
        key = ", ".join(map(str, representation_key.values()))
        raise UserError(f"{stage.name}: {key}: {error}") from error
    return similarity_rows(names, cosines, stage, **representation_key)


def similarity_rows(
    names: list[str], similarities: Floats, stage: Stage, **representation_key: Any
) -> pa.Table:
    """Rows of the `similarity` table for every pair of concepts, from a symmetric matrix."""
    order = sorted(range(len(names)), key=lambda index: names[index])
    first, second = np.triu_indices(len(names), 1)
    sorted_names = pa.array([names[index] for index in order])
    columns = {
        "concept_a": sorted_names.take(pa.array(first)),
        "concept_b": sorted_names.take(pa.array(second)),
        "similarity": similarities[np.ix_(order, order)][first, second],
    }
    constants = {name: stage.params[name] for name in ("model", "revision", "concept_set")}
    return fill_columns(pa.table(columns), {**constants, **representation_key})
