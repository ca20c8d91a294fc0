"""Similarities of score vectors must match SciPy and plain loops, however the neurons are split into
files."""

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
    measures = ["spearman", "kl", "centred cosine"]
    tables = score_similarities([(key, {"ap": paths})], CONCEPTS, measures)
    rows = [row for table in tables for row in table.to_pylist()]
    similarities = {
        (row["measure"], row["concept_a"], row["concept_b"]): row["similarity"] for row in rows
    }
    assert len(similarities) == len(rows) == 6 + 6 + 12
    assert all({name: row[name] for name in key} == key for row in rows)
    exact = dict(zip(CONCEPTS, ap.astype(np.float64).T, strict=True))
    mean = np.mean(list(exact.values()), axis=0)
    for (measure, a, b), value in similarities.items():
        if measure == "kl":
            expected = -entropy(exact[a], exact[b])
        elif measure == "centred cosine":
            expected = 1 - cosine_distance(exact[a] - mean, exact[b] - mean)
        else:
            expected = spearmanr(exact[a], exact[b]).statistic
        assert value == pytest.approx(expected, abs=1e-12)
    assert similarities["spearman", "a", "d"] == pytest.approx(1)
    assert similarities["kl", "a", "b"] != pytest.approx(similarities["kl", "b", "a"])


def test_a_concept_with_constant_ap_has_no_rank_correlation(tmp_path: Path) -> None:
    """It must be stored as NULL, not as NaN."""
    ap = _make_ap(0)
    ap[:, 1] = 0.5
    files = [({"pooling": "max"}, {"ap": _write_scores(tmp_path, ap, [])})]
    (table,) = score_similarities(files, CONCEPTS, ["spearman"])
    assert table.column("similarity").null_count == 3
    assert pa.types.is_float64(table.column("similarity").type)


def _similarities(files: dict[str, list[Path]], measure: str) -> dict[tuple[str, str], float | None]:
    (table,) = score_similarities([({}, files)], CONCEPTS, [measure])
    return {(row["concept_a"], row["concept_b"]): row["similarity"] for row in table.to_pylist()}


def test_auroc_is_the_cosine_of_the_distances_from_chance(tmp_path: Path) -> None:
    """A block that is lost, or vectors that are not relative to 0.5: all cosines would be near 1."""
    d = (np.random.default_rng(0).random((120, 4)) - 0.5).astype(np.float16)
    found = _similarities({"auroc": _write_scores(tmp_path, d, [1, 50, 51])}, "auroc")
    assert len(found) == 6
    for (a, b), value in found.items():
        first, second = (d[:, CONCEPTS.index(name)].astype(np.float64) for name in (a, b))
        assert value == pytest.approx(1 - cosine_distance(first, second), abs=1e-12)


def test_crossed_halves_multiply_only_across_halves(tmp_path: Path) -> None:
    """Products within a half would count its noise as similarity, and lost signs as agreement."""
    random = np.random.default_rng(1)
    signal = random.standard_normal((120, 4)) / 8
    halves = [(signal + random.standard_normal((120, 4)) / 20).astype(np.float16) for _ in range(2)]
    files = {
        name: _write_scores(tmp_path / name, half, [7])
        for name, half in zip(("half 1", "half 2"), halves, strict=True)
    }
    x, y = ([[float(v) ** 2 * (1 if v > 0 else -1) for v in row] for row in half] for half in halves)

    def product(i: int, j: int) -> float:
        return sum(p[i] * q[j] + p[j] * q[i] for p, q in zip(x, y, strict=True)) / 2

    found = _similarities(files, "auroc-halves")
    assert len(found) == 6
    for (a, b), value in found.items():
        i, j = CONCEPTS.index(a), CONCEPTS.index(b)
        assert value == pytest.approx(product(i, j) / np.sqrt(product(i, i) * product(j, j)), abs=1e-12)


def test_noise_that_the_halves_do_not_share_cancels(tmp_path: Path) -> None:
    """Two related concepts would look less similar the more neurons tell nothing about them."""
    random = np.random.default_rng(2)
    signal = np.zeros((40_000, 4))
    signal[:2000] = random.standard_normal((2000, 1)) / 8 * [1, 1, 0.5, 0.5]
    signal[:2000, 2:] += random.standard_normal((2000, 1)) / 8
    halves = [
        np.clip(signal + random.standard_normal(signal.shape) / 12, -0.5, 0.5).astype(np.float16)
        for _ in range(2)
    ]
    whole = ((halves[0] + halves[1]) / 2).astype(np.float16)
    files = {
        name: _write_scores(tmp_path / name, d, [])
        for name, d in zip(("half 1", "half 2", "auroc"), (*halves, whole), strict=True)
    }
    # The first two concepts have the same neurons.
    assert _similarities(files, "auroc-halves")["a", "b"] == pytest.approx(1, abs=0.05)
    diluted = _similarities(files, "auroc")["a", "b"]
    assert diluted is not None
    assert diluted < 0.5


def test_a_concept_whose_halves_do_not_agree_has_no_crossed_similarity(tmp_path: Path) -> None:
    """The root of a negative product, or a division by zero, must be stored as NULL."""
    d = (np.random.default_rng(3).random((50, 4)) - 0.5).astype(np.float16)
    other = d.copy()
    other[:, 2] *= -1
    files = {
        "half 1": _write_scores(tmp_path / "1", d, []),
        "half 2": _write_scores(tmp_path / "2", other, []),
    }
    found = _similarities(files, "auroc-halves")
    assert {pair for pair, value in found.items() if value is None} == {p for p in found if "c" in p}
