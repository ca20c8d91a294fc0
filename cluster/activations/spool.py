"""Hidden states of all batches between two blocks of layers: in host memory up to a limit, then on disk.

Files are committed like all others. If all batches before a layer are on disk, a file lists them in the
end, so that a run that was killed can begin there.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save

from cluster.activations.pinned_copies import PinnedCopies, pinned_bytes
from storage.errors import SpoolError, StoreError
from storage.store.checksums import read_checked
from storage.store.commit import (
    NO_SPACE,
    FileRecord,
    read_checksummed,
    write_bytes,
    write_checksummed,
)
from storage.store.paths import file_size

_COMPLETE = "complete.json"
_FILE_BYTES = 4 << 20
"""Memory takes twice as many, while a file is written or read."""


BatchShape = tuple[int, ...]
"""Sentences and tokens of a padded batch."""


@dataclass(frozen=True)
class SpoolSettings:
    """Where hidden states are kept: in at most `memory_bytes` of host memory, the rest in a folder."""

    folder: Path
    memory_bytes: int


class HiddenStateSpool:
    """Hidden states before one layer, by the number of their batch. Batches are put in order and read
    in order, any number of times.

    Copies between a CUDA device and host memory run beside its computations: hidden states of the next
    batch come while the present one is computed.
    """

    def __init__(self, settings: SpoolSettings, layer: int, device: torch.device) -> None:
        self._root, self._folder = settings.folder, spool_folder(settings.folder, layer)
        self._device = device
        # A block reads one spool and writes the next.
        self._free_bytes = settings.memory_bytes // 2
        # Tensors or, of a GPU, copies that `self._copies` made.
        self._in_memory: dict[int, Any] = {}
        self._pending: dict[int, torch.Tensor] = {}
        self._files: list[tuple[range, FileRecord]] = []
        self._shapes: list[BatchShape] = []
        self._loaded: tuple[range, dict[str, torch.Tensor]] = (range(0), {})
        self._copies = PinnedCopies(device) if device.type == "cuda" else None
        self._coming: dict[int, tuple[torch.Tensor, torch.cuda.Event]] = {}

    def put(self, batch: int, hidden: torch.Tensor) -> None:
        """Keep the hidden states of the next batch, (sentences, tokens, width).

        Raises:
            StoreError: if the disk is full; what was written of these hidden states is removed.
        """
        size = hidden.nbytes if self._copies is None else pinned_bytes(hidden.nbytes)
        self._shapes.append(tuple(hidden.shape[:2]))
        if not self._files and not self._pending and size <= self._free_bytes:
            self._free_bytes -= size
            self._in_memory[batch] = hidden if self._copies is None else self._copies.to_host(hidden)
            return
        self._pending[batch] = hidden.cpu()
        if sum(tensor.nbytes for tensor in self._pending.values()) >= _FILE_BYTES:
            self._write()

    def get(self, batch: int) -> torch.Tensor:
        """Hidden states of a batch, on the device: a copy, which a layer may change in place.

        Raises:
            SpoolError: if their file is damaged or missing; all of these hidden states are removed.
        """
        if batch in self._in_memory:
            return self._get_from_memory(batch)
        if batch not in self._loaded[0]:
            batches, record = next(entry for entry in self._files if batch in entry[0])
            # The earlier file's tensors go first.
            self._loaded = (range(0), {})
            try:
                content = read_checked(self._folder / record.path, record.sha256)
            except StoreError as error:
                self.remove()
                raise _damage_error(self._folder / record.path) from error
            self._loaded = (batches, load(content))
        return self._loaded[1][str(batch)].to(self._device, copy=True)

    def finish(self) -> None:
        """Write what remains and, if all batches are on disk, the list of the files. Raises StoreError
        as `put`."""
        if self._pending:
            self._write()
        if self._files and not self._in_memory:
            files = [[files.start, files.stop, asdict(record)] for files, record in self._files]
            content = {"files": files, "shapes": self._shapes}
            self._commit(lambda: write_checksummed(self._folder, _COMPLETE, content))

    def remove(self) -> None:
        """Delete the files."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _get_from_memory(self, batch: int) -> torch.Tensor:
        if self._copies is None:
            hidden: torch.Tensor = self._in_memory[batch].clone()
            return hidden
        coming = self._coming.pop(batch, None) or self._copies.to_device(self._in_memory[batch])
        self._coming.clear()
        if (following := self._in_memory.get(batch + 1)) is not None:
            self._coming[batch + 1] = self._copies.to_device(following)
        return self._copies.wait_for(*coming)

    def _write(self) -> None:
        batches = range(min(self._pending), max(self._pending) + 1)
        content = save({str(batch): tensor.contiguous() for batch, tensor in self._pending.items()})
        name = f"{batches.start:06d}.safetensors"
        self._files.append((batches, self._commit(lambda: write_bytes(self._folder, name, content))))
        self._pending = {}

    def _commit(self, write: Callable[[], FileRecord]) -> FileRecord:
        """Write a file. If the disk is full, the others make room: no run continues from a part."""
        try:
            return write()
        except StoreError as error:
            cause = error.__cause__
            if not isinstance(cause, OSError) or cause.errno not in NO_SPACE:
                raise
            self.remove()
            raise StoreError(
                f"{self._root}: the hidden states between two blocks do not fit here "
                f"({cause.strerror}); free disk space and rerun to resume"
            ) from error

    @classmethod
    def restore(cls, settings: SpoolSettings, layer: int, device: torch.device) -> HiddenStateSpool:
        """The hidden states before a layer that an earlier process completed on disk. Raises SpoolError
        if they are not complete there."""
        spool = cls(settings, layer, device)
        spool._files, spool._shapes = _read_list(spool._folder)
        return spool


def spool_folder(folder: Path, layer: int) -> Path:
    """Where the hidden states before a layer are kept."""
    return folder / f"layer={layer}"


def complete_layers(folder: Path, shapes: Sequence[BatchShape]) -> list[int]:
    """The layers before which the hidden states of all batches, which have these shapes, are on disk.
    What the files contain is compared with their checksums when they are read."""
    layers = []
    for path in folder.glob("layer=*"):
        try:
            _, found = _read_list(path)
        except SpoolError:
            continue
        if found == list(shapes):
            layers.append(int(path.name.partition("=")[2]))
    return sorted(layers)


def _read_list(folder: Path) -> tuple[list[tuple[range, FileRecord]], list[BatchShape]]:
    """The files of the hidden states before a layer, and the shapes of their batches. Raises SpoolError
    if one is missing or has another size."""
    path = folder / _COMPLETE
    if not path.is_file():
        raise SpoolError(f"{path}: is missing; begin at layer 0")
    try:
        content = read_checksummed(path)
        files = [(range(start, stop), FileRecord(**record)) for start, stop, record in content["files"]]
        shapes: list[BatchShape] = [tuple(shape) for shape in content["shapes"]]
    except (ValueError, KeyError, TypeError) as error:
        raise _damage_error(path) from error
    for _, record in files:
        if file_size(folder / record.path) != record.bytes:
            raise _damage_error(folder / record.path)
    return files, shapes


def _damage_error(path: Path) -> SpoolError:
    return SpoolError(f"{path}: is damaged or missing; begin at an earlier layer")
