"""One pass of a sentence set through a model, block by block, in one process. Imports no Ray.

All sentences go through the layers of a block, batch by batch, before the next block is loaded, so that
the weights are read once a pass whatever the memory of the device, and a block's pooled values of all
sentences are on the device together. The values do not depend on the blocks.
"""

from __future__ import annotations

import shutil
import traceback
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread

import numpy as np
import numpy.typing as npt
import torch

from cluster.activations.batching import batch_sentences, batch_shapes
from cluster.activations.block_buffer import PooledValues
from cluster.activations.block_memory import free_block, frozen_objects
from cluster.activations.block_plan import free_memory, is_divisible, plan_model, split_evenly
from cluster.activations.block_reader import BlockReader
from cluster.activations.block_shard import BlockShard
from cluster.activations.pooling import find_triton_problem
from cluster.activations.pooling_shard import ActivationSettings
from cluster.activations.sentence_set import SentenceSet
from cluster.activations.spool import (
    HiddenStateSpool,
    SpoolSettings,
    complete_layers,
    spool_folder,
)
from cluster.memory_errors import is_out_of_memory
from cluster.models.checkpoint import read_ahead
from storage.errors import SpoolError

_MAX_LOST = 3
"""Times that hidden states are lost until the disk is not tried again."""


@dataclass(frozen=True)
class Block:
    """The pooled values of all sentences in some layers, on the device."""

    layers: range
    pooled: list[PooledValues]
    _shard: BlockShard

    def embed_tokens(self, words: Sequence[Sequence[int]]) -> npt.NDArray[np.float32]:
        """Mean input embedding of the tokens of each word, (words, width); first block only."""
        return self._shard.embed_tokens(words)


