"""The views of a finished sweep must equal independent computations from its files."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest
from scipy.stats import spearmanr

from cluster.models.sentence_encoder import SentenceEncoder
from storage.database import open_store, sql_type
from storage.sql import read_query
from storage.tables import VIEWS
from tests import tiny
from tests.commands import neuralign


def test_every_view_has_exactly_the_described_columns(study: Path) -> None:
    """docs/tables.md would name columns that no query finds, or give them another type."""
    with open_store(study / "results/sweep") as connection:
        columns = connection.sql(
            "SELECT table_name, column_name, data_type FROM information_schema.columns"
        ).fetchall()
    assert set(columns) == {
        (view.name, name, kind)
        for view in VIEWS
        for name, kind in [
            *((column.name, sql_type(column.type)) for column in (*view.schema, *view.joined)),
            *([("run", "VARCHAR")] if view.has_run else []),
        ]
    }


def test_experts_equal_those_recomputed_from_the_activations_view(study: Path) -> None:
    """The views would assign APs to the wrong neurons or concepts."""
    with open_store(study / "results/sweep") as connection:
        values = connection.sql(
            "SELECT layer, unit, value FROM activations WHERE revision = 'main' AND site = 'mlp.hidden' "
            "AND pooling = 'context' AND layer = 1 AND NOT contains(concept_set, 'shuffled') "
            "ORDER BY unit, sentence_id"
        ).fetchnumpy()["value"]
        experts = connection.sql(
            "SELECT concept, unit, ap_raw FROM experts "
            "WHERE revision = 'main' AND pooling = 'context' AND layer = 1"
        ).fetchall()
        concepts = connection.sql(
            "SELECT concept FROM memberships WHERE NOT contains(concept_set, 'shuffled') "
            "ORDER BY sentence_id"
        ).fetchnumpy()["concept"]
    _check_precisions(experts, concepts, values.reshape(48, 36))


def _check_precisions(rows: Any, concepts: Any, matrix: Any) -> None:
    """Rows of (concept, unit, ap_raw) against scikit-learn, on a matrix of (units, sentences)."""
    from sklearn.metrics import average_precision_score

    assert len(rows) > 20
    for concept, unit, ap_raw in rows:
        expected = average_precision_score(concepts == concept, matrix[unit])
        assert ap_raw == pytest.approx(expected, abs=1e-12)


def test_alignment_equals_that_recomputed_from_the_views(study: Path) -> None:
    """Similarities or correlations would be those of other experts or pairs."""
    with open_store(study / "results/sweep") as connection:
        query = connection.sql
        human = {
            (first, second): score
            for first, second, score in query(
                "SELECT concept_a, concept_b, score FROM human_pairs"
            ).fetchall()
        }
        alignment_rows = query("SELECT * FROM alignment WHERE revision = 'main'").to_arrow_table()
        experts = query(
            "SELECT pooling, concept, layer, unit, ap FROM experts WHERE revision = 'main'"
        ).fetchall()
        states = query(
            "SELECT value FROM activations WHERE site = 'residual' AND revision = 'main' "
            "ORDER BY pooling, layer, sentence_id, unit"
        ).fetchnumpy()["value"]
        concepts = query(
            "SELECT concept FROM memberships WHERE NOT contains(concept_set, 'shuffled') "
            "ORDER BY sentence_id"
        ).fetchnumpy()["concept"]
    pairs = sorted(human)
    checked = set()
    for row in alignment_rows.to_pylist():
        if (row["representation"], row["measure"]) == ("experts", "jaccard"):
            in_layer = [expert for expert in experts if row["layer"] in (None, expert[2])]
            similarities = _jaccards(in_layer, row["pooling"], row["threshold"], pairs)
        elif row["representation"] == "hidden state":
            by_pooling = dict(
                zip(("concept", "last", "mean"), states.reshape(3, 3, 36, 32), strict=True)
            )
            state = by_pooling[row["pooling"]][row["layer"]].astype(float)
            similarities = _cosines(state, concepts, row["measure"], pairs)
        else:
            continue
        checked.add((row["representation"], row["measure"]))
        assert row["n_pairs"] == len(pairs) == 12
        if len(set(similarities)) > 1:
            expected = spearmanr(similarities, [human[pair] for pair in pairs]).statistic
            assert row["rho"] == pytest.approx(expected, abs=1e-9)
        else:
            assert row["rho"] is None
    assert checked == {
        ("experts", "jaccard"),
        ("hidden state", "cosine"),
        ("hidden state", "centred cosine"),
        ("hidden state", "standardized cosine"),
    }


def _jaccards(experts: Any, pooling: str, threshold: float, pairs: Any) -> list[float]:
    sets = {
        name: {row[2:4] for row in experts if row[:2] == (pooling, name) and row[4] > threshold}
        for name in tiny.CONCEPTS
    }
    return [len(sets[a] & sets[b]) / max(1, len(sets[a] | sets[b])) for a, b in pairs]


def _cosines(state: Any, concepts: Any, measure: str, pairs: Any) -> list[float]:
    means = {name: state[concepts == name].mean(axis=0) for name in tiny.CONCEPTS}
    return [_cosine(means, first, second, measure) for first, second in pairs]


def _cosine(vectors: dict[str, Any], first: str, second: str, measure: str) -> float:
    """Cosine of two of the vectors, after the treatment that the measure names."""
    table = np.array(list(vectors.values()))
    middle = np.zeros_like(table[0]) if measure == "cosine" else table.mean(axis=0)
    scale = table.std(axis=0) if measure == "standardized cosine" else 1
    a, b = ((vectors[name] - middle) / scale for name in (first, second))
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def _sets(experts: Any, threshold: float) -> dict[Any, set[Any]]:
    """Experts above a threshold by (source, concept); rows are (source, concept, layer, unit, ap)."""
    sets: dict[Any, set[Any]] = {}
    for source, concept, layer, unit, ap in experts:
        if ap > threshold:
            sets.setdefault((source, concept), set()).add((layer, unit))
    return sets


def test_expert_places_and_stability_equal_set_operations(study: Path) -> None:
    """The SQL would count experts of other revisions or thresholds."""
    with open_store(study / "results/sweep") as connection:
        query = connection.sql
        experts = query(
            "SELECT revision, concept, layer, unit, ap FROM experts WHERE pooling = 'max'"
        ).fetchall()
        place_rows = query(
            "SELECT revision, layer, n_experts, share FROM expert_places "
            "WHERE pooling = 'max' AND threshold = 0.6"
        ).fetchall()
        stability = query(
            "SELECT concept, revision_a, revision_b, stability FROM expert_stability "
            "WHERE pooling = 'max' AND threshold = 0.5 AND revision_b = 'random-init'"
        ).fetchall()
    for revision in ("main", "random-init"):
        above = [row[2] for row in experts if row[0] == revision and row[4] > 0.6]
        counts = {layer: (n, share) for source, layer, n, share in place_rows if source == revision}
        assert counts == {
            layer: (above.count(layer), pytest.approx(above.count(layer) / len(above)))
            for layer in set(above)
        }
    sets = _sets(experts, 0.5)
    assert len(stability) == 6
    for concept, first, second, value in stability:
        first_set, second_set = sets[first, concept], sets[second, concept]
        assert (first, second) == ("main", "random-init")
        assert value == pytest.approx(len(first_set & second_set) / len(first_set | second_set))


def test_concepts_with_experts_in_one_revision_have_stability_0() -> None:
    """They would be dropped, and the mean over concepts would be too high."""
    experts = {
        "cat": [("step1", 1), ("step1", 2), ("step2", 2)],
        "dog": [("step1", 3)],
        "cow": [("step2", 4), ("step2", 5)],
    }
    with duckdb.connect() as connection:
        connection.execute(
            "CREATE TABLE experts (model TEXT, concept_set TEXT, pooling TEXT, concept TEXT, layer INT, "
            "site TEXT, unit INT, ap DOUBLE, revision TEXT, run TEXT); "
            "CREATE TABLE similarity AS SELECT 0.5 AS threshold"
        )
        for concept, units in experts.items():
            for revision, unit in units:
                row = ["m", "s", "max", concept, 0, "mlp", unit, 0.9, revision, f"run {revision}"]
                connection.execute("INSERT INTO experts VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
        rows = connection.sql(read_query("expert_stability")).fetchall()
    found = {row[3]: row[5:11] for row in rows}
    assert found == {
        "cat": ("step1", "step2", 2, 1, 1, 0.5),
        "cow": ("step1", "step2", 0, 2, 0, 0),
        "dog": ("step1", "step2", 1, 0, 0, 0),
    }


def test_reliability_equals_that_of_sets_of_the_two_halves(study: Path) -> None:
    """Reliability would be computed from other experts than those of the halves."""
    with open_store(study / "results/sweep") as connection:
        query = connection.sql
        halves = query(
            "SELECT control, concept, layer, unit, ap FROM control_experts WHERE pooling = 'max'"
        ).fetchall()
        rows = query(
            "SELECT rho, of_all, stability, n_pairs FROM reliability "
            "WHERE pooling = 'max' AND threshold = 0.5"
        ).fetchall()
    sets = _sets(halves, 0.5)
    pairs = list(itertools.combinations(sorted(tiny.CONCEPTS), 2))
    similarities = [
        [len(sets[half, a] & sets[half, b]) / len(sets[half, a] | sets[half, b]) for a, b in pairs]
        for half in ("half 1", "half 2")
    ]
    rho = spearmanr(*similarities).statistic
    overlap = [
        len(sets["half 1", name] & sets["half 2", name])
        / len(sets["half 1", name] | sets["half 2", name])
        for name in tiny.CONCEPTS
    ]
    corrected = 2 * rho / (1 + rho) if rho > 0 else rho
    assert rows == [pytest.approx((rho, corrected, np.mean(overlap), 15))]


def test_baselines_equal_similarities_computed_by_hand(study: Path) -> None:
    """Vectors would be matched to the wrong words."""
    vectors = {
        word: np.array(numbers, float)
        for word, *numbers in map(str.split, (study / "vectors.txt").read_text().splitlines())
    }
    encoder = SentenceEncoder(study / "encoder")
    means: dict[str, Any] = {name: [] for name in tiny.CONCEPTS}
    for name, text in tiny.sentences():
        means[name].append(encoder([text])[0].astype(float))
    words_alone = dict(zip(tiny.CONCEPTS, encoder(list(tiny.CONCEPTS)).astype(float), strict=True))
    expected = {
        "word vectors": vectors,
        "sentence encoder": {
            name: np.mean(vectors_of_name, axis=0) for name, vectors_of_name in means.items()
        },
        "sentence encoder, word alone": words_alone,
    }
    with open_store(study / "results/sweep") as connection:
        rows = connection.sql(
            "SELECT representation, measure, concept_a, concept_b, similarity FROM similarity "
            "WHERE model IN ('mine', 'tiny')"
        ).fetchall()
        references = connection.sql(
            "SELECT DISTINCT representation, model, reference FROM alignment WHERE measure = 'cosine' "
            "AND representation IN ('word vectors', 'sentence encoder') ORDER BY ALL"
        ).fetchall()
    assert Counter(row[:2] for row in rows) == {
        ("word vectors", "cosine"): 15,
        ("word vectors", "centred cosine"): 15,
        ("word vectors", "standardized cosine"): 15,
        ("sentence encoder", "cosine"): 15,
        ("sentence encoder, word alone", "cosine"): 15,
    }
    for representation, measure, a, b, similarity in rows:
        cosine = _cosine(expected[representation], a, b, measure)
        assert similarity == pytest.approx(cosine, abs=1e-6)
    # the first word vectors of the sweep file are the reference
    assert references == [
        ("sentence encoder", "tiny", "mine word vectors"),
        ("word vectors", "glove-50", "mine word vectors"),
        ("word vectors", "mine", None),
    ]


def test_shuffled_sentences_have_the_same_words_and_separate_experts(study: Path) -> None:
    """The control's experts would pass for the sweep's own."""
    with open_store(study / "results/sweep") as connection:
        query = connection.sql
        pairs = query(
            "SELECT a.text, b.text, a.concept_set FROM sentences a JOIN sentences b USING (sentence_id) "
            "WHERE NOT contains(a.concept_set, 'shuffled') AND contains(b.concept_set, 'shuffled')"
        ).fetchall()
        expert_sets = query("SELECT DISTINCT concept_set FROM experts").fetchall()
        controls = query(
            "SELECT DISTINCT concept_set FROM control_experts WHERE control = 'shuffled'"
        ).fetchall()
        representations = query(
            "SELECT DISTINCT representation FROM alignment WHERE contains(concept_set, 'shuffled')"
        ).fetchall()
    assert len(pairs) == 36
    assert all(Counter(text.split()) == Counter(shuffled.split()) for text, shuffled, _ in pairs)
    assert sum(text != shuffled for text, shuffled, _ in pairs) > 30
    assert expert_sets == [(pairs[0][2],)]
    assert controls == [(f"{pairs[0][2]} shuffled",)]
    assert representations == [("experts, shuffled",)]
    assert "neurons, max, shuffled" in _compared(study)


def test_sae_latents_are_selected_like_neurons(study: Path) -> None:
    """Latents would be counted among the neurons."""
    with open_store(study / "results/sweep") as connection:
        query = connection.sql
        values = query(
            "SELECT value FROM activations WHERE site = 'sae' AND pooling = 'max' "
            "ORDER BY unit, sentence_id"
        ).fetchnumpy()["value"]
        rows = query(
            "SELECT concept, unit, ap_raw FROM control_experts "
            "WHERE control = 'sae latents' AND pooling = 'max' AND layer = 1 AND site = 'sae'"
        ).fetchall()
        n_latents_among_experts = query("SELECT count(*) FROM experts WHERE site = 'sae'").fetchall()
    assert n_latents_among_experts == [(0,)]
    _check_precisions(rows, np.array([name for name, _ in tiny.sentences()]), values.reshape(80, 36))
    assert "neurons, max, sae latents" in _compared(study)


def _compared(study: Path) -> str:
    """The table of agreement as the command prints it."""
    return neuralign("compare", study / "results/sweep", "--human", "mine").stdout
