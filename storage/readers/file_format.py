"""The format of a user's file, found in its contents because suffixes can be wrong, and its text."""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
import re
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

from storage.errors import UserError

FileFormat = Literal["text", "parquet", "npy", "npz", "mat"]
"""Text, Parquet, one or several NumPy arrays, or a MATLAB file up to version 7."""

FORMAT_NAMES: dict[FileFormat, str] = {
    "text": "text",
    "parquet": "a Parquet file",
    "npy": "a .npy file of numbers",
    "npz": "a .npz file of arrays",
    "mat": "a MATLAB file",
}
_HEAD_BYTES = 4096
_CHUNK_BYTES = 1 << 20
_MAX_DECOMPRESSED_BYTES = 1 << 32
"""Limit for compressed files, which are decompressed in memory."""

_DECOMPRESSORS: tuple[tuple[bytes, Callable[[Path], Any]], ...] = (
    (rb"\x1f\x8b", gzip.open),
    (rb"BZh[1-9]1AY&SY", bz2.open),
    (rb"\xfd7zXZ\0", lzma.open),
)
_COMPRESSED_SUFFIXES = (".gz", ".bz2", ".xz")
_READABLE: tuple[tuple[bytes, FileFormat], ...] = (
    (rb"PAR1", "parquet"),
    (rb"\x93NUMPY", "npy"),
    (rb"MATLAB 5\.0 MAT-file", "mat"),
)
_SAVE_AS_CSV = "save it as CSV (UTF-8)"
_UNREADABLE = (
    (rb"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", f"an old Excel or Office file; {_SAVE_AS_CSV}"),
    (rb"MATLAB 7\.3 MAT-file", "a MATLAB 7.3 file; save it in MATLAB with the option '-v7'"),
    (rb"\x89HDF\r\n\x1a\n", "an HDF5 file; save the array as .npy or the table as CSV"),
    (rb"ARROW1|FEA1", "an Arrow or Feather file; save it as Parquet"),
    (rb"RD[AX][23]\n|[ABX]\n\0\0\0", "an R data file; save it in R with write.csv"),
    (rb"\$FL[23]", f"an SPSS file; {_SAVE_AS_CSV}"),
    (rb"<stata_dta>", f"a Stata file; {_SAVE_AS_CSV}"),
    (rb"SQLite format 3\0", f"an SQLite database; {_SAVE_AS_CSV}"),
    (rb"\x80[\x02-\x05]", "a Python pickle, which could run code; save it as .npy or CSV"),
    (rb"%PDF", f"a PDF document; {_SAVE_AS_CSV}"),
    (rb"{\\rtf", f"an RTF document; {_SAVE_AS_CSV}"),
    (rb"\x28\xb5\x2f\xfd", "compressed with Zstandard; decompress it"),
    (rb"7z\xbc\xaf|Rar!", "an archive; unpack it"),
    (rb"version https://git-lfs", "a Git LFS pointer without the data; run `git lfs pull`"),
    (rb"(?i)(\xef\xbb\xbf)?\s*(<!doctype html|<html|<head|<table)", f"an HTML page; {_SAVE_AS_CSV}"),
    (rb"(\xef\xbb\xbf)?\s*<\?xml", f"an XML file; {_SAVE_AS_CSV}"),
)
_ZIP = rb"PK(\x03\x04|\x05\x06)"
_ZIP_CONTENTS = (
    ("xl/", f"an Excel workbook; {_SAVE_AS_CSV}"),
    ("word/", f"a Word document; {_SAVE_AS_CSV}"),
    ("Index/", f"a Numbers spreadsheet; {_SAVE_AS_CSV}"),
    ("mimetype", f"an OpenDocument file; {_SAVE_AS_CSV}"),
)
_DAMAGE = (OSError, EOFError, zlib.error, lzma.LZMAError)


def detect_format(path: Path) -> FileFormat:
    """The format of a file, decompressed if it is compressed with gzip, bzip2 or xz.

    Raises:
        UserError: if it is missing, damaged, or in a format that is not read, which is named.
    """
    if (found := find_signature(path)) is not None:
        return found
    head = _read_head(path)
    is_binary = b"\0" in head and _guess_encoding(head) == "latin1"
    suffix = plain_suffix(path).removeprefix(".")
    if suffix == "mat" and is_binary:
        # files of MATLAB 4 have no signature
        return "mat"
    expected = next((name for known, name in FORMAT_NAMES.items() if known == suffix), None)
    if expected is not None:
        contents = "empty" if not head else "binary data" if is_binary else "text"
        raise UserError(f"{path}: is not {expected}, but {contents}")
    if is_binary:
        raise UserError(f"{path}: is binary data in an unknown format; {_SAVE_AS_CSV}")
    return "text"


