"""Similarities of AP vectors must match SciPy, however the neurons are split into files."""

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


def _write_scores(folder: Path, ap: np.ndarray, cuts: list[int]) -> list[Path]:
    for number, part in enumerate(np.split(ap, cuts)):
        write_values(folder, f"{number}.parquet", part, part.size)
    return sorted(folder.glob("*.parquet"))


def _make_ap(seed: int) -> np.ndarray:
    """APs with ties; those of the last concept are a power of the first's."""
    ap = np.random.default_rng(seed).integers(1, 60, (120, 4)) / np.float32(60)
    ap[:, 3] = ap[:, 0] ** 3
    return ap.astype(np.float32)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("bytes_at_once", [1, 1 << 20])
def test_measures_match_scipy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int, bytes_at_once: int
) -> None:
    """The sums over blocks of neurons must equal the measure over all neurons."""
    monkeypatch.setattr(score_vectors, "_MAX_BLOCK_BYTES", bytes_at_once)
    ap = _make_ap(seed)
    paths = _write_scores(tmp_path, ap, [1, 50, 51])
    key = {"pooling": "max", "layer": 3, "site": None}
    measures = ["spearman", "kl", "cosine"]
    tables = score_similarities([(key, paths)], CONCEPTS, measures)
    rows = [row for table in tables for row in table.to_pylist()]
    similarities = {
        (row["measure"], row["concept_a"], row["concept_b"]): row["similarity"] for row in rows
    }
    assert len(similarities) == len(rows) == 6 + 6 + 12
    assert all({name: row[name] for name in key} == key for row in rows)
    exact = dict(zip(CONCEPTS, ap.astype(np.float64).T, strict=True))
    for (measure, a, b), value in similarities.items():
        if measure == "kl":
            expected = -entropy(exact[a], exact[b])
        elif measure == "cosine":
            expected = 1 - cosine_distance(exact[a], exact[b])
        else:
            expected = spearmanr(exact[a], exact[b]).statistic
        assert value == pytest.approx(expected, abs=1e-12)
    assert similarities["spearman", "a", "d"] == pytest.approx(1)
    assert similarities["kl", "a", "b"] != pytest.approx(similarities["kl", "b", "a"])


def test_a_concept_with_constant_ap_has_no_rank_correlation(tmp_path: Path) -> None:
    """It must be stored as NULL, not as NaN."""
    ap = _make_ap(0)
    ap[:, 1] = 0.5
    files = [({"pooling": "max"}, _write_scores(tmp_path, ap, []))]
    (table,) = score_similarities(files, CONCEPTS, ["spearman"])
    assert table.column("similarity").null_count == 3
    assert pa.types.is_float64(table.column("similarity").type)
