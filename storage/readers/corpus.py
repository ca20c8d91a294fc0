"""Read text of any size from .txt, .jsonl and .parquet files, in chunks of bounded size."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from storage.errors import UserError
from storage.readers.file_format import check_text, detect_format, encoding_error, is_compressed
from storage.readers.strict_json import parse_json

CHUNK_BYTES = 1 << 20
PARAGRAPH = b"\n\n"
_SUFFIXES = (".txt", ".jsonl", ".parquet")
_ROWS_PER_BATCH = 256
_TEXT_TYPES = (
    *(pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view),
    *(pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view),
)


@dataclass
class UnreadableLines:
    """The number of unreadable lines of JSON Lines files, and the first of them."""

    lines: int = 0
    first: str = ""

    def add(self, where: str, why: str) -> None:
        self.first = self.first or f"{where}: {why}"
        self.lines += 1


def find_files(names: list[str], base: Path) -> list[Path]:
    """Files matching names, folders and patterns such as texts/*.txt, in a fixed order.

    Raises:
        UserError: if a name matches no file, or a file of another kind.
    """
    paths: dict[Path, None] = {}
    for name in names:
        path = base / Path(name).expanduser()
        if path.is_dir():
            matches = sorted(
                match for match in path.rglob("*") if match.suffix in _SUFFIXES and match.is_file()
            )
        elif any(mark in name for mark in "*?["):
            matches = sorted(match for match in _match(name, base) if match.is_file())
        else:
            matches = [path] if path.is_file() else []
        if not matches:
            raise UserError(f"corpus: {name}: no such file ({', '.join(_SUFFIXES)})")
        paths.update(dict.fromkeys(matches))
    for path in paths:
        if path.suffix not in _SUFFIXES:
            raise UserError(f"corpus: {path}: unsupported format; allowed: {', '.join(_SUFFIXES)}")
    return list(paths)


def _match(pattern: str, base: Path) -> list[Path]:
    """The files and folders that match a pattern, absolute or relative to a folder."""
    root = Path(Path(pattern).anchor)
    try:
        if root.anchor:
            return list(root.glob(str(Path(pattern).relative_to(root))))
        return list(base.glob(pattern))
    except (ValueError, NotImplementedError) as error:
        # such as a ** that is part of a name
        raise UserError(f"corpus: {pattern}: is not a valid pattern: {error}") from error


def file_identity(path: Path) -> list[Any]:
    """Name, size and modification time of a file: hashing gigabytes takes as long as reading them."""
    status = path.stat()
    return [path.name, status.st_size, status.st_mtime_ns]


def read_chunks(path: Path, column: str, unreadable: UnreadableLines) -> Iterator[bytes]:
    """UTF-8 text in chunks of about CHUNK_BYTES that contain complete paragraphs or documents.

    Longer paragraphs are split at a line or a space. `column` is the field of .jsonl and .parquet files
    that holds the text; lines without it are counted in `unreadable`.

    Raises:
        UserError: for text that is not UTF-8, other formats, and a file without text in the column.
    """
    if is_compressed(path):
        raise UserError(f"{path}: is compressed; decompress it")
    if detect_format(path) == "parquet":
        return _join_documents(_read_parquet_documents(path, column))
    check_text(path)
    if path.suffix == ".jsonl":
        return _join_documents(_read_json_documents(path, column, unreadable))
    return _read_paragraphs(path)


def _read_paragraphs(path: Path) -> Iterator[bytes]:
    position, remainder = 0, b""
    with path.open("rb") as file:
        while block := file.read(CHUNK_BYTES):
            text = remainder + block.replace(b"\r", b"")
            text = text.removeprefix(b"" if position else codecs.BOM_UTF8)
            cut = next((end for mark in (PARAGRAPH, b"\n", b" ") if (end := text.rfind(mark)) > 0), -1)
            if cut < 0 and len(text) < 2 * CHUNK_BYTES:
                remainder = text
                continue
            cut = _last_character(text) if cut < 0 else cut
            chunk, remainder = text[:cut], text[cut:]
            _check_utf8(path, chunk, position)
            yield chunk
            position += cut
    _check_utf8(path, remainder, position)
    yield remainder


def _last_character(text: bytes) -> int:
    """Index of the first byte of the last character of UTF-8 text."""
    return max(index for index in range(len(text) - 4, len(text)) if text[index] & 0xC0 != 0x80)


def _check_utf8(path: Path, chunk: bytes, position: int) -> None:
    try:
        chunk.decode()
    except UnicodeDecodeError as error:
        raise encoding_error(path, position + error.start, error.reason) from error


def _join_documents(documents: Iterator[bytes]) -> Iterator[bytes]:
    chunk: list[bytes] = []
    size = 0
    for document in documents:
        chunk.append(document)
        size += len(document)
        if size >= CHUNK_BYTES:
            yield PARAGRAPH.join(chunk)
            chunk, size = [], 0
    yield PARAGRAPH.join(chunk)


def _read_json_documents(path: Path, column: str, unreadable: UnreadableLines) -> Iterator[bytes]:
    other_fields: set[str] = set()
    is_empty = True
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                document = parse_json(line)
            except UnicodeDecodeError as error:
                byte = file.tell() - len(line) + error.start
                raise encoding_error(path, byte, error.reason) from error
            except ValueError as error:
                unreadable.add(f"{path.name}: line {number}", f"invalid JSON: {error}")
                continue
            if isinstance(document, dict) and isinstance(document.get(column), str):
                is_empty = False
                yield document[column].replace("\r", "").encode(errors="replace")
            else:
                other_fields.update(document if isinstance(document, dict) else ())
                unreadable.add(f"{path.name}: line {number}", f"has no text in {column!r}")
    if is_empty:
        fields = ", ".join(sorted(other_fields)) or "none"
        raise UserError(f"{path}: no line has text in {column!r}; its fields are {fields}")


def _read_parquet_documents(path: Path, column: str) -> Iterator[bytes]:
    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{path}: is not a Parquet file: {error}") from error
    columns = file.schema_arrow.names
    if column not in columns:
        raise UserError(f"{path}: has no column {column!r}; its columns are {', '.join(columns)}")
    if columns.count(column) > 1:
        raise UserError(f"{path}: has {columns.count(column)} columns {column!r}")
    kind = file.schema_arrow.field(column).type
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not any(is_text(kind) for is_text in _TEXT_TYPES):
        raise UserError(f"{path}: the column {column!r} has the type {kind}; expected text")
    row = 0
    try:
        for batch in file.iter_batches(batch_size=_ROWS_PER_BATCH, columns=[column]):
            for document in batch.column(0).cast(kind).to_pylist():
                if document is not None:
                    text = document.decode() if isinstance(document, bytes) else document
                    yield text.replace("\r", "").encode()
                row += 1
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read after row {row:,}: {error}") from error
