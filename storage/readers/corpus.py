"""Reading text of any size: .txt, .jsonl and .parquet files, as pieces of bounded size."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from storage.errors import UserError
from storage.readers.concept_files import not_utf8

PIECE_BYTES = 1 << 20
PARAGRAPH = b"\n\n"
_ENDINGS = (".txt", ".jsonl", ".parquet")
_ROWS_AT_ONCE = 256


@dataclass
class Unreadable:
    """The lines of JSON files that could not be read: how many, and the first."""

    lines: int = 0
    first: str = ""

    def add(self, where: str, why: str) -> None:
        self.first = self.first or f"{where}: {why}"
        self.lines += 1


def find_files(names: list[str], beside: Path) -> list[Path]:
    """The files that names, folders and patterns such as texts/*.txt stand for, in a settled order.

    Raises UserError for a name that stands for none, and for files of another kind.
    """
    found: dict[Path, None] = {}
    for name in names:
        path = beside / Path(name).expanduser()
        if path.is_dir():
            files = sorted(each for each in path.rglob("*") if each.suffix in _ENDINGS)
        elif any(mark in name for mark in "*?["):
            files = sorted(each for each in beside.glob(name) if each.is_file())
        else:
            files = [path] if path.is_file() else []
        if not files:
            raise UserError(f"corpus: {name}: there is no such file ({', '.join(_ENDINGS)})")
        found.update(dict.fromkeys(files))
    for path in found:
        if path.suffix not in _ENDINGS:
            raise UserError(f"corpus: {path}: is no known format; allowed: {', '.join(_ENDINGS)}")
    return list(found)


def identity(path: Path) -> list[Any]:
    """What stands for a file of text: name, size and time of change. Hashing gigabytes takes as long as
    reading them."""
    found = path.stat()
    return [path.name, found.st_size, found.st_mtime_ns]


def read_pieces(path: Path, column: str, unreadable: Unreadable) -> Iterator[bytes]:
    """UTF-8 text of a file in pieces of about PIECE_BYTES that hold whole paragraphs or documents.

    A longer paragraph is cut at a line or a space. `column` is the field of .jsonl and .parquet that
    holds the text. Lines of .jsonl that are no such object are counted in `unreadable`.

    Raises UserError for text that is not UTF-8 and for a file without the column.
    """
    if path.suffix == ".txt":
        return _whole_paragraphs(path)
    if path.suffix == ".jsonl":
        return _gathered(_json_documents(path, column, unreadable))
    return _gathered(_parquet_documents(path, column))


def _whole_paragraphs(path: Path) -> Iterator[bytes]:
    position, left = 0, b""
    with path.open("rb") as file:
        while block := file.read(PIECE_BYTES):
            text = (left + block.replace(b"\r", b"")).removeprefix(b"" if position else codecs.BOM_UTF8)
            cut = next((at for mark in (PARAGRAPH, b"\n", b" ") if (at := text.rfind(mark)) > 0), -1)
            if cut < 0 and len(text) < 2 * PIECE_BYTES:
                left = text
                continue
            cut = _last_character(text) if cut < 0 else cut
            piece, left = text[:cut], text[cut:]
            _check_utf8(path, piece, position)
            yield piece
            position += cut
    _check_utf8(path, left, position)
    yield left


def _last_character(text: bytes) -> int:
    """Where the last character of UTF-8 text begins."""
    return max(at for at in range(len(text) - 4, len(text)) if text[at] & 0xC0 != 0x80)


def _check_utf8(path: Path, piece: bytes, position: int) -> None:
    try:
        piece.decode()
    except UnicodeDecodeError as error:
        raise not_utf8(path, position + error.start, error.reason) from error


def _gathered(documents: Iterator[bytes]) -> Iterator[bytes]:
    held: list[bytes] = []
    size = 0
    for document in documents:
        held.append(document)
        size += len(document)
        if size >= PIECE_BYTES:
            yield PARAGRAPH.join(held)
            held, size = [], 0
    yield PARAGRAPH.join(held)


def _json_documents(path: Path, column: str, unreadable: Unreadable) -> Iterator[bytes]:
    known: set[str] = set()
    found = False
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                document = json.loads(line)
            except UnicodeDecodeError as error:
                raise not_utf8(path, file.tell() - len(line) + error.start, error.reason) from error
            except ValueError as error:
                unreadable.add(f"{path.name}: line {number}", f"no JSON: {error}")
                continue
            if isinstance(document, dict) and isinstance(document.get(column), str):
                found = True
                yield document[column].replace("\r", "").encode(errors="replace")
            else:
                known.update(document if isinstance(document, dict) else ())
                unreadable.add(f"{path.name}: line {number}", f"has no text in {column!r}")
    if not found:
        fields = ", ".join(sorted(known)) or "none"
        raise UserError(f"{path}: no line has text in {column!r}; its fields are {fields}")


def _parquet_documents(path: Path, column: str) -> Iterator[bytes]:
    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{path}: is no Parquet file: {error}") from error
    names = file.schema_arrow.names
    if column not in names:
        raise UserError(f"{path}: has no column {column!r}; its columns are {', '.join(names)}")
    for batch in file.iter_batches(batch_size=_ROWS_AT_ONCE, columns=[column]):
        for document in batch.column(0).to_pylist():
            if isinstance(document, str):
                yield document.replace("\r", "").encode(errors="replace")
