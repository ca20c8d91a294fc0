"""Memory that a process shares with its children."""

from __future__ import annotations

import mmap
import os

import torch

_PINNED_BYTES = 64 << 20


class SharedMemory:
    """Anonymous memory; children map it by its file descriptor, which they inherit."""

    def __init__(self) -> None:
        self.descriptor = os.memfd_create("neuralign")
        self._bytes = torch.empty(0, dtype=torch.uint8)

    def resize(self, n_bytes: int) -> None:
        """Make room for values of `n_bytes`; the former content is lost."""
        self._bytes = torch.empty(0, dtype=torch.uint8)
        # This frees the pages, which a child's mapping would otherwise keep.
        os.ftruncate(self.descriptor, n_bytes)
        if n_bytes:
            self._bytes = torch.frombuffer(mmap.mmap(self.descriptor, n_bytes), dtype=torch.uint8)

    def put(self, values: torch.Tensor) -> None:
        """Copy contiguous values of any device to the start of the memory."""
        source = values.reshape(-1).view(torch.uint8)
        target = self._bytes[: len(source)]
        parts = torch.split(source, _PINNED_BYTES), torch.split(target, _PINNED_BYTES)
        for part, out in zip(*parts, strict=True):
            if part.device.type == "cuda":
                # Copies to memory that is not pinned are several times as slow.
                out.copy_(torch.empty(part.shape, dtype=part.dtype, pin_memory=True).copy_(part))
            else:
                out.copy_(part)

    def close(self) -> None:
        """Give the memory back."""
        self._bytes = torch.empty(0, dtype=torch.uint8)
        os.close(self.descriptor)
