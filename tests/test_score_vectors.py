"""Concepts compared by the APs of all neurons: the numbers must be SciPy's, whichever way the neurons
are cut into files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from scipy.spatial.distance import cosine as cosine_distance
from scipy.stats import entropy, spearmanr

from jobs.representations import score_vectors
from jobs.representations.score_vectors import score_similarities
from storage.store.commit import write_values

CONCEPTS = ["a", "b", "c", "d"]


def _files(folder: Path, ap: np.ndarray, cuts: list[int]) -> list[Path]:
    parts = np.split(ap, cuts)
    for number, part in enumerate(parts):
        write_values(folder, f"{number}.parquet", part, part.size)
    return sorted(folder.glob("*.parquet"))


def _aps(seed: int) -> np.ndarray:
    """APs with ties, the last concept's a power of the first's."""
    ap = np.random.default_rng(seed).integers(1, 60, (120, 4)) / np.float32(60)
    ap[:, 3] = ap[:, 0] ** 3
    return ap.astype(np.float32)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("bytes_at_once", [1, 1 << 20])
def test_measures_are_scipys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int, bytes_at_once: int
) -> None:
    monkeypatch.setattr(score_vectors, "_BYTES", bytes_at_once)
    ap = _aps(seed)
    paths = _files(tmp_path, ap, [1, 50, 51])
    place = {"pooling": "max", "layer": 3, "site": None}
    measures = ["spearman", "kl", "cosine"]
    tables = score_similarities([(place, paths)], CONCEPTS, measures)
    rows = [row for table in tables for row in table.to_pylist()]
    found = {(row["measure"], row["concept_a"], row["concept_b"]): row["similarity"] for row in rows}
    assert len(found) == len(rows) == 6 + 6 + 12
    assert all({name: row[name] for name in place} == place for row in rows)
    exact = dict(zip(CONCEPTS, ap.astype(np.float64).T, strict=True))
    for (measure, a, b), value in found.items():
        if measure == "kl":
            expected = -entropy(exact[a], exact[b])
        elif measure == "cosine":
            expected = 1 - cosine_distance(exact[a], exact[b])
        else:
            expected = spearmanr(exact[a], exact[b]).statistic
        assert value == pytest.approx(expected, abs=1e-12)
    assert found["spearman", "a", "d"] == pytest.approx(1)
    assert found["kl", "a", "b"] != pytest.approx(found["kl", "b", "a"])


def test_a_concept_whose_neurons_are_all_alike_has_no_rank_correlation(tmp_path: Path) -> None:
    ap = _aps(0)
    ap[:, 1] = 0.5
    files = [({"pooling": "max"}, _files(tmp_path, ap, []))]
    (table,) = score_similarities(files, CONCEPTS, ["spearman"])
    assert table.column("similarity").null_count == 3
    assert pa.types.is_float64(table.column("similarity").type)
