"""Memory of blocks of layers in turn: what one took is freed before the next is loaded."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def frozen_objects() -> Iterator[None]:
    """Leave all objects made before out of garbage collection: to find a block's garbage among them
    takes as long as to load a block."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def free_block(device: torch.device) -> None:
    """Free what a block took that is no longer referred to."""
    # Hooks refer to their shard, which refers to its modules.
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