def find_signature(path: Path) -> FileFormat | None:
    """The format that a file's first bytes prove; None for text and unknown formats.

    Raises:
        UserError: as `detect_format`, but not for unknown formats.
    """
    head = _read_head(path)
    for signature, what in _UNREADABLE:
        if re.match(signature, head):
            raise UserError(f"{path}: is {what}")
    if re.match(_ZIP, head):
        _check_npz(path)
        return "npz"
    if any(re.match(signature, head) for signature, _ in _DECOMPRESSORS):
        raise UserError(f"{path}: is compressed twice; decompress it")
    return next((found for signature, found in _READABLE if re.match(signature, head)), None)


def plain_suffix(path: Path) -> str:
    """The suffix in lower case, without that of a compression: .csv for A.CSV.gz."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in _COMPRESSED_SUFFIXES:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def open_file(path: Path) -> BinaryIO:
    """A file that can be read and rewound; a compressed one is decompressed in memory.

    Raises:
        UserError: if it is missing or damaged, or too large when decompressed.
    """
    opened = _find_decompressor(path)
    if opened is None:
        return path.open("rb")
    contents = io.BytesIO()
    try:
        with opened(path) as file:
            while chunk := file.read(_CHUNK_BYTES):
                contents.write(chunk)
                if contents.tell() > _MAX_DECOMPRESSED_BYTES:
                    raise UserError(
                        f"{path}: has more than {_MAX_DECOMPRESSED_BYTES:,} bytes when decompressed, "
                        "the most that is read from a compressed file; decompress it"
                    )
    except _DAMAGE as error:
        raise _damage_error(path, error) from error
    contents.seek(0)
    return contents


def check_text(path: Path) -> None:
    """Raise UserError, naming the format, unless a file is text."""
    if (found := detect_format(path)) != "text":
        raise UserError(f"{path}: is {FORMAT_NAMES[found]}; expected text such as CSV")


def is_compressed(path: Path) -> bool:
    """Whether a file is compressed with gzip, bzip2 or xz. Raises UserError if it is missing."""
    return _find_decompressor(path) is not None


def read_text(path: Path) -> str:
    """The text of a UTF-8 file.

    Raises:
        UserError: if it is missing or not text, naming its format, or the byte that is not UTF-8.
    """
    check_text(path)
    with open_file(path) as file:
        contents = file.read()
    try:
        text = contents.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise encoding_error(path, error.start, error.reason) from error
    if "\0" in text:
        raise encoding_error(path, contents.index(b"\0"), "NUL character")
    return text


def encoding_error(path: Path, byte: int, reason: str) -> UserError:
    """The error to raise for text that is not UTF-8."""
    return UserError(
        f"{path}: is not UTF-8 text: {reason} at byte {byte:,}; convert it, for example "
        f"`iconv -f {_guess_encoding(_read_head(path))} -t utf-8`"
    )


def _guess_encoding(head: bytes) -> str:
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    # in UTF-16, every second byte of Latin letters is NUL
    even, odd = head[:64:2], head[1:64:2]
    if any(even) and odd and not any(odd):
        return "utf-16le"
    return "utf-16be" if any(odd) and not any(even) else "latin1"


def _find_decompressor(path: Path) -> Callable[[Path], Any] | None:
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    return next((opened for signature, opened in _DECOMPRESSORS if re.match(signature, head)), None)


def _read_head(path: Path) -> bytes:
    opened = _find_decompressor(path) or (lambda path: path.open("rb"))
    try:
        with opened(path) as file:
            return cast(bytes, file.read(_HEAD_BYTES))
    except _DAMAGE as error:
        raise _damage_error(path, error) from error


def _damage_error(path: Path, error: Exception) -> UserError:
    return UserError(f"{path}: cannot be decompressed: {error}; the file is damaged or incomplete")


def _check_npz(path: Path) -> None:
    """Raise UserError unless a ZIP archive contains arrays, as .npz files do."""
    try:
        with open_file(path) as file, zipfile.ZipFile(file) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise UserError(f"{path}: is a damaged ZIP archive or workbook: {error}") from error
    for start, what in _ZIP_CONTENTS:
        if any(name.startswith(start) for name in names):
            raise UserError(f"{path}: is {what}")
    if not all(name.endswith(".npy") for name in names):
        raise UserError(f"{path}: is a ZIP archive; unpack it")
