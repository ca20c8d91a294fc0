"""Model, sentences and pipelines shared by the benchmarks of the activations stage."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray

from alignment.text.word_matching import find_word
from cluster.activations.actor import WorkUnit
from cluster.activations.pipeline import ActivationPipeline
from cluster.activations.shard import ActivationSettings
from cluster.models.tokenizer import Text
from cluster.models.weights import Weights, resolve
from cluster.runtime.devices import default_dtype
from cluster.runtime.session import connect
from jobs.activations import TOKEN_BUDGET, work_unit_size
from storage.readers.concepts import ConceptSet, read_concepts

SETTINGS = ActivationSettings(default_dtype(), "mlp", ["max", "concept", "context"])

_WARM_UP = 128
_CONCEPTS = Path(__file__).parent.parent / "examples" / "men-core.csv"


def demo_model() -> Weights:
    """The demo's model."""
    return resolve("smollm2-135m-instruct", "main", Path())


def demo_texts(count: int) -> list[Text]:
    """Evenly spaced sentences of the demo."""
    sentences = demo_concepts().sentences
    step = len(sentences) // count
    return [
        Text(row.text, [edge for span in find_word(row.text, row.concepts[0]) for edge in span])
        for row in sentences[: step * count : step]
    ]


def demo_concepts() -> ConceptSet:
    """The demo's concepts and all their sentences."""
    return read_concepts(_CONCEPTS, "demo")


@contextmanager
def pipelines(*shards: int) -> Iterator[tuple[list[ActivationPipeline], Path]]:
    """Pipelines with the given numbers of shards, one CPU core per shard, after a warm-up; and a folder
    to write to."""
    connect()
    # all pipelines exist at once, but only those being timed have work
    resources = {"CPU": ray.cluster_resources()["CPU"] / sum(shards) // 0.01 * 0.01}
    started = [ActivationPipeline(demo_model(), SETTINGS, count, resources) for count in shards]
    try:
        with tempfile.TemporaryDirectory() as name:
            for pipeline in started:
                run([pipeline], demo_texts(_WARM_UP), Path(name))
            yield started, Path(name)
    finally:
        for pipeline in started:
            pipeline.stop()
        ray.shutdown()


def in_units(texts: list[Text]) -> list[list[Text]]:
    """Sentences split into work units as in the stage."""
    size = work_unit_size(len(texts))
    return [texts[first : first + size] for first in range(0, len(texts), size)]


def run(replicas: list[ActivationPipeline], texts: list[Text], store: Path) -> None:
    """Read and commit all sentences, units assigned round-robin, at most two in flight per replica."""
    parts = in_units(texts)
    units = [
        WorkUnit(number, number * len(parts[0]), part, TOKEN_BUDGET) for number, part in enumerate(parts)
    ]
    in_flight: list[Any] = []
    for number, unit in enumerate(units):
        if len(in_flight) == 2 * len(replicas):
            ray.get(in_flight.pop(0))
        in_flight.append(replicas[number % len(replicas)].submit(unit, store, []))
    ray.get(in_flight)
