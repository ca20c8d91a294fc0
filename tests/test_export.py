"""Exported matrices: read by rsatoolbox and xarray, with the values, names and gaps of the store."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rsatoolbox
import xarray

from storage.database import open_store
from tests import tiny
from tests.commands import neuralign

_CONCEPTS = sorted(tiny.CONCEPTS)
_WORD_VECTORS = "representation = 'word vectors' AND measure = 'cosine'"


_TEXTS = ("representation", "model", "revision", "pooling", "measure", "run")
_NUMBERS = ("layer", "threshold")


def stored(store: Path, condition: str) -> dict[tuple[Any, ...], float | None]:
    """Similarities by representation and both concepts."""
    columns = [*(f"coalesce({name}, '')" for name in _TEXTS), *_NUMBERS]
    query = f"SELECT {', '.join(columns)}, concept_a, concept_b, similarity "
    with open_store(store) as connection:
        rows = connection.sql(f"{query} FROM similarity WHERE {condition}").fetchall()
    return {row[:-1]: row[-1] for row in rows}


def test_xarray_reads_every_similarity(study: Path, tmp_path: Path) -> None:
    """A transposed or shifted matrix would still look like one."""
    store, file, condition = study / "results/sweep", tmp_path / "all.nc", "site IS NULL"
    done = neuralign("export", store, file, "--where", condition)
    assert done.returncode == 0, done.stderr
    with xarray.open_dataarray(file) as array:
        assert array.dims == ("matrix", "concept_a", "concept_b")
        assert list(array.concept_a.values) == list(array.concept_b.values) == _CONCEPTS
        assert f"{array.sizes['matrix']} matrices of 6 concepts" in done.stdout
        found: dict[tuple[Any, ...], float | None] = {}
        for matrix in array:
            numbers = [float(matrix[name]) for name in _NUMBERS]
            key = (
                *(str(matrix[name].values) for name in _TEXTS),
                *(None if np.isnan(number) else number for number in numbers),
            )
            assert np.isnan(np.diag(matrix)).all()
            np.testing.assert_array_equal(matrix, matrix.T)
            for row, first in enumerate(_CONCEPTS):
                for column in range(row + 1, len(_CONCEPTS)):
                    value = float(matrix[row, column])
                    found[*key, first, _CONCEPTS[column]] = None if np.isnan(value) else value
    expected = stored(store, condition)
    assert any(value is None for value in expected.values())
    assert found == expected


def test_rsatoolbox_reads_dissimilarities(study: Path, tmp_path: Path) -> None:
    """Similarities taken for dissimilarities would turn every RSA upside down."""
    store, file = study / "results/sweep", tmp_path / "rdms.h5"
    done = neuralign("export", store, file, "--where", f"{_WORD_VECTORS} AND model = 'mine'")
    assert done.returncode == 0, done.stderr
    rdms = rsatoolbox.rdm.load_rdm(str(file))
    assert (rdms.n_rdm, rdms.n_cond) == (1, 6)
    assert [str(name) for name in rdms.pattern_descriptors["concept"]] == _CONCEPTS
    assert [str(name) for name in rdms.rdm_descriptors["model"]] == ["mine"]
    similarities = stored(store, f"{_WORD_VECTORS} AND model = 'mine'")
    for (*_, first, second), value in similarities.items():
        assert value is not None
        pair = rdms.get_matrices()[0][_CONCEPTS.index(first), _CONCEPTS.index(second)]
        assert pair == pytest.approx(1 - value, abs=1e-12)


def test_what_cannot_be_exported_is_refused_in_one_line(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file without matrices, over another one or without a package's name would be found out later."""
    store, existing = study / "results/sweep", tmp_path / "there.nc"
    existing.touch()
    monkeypatch.setitem(sys.modules, "xarray", None)
    for arguments, message in (
        ([existing], "already exists"),
        ([tmp_path / "none/a.nc"], "there is no folder"),
        ([tmp_path / "a.pkl"], "expected the suffix .h5 (rsatoolbox) or .nc (xarray, NetCDF)"),
        ([tmp_path / "a.nc", "--where", "model = 'no'"], "no similarities match"),
        ([tmp_path / "a.nc", "--where", "nonsense = 1"], "nonsense"),
        ([tmp_path / "a.nc"], "xarray is not installed; `pip install 'neuralign[export]'`"),
    ):
        done = neuralign("export", store, *arguments)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert message in done.stderr
    assert list(tmp_path.iterdir()) == [existing]


def test_measures_that_depend_on_the_order_are_no_rdms(tmp_path: Path) -> None:
    """Half of an asymmetric matrix would be lost silently; an array keeps both halves."""
    from jobs.results.matrices import SimilarityMatrices, to_rdms, to_xarray
    from storage.errors import UserError

    values = np.array([[[np.nan, 0.2, 0.3], [0.4, np.nan, 0.5], [0.6, 0.7, np.nan]]])
    matrices = SimilarityMatrices({"measure": ["containment"]}, ["a", "b", "c"], values)
    with pytest.raises(UserError, match="containment depends on the order of two concepts"):
        to_rdms(matrices)
    np.testing.assert_array_equal(to_xarray(matrices), values)
