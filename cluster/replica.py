"""A replica: one Ray actor that holds a model on its device and commits work units."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
import torch
from transformers.utils import logging as transformers_logging

from cluster.shard import Shard
from cluster.sites import Site
from cluster.tokens import Text
from cluster.weights import Weights, materialise
from storage import schemas
from storage.activation_files import INPUT_EMBEDDINGS_FILE, activation_folder
from storage.commit import FileRecord, write_table, write_values
from storage.errors import NeuralignError

_ROW_GROUP_BYTES = 4 << 20


@dataclass(frozen=True)
class WorkUnit:
    """A contiguous run of sentences, from sentence_id `first`."""

    number: int
    first: int
    texts: list[Text]

    @property
    def name(self) -> str:
        return f"{self.number:05d}"


@dataclass(frozen=True)
class Receipt:
    """What a replica committed for a unit, and the (pooling, site) of each file."""

    files: list[FileRecord]
    places: list[tuple[str, Site]]
    tokens: int
    truncated: int


class Replica:
    """Runs whole work units on one device and writes their activations."""

    def __init__(self, weights: Weights, dtype: str, poolings: Sequence[str], budget: int) -> None:
        logging.getLogger("transformers").setLevel(logging.ERROR)
        transformers_logging.disable_progress_bar()
        self._weights = weights
        self._settings = (dtype, poolings, budget)

    @cached_property
    def _shard(self) -> Shard:
        # loaded by the first unit, so that being placed and being loaded are told apart
        gpu = bool(ray.get_gpu_ids()) and torch.cuda.is_available()
        return Shard(materialise(self._weights), *self._settings, "cuda" if gpu else "cpu")

    def ready(self) -> bool:
        """Answers as soon as the actor is placed."""
        return True

    def run(self, unit: WorkUnit, folder: Path, words: Sequence[str] = ()) -> Receipt:
        """Commit the activations of a unit, one file per (pooling, site), neuron by neuron; and the
        input embeddings of the words, if there are any."""
        try:
            reading = self._shard.read(unit.texts)
        except NeuralignError as error:
            raise type(error)(f"model {self._weights.label}: {error}") from error
        files = []
        for (pooling, site), values in reading.values.items():
            row_group = max(1, _ROW_GROUP_BYTES // values[0].nbytes) * values.shape[1]
            name = f"{activation_folder(pooling, site.layer, site.name)}/{unit.name}.parquet"
            files.append(write_values(folder, name, values, row_group))
        if words:
            files.append(self._write_embeddings(folder, words))
        return Receipt(files, list(reading.values), reading.tokens, reading.truncated)

    def _write_embeddings(self, folder: Path, words: Sequence[str]) -> FileRecord:
        rows = [
            {"concept": word, "vector": vector}
            for word, vector in zip(words, self._shard.embed(words), strict=True)
        ]
        table = pa.Table.from_pylist(rows, schemas.INPUT_EMBEDDINGS)
        return write_table(folder, INPUT_EMBEDDINGS_FILE, table)


def replica_options(gpus: int) -> dict[str, Any]:
    """What a replica asks of Ray: a GPU where the cluster has any, else one CPU and thread."""
    return {"num_gpus": 1, "num_cpus": 1} if gpus else {"num_cpus": 1}
