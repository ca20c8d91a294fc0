"""A shard that pools batches of one sentence set straight into the buffer of a block. Imports no Ray."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from cluster.activations.batching import PaddedBatch
from cluster.activations.block_buffer import BlockBuffer
from cluster.activations.pooling import Pooler
from cluster.activations.pooling_shard import PoolingShard, PoolingState
from cluster.models.sites import Site
from storage.errors import NeuralignError
from storage.store.activation_files import RESIDUAL


@dataclass(kw_only=True)
class _BatchState(PoolingState):
    buffer: BlockBuffer
    columns: slice


class BlockShard(PoolingShard[_BatchState]):
    """The layers of one block."""

    with_tokenizer = False

    def run(
        self, batch: PaddedBatch, incoming: torch.Tensor | None, buffer: BlockBuffer, columns: slice
    ) -> torch.Tensor:
        """Run a batch from hidden states before the block (None at layer 0) to those after it, and pool
        its sentences into columns of the buffer."""
        state = _BatchState(pooler=Pooler(batch), buffer=buffer, columns=columns)
        self._run_batch(state, batch, incoming)
        return self._outgoing(state)

    def _pool(self, state: _BatchState, site: Site, hidden: torch.Tensor, first_unit: int) -> None:
        units = slice(first_unit, first_unit + hidden.shape[-1])
        is_part = site.part == "experts"
        if units.stop > site.width or (units.stop < site.width and not is_part):
            raise NeuralignError(
                f"{site}: its module gives {hidden.shape[-1]} values a token, not the {site.width} that "
                "its weights have; choose another module"
            )
        for poolings, values in state.buffer.of_site(site):
            out = values[:, units, state.columns]
            state.pooler.write(hidden, poolings, out, are_states=site.name == RESIDUAL)
