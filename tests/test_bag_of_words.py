"""The bag-of-words baseline must be the tf-idf of the field, and must not see a concept's own word."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from sklearn.feature_extraction.text import TfidfVectorizer

from alignment.text.bag_of_words import split_words, tf_idf_similarity

WORDS = ["The", "the", "cat", "sat,", "on_a", "mat;", "a1", "Äpfel", "äpfel", "x", "zoo"]

texts = st.lists(
    st.lists(st.sampled_from(WORDS), max_size=12).map(" ".join), min_size=2, max_size=8
).filter(lambda documents: any(map(split_words, documents)))


@given(texts)
def test_similarities_are_those_of_scikit_learn(documents: list[str]) -> None:
    """Another weighting would be another baseline than the one that is reported."""
    vectors = TfidfVectorizer(sublinear_tf=True).fit_transform(documents).toarray()
    expected = vectors @ vectors.T
    found = tf_idf_similarity([split_words(document) for document in documents])
    is_empty = ~vectors.any(axis=1)
    np.testing.assert_array_equal(np.isnan(found), is_empty[:, None] | is_empty)
    np.testing.assert_allclose(
        found[~is_empty][:, ~is_empty], expected[~is_empty][:, ~is_empty], atol=1e-12
    )
