"""Copies of tensors of a CUDA device in pinned host memory, made beside its computations."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import torch

_PART_BYTES = 16 << 20
_MAX_COPIES = 2


@dataclass(frozen=True)
class PinnedCopy:
    """A tensor of a shape and dtype, whose bytes are in parts of pinned memory."""

    shape: torch.Size
    dtype: torch.dtype
    parts: list[torch.Tensor]


def part_sizes(n_bytes: int) -> list[int]:
    """Sizes of the parts of so many bytes: torch allocates pinned memory in powers of two."""
    whole, rest = divmod(n_bytes, _PART_BYTES)
    return [_PART_BYTES] * whole + [rest] * (rest > 0)


def pinned_bytes(n_bytes: int) -> int:
    """Pinned memory that a copy of so many bytes takes."""
    return sum(1 << (size - 1).bit_length() for size in part_sizes(n_bytes))


class PinnedCopies:
    """Copies to and from a CUDA device, on a stream of their own.

    At most _MAX_COPIES are under way: the host may be many batches ahead of the device, whose memory
    each of them holds.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._under_way: deque[torch.cuda.Event] = deque()

    def to_host(self, tensor: torch.Tensor) -> PinnedCopy:
        """Start to copy a tensor to pinned memory, which only this stream may read."""
        source = tensor.contiguous()
        sizes = part_sizes(source.nbytes)
        host = PinnedCopy(
            source.shape,
            source.dtype,
            [torch.empty(size, dtype=torch.uint8, pin_memory=True) for size in sizes],
        )
        self._start(lambda: copy_parts(source, host.parts, to_parts=True))
        source.record_stream(self._stream)
        return host

    def to_device(self, host: PinnedCopy) -> tuple[torch.Tensor, torch.cuda.Event]:
        """Start to copy a tensor to the device; also return the event of the end."""

        def copy() -> torch.Tensor:
            tensor = torch.empty(host.shape, dtype=host.dtype, device=self._device)
            copy_parts(tensor, host.parts, to_parts=False)
            return tensor

        return self._start(copy)

    def wait_for(self, tensor: torch.Tensor, is_copied: torch.cuda.Event) -> torch.Tensor:
        """Let the computations that follow wait until a tensor is copied."""
        stream = torch.cuda.current_stream(self._device)
        stream.wait_event(is_copied)
        tensor.record_stream(stream)
        return tensor

    def _start(self, copy: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, torch.cuda.Event]:
        """Start a copy after what has been started on the device so far."""
        if len(self._under_way) == _MAX_COPIES:
            self._under_way.popleft().synchronize()
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            copied = copy()
        self._under_way.append(self._stream.record_event())
        return copied, self._under_way[-1]


def copy_parts(tensor: torch.Tensor, parts: list[torch.Tensor], to_parts: bool) -> torch.Tensor:
    """Copy the bytes of a contiguous tensor to parts, or from them."""
    sizes = [len(part) for part in parts]
    for own, part in zip(torch.split(tensor.view(-1).view(torch.uint8), sizes), parts, strict=True):
        target, source = (part, own) if to_parts else (own, part)
        target.copy_(source, non_blocking=True)
    return tensor
