"""One pass of a sentence set through a model, block by block, in one process. Imports no Ray.

All sentences go through the layers of a block, batch by batch, before the next block is loaded, so that
the weights are read once a pass whatever the memory of the device, and a block's pooled values of all
sentences are on the device together. The values do not depend on the blocks.
"""

from __future__ import annotations

import gc
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread

import numpy as np
import numpy.typing as npt
import torch

from cluster.activations.batching import PaddedBatch, batch_sentences, pad
from cluster.activations.block_buffer import BlockBuffer, PooledValues
from cluster.activations.block_plan import free_memory, is_divisible, plan_model, split_evenly
from cluster.activations.block_shard import BlockShard
from cluster.activations.pooling import find_triton_problem
from cluster.activations.pooling_shard import PAD_ID, ActivationSettings
from cluster.activations.sentence_set import SentenceSet
from cluster.activations.spool import HiddenStateSpool, SpoolSettings
from cluster.memory_errors import is_out_of_memory
from cluster.models.checkpoint import read_ahead


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
    `consumer_bytes` are left for what uses their values. `notes` say what a full memory changed.
    """

    folder: Path
    settings: ActivationSettings
    sentences: SentenceSet
    budget: int
    spool: SpoolSettings
    device: str = "cpu"
    blocks: Sequence[range] | None = None
    consumer_bytes: int = 0
    notes: list[str] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        self._device = torch.device(self.device)
        self.batches = batch_sentences(self.sentences.lengths, self.budget)
        self._parts = 1

    def run(self, consume: Callable[[Block], None], first_layer: int = 0) -> None:
        """Call `consume` with each block once all sentences have passed through it. Its memory is used
        again afterwards.

        A pass that was killed continues at the `first_layer` of a block whose hidden states are complete
        on disk.

        Raises:
            UserError: if the model cannot be read, or does not fit the device.
            NeuralignError: if a site has no output, or a value is not finite.
        """
        if self._device.type == "cuda" and (problem := find_triton_problem(self._device)):
            self.notes.append(f"maxima were pooled by torch, which is slower than Triton: {problem}")
        # To find a block's garbage among all objects takes as long as to load a block.
        gc.collect()
        gc.freeze()
        try:
            self._run_blocks(consume, first_layer)
        finally:
            gc.unfreeze()

    def _run_blocks(self, consume: Callable[[Block], None], first_layer: int) -> None:
        incoming = None
        if first_layer:
            incoming = HiddenStateSpool.restore(self.spool, first_layer, self._device)
        blocks = [
            range(max(block.start, first_layer), block.stop)
            for block in self.blocks or self._plan()
            if block.stop > first_layer
        ]
        n_layers = blocks[-1].stop
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
                blocks = self._shrink(range(layers.start, n_layers), len(layers))
            self._free_memory()

    def _plan(self) -> list[range]:
        memory = free_memory(self._device)
        return plan_model(
            self.folder,
            self.settings,
            len(self.sentences),
            self.budget,
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
            if not (is_out_of_memory(error) and self._can_shrink(layers)):
                raise
            # Its frames would keep tensors alive.
            traceback.clear_frames(error.__traceback__)
            return False
        consume(block)
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
        buffer = BlockBuffer(shard.pooled_dtypes, len(self.sentences), self._device)
        first = 0
        for number, rows in enumerate(self.batches):
            batch = pad([self.sentences.tokens[row] for row in rows], PAD_ID, self._device)
            hidden = None if incoming is None else incoming.get(number)
            after = self._run_parts(shard, batch, hidden, buffer, first)
            if outgoing is not None:
                outgoing.put(number, after)
            first += len(rows)
        if outgoing is not None:
            outgoing.finish()
        order = [row for rows in self.batches for row in rows]
        pooled = buffer.finish(order, [text.text for text in self.sentences.texts])
        return Block(shard.layers, pooled, shard)

    def _run_parts(
        self,
        shard: BlockShard,
        batch: PaddedBatch,
        hidden: torch.Tensor | None,
        buffer: BlockBuffer,
        first: int,
    ) -> torch.Tensor:
        """Run a batch in as many parts as the device needs, into columns from `first` on."""
        results = []
        row = 0
        for part in batch.split(self._parts):
            stop = row + len(part.roles)
            incoming = None if hidden is None else hidden[row:stop]
            results.append(shard.run(part, incoming, buffer, slice(first + row, first + stop)))
            row = stop
        return results[0] if len(results) == 1 else torch.cat(results)

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

    def _free_memory(self) -> None:
        # Hooks refer to their shard, which refers to its modules.
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
