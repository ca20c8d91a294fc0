"""What the views of a finished sweep hold must be what a reader makes of its files, by other means."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import spearmanr

from cluster.models.sentence_encoder import Encoder
from storage.database import open_store
from tests import tiny


def test_the_views_hold_what_the_model_does(study: Path) -> None:
    """Experts, recomputed from the activations view alone."""
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


def _check_precisions(found: Any, of: Any, matrix: Any) -> None:
    """Rows of (concept, unit, ap_raw) against scikit-learn, on a matrix of (units, sentences)."""
    from sklearn.metrics import average_precision_score

    assert len(found) > 20
    for concept, unit, ap_raw in found:
        expected = average_precision_score(of == concept, matrix[unit])
        assert ap_raw == pytest.approx(expected, abs=1e-12)


def test_alignment_is_that_of_a_reader_of_the_views(study: Path) -> None:
    """Jaccard, cosines and correlations, recomputed from what the views hold of the stages before."""
    with open_store(study / "results/sweep") as connection:
        query = connection.sql
        human = {
            (first, second): score
            for first, second, score in query(
                "SELECT concept_a, concept_b, score FROM human_pairs"
            ).fetchall()
        }
        found_rows = query("SELECT * FROM alignment WHERE revision = 'main'").to_arrow_table()
        experts = query(
            "SELECT pooling, concept, layer, unit, ap FROM experts WHERE revision = 'main'"
        ).fetchall()
        states = query(
            "SELECT value FROM activations WHERE site = 'residual' AND revision = 'main' "
            "ORDER BY pooling, layer, sentence_id, unit"
        ).fetchnumpy()["value"]
        of = query(
            "SELECT concept FROM memberships WHERE NOT contains(concept_set, 'shuffled') "
            "ORDER BY sentence_id"
        ).fetchnumpy()["concept"]
    pairs = sorted(human)
    seen = set()
    for row in found_rows.to_pylist():
        if row["representation"] == "experts":
            here = [each for each in experts if row["layer"] in (None, each[2])]
            similarities = _jaccards(here, row["pooling"], row["threshold"], pairs)
        elif row["representation"] == "hidden state":
            by_pooling = dict(zip(("last", "mean"), states.reshape(2, 3, 36, 32), strict=True))
            state = by_pooling[row["pooling"]][row["layer"]].astype(float)
            similarities = _cosines(state, of, row["measure"] == "centred cosine", pairs)
        else:
            continue
        seen.add(row["representation"])
        assert row["n_pairs"] == len(pairs) == 12
        if len(set(similarities)) > 1:
            expected = spearmanr(similarities, [human[pair] for pair in pairs]).statistic
            assert row["rho"] == pytest.approx(expected, abs=1e-9)
        else:
            assert row["rho"] is None
    assert seen == {"experts", "hidden state"}


def _jaccards(experts: Any, pooling: str, threshold: float, pairs: Any) -> list[float]:
    held = {
        name: {row[2:4] for row in experts if row[:2] == (pooling, name) and row[4] > threshold}
        for name in tiny.CONCEPTS
    }
    return [len(held[a] & held[b]) / max(1, len(held[a] | held[b])) for a, b in pairs]


def _cosines(state: Any, of: Any, centre: bool, pairs: Any) -> list[float]:
    means = {name: state[of == name].mean(axis=0) for name in tiny.CONCEPTS}
    middle = np.mean(list(means.values()), axis=0) * centre
    units = {name: (mean - middle) / np.linalg.norm(mean - middle) for name, mean in means.items()}
    return [float(units[a] @ units[b]) for a, b in pairs]


def _sets(experts: Any, threshold: float) -> dict[Any, set[Any]]:
    """Experts above a threshold by (who, concept), from rows of (who, concept, layer, unit, ap)."""
    found: dict[Any, set[Any]] = {}
    for who, concept, layer, unit, ap in experts:
        if ap > threshold:
            found.setdefault((who, concept), set()).add((layer, unit))
    return found


def test_where_experts_sit_and_when_they_settle_is_that_of_sets(study: Path) -> None:
    with open_store(study / "results/sweep") as connection:
        query = connection.sql
        experts = query(
            "SELECT revision, concept, layer, unit, ap FROM experts WHERE pooling = 'max'"
        ).fetchall()
        places = query(
            "SELECT revision, layer, n_experts, share FROM expert_places "
            "WHERE pooling = 'max' AND threshold = 0.6"
        ).fetchall()
        stability = query(
            "SELECT concept, revision_a, revision_b, stability FROM expert_stability "
            "WHERE pooling = 'max' AND threshold = 0.5"
        ).fetchall()
    for revision in ("main", "random-init"):
        above = [row[2] for row in experts if row[0] == revision and row[4] > 0.6]
        found = {layer: (n, share) for who, layer, n, share in places if who == revision}
        assert found == {
            layer: (above.count(layer), pytest.approx(above.count(layer) / len(above)))
            for layer in set(above)
        }
    sets = _sets(experts, 0.5)
    assert len(stability) == 6
    for concept, first, second, value in stability:
        one, other = sets[first, concept], sets[second, concept]
        assert (first, second) == ("main", "random-init")
        assert value == pytest.approx(len(one & other) / len(one | other))


def test_the_halves_share_no_sentence_and_their_agreement_is_that_of_their_sets(study: Path) -> None:
    with open_store(study / "results/sweep") as connection:
        query = connection.sql
        halves = query(
            "SELECT control, concept, layer, unit, ap FROM control_experts WHERE pooling = 'max'"
        ).fetchall()
        found = query(
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
    assert found == [pytest.approx((rho, corrected, np.mean(overlap), 15))]


def test_baselines_are_those_of_a_reader_of_their_files(study: Path) -> None:
    """Word vectors and what an encoder makes of the sentences, compared by hand."""
    vectors = {
        word: np.array(numbers, float)
        for word, *numbers in map(str.split, (study / "vectors.txt").read_text().splitlines())
    }
    encoder = Encoder(study / "encoder")
    means: dict[str, Any] = {name: [] for name in tiny.CONCEPTS}
    for name, text in tiny.sentences():
        means[name].append(encoder([text])[0].astype(float))
    alone = dict(zip(tiny.CONCEPTS, encoder(list(tiny.CONCEPTS)).astype(float), strict=True))
    expected = {
        "word vectors": vectors,
        "sentence encoder": {name: np.mean(rows, axis=0) for name, rows in means.items()},
        "sentence encoder, word alone": alone,
    }
    with open_store(study / "results/sweep") as connection:
        found = connection.sql(
            "SELECT representation, concept_a, concept_b, similarity FROM similarity "
            "WHERE model IN ('mine', 'tiny')"
        ).fetchall()
        references = connection.sql(
            "SELECT DISTINCT representation, model, reference FROM alignment "
            "WHERE representation IN ('word vectors', 'sentence encoder') ORDER BY ALL"
        ).fetchall()
    assert len(found) == 3 * 15
    for representation, a, b, similarity in found:
        one, other = expected[representation][a], expected[representation][b]
        cosine = one @ other / np.linalg.norm(one) / np.linalg.norm(other)
        assert similarity == pytest.approx(cosine, abs=1e-6)
    # the first word vectors of the sweep file are what others are compared with
    assert references == [
        ("sentence encoder", "tiny", "mine word vectors"),
        ("word vectors", "glove-50", "mine word vectors"),
        ("word vectors", "mine", None),
    ]


def test_shuffled_sentences_are_the_same_words_and_their_experts_a_control(study: Path) -> None:
    """They must never pass for the sweep's own experts."""
    with open_store(study / "results/sweep") as connection:
        query = connection.sql
        pairs = query(
            "SELECT a.text, b.text, a.concept_set FROM sentences a JOIN sentences b USING (sentence_id) "
            "WHERE NOT contains(a.concept_set, 'shuffled') AND contains(b.concept_set, 'shuffled')"
        ).fetchall()
        own = query("SELECT DISTINCT concept_set FROM experts").fetchall()
        controls = query(
            "SELECT DISTINCT concept_set FROM control_experts WHERE control = 'shuffled'"
        ).fetchall()
        shown = query(
            "SELECT DISTINCT representation FROM alignment WHERE contains(concept_set, 'shuffled')"
        ).fetchall()
    assert len(pairs) == 36
    assert all(Counter(one.split()) == Counter(other.split()) for one, other, _ in pairs)
    assert sum(one != other for one, other, _ in pairs) > 30
    assert own == [(pairs[0][2],)]
    assert controls == [(f"{pairs[0][2]} shuffled",)]
    assert shown == [("experts, shuffled",)]
    assert "neurons, max, shuffled" in (study / "printed.txt").read_text()


def test_latents_are_selected_as_neurons_are(study: Path) -> None:
    """Recomputed from the latents, which must not be among the neurons."""
    with open_store(study / "results/sweep") as connection:
        query = connection.sql
        values = query(
            "SELECT value FROM activations WHERE site = 'sae' AND pooling = 'max' "
            "ORDER BY unit, sentence_id"
        ).fetchnumpy()["value"]
        found = query(
            "SELECT concept, unit, ap_raw FROM control_experts "
            "WHERE control = 'sae latents' AND pooling = 'max' AND layer = 1 AND site = 'sae'"
        ).fetchall()
        among_neurons = query("SELECT count(*) FROM experts WHERE site = 'sae'").fetchall()
    assert among_neurons == [(0,)]
    _check_precisions(found, np.array([name for name, _ in tiny.sentences()]), values.reshape(80, 36))
    assert "neurons, max, sae latents" in (study / "printed.txt").read_text()
