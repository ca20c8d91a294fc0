"""A shard as a Ray actor that runs work units and commits their activations."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from ray.util.collective import nccl_available

from cluster.activations.buffer import PooledSite
from cluster.activations.shard import ActivationShard, HiddenStates
from cluster.models.tokenizer import Text
from cluster.runtime.shard_group import ModelActor
from storage import tables
from storage.errors import NeuralignError
from storage.store.activation_files import (
    INPUT_EMBEDDINGS_FILE,
    activation_folder,
    units_per_row_group,
)
from storage.store.commit import FileRecord, write_table, write_values
from storage.store.paths import is_remote

STEPS = 4
"""A work unit passes from shard to shard in this many steps of complete batches, so shards overlap."""

_PARALLEL_UPLOADS = 4
"""Hides the latency of object stores. On a disk, a second writer only takes cores from the model."""


@dataclass(frozen=True)
class WorkUnit:
    """Consecutive sentences, from sentence_id `first`."""

    number: int
    first: int
    texts: list[Text]
    budget: int
    n_sentences: int = 0
    """Number of sentences in all work units."""

    @property
    def name(self) -> str:
        return f"{self.number:05d}"


@dataclass(frozen=True)
class UnitResult:
    """Files committed for a unit, the pooled sites of the activations in them, and the number of tokens
    of each concept's word, in the unit that is given the words."""

    files: list[FileRecord]
    pooled_sites: list[PooledSite]
    n_tokens: int
    n_truncated: int
    word_tokens: dict[str, int]


class ShardActor(ModelActor[ActivationShard]):
    """Holds layers on one device. Steps run one after another, commits in parallel with them."""

    shard_class = ActivationShard
    _states: dict[int, Any]
    """The `UnitState` of each work unit, or the error of its first failed step."""

    def supports_nccl(self) -> bool:
        """Whether Ray can send tensors from this actor's GPU to another."""
        return bool(nccl_available()) and torch.cuda.is_available()

    def step(
        self, unit: WorkUnit, step: int, incoming: HiddenStates | None, stay_on_device: bool
    ) -> HiddenStates | None:
        """Run one of the STEPS of a unit; return the next shard's input.

        A failed step fails all later ones: Ray runs them regardless, and commits after the last.
        """
        state: Any = self._states.get(unit.number)
        if step > 0 and isinstance(state, Exception):
            raise state
        with self._handle_errors(unit):
            if step == 0:
                state = self._states[unit.number] = self._shard.begin(unit.texts, unit.budget)
            n_batches = len(state.batches)
            indices = range(n_batches * step // STEPS, n_batches * (step + 1) // STEPS)
            outgoing = self._shard.step(state, indices, incoming)
        if self._shard.is_last:
            return None
        return outgoing if stay_on_device else [hidden.cpu() for hidden in outgoing]

    def commit(
        self,
        unit: WorkUnit,
        folder: Path,
        words: Sequence[str],
        earlier: UnitResult | None,
        _last_step: object,
    ) -> UnitResult:
        """Commit a unit, one file per pooled site, neuron by neuron; and, in the first shard, the input
        embeddings of `words`. The result includes that of `earlier` shards. `_last_step` is only a
        dependency."""
        state = self._states.pop(unit.number)
        with self._handle_errors(unit):
            activations = self._shard.finish(state)

        def write(key: PooledSite) -> FileRecord:
            pooling, site = key
            # torch transposes a matrix twice as fast as NumPy
            values = torch.from_numpy(activations.values[key]).contiguous().numpy()
            n_sentences = values.shape[1]
            total_bytes = max(unit.n_sentences, n_sentences) * values.itemsize
            units = units_per_row_group(n_sentences * values.itemsize, total_bytes)
            name = f"{activation_folder(pooling, site.layer, site.name)}/{unit.name}.parquet"
            return write_values(folder, name, values, units * n_sentences)

        with ThreadPoolExecutor(_PARALLEL_UPLOADS if is_remote(folder) else 1) as threads:
            files = list(threads.map(write, activations.values))
        self._shard.recycle(state)
        if words:
            embeddings = {"concept": words, "vector": list(self._shard.embed(words))}
            table = pa.Table.from_pydict(embeddings, tables.INPUT_EMBEDDINGS)
            files.append(write_table(folder, INPUT_EMBEDDINGS_FILE, table))
        pooled_sites = list(activations.values)
        tokenizer = self._shard.tokenizer
        word_tokens = {word: len(tokenizer.word_ids(word.replace("_", " "))) for word in words}
        if earlier is not None:
            files, pooled_sites = earlier.files + files, earlier.pooled_sites + pooled_sites
            word_tokens = earlier.word_tokens
        n_tokens, n_truncated = activations.n_tokens, activations.n_truncated
        return UnitResult(files, pooled_sites, n_tokens, n_truncated, word_tokens)

    @contextmanager
    def _handle_errors(self, unit: WorkUnit) -> Iterator[None]:
        """Name the model in our own errors, and remember any error for the unit's later steps."""
        try:
            yield
        except Exception as error:
            # Its frames would keep tensors alive, and memory may have run out.
            traceback.clear_frames(error.__traceback__)
            if isinstance(error, NeuralignError):
                error = type(error)(f"model {self._weights.label}: {error}")
            self._states[unit.number] = error
            raise error
