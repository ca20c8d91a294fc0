"""The tensors of a safetensors checkpoint: found and opened, but not read."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError, safe_open

from storage.errors import UserError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

Backend = Literal["mmap", "pread"]
"""Whether tensors are mapped into memory, or read into memory of their own."""

_NUMBER = re.compile(r"\.(\d+)\.")


def is_pickled(folder: Path) -> bool:
    """Whether the weights are there as pickles only."""
    return any(folder.glob("*.bin")) and not any(folder.glob("*.safetensors"))


def of_layers(layers: range) -> Callable[[str], bool]:
    """Tells whether a tensor, by its name, is of one of these layers or of none: the first number in
    the name is that of the layer."""

    def keep(name: str) -> bool:
        found = _NUMBER.search(name)
        return found is None or int(found[1]) in layers

    return keep


def open_tensors(folder: Path, keep: Callable[[str], bool], backend: Backend) -> dict[str, Any]:
    """The tensors whose names `keep` accepts, to be read when they are sliced. Files without any of them
    are not even opened.

    Raises UserError, naming the file, for one that is missing, truncated or corrupt.
    """
    tensors = {}
    for file, names in _files(folder).items():
        if names is not None and not any(map(keep, names)):
            continue
        try:
            handle = safe_open(folder / file, framework="pt", backend=backend)
            for name in filter(keep, handle.keys() if names is None else names):
                tensors[name] = handle.get_slice(name)
        except (OSError, SafetensorError) as error:
            raise UserError(
                f"{folder / file}: cannot be read: {error}; is it cut short or damaged? get it again"
            ) from error
    return tensors


def _files(folder: Path) -> dict[str, list[str] | None]:
    """The checkpoint's files with the names of their tensors, None where only the file knows them."""
    index = folder / INDEX
    if not index.is_file():
        return {SINGLE: None}
    files: dict[str, list[str] | None] = {}
    try:
        for name, file in json.loads(index.read_text())["weight_map"].items():
            files.setdefault(Path(file).name, []).append(name)  # type: ignore[union-attr]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{index}: cannot be read: {error}; get it again") from error
    return files
