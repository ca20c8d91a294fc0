"""The model, sentences and pipelines that the benchmarks of the activations stage share."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray

from alignment.text.word_matching import find_word
from cluster.activations.actor import WorkUnit
from cluster.activations.pipeline import Pipeline
from cluster.activations.shard import Settings
from cluster.activations.tokens import Text
from cluster.models.weights import Weights, resolve
from cluster.runtime.devices import native_dtype
from cluster.runtime.session import connect
from jobs.activations import TOKEN_BUDGET, unit_size
from storage.readers.concepts import read_concepts

SETTINGS = Settings(native_dtype(), "mlp", ["max", "concept", "context"])

_WARM_UP = 128
_CONCEPTS = Path(__file__).parent.parent / "examples" / "demo-concepts.csv"


def demo_model() -> Weights:
    """The demo's model."""
    return resolve("smollm2-135m-instruct", "main", Path())


def demo_texts(count: int) -> list[Text]:
    """So many of the demo's sentences, taken evenly."""
    sentences = read_concepts(_CONCEPTS, "demo").sentences
    step = len(sentences) // count
    return [
        Text(each.text, [edge for span in find_word(each.text, each.concepts[0]) for edge in span])
        for each in sentences[: step * count : step]
    ]


@contextmanager
def pipelines(*shards: int) -> Iterator[tuple[list[Pipeline], Path]]:
    """Pipelines of so many shards each, on a CPU core a shard, warmed up by one unit; and a folder to
    write to."""
    connect()
    # all of them wait for work at once, but only those that are measured have any
    resources = {"CPU": ray.cluster_resources()["CPU"] / sum(shards) // 0.01 * 0.01}
    made = [Pipeline(demo_model(), SETTINGS, count, resources) for count in shards]
    try:
        with tempfile.TemporaryDirectory() as name:
            for pipeline in made:
                run([pipeline], demo_texts(_WARM_UP), Path(name))
            yield made, Path(name)
    finally:
        for pipeline in made:
            pipeline.stop()
        ray.shutdown()


def in_units(texts: list[Text]) -> list[list[Text]]:
    """Sentences cut into work units as the stage would."""
    size = unit_size(len(texts))
    return [texts[first : first + size] for first in range(0, len(texts), size)]


def run(replicas: list[Pipeline], texts: list[Text], store: Path) -> None:
    """Read and commit all sentences, units dealt to the replicas in turn; two units wait at each."""
    cut = in_units(texts)
    units = [
        WorkUnit(number, number * len(cut[0]), part, TOKEN_BUDGET) for number, part in enumerate(cut)
    ]
    flying: list[Any] = []
    for number, unit in enumerate(units):
        if len(flying) == 2 * len(replicas):
            ray.get(flying.pop(0))
        flying.append(replicas[number % len(replicas)].submit(unit, store, []))
    ray.get(flying)
