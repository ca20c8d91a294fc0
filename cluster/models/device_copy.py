"""Copies a model that is mapped from a file to a CUDA device at the speed of the bus.

torch's own copy of memory that is not pinned waits for each page of the file.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import torch
from torch import nn

_PART_BYTES = 64 << 20
_SMALL_BYTES = 1 << 20
_MAX_COPIES = 2


def move_to_device(model: nn.Module, device: torch.device) -> None:
    """Move a model's parameters and buffers, as `model.to` does."""
    if device.type == "cuda":
        model._apply(_Mover(device).move)  # type: ignore[no-untyped-call]
    else:
        model.to(device)


def copy_in_parts(
    source: torch.Tensor, target: torch.Tensor, copy: Callable[[torch.Tensor, torch.Tensor], object]
) -> None:
    """Call `copy` with each part of two vectors."""
    n_values = _PART_BYTES // source.itemsize
    for part, out in zip(torch.split(source, n_values), torch.split(target, n_values), strict=True):
        copy(part, out)


class _Mover:
    """Copies each part to pinned memory with several threads while the part before it is on the bus."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._under_way: deque[torch.cuda.Event] = deque()

    def move(self, weights: torch.Tensor) -> torch.Tensor:
        """Weights on the device."""
        is_large = weights.device.type == "cpu" and weights.nbytes >= _SMALL_BYTES
        if not (is_large and weights.is_contiguous()):
            return weights.to(self._device)
        moved = torch.empty_like(weights, device=self._device)
        copy_in_parts(weights.view(-1), moved.view(-1), self._copy)
        return moved

    def _copy(self, part: torch.Tensor, out: torch.Tensor) -> None:
        # Each copy holds pinned memory until its end.
        if len(self._under_way) == _MAX_COPIES:
            self._under_way.popleft().synchronize()
        out.copy_(part.pin_memory(), non_blocking=True)
        self._under_way.append(torch.cuda.current_stream(self._device).record_event())
