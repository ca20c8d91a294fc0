"""Runs the batches of a sentence set through a loaded block of layers. Imports no Ray."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate

import torch

from cluster.activations.batching import pad
from cluster.activations.block_buffer import BlockBuffer, PooledValues
from cluster.activations.block_shard import BlockShard
from cluster.activations.ordered_threads import map_in_order
from cluster.activations.pooling_shard import PAD_ID
from cluster.activations.sentence_set import SentenceSet

_MAX_AHEAD = 8
"""Batches that the host may be ahead of a GPU: what is counted as read has nearly been read."""


class BlockReader:
    """Pools all sentences of a set, batch by batch, in any number of threads on a CPU.

    Each batch is run in as many `parts` as the device's memory needs. The values do not depend on the
    threads, each of which runs whole batches on one core.
    """

    n_read = 0
    """Number of sentences that have been read."""

    def __init__(
        self,
        shard: BlockShard,
        sentences: SentenceSet,
        batches: Sequence[Sequence[int]],
        threads: int = 1,
        parts: int = 1,
    ) -> None:
        self._shard, self._sentences, self._batches = shard, sentences, batches
        self._threads, self._parts = threads if shard.device.type == "cpu" else 1, parts
        self._buffer = BlockBuffer(shard.pooled_dtypes, len(sentences), shard.device)
        self._first_columns = list(accumulate(map(len, batches), initial=0))
        self._under_way: deque[tuple[int, torch.cuda.Event]] = deque()

    def read(
        self, numbers: range, incoming: Callable[[int], torch.Tensor | None]
    ) -> Iterator[torch.Tensor]:
        """Run the batches with these numbers; the hidden states after the block, in order.

        `incoming` gives those before it, None at layer 0, and is called in order, in this thread.
        """
        if numbers and numbers[0] == 0:
            # Some layers change when they first run, which one thread may do.
            yield from self._run_batches(numbers[:1], incoming, 1)
            numbers = numbers[1:]
        yield from self._run_batches(numbers, incoming, self._threads)

    def finish(self) -> list[PooledValues]:
        """All values. Raises NeuralignError, naming the first sentence, if one is not finite."""
        order = [row for rows in self._batches for row in rows]
        texts = [text.text for text in self._sentences.texts]
        pooled = self._buffer.finish(order, texts, self._threads)
        self.n_read = len(order)
        return pooled

    def _run_batches(
        self, numbers: range, incoming: Callable[[int], torch.Tensor | None], threads: int
    ) -> Iterator[torch.Tensor]:
        arguments = ((number, incoming(number)) for number in numbers)
        for number, outgoing in zip(numbers, map_in_order(self._run, arguments, threads), strict=True):
            self._count(len(self._batches[number]))
            yield outgoing

    def _run(self, argument: tuple[int, torch.Tensor | None]) -> torch.Tensor:
        """Run a batch from hidden states before the block to those after it."""
        number, incoming = argument
        rows = self._batches[number]
        batch = pad([self._sentences.tokens[row] for row in rows], PAD_ID, self._shard.device)
        results, first, row = [], self._first_columns[number], 0
        for part in batch.split(self._parts):
            stop = row + len(part.roles)
            hidden = None if incoming is None else incoming[row:stop]
            columns = slice(first + row, first + stop)
            results.append(self._shard.run(part, hidden, self._buffer, columns))
            row = stop
        return results[0] if len(results) == 1 else torch.cat(results)

    def _count(self, n_sentences: int) -> None:
        if self._shard.device.type == "cpu":
            self.n_read += n_sentences
            return
        event = torch.cuda.current_stream(self._shard.device).record_event()
        self._under_way.append((n_sentences, event))
        if len(self._under_way) > _MAX_AHEAD:
            n_done, is_done = self._under_way.popleft()
            is_done.synchronize()
            self.n_read += n_done
