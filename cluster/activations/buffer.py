"""Host memory for the pooled activations of a work unit, filled batch by batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from cluster.models.sites import Site

PooledSite = tuple[str, Site]
"""A pooling and a site."""


class ActivationBuffer:
    """Pooled values of a unit's sentences.

    Pooled sites of one pooling, width and dtype share a block, so that their values are copied together:
    hundreds of small copies are slow.
    """

    def __init__(self, dtypes: Mapping[PooledSite, torch.dtype], sentences: int) -> None:
        groups: dict[tuple[str, int, torch.dtype], list[PooledSite]] = {}
        for (pooling, site), dtype in dtypes.items():
            groups.setdefault((pooling, site.width, dtype), []).append((pooling, site))
        self.sentences = sentences
        self._order = list(dtypes)
        self._blocks = [
            (keys, torch.empty(len(keys), sentences, width, dtype=dtype))
            for (_, width, dtype), keys in groups.items()
        ]
        # Rows and values of batches, one tensor per block; complete after the event.
        self._copies: list[tuple[torch.Tensor, list[torch.Tensor], torch.cuda.Event | None]] = []

    def add_batch(self, rows: Sequence[int], pooled: Mapping[PooledSite, torch.Tensor]) -> None:
        """Start to copy a batch's values, (sentences, units) for each pooled site, to the rows of their
        sentences, without waiting for the device."""
        values = [
            # bfloat16 to float16 is fastest by way of float32
            torch.stack([pooled[key] for key in keys]).float().to(block.dtype)
            for keys, block in self._blocks
        ]
        host_values = [tensor.to("cpu", non_blocking=True) for tensor in values]
        is_cuda = any(tensor.is_cuda for tensor in values)
        event = torch.cuda.current_stream().record_event() if is_cuda else None
        self._copies.append((torch.tensor(rows), host_values, event))
        # The previous batch's copy has ended while this batch ran.
        self._drain(keep_last=1)

    def values(self) -> dict[PooledSite, torch.Tensor]:
        """All values, of shape (sentences, units): views of the memory."""
        self._drain()
        views = {key: block[index] for keys, block in self._blocks for index, key in enumerate(keys)}
        return {key: views[key] for key in self._order}

    def _drain(self, keep_last: int = 0) -> None:
        """Move finished copies into the blocks, all but the last `keep_last`."""
        while len(self._copies) > keep_last:
            rows, block_values, event = self._copies.pop(0)
            if event is not None:
                event.synchronize()
            for (_, block), values in zip(self._blocks, block_values, strict=True):
                block.index_copy_(1, rows, values)
