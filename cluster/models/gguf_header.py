"""Reads the headers of GGUF files: metadata, and names and shapes of tensors. A model may be split into
several files."""

from __future__ import annotations

import math
import mmap
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from storage.errors import UserError

_PART_NAME = re.compile(r"(.+)-\d{5}-of-(\d{5})\.gguf")
_VERSIONS = (2, 3)
_STRING, _ARRAY = 8, 9
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""struct's formats of the types of numbers."""
_DEFAULT_ALIGNMENT = 32
_MAX_ALIGNMENT = 1 << 20


_READ_ERRORS = (
    *(struct.error, ValueError, KeyError, OSError),
    *(OverflowError, MemoryError, RecursionError),
)
"""What a header of arbitrary bytes leads to; lists in lists are read recursively."""


@dataclass(frozen=True)
class GgufTensor:
    """A tensor in a file, without its values; `shape` as in PyTorch, `start` and `end` in bytes."""

    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class GgufHeader:
    """Metadata of a model's first file, and the tensors of all its files."""

    files: list[Path]
    metadata: Mapping[str, Any]
    tensors: Mapping[str, GgufTensor]

    @property
    def architecture(self) -> str:
        return str(self.metadata["general.architecture"])

    @property
    def n_values(self) -> int:
        """Number of weights in all tensors."""
        return sum(math.prod(tensor.shape) for tensor in self.tensors.values())


def find_parts(file: Path) -> list[Path]:
    """The files of the model that a file belongs to, in order: by its name, or the file alone.

    Raises UserError if one is missing.
    """
    match = _PART_NAME.fullmatch(file.name)
    if match is None or int(match[2]) == 0:
        return [file]
    n_parts = int(match[2])
    parts = [
        file.with_name(f"{match[1]}-{part:05}-of-{match[2]}.gguf") for part in range(1, n_parts + 1)
    ]
    missing = [part.name for part in parts if not part.is_file()]
    if missing:
        raise UserError(
            f"{file}: is part of a model in {n_parts} files, of which {missing[0]} is missing; download "
            "it into the same folder"
        )
    return parts


def read_header(files: list[Path]) -> GgufHeader:
    """Read the headers of all files of a model.

    Raises UserError, naming the file, if one is not a GGUF file, is truncated, or is a part of another
    model.
    """
    headers = [_read_file(file) for file in files]
    metadata = headers[0][0]
    for number, (part_metadata, _) in enumerate(headers):
        count, position = part_metadata.get("split.count") or 1, part_metadata.get("split.no", 0)
        if (count, position) != (len(files), number):
            raise UserError(
                f"{files[number]}: is part {position + 1} of a model in {count} files; put all of them "
                f"into one folder, with the names NAME-00001-of-{count:05}.gguf and so on"
            )
    tensors = {name: tensor for _, part in headers for name, tensor in part.items()}
    expected = metadata.get("split.tensors.count", len(tensors)) if len(files) > 1 else len(tensors)
    if len(tensors) != expected:
        raise UserError(f"{files[0]}: {expected} tensors expected in all parts, got {len(tensors)}")
    return GgufHeader(files, metadata, tensors)


def _read_file(file: Path) -> tuple[dict[str, Any], dict[str, GgufTensor]]:
    try:
        with (
            file.open("rb") as opened,
            mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content,
        ):
            metadata, tensors = _HeaderReader(content).read()
            size = len(content)
    except _READ_ERRORS as error:
        reason = "its header is truncated" if isinstance(error, struct.error) else error
        raise UserError(f"{file}: is not a valid GGUF file: {reason}; download it again") from error
    truncated = next((name for name, tensor in tensors.items() if tensor.end > size), None)
    if truncated:
        raise UserError(f"{file}: is truncated: it ends before tensor {truncated}; download it again")
    return metadata, tensors


def _check_types(metadata: Mapping[str, Any]) -> None:
    """Raise ValueError for settings that are read here and are not what they must be."""
    if not isinstance(metadata["general.architecture"], str):
        raise ValueError("its architecture is not text")
    if metadata.get("general.alignment", _DEFAULT_ALIGNMENT) not in range(1, _MAX_ALIGNMENT + 1):
        raise ValueError(f"its alignment is {metadata['general.alignment']!r}")
    for name in ("split.count", "split.no", "split.tensors.count"):
        if not isinstance(metadata.get(name, 0), int):
            raise ValueError(f"its {name} is {metadata[name]!r}")


class _HeaderReader:
    """Reads the values of a header one after the other."""

    def __init__(self, content: mmap.mmap) -> None:
        self._content = content
        self._position = 0

    def read(self) -> tuple[dict[str, Any], dict[str, GgufTensor]]:
        """Metadata and tensors. Raises struct.error or ValueError for invalid content."""
        if self._content[:4] != b"GGUF":
            raise ValueError("it does not start with GGUF")
        self._position = 4
        version, n_tensors, n_entries = self._unpack("IQQ")
        if version not in _VERSIONS:
            raise ValueError(f"its version is {version}; versions 2 and 3 can be read")
        metadata: dict[str, Any] = {}
        for _ in range(n_entries):
            key = self._read_string()
            if key in metadata:
                raise ValueError(f"it has the key {key!r} twice")
            metadata[key] = self._read_value(self._unpack("I")[0])
        if "general.architecture" not in metadata:
            raise ValueError("it names no architecture")
        entries = [self._read_tensor() for _ in range(n_tensors)]
        if len({name for name, *_ in entries}) < len(entries):
            raise ValueError("two of its tensors have the same name")
        _check_types(metadata)
        alignment = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
        data_start = -(-self._position // alignment) * alignment
        return metadata, {
            name: GgufTensor(shape, data_start + offset, data_start + offset + n_bytes)
            for name, shape, offset, n_bytes in entries
        }

    def _read_tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

        name = self._read_string()
        (n_dimensions,) = self._unpack("I")
        # GGUF lists the fastest dimension first.
        shape = tuple(reversed(self._unpack(f"{n_dimensions}Q")))
        kind, offset = self._unpack("IQ")
        block_values, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
        return name, shape, offset, math.prod(shape) // block_values * block_bytes

    def _read_value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._read_string()
        if kind != _ARRAY:
            return self._unpack(_NUMBERS[kind])[0]
        element_kind, count = self._unpack("IQ")
        if element_kind in _NUMBERS:
            return list(self._unpack(f"{count}{_NUMBERS[element_kind]}"))
        return [self._read_value(element_kind) for _ in range(count)]

    def _read_string(self) -> str:
        (length,) = self._unpack("Q")
        return bytes(self._unpack(f"{length}s")[0]).decode()

    def _unpack(self, types: str) -> tuple[Any, ...]:
        values = struct.unpack_from(f"<{types}", self._content, self._position)
        self._position += struct.calcsize(f"<{types}")
        return values
