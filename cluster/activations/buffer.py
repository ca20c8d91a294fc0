"""What is pooled in a work unit, gathered on the host batch by batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from cluster.models.sites import Site

Place = tuple[str, Site]
"""A pooling and a site."""


@dataclass(frozen=True)
class _Copy:
    """A batch's values on their way to the host, a tensor for each block; they are there when `arrived`
    is."""

    rows: torch.Tensor
    values: list[torch.Tensor]
    arrived: torch.cuda.Event | None


class Gathered:
    """Memory for the pooled values of a unit's sentences.

    Places with the same pooling, width and type are layers of one block, so that a batch's values of
    all of them travel together: hundreds of small copies take longer than what they copy.
    """

    def __init__(self, dtypes: Mapping[Place, torch.dtype], sentences: int) -> None:
        alike: dict[tuple[str, int, torch.dtype], list[Place]] = {}
        for (pooling, site), dtype in dtypes.items():
            alike.setdefault((pooling, site.width, dtype), []).append((pooling, site))
        self.sentences = sentences
        self._order = list(dtypes)
        self._blocks = [
            (places, torch.empty(len(places), sentences, width, dtype=dtype))
            for (_, width, dtype), places in alike.items()
        ]
        self._copies: list[_Copy] = []

    def take(self, rows: Sequence[int], pooled: Mapping[Place, torch.Tensor]) -> None:
        """Start the copy of a batch's values to the host: those of the sentences `rows`, of shape
        (sentences, units) for each place. The device goes on meanwhile."""
        values = [
            # from bfloat16 to float16 the way by float32 is the fast one
            torch.stack([pooled[place] for place in places]).float().to(block.dtype)
            for places, block in self._blocks
        ]
        on_host = [each.to("cpu", non_blocking=True) for each in values]
        arrived = None
        if any(each.device.type == "cuda" for each in values):
            arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            arrived.record()
        self._copies.append(_Copy(torch.tensor(rows), on_host, arrived))
        # the copy of the batch before has ended while this one ran
        self._take_in(but=1)

    def lacking(self, pooled: Mapping[Place, torch.Tensor]) -> list[Place]:
        """Places of which a batch has no values."""
        return [place for place in self._order if place not in pooled]

    def values(self) -> dict[Place, torch.Tensor]:
        """All values, of shape (sentences, units): views of the memory."""
        self._take_in()
        found = {
            place: block[number] for places, block in self._blocks for number, place in enumerate(places)
        }
        return {place: found[place] for place in self._order}

    def _take_in(self, but: int = 0) -> None:
        """Take in the copies that were started, all but the last so many."""
        while len(self._copies) > but:
            copy = self._copies.pop(0)
            if copy.arrived is not None:
                copy.arrived.synchronize()
            for (_, block), values in zip(self._blocks, copy.values, strict=True):
                block.index_copy_(1, copy.rows, values)