@dataclass
class ModelPass:
    """A model, a sentence set and a device.

    `budget` is the number of tokens in a batch. `blocks` are by default as few as fit the device, where
    `consumer_bytes` are left for what uses their values. Batches run in `threads` on a CPU. `notes` say
    what a full memory changed, or hidden states that were lost.
    """

    folder: Path
    settings: ActivationSettings
    sentences: SentenceSet
    budget: int
    spool: SpoolSettings
    device: str = "cpu"
    blocks: Sequence[range] | None = None
    consumer_bytes: int = 0
    threads: int = 1
    notes: list[str] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        self._device = torch.device(self.device)
        self.batches = batch_sentences(self.sentences.lengths, self.budget)
        self._parts = 1
        self._missing: set[int] = set()
        self._n_done = 0
        self._reader: tuple[BlockReader, int] | None = None

    @property
    def n_read(self) -> int:
        """Sentences times missing layers that were read."""
        reader = self._reader
        return self._n_done + (0 if reader is None else reader[0].n_read * reader[1])

    def run(self, consume: Callable[[Block], None], missing: Collection[int] | None = None) -> None:
        """Call `consume` with each block once all sentences have passed through it, whose memory is used
        again afterwards, until all `missing` layers (by default all) were in one.

        A pass that was killed continues at the last layer before which all hidden states are on disk.

        Raises:
            UserError: if the model cannot be read, or does not fit the device.
            NeuralignError: if a site has no output, or a value is not finite.
            StoreError: if the disk is full, or loses hidden states repeatedly.
        """
        if self._device.type == "cuda" and (problem := find_triton_problem(self._device)):
            self.notes.append(f"maxima were pooled by torch, which is slower than Triton: {problem}")
        blocks = list(self.blocks or self._plan())
        self._missing = set(range(blocks[-1].stop) if missing is None else missing)
        with frozen_objects():
            self._run_missing(blocks, consume)

    def _run_missing(self, blocks: list[range], consume: Callable[[Block], None]) -> None:
        n_lost = 0
        while self._missing:
            try:
                self._run_blocks(self._clip(blocks, self._find_start()), consume)
            except SpoolError as error:
                n_lost += 1
                if n_lost == _MAX_LOST:
                    raise
                traceback.clear_frames(error.__traceback__)
                self.notes.append(f"hidden states on disk were lost, and layers read again: {error}")

    def _find_start(self) -> int:
        """The layer to begin at: the last one up to the first missing one whose hidden states an earlier
        run left complete, or 0. Removes all other hidden states."""
        shapes = batch_shapes(self.sentences.lengths, self.batches)
        complete = complete_layers(self.spool.folder, shapes)
        start = max((layer for layer in complete if layer <= min(self._missing)), default=0)
        for folder in self.spool.folder.glob("layer=*"):
            if folder != spool_folder(self.spool.folder, start):
                shutil.rmtree(folder)
        return start

    def _clip(self, blocks: list[range], first: int) -> list[range]:
        """The parts of blocks from a layer to the last missing one, after which none is needed."""
        stop = max(self._missing) + 1
        if not is_divisible(self.folder, self.settings):
            stop = blocks[-1].stop
        clipped = [range(max(block.start, first), min(block.stop, stop)) for block in blocks]
        return [block for block in clipped if block]

    def _run_blocks(self, blocks: list[range], consume: Callable[[Block], None]) -> None:
        incoming, stop = None, blocks[-1].stop
        if first := blocks[0].start:
            incoming = HiddenStateSpool.restore(self.spool, first, self._device)
        while blocks:
            layers, *remaining = blocks
            outgoing = None
            if remaining:
                outgoing = HiddenStateSpool(self.spool, layers.stop, self._device)
            if self._run_block(layers, remaining, incoming, outgoing, consume):
                if incoming is not None:
                    incoming.remove()
                blocks, incoming = remaining, outgoing
            else:
                if outgoing is not None:
                    outgoing.remove()
                blocks = self._shrink(range(layers.start, stop), len(layers))
            free_block(self._device)

    def _plan(self) -> list[range]:
        memory = free_memory(self._device)
        return plan_model(
            self.folder,
            self.settings,
            len(self.sentences),
            self.budget * self.threads,
            memory,
            self.consumer_bytes,
        )

    def _run_block(
        self,
        layers: range,
        remaining: list[range],
        incoming: HiddenStateSpool | None,
        outgoing: HiddenStateSpool | None,
        consume: Callable[[Block], None],
    ) -> bool:
        """Run a block, while the first of the remaining ones is read from disk, and pass it on; False if
        memory ran out and less can be tried at once."""
        try:
            shard = BlockShard(self.folder, self.settings, layers, self.device)
            if remaining:
                self._read_ahead(remaining[0])
            if shard.is_first:
                self.sentences.check_vocabulary(shard.n_embeddings)
            block = self.read_block(shard, incoming, outgoing)
        except Exception as error:
            self._reader = None
            if incoming is not None and isinstance(error, SpoolError):
                incoming.remove()
            if not (is_out_of_memory(error) and self._can_shrink(layers)):
                raise
            # Its frames would keep tensors alive.
            traceback.clear_frames(error.__traceback__)
            return False
        consume(block)
        self._n_done, self._reader = self.n_read, None
        self._missing.difference_update(layers)
        return True

    def _read_ahead(self, layers: range) -> None:
        memory = free_memory(torch.device("cpu")) // 2
        Thread(target=read_ahead, args=(self.folder, layers, memory), daemon=True).start()

    def read_block(
        self,
        shard: BlockShard,
        incoming: HiddenStateSpool | None = None,
        outgoing: HiddenStateSpool | None = None,
    ) -> Block:
        """Run all sentences through a loaded block, from the spool before it to the one after it."""
        reader = BlockReader(shard, self.sentences, self.batches, self.threads, self._parts)
        self._reader = reader, len(self._missing.intersection(shard.layers))
        numbers = range(len(self.batches))
        states = reader.read(numbers, lambda number: None if incoming is None else incoming.get(number))
        for number, after in zip(numbers, states, strict=True):
            if outgoing is not None:
                outgoing.put(number, after)
        if outgoing is not None:
            outgoing.finish()
        return Block(shard.layers, reader.finish(), shard)

    def _can_shrink(self, layers: range) -> bool:
        most_sentences = max(map(len, self.batches))
        return self._can_divide(layers) or self._parts < most_sentences

    def _can_divide(self, layers: range) -> bool:
        return len(layers) > 1 and is_divisible(self.folder, self.settings)

    def _shrink(self, layers: range, n_tried: int) -> list[range]:
        """Blocks of the remaining layers after memory ran out in the first `n_tried` of them: of half as
        many layers or, if that is not possible, with batches of half as many sentences."""
        tried = range(layers.start, layers.start + n_tried)
        if self._can_divide(tried):
            most = -(-n_tried // 2)
            self.notes.append(
                f"memory ran out in a block of {n_tried} layers from layer {layers.start} on; the rest "
                f"ran in blocks of at most {most}"
            )
            return split_evenly(layers, -(-len(layers) // most))
        self._parts *= 2
        self.notes.append(
            f"memory ran out in layer {layers.start}; from there on, batches were run in {self._parts} "
            "parts; bfloat16 values may differ in the last digit"
        )
        return split_evenly(layers, -(-len(layers) // n_tried))
