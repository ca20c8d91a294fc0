"""Files of numbers without names: .npy, .npz, MATLAB's .mat, and text."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from alignment.arrays import Floats
from storage.errors import UserError
from storage.readers.file_format import FileFormat, detect_format, open_file, read_text

_NUMERIC_KINDS = "biuf"


def read_numbers(path: Path) -> Floats:
    """The array in a file; text gives two dimensions. Nothing is unpickled.

    Raises:
        UserError: if the file has no numbers, other values, or several arrays, naming them.
    """
    found = detect_format(path)
    if found in _LOADERS:
        return _read_array(path, found)
    return _parse_numbers(path, read_text(path))


def _read_array(path: Path, found: FileFormat) -> Floats:
    with open_file(path) as file:
        try:
            arrays = _LOADERS[found](file)
        # the libraries raise errors of any kind for damaged files
        except Exception as error:
            raise _format_error(path, found, str(error) or type(error).__name__) from error
    if len(arrays) != 1:
        names = ", ".join(sorted(arrays)) or "none"
        raise UserError(f"{path}: must contain exactly one array of numbers; it has {names}")
    (values,) = arrays.values()
    if values.dtype.kind not in _NUMERIC_KINDS:
        raise _format_error(path, found, f"its values are {values.dtype}")
    return np.asarray(values, np.float64)


def _format_error(path: Path, found: FileFormat, problem: str) -> UserError:
    return UserError(f"{path}: is not a .{found} file of numbers: {' '.join(problem.split())}")


def _load_npy(file: BinaryIO) -> dict[str, Any]:
    return {"": np.load(file, allow_pickle=False)}


def _load_npz(file: BinaryIO) -> dict[str, Any]:
    with np.load(file, allow_pickle=False) as arrays:
        if len(set(arrays.files)) < len(arrays.files):
            raise ValueError("two of its arrays have the same name")
        loaded = {name: arrays[name] for name in arrays.files}
    # NumPy returns members in other formats as bytes
    if names := [name for name, array in loaded.items() if not isinstance(array, np.ndarray)]:
        raise ValueError(f"{names[0]!r} is not an array")
    return loaded


def _load_mat(file: BinaryIO) -> dict[str, Any]:
    """The arrays of numbers in a MATLAB file, by name; not its scalars, text, cells and structures."""
    from scipy.io import loadmat

    with warnings.catch_warnings():
        # such as two variables of one name, of which the first would be lost
        warnings.simplefilter("error")
        variables = loadmat(file)
    return {
        name: value
        for name, value in variables.items()
        if isinstance(value, np.ndarray) and value.dtype.kind in "biufc" and value.size > 1
    }


_LOADERS: dict[FileFormat, Callable[[BinaryIO], dict[str, Any]]] = {
    "npy": _load_npy,
    "npz": _load_npz,
    "mat": _load_mat,
}


def _parse_numbers(path: Path, text: str) -> Floats:
    """Numbers separated by white space, commas or semicolons, one row per line."""
    without_comments = (line.partition("#")[0].strip() for line in text.split("\n"))
    lines = [line.rstrip(",; ") for line in without_comments if line]
    delimiter = next((mark for mark in (";", ",") if any(mark in line for line in lines)), None)
    cells = (cell for line in lines for cell in line.split(delimiter))
    if delimiter and any(len(cell.split()) != 1 or "," in cell for cell in cells):
        raise UserError(
            f"{path}: separates numbers by {delimiter!r} and other characters; use one delimiter and "
            "decimal points"
        )
    try:
        if not lines:
            raise ValueError("it is empty")
        return np.loadtxt(lines, delimiter=delimiter, ndmin=2)
    except ValueError as error:
        raise UserError(f"{path}: is not a table of numbers: {error}") from error
