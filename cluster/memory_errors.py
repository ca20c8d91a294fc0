"""Errors of a device or a machine whose memory ran out."""

from __future__ import annotations

_MESSAGES = ("out of memory", "allocate memory", "alloc_failed")
"""Of CUDA and its allocator in torch, of torch's allocator in host memory, and of cuBLAS."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out."""
    message = str(error).lower()
    return any(text in message for text in _MESSAGES)
