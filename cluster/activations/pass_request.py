"""What a pass reads, and what is done with the values of its layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, Protocol

import torch

from cluster.models.tokenizer import Text
from storage.store.commit import FileRecord


class SiteValues(NamedTuple):
    """The pooled values of a site, (units, sentences), on the device; `missing` are the numbers of
    sentences that have none, whose columns are 0."""

    pooling: str
    site: str
    values: torch.Tensor
    missing: tuple[int, ...] = ()


class LayerConsumer(Protocol):
    """What is done with the values of a layer, once all sentences have passed through it."""

    notes: list[str]
    """What it has to say of the layers so far; the pass adds it to its own notes."""

    def working_bytes(self, device: str, /) -> int:
        """Memory of the device that it needs beside the values."""

    def __call__(self, layer: int, sites: Sequence[SiteValues], threads: int, /) -> list[FileRecord]:
        """Commit files, on as many CPUs as `threads`; they are recorded together, as the work unit of
        the layer."""


@dataclass(frozen=True)
class PassRequest:
    """Sentences to read in batches of at most `budget` tokens.

    Layers are recorded as work units in `folder`. `spool` is a folder for hidden states, by default a
    temporary one. The first layer also commits the input embeddings of `words`. `memory_factor` is how
    many times the consumer's memory is left beside a block, and `block_divisor` how many times smaller
    than planned blocks are. `notes` are recorded with each layer.
    """

    texts: Sequence[Text]
    words: Sequence[str]
    budget: int
    folder: Path
    spool: Path | None
    consumer: LayerConsumer
    memory_factor: int = 1
    block_divisor: int = 1
    notes: tuple[str, ...] = ()

    def leave_more_memory(self) -> PassRequest:
        """The request to retry when memory ran out."""
        return replace(self, memory_factor=2 * self.memory_factor)

    def halve_blocks(self) -> PassRequest:
        """The request to retry when the worker was lost: the kernel may have killed it for memory."""
        return replace(self, block_divisor=2 * self.block_divisor)


def layer_unit(layer: int) -> str:
    """Name of a layer's work unit."""
    return f"L{layer:02d}"
