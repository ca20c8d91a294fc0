"""A shard as a Ray actor: it reads its layers of every work unit and commits what it read."""

from __future__ import annotations

import logging
import os
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import ray
import torch
from ray.util.collective import nccl_available
from transformers.utils import logging as transformers_logging

from cluster.activations.buffer import Place
from cluster.activations.shard import Hidden, Settings, Shard, Work
from cluster.activations.tokens import Text
from cluster.models.partial_model import shard_layers
from cluster.models.weights import Weights, materialise
from storage import tables
from storage.errors import NeuralignError
from storage.store.activation_files import INPUT_EMBEDDINGS_FILE, activation_folder
from storage.store.commit import FileRecord, write_table, write_values
from storage.store.paths import is_remote

STEPS = 4
"""A unit passes from shard to shard in this many pieces, so that a shard begins while the one before it
still works; each piece holds whole batches."""

_ROW_GROUP_BYTES = 4 << 20
_BLOCK_BYTES = 64 << 20
_PUTS_AT_ONCE = 4
"""Files of a unit on their way to a bucket, which answers late; on a disk more than one would only take
cores from the model."""


@dataclass(frozen=True)
class WorkUnit:
    """A contiguous run of sentences, from sentence_id `first`."""

    number: int
    first: int
    texts: list[Text]
    budget: int
    of: int = 0
    """Sentences of all units together."""

    @property
    def name(self) -> str:
        return f"{self.number:05d}"


@dataclass(frozen=True)
class Receipt:
    """What was committed for a unit, and the (pooling, site) of each file."""

    files: list[FileRecord]
    places: list[Place]
    tokens: int
    truncated: int

    def with_earlier(self, earlier: Receipt | None) -> Receipt:
        """This shard's receipt with those of the shards before it."""
        if earlier is None:
            return self
        return Receipt(
            earlier.files + self.files, earlier.places + self.places, self.tokens, self.truncated
        )


def _units_in_group(values: npt.NDArray[np.floating[Any]], sentences: int) -> int:
    """Neurons in a row group: fewer where there are many sentences, so that who reads some neurons of
    all work units need not hold more."""
    of_all = int(max(sentences, values.shape[1]) * values.itemsize)
    return max(1, min(_ROW_GROUP_BYTES // int(values[0].nbytes), _BLOCK_BYTES // of_all))


def settle_in() -> None:
    """Prepare an actor's process: it sees the devices and the core that it was given, and loads without
    a word."""
    if not ray.get_gpu_ids():
        # Ray leaves the devices of the machine visible to an actor that was given none
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    # threads cut sums in other places: bytes must not depend on OMP_NUM_THREADS of the node
    torch.set_num_threads(1)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    transformers_logging.disable_progress_bar()


def own_device() -> str:
    """The device of the actor that asks."""
    return "cuda" if ray.get_gpu_ids() and torch.cuda.is_available() else "cpu"


class ShardActor:
    """Holds layers on one device. Steps run one after another; commits run beside them."""

    def __init__(self, weights: Weights, settings: Settings, shard: int, shards: int) -> None:
        settle_in()
        self._weights = weights
        self._settings = settings
        self._place = (shard, shards)
        self._open: dict[int, Work] = {}
        self._failed: dict[int, Exception] = {}

    def offers_nccl(self) -> bool:
        """Whether Ray can send tensors from this actor's GPU to another."""
        return bool(nccl_available()) and torch.cuda.is_available()

    def step(
        self, unit: WorkUnit, piece: int, incoming: Hidden | None, stay_on_device: bool
    ) -> Hidden | None:
        """Run one piece of a unit; what the next shard needs is returned.

        After a piece that failed all later ones fail as it did: Ray runs them nevertheless, and the unit
        is committed when the last is done.
        """
        if piece == 0:
            self._failed.pop(unit.number, None)
        elif unit.number in self._failed:
            raise self._failed[unit.number]
        with self._kept_errors(unit), self._named_errors():
            if piece == 0:
                self._open[unit.number] = self._shard.begin(unit.texts, unit.budget)
            work = self._open[unit.number]
            count = len(work.batches)
            numbers = range(count * piece // STEPS, count * (piece + 1) // STEPS)
            outgoing = self._shard.step(work, numbers, incoming)
        shard, shards = self._place
        if shard + 1 == shards:
            return None
        return outgoing if stay_on_device else [hidden.cpu() for hidden in outgoing]

    def commit(
        self,
        unit: WorkUnit,
        folder: Path,
        words: Sequence[str],
        earlier: Receipt | None,
        _last_step: object,
    ) -> Receipt:
        """Commit a unit, one file per (pooling, site), neuron by neuron; and, in the first shard, the
        input embeddings of the words. `_last_step` is there to be waited for."""
        work = self._open.pop(unit.number)
        with self._named_errors():
            reading = self._shard.finish(work)

        def write(place: Place) -> FileRecord:
            pooling, site = place
            # torch turns a matrix round in half the time that NumPy takes
            values = torch.from_numpy(reading.values[place]).contiguous().numpy()
            row_group = _units_in_group(values, unit.of) * values.shape[1]
            name = f"{activation_folder(pooling, site.layer, site.name)}/{unit.name}.parquet"
            return write_values(folder, name, values, row_group)

        with ThreadPoolExecutor(_PUTS_AT_ONCE if is_remote(folder) else 1) as threads:
            files = list(threads.map(write, reading.values))
        self._shard.recycle(work)
        if words:
            files.append(self._write_embeddings(folder, words))
        receipt = Receipt(files, list(reading.values), reading.tokens, reading.truncated)
        return receipt.with_earlier(earlier)

    @contextmanager
    def _kept_errors(self, unit: WorkUnit) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            # or its frames would hold the tensors that memory ran out for
            traceback.clear_frames(error.__traceback__)
            self._failed[unit.number] = error
            self._open.pop(unit.number, None)
            raise

    @contextmanager
    def _named_errors(self) -> Iterator[None]:
        try:
            yield
        except NeuralignError as error:
            raise type(error)(f"model {self._weights.label}: {error}") from error

    @cached_property
    def _shard(self) -> Shard:
        # loaded by the first step, so that being placed and being loaded are told apart
        folder = materialise(self._weights)
        layers = shard_layers(folder, *self._place, self._weights.remote_code)
        return Shard(folder, self._settings, layers, own_device())

    def _write_embeddings(self, folder: Path, words: Sequence[str]) -> FileRecord:
        rows = [
            {"concept": word, "vector": vector}
            for word, vector in zip(words, self._shard.embed(words), strict=True)
        ]
        table = pa.Table.from_pylist(rows, tables.INPUT_EMBEDDINGS)
        return write_table(folder, INPUT_EMBEDDINGS_FILE, table)
