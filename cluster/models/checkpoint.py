"""Opens the tensors of a safetensors checkpoint lazily."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError, safe_open

from storage.errors import UserError
from storage.readers.strict_json import parse_json

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

Backend = Literal["mmap", "pread"]
"""Whether tensors are memory-mapped or copied into memory."""

_LAYER_NUMBER = re.compile(r"\.(\d+)\.")


def layer_filter(layers: range) -> Callable[[str], bool]:
    """Predicate that rejects names of tensors of other layers; a name's first number is its layer."""

    def keep(name: str) -> bool:
        match = _LAYER_NUMBER.search(name)
        return match is None or int(match[1]) in layers

    return keep


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
