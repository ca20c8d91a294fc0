"""Opens the tensors of a safetensors checkpoint lazily."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError, safe_open

from storage.errors import UserError
from storage.readers.strict_json import parse_json

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

Backend = Literal["mmap", "pread"]
"""Whether tensors are memory-mapped or copied into memory."""

_LENGTH_BYTES = 8
_READ_BYTES = 4 << 20
_LAYER_NUMBER = re.compile(r"\.(\d+)\.")


def layer_filter(layers: range) -> Callable[[str], bool]:
    """Predicate that rejects names of tensors of other layers; a name's first number is its layer."""

    def keep(name: str) -> bool:
        number = _layer_number(name)
        return number is None or number in layers

    return keep


def _layer_number(name: str) -> int | None:
    match = _LAYER_NUMBER.search(name)
    return None if match is None else int(match[1])


def checkpoint_files(folder: Path) -> list[str]:
    """Names of the files of a checkpoint: the parts that its index lists, or the single file.

    Raises UserError for an unreadable index.
    """
    return list(_tensor_names_by_file(folder))


def open_tensors(folder: Path, keep: Callable[[str], bool], backend: Backend) -> dict[str, Any]:
    """Open the tensors whose names `keep` accepts, as slices that are read on access.

    Files without any of them are not opened. Raises UserError, naming the file, if one is missing,
    truncated or corrupt.
    """
    tensors = {}
    for file, names in _tensor_names_by_file(folder).items():
        if names is not None and not any(map(keep, names)):
            continue
        try:
            handle = safe_open(folder / file, framework="pt", backend=backend)
            for name in filter(keep, handle.keys() if names is None else names):
                tensors[name] = handle.get_slice(name)
        except (OSError, SafetensorError) as error:
            raise UserError(
                f"{folder / file}: cannot be read: {error}; truncated or corrupt? download it again"
            ) from error
    return tensors


def read_ahead(folder: Path, layers: range, memory: int) -> None:
    """Read the tensors of some layers, so that they are in the system's cache when they are loaded,
    unless they take more than `memory` bytes. Problems are left to the loading."""
    with suppress(OSError, ValueError, LookupError, TypeError, AttributeError, UserError):
        sections = [
            (folder / file, section)
            for file in checkpoint_files(folder)
            for section in _find_sections(folder / file, layers)
        ]
        if sum(map(len, (section for _, section in sections))) > memory:
            return
        buffer = memoryview(bytearray(_READ_BYTES))
        for path, section in sections:
            with path.open("rb", buffering=0) as file:
                file.seek(section.start)
                while n_left := section.stop - file.tell():
                    if not file.readinto(buffer[:n_left]):
                        break


def _find_sections(path: Path, layers: range) -> list[range]:
    """Where the tensors of some layers are in a safetensors file, in bytes."""
    with path.open("rb") as file:
        header_bytes = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        header: Any = parse_json(file.read(header_bytes))
    first = _LENGTH_BYTES + header_bytes
    return [
        range(first + start, first + stop)
        for name, tensor in header.items()
        if _layer_number(name) in layers
        for start, stop in [tensor["data_offsets"]]
    ]


def _tensor_names_by_file(folder: Path) -> dict[str, list[str] | None]:
    """Tensor names by file of the checkpoint; None if only the file itself lists them."""
    index = folder / INDEX_FILE
    if not index.is_file():
        return {WEIGHTS_FILE: None}
    files: dict[str, list[str] | None] = {}
    try:
        for name, file in parse_json(index.read_bytes())["weight_map"].items():
            files.setdefault(Path(file).name, []).append(name)  # type: ignore[union-attr]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{index}: cannot be read: {error}; download it again") from error
    return files
