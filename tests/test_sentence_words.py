"""Baselines of the sentences' other words: a concept's own word must not help them, and their numbers
must be those of a plain computation."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from scipy.stats import zscore
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.metrics.pairwise import cosine_similarity

from alignment.statistics.vectors import standardize
from jobs import sentences
from jobs.config.loader import read_sweep
from jobs.engine.stage import run_if_needed
from jobs.planner import baseline_stages
from storage.readers.concepts import read_concepts
from storage.readers.word_vectors import read_glove

SENTENCES = {
    "cat": ["The cat and two more cats slept on the sofa.", "A Cat's life is sleep."],
    "dog": ["Dogs bark at every car.", "My dog sleeps on the sofa, too."],
    "whale": ["A whale sings in the sea.", "Whales! Whales, and no other word, which is a whale."],
    "idea": ["Ideas.", "Idea!"],
}
OTHER_WORDS = {
    "cat": "The and two more slept on the sofa. A 's life is sleep.",
    "dog": "bark at every car. My sleeps on the sofa, too.",
    "whale": "A sings in the sea. ! , and no other word, which is a .",
}


@pytest.fixture(scope="module", params=["bag-of-words", "context-words"])
def similarities(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[tuple[str, str], float]]:
    """Similarity by measure and pair, of one baseline."""
    folder = tmp_path_factory.mktemp("words")
    with (folder / "concepts.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["concept", "text"])
        rows.writerows((name, text) for name, texts in SENTENCES.items() for text in texts)
    (folder / "sweep.yaml").write_text(
        f"concepts: concepts.csv\nmodels: [none]\nstore: store\nbaselines: [{request.param}]\n"
    )
    sweep = read_sweep(folder / "sweep.yaml")
    sentences_stage = sentences.plan(read_concepts(folder / "concepts.csv", "words"))
    (stage,) = baseline_stages(sweep, sentences_stage)
    run_if_needed(sentences_stage, sweep.store_path)
    run_if_needed(stage, sweep.store_path)
    manifest = stage.read_manifest(sweep.store_path)
    assert [note for note in manifest.notes if "for idea" in note]
    found: dict[str, dict[tuple[str, str], float]] = {"baseline": {(request.param, ""): 0}}
    for row in stage.read_table(sweep.store_path, "similarity.parquet").to_pylist():
        found.setdefault(row["measure"], {})[row["concept_a"], row["concept_b"]] = row["similarity"]
    return found


def _check(found: dict[tuple[str, str], float], expected: np.ndarray) -> None:
    names = list(OTHER_WORDS)
    assert found.keys() == {("cat", "dog"), ("cat", "whale"), ("dog", "whale")}
    for (first, second), value in found.items():
        assert value == pytest.approx(expected[names.index(first), names.index(second)], abs=1e-6)


def test_similarities_are_those_of_the_other_words(
    similarities: dict[str, dict[tuple[str, str], float]],
) -> None:
    """The concept's own word would make sentences that name two concepts alike."""
    ((baseline, _),) = similarities.pop("baseline")
    if baseline == "bag-of-words":
        vectors = TfidfVectorizer(sublinear_tf=True).fit_transform(OTHER_WORDS.values())
        assert similarities.keys() == {"cosine"}
        _check(similarities["cosine"], cosine_similarity(vectors))
        return
    analyze = TfidfVectorizer().build_analyzer()
    words = [analyze(text) for text in OTHER_WORDS.values()]
    glove = read_glove(sorted({word for document in words for word in document}))
    means = np.array([np.mean([glove[word] for word in document], axis=0) for document in words])
    assert similarities.keys() == {"cosine", "centred cosine", "standardized cosine"}
    _check(similarities["cosine"], cosine_similarity(means))
    _check(similarities["centred cosine"], cosine_similarity(means - means.mean(axis=0)))
    _check(similarities["standardized cosine"], cosine_similarity(zscore(means, axis=0)))


def test_a_constant_dimension_becomes_zero() -> None:
    """Rounding would be blown up to the size of a real dimension."""
    vectors = np.array([[0.1, 1], [0.1, 2], [0.1, 4]], np.float32)
    standardized = standardize(vectors)
    assert not standardized[:, 0].any()
    np.testing.assert_allclose(standardized[:, 1], zscore([1, 2, 4]))
