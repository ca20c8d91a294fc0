"""Model, sentences and workers shared by the benchmarks of the activations stage."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ray
import torch
from torch import nn
from transformers import AutoModel
from transformers.utils import logging as transformers_logging

from alignment.text.word_matching import find_word
from cluster.activations.layer_writer import LayerWriter
from cluster.activations.pass_actor import PassWorker
from cluster.activations.pass_request import PassRequest
from cluster.activations.pooling_shard import ActivationSettings
from cluster.models.tokenizer import Text
from cluster.models.weights import Weights, resolve
from cluster.runtime.devices import default_dtype
from jobs.config.models import Model
from jobs.device_params import token_budget
from storage.readers.concepts import ConceptSet, read_concepts

SETTINGS = ActivationSettings(default_dtype(on_gpus=False), "mlp", ["max", "concept", "context"])
TOKEN_BUDGET = token_budget(Model(id="smollm2-135m-instruct", gpus_per_shard=0))

_WARM_UP = 128
_CONCEPTS = Path(__file__).parent.parent / "examples" / "men-core.csv"


def demo_model() -> Weights:
    """The demo's model."""
    return resolve("smollm2-135m-instruct", "main", Path())


def bare_model(folder: Path) -> nn.Module:
    """The model without its head, as transformers loads it."""
    transformers_logging.disable_progress_bar()
    model: nn.Module = AutoModel.from_pretrained(folder, dtype=getattr(torch, SETTINGS.dtype))
    return model.eval()


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
def workers(*shards_and_cpus: tuple[int, int]) -> Iterator[tuple[list[PassWorker], Path]]:
    """Workers with the given numbers of shards and of CPU cores per shard, after a warm-up; and a folder
    to write to."""
    # All workers exist at once, but only those being timed have work.
    n_cpus = sum(shards * cpus for shards, cpus in shards_and_cpus)
    ray.init(address="local", num_cpus=n_cpus, include_dashboard=False, log_to_driver=False)
    started = [
        PassWorker(demo_model(), SETTINGS, shards, {"CPU": float(cpus)})
        for shards, cpus in shards_and_cpus
    ]
    try:
        with tempfile.TemporaryDirectory() as name:
            for worker in started:
                run(worker, demo_texts(_WARM_UP), Path(name))
            yield started, Path(name)
    finally:
        for worker in started:
            worker.stop()
        ray.shutdown()


def run(worker: PassWorker, texts: list[Text], store: Path) -> None:
    """Read all sentences and write their activations into a new folder of the store."""
    folder = Path(tempfile.mkdtemp(dir=store))
    ray.get(worker.run(PassRequest(texts, ["cat"], TOKEN_BUDGET, folder, None, LayerWriter(folder))))
