"""Stage `similarity` for sentence encoders: of a concept's sentences (their mean) and of its word
alone."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from alignment.arrays import AnyFloats
from cluster.models.weights import Weights, resolve_encoder
from jobs import sentences
from jobs.config.comparison import SentenceEncoderBaseline
from jobs.engine.progress import progress
from jobs.engine.stage import Resource, Stage, StageOutput
from jobs.representations.embeddings import COSINE, concept_means, cosine_rows
from jobs.similarity import KIND
from storage import tables
from storage.store.commit import write_table

SENTENCE_ENCODER = "sentence encoder"
ENCODED_WORD = "sentence encoder, word alone"

_TEXTS_PER_TASK = 256
_TASKS_IN_FLIGHT_PER_CPU = 2


def plan(baseline: SentenceEncoderBaseline, models_folder: Path, sentences_stage: Stage) -> Stage:
    """The stage that compares the concepts' sentence embeddings."""
    weights = resolve_encoder(baseline.encoder, baseline.revision, models_folder)
    params = {
        "model": baseline.name,
        "revision": None if weights.source == "folder" else weights.revision,
        "identity": weights.identity,
        "concept_set": sentences_stage.params["concept_set"],
        "representation": SENTENCE_ENCODER,
    }
    inputs = {"sentences": sentences_stage}
    return Stage(KIND, baseline.name, params, partial(_run, weights), inputs, Resource.CPUS)


def _run(weights: Weights, stage: Stage, store: Path) -> StageOutput:
    sentences_stage = stage.inputs["sentences"]
    names = sentences.read_concept_names(sentences_stage, store)
    texts = [*(text for text, _ in sentences.read_texts(sentences_stage, store)), *names]
    batches = []
    with progress(stage.name, len(texts), "texts") as advance:
        for batch in _encode(texts, weights):
            batches.append(batch)
            advance(len(batch))
    vectors = np.concatenate(batches)
    sentence_ids, members, n_sentences = sentences.read_memberships(sentences_stage, store)
    means = concept_means(vectors[:n_sentences].T, sentence_ids, members)
    results = [
        cosine_rows(names, means, stage, representation=SENTENCE_ENCODER, measure=COSINE),
        cosine_rows(names, vectors[n_sentences:], stage, representation=ENCODED_WORD, measure=COSINE),
    ]
    rows = pa.concat_tables(results)
    return StageOutput([write_table(stage.folder(store), tables.SIMILARITY.file, rows)])


def _encode(texts: list[str], weights: Weights) -> Iterator[AnyFloats]:
    """Embeddings of the texts, in batches and in order."""
    import ray

    from cluster.models.sentence_encoder import encode
    from cluster.runtime.session import cluster_cpus, connect, get_result

    connect()
    task = ray.remote(encode).options(num_cpus=1, max_retries=3)
    starts = list(range(0, len(texts), _TEXTS_PER_TASK))
    in_flight: list[Any] = []
    while starts or in_flight:
        while starts and len(in_flight) < _TASKS_IN_FLIGHT_PER_CPU * max(1, cluster_cpus()):
            start = starts.pop(0)
            in_flight.append(task.remote(weights, texts[start : start + _TEXTS_PER_TASK]))
        yield get_result(in_flight.pop(0))
