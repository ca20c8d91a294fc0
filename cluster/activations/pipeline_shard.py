"""One shard of a pipeline: reads all sentences through its layers, a step of batches after another."""

from __future__ import annotations

from collections.abc import Collection

import torch

from cluster.activations.batching import batch_sentences
from cluster.activations.block_plan import free_memory
from cluster.activations.block_reader import BlockReader
from cluster.activations.block_shard import BlockShard
from cluster.activations.model_pass import Block
from cluster.activations.prepared_pass import PreparedPass
from cluster.activations.shard_choice import check_shard
from cluster.models.partial_model import shard_layers
from storage.errors import NeuralignError

HiddenStates = list[torch.Tensor]


class PipelineShard:
    """Shard `index` of `n_shards`, which buffers the values of its layers, and records those that are
    `missing` at the end. If neither they nor later ones are missing, it is not loaded.

    Raises UserError if the model cannot be read, or the shard does not fit the device.
    """

    def __init__(
        self, prepared: PreparedPass, index: int, n_shards: int, missing: Collection[int]
    ) -> None:
        settings, sentences = prepared.settings, prepared.sentences
        whole = shard_layers(prepared.folder, index, n_shards, settings.trust_remote_code)
        layers = range(whole.start, min(whole.stop, max(missing, default=-1) + 1))
        self._n_steps = 0
        self._missing = set(missing).intersection(layers)
        self._is_last = not any(layer >= layers.stop for layer in missing)
        self._recorder = prepared.make_recorder(self._missing, [])
        self._reader: BlockReader | None = None
        self._n_read = 0
        if not layers:
            return
        memory = free_memory(torch.device(prepared.device))
        if prepared.device == "cpu":
            # The shards share it.
            memory //= n_shards
        check_shard(prepared.model, layers, prepared.size, memory)
        self._shard = BlockShard(prepared.folder, settings, layers, prepared.device)
        if self._shard.is_first:
            sentences.check_vocabulary(self._shard.n_embeddings)
        self._batches = batch_sentences(sentences.lengths, prepared.request.budget)
        self._reader = BlockReader(self._shard, sentences, self._batches, prepared.threads)

    @property
    def n_read(self) -> int:
        """Number of sentences that were read, times that of the shard's missing layers."""
        reader = self._reader
        return self._n_read if reader is None else reader.n_read * len(self._missing)

    def step(self, step: int, n_steps: int, incoming: HiddenStates | None) -> HiddenStates:
        """Run one of the steps, from the hidden states before the layers (None at layer 0) to those
        after them, which are empty if no later layer is missing."""
        self._n_steps += 1
        if self._reader is None:
            return []
        n_batches = len(self._batches)
        numbers = range(n_batches * step // n_steps, n_batches * (step + 1) // n_steps)
        states = self._reader.read(
            numbers, lambda number: None if incoming is None else incoming[number - numbers.start]
        )
        outgoing: HiddenStates = []
        for after in states:
            if not self._is_last:
                outgoing.append(after)
        return outgoing

    def finish(self, n_steps: int) -> None:
        """Record the layers. Raises NeuralignError if a value is not finite, or a step is missing."""
        if self._n_steps != n_steps:
            raise NeuralignError(f"{self._n_steps} of {n_steps} steps of a pipeline's shard were run")
        if self._reader is not None:
            self._recorder.record(Block(self._shard.layers, self._reader.finish(), self._shard))
            self._n_read = self.n_read
            del self._shard
            self._reader = None
