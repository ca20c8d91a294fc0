"""Stage `similarity`, by a sentence encoder: the mean of a concept's sentences, and its word alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from cluster.models.weights import Weights
from jobs import sentences
from jobs.engine.progress import progress
from jobs.engine.stage import Outcome, Resource, Stage
from jobs.representations.embeddings import COSINE, Vectors, compare, concept_means
from jobs.similarity import FILE, KIND
from storage.store.commit import write_table

SENTENCE_ENCODER = "sentence encoder"
ENCODED_WORD = "sentence encoder, word alone"

_TEXTS_IN_TASK = 256
_TASKS_IN_FLIGHT_PER_CPU = 2


def plan(name: str, weights: Weights, texts: Stage) -> Stage:
    """The stage that compares the concepts by what an encoder makes of their sentences."""
    params = {
        "model": name,
        "revision": None if weights.source == "folder" else weights.revision,
        "identity": weights.identity,
        "concept_set": texts.params["concept_set"],
        "representation": SENTENCE_ENCODER,
    }

    def run(stage: Stage, store: Path) -> Outcome:
        return _run(stage, store, weights)

    return Stage(KIND, name, params, run, {"sentences": texts}, Resource.CPUS)


def _run(stage: Stage, store: Path, weights: Weights) -> Outcome:
    texts = stage.inputs["sentences"]
    names = sentences.read_concept_names(texts, store)
    wanted = [*(text for text, _ in sentences.read_texts(texts, store)), *names]
    parts = []
    with progress(stage.name, len(wanted), "texts") as advance:
        for part in _encoded(wanted, weights):
            parts.append(part)
            advance(len(part))
    vectors = np.concatenate(parts)
    ids, members, n_sentences = sentences.read_memberships(texts, store)
    means = concept_means(vectors[:n_sentences].T, ids, members)
    tables = [
        compare(names, means, stage, representation=SENTENCE_ENCODER, measure=COSINE),
        compare(names, vectors[n_sentences:], stage, representation=ENCODED_WORD, measure=COSINE),
    ]
    return Outcome([write_table(stage.folder(store), FILE, pa.concat_tables(tables))])


def _encoded(texts: list[str], weights: Weights) -> Iterator[Vectors]:
    """Vectors of the texts, some at a time and in their order."""
    import ray

    from cluster.models.sentence_encoder import encode
    from cluster.runtime.session import connect, cpus, result

    connect()
    task = ray.remote(encode).options(num_cpus=1, max_retries=3)
    starts = list(range(0, len(texts), _TEXTS_IN_TASK))
    flying: list[Any] = []
    while starts or flying:
        while starts and len(flying) < _TASKS_IN_FLIGHT_PER_CPU * max(1, cpus()):
            start = starts.pop(0)
            flying.append(task.remote(weights, texts[start : start + _TEXTS_IN_TASK]))
        yield result(flying.pop(0))
