"""Two rows with one key would be counted twice by every query."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from storage.store.commit import KEY, find_table_problem


def problem(rows: list[tuple[Any, ...]]) -> str | None:
    schema = pa.schema(
        [("a", pa.string()), ("b", pa.int32()), ("c", pa.float64())], metadata={KEY: b"a,b"}
    )
    return find_table_problem(
        pa.Table.from_pylist([dict(zip("abc", row, strict=True)) for row in rows], schema)
    )


@pytest.mark.parametrize(
    "rows",
    [
        [("x", 1, 0.0), ("x", 1, 1.0)],
        [("x", 1, 0.0), ("y", 1, 1.0), ("x", 1, 2.0)],
        [("x", None, 0.0), ("x", None, 1.0)],
        [(None, None, 0.0), (None, None, 1.0)],
    ],
)
def test_equal_keys_are_found(rows: list[tuple[Any, ...]]) -> None:
    """Also where every column of the key has a single value, or none."""
    assert problem(rows) == "two rows with the same a, b"


@pytest.mark.parametrize(
    "rows",
    [
        [("x", 1, 0.0)],
        [("x", 1, 0.0), ("x", 2, 0.0)],
        [("x", 1, 0.0), ("x", None, 0.0)],
        [(None, 1, 0.0), ("x", 1, 0.0)],
        [("x", None, 0.0), ("y", None, 0.0)],
    ],
)
def test_a_null_differs_from_values(rows: list[tuple[Any, ...]]) -> None:
    """A column of one value and nulls tells rows apart."""
    assert problem(rows) is None
