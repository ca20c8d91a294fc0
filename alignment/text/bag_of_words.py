"""Texts as counts of their words: what can be said about concepts without a language model."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

from alignment.arrays import Floats

_WORD = re.compile(r"\w\w+")


def split_words(text: str) -> list[str]:
    """The words of a text in lower case: runs of at least two letters, digits or underscores."""
    return _WORD.findall(text.lower())


def tf_idf_similarity(documents: Sequence[Sequence[str]]) -> Floats:
    """Cosine similarity of every pair of documents, each a list of words, (documents, documents).

    A word that occurs `n` times in a document and in `d` of `D` documents weighs
    (1 + log n) (1 + log((1 + D) / (1 + d))): sublinear term frequency and smoothed inverse document
    frequency, as in scikit-learn's `TfidfVectorizer(sublinear_tf=True)`. A document without words has
    the similarity NaN to all others.
    """
    from scipy.sparse import csr_array

    counts = [Counter(document) for document in documents]
    columns = {word: column for column, word in enumerate(sorted(set().union(*counts)))}
    rows = np.repeat(np.arange(len(counts)), [len(count) for count in counts])
    indices = np.array([columns[word] for count in counts for word in count], np.int64)
    occurrences = np.array([n for count in counts for n in count.values()], np.float64)
    n_documents = np.bincount(indices, minlength=len(columns))
    idf = 1 + np.log((1 + len(counts)) / (1 + n_documents))
    weights = (1 + np.log(occurrences)) * idf[indices]
    norms = np.sqrt(np.bincount(rows, weights**2, minlength=len(counts)))
    shape = (len(counts), len(columns))
    normalized = csr_array((weights / norms[rows], (rows, indices)), shape=shape)
    similarities = np.asarray((normalized @ normalized.T).toarray(), np.float64)
    is_empty = norms == 0
    similarities[is_empty] = np.nan
    similarities[:, is_empty] = np.nan
    return similarities
