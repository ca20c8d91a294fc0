"""Words that are as frequent in some texts as the words of the concepts: a null for expert neurons."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence

import numpy as np

from alignment.arrays import Ints
from alignment.text.bag_of_words import split_words

MIN_TEXTS = 5
"""Texts that have a word, at least."""


def choose_pseudo_words(
    texts: Sequence[str], n_texts: Sequence[int], excluded: Collection[str], seed: int
) -> tuple[list[str], list[Ints]]:
    """For every concept another word, and the indices of the texts that have it.

    The words are chosen by frequency alone: the concepts, in random order, each take the remaining word
    whose number of texts is nearest to theirs, `n_texts`; among equally near ones, one at random. Words
    of fewer than MIN_TEXTS texts, of all texts, and those `excluded` are left out.

    Raises:
        ValueError: if there are fewer words than concepts.
    """
    counts = Counter(word for text in texts for word in set(split_words(text)))
    candidates = sorted(
        word
        for word, count in counts.items()
        if MIN_TEXTS <= count < len(texts) and word not in excluded
    )
    if len(candidates) < len(n_texts):
        raise ValueError(
            f"{len(candidates)} other words occur in at least {MIN_TEXTS} of the concepts' sentences; "
            f"{len(n_texts)} are needed"
        )
    rng = np.random.default_rng(seed)
    frequencies = np.array([counts[word] for word in candidates])
    is_free = np.ones(len(candidates), np.bool_)
    chosen = [""] * len(n_texts)
    for concept in rng.permutation(len(n_texts)):
        distances = np.where(is_free, np.abs(frequencies - n_texts[concept]), np.iinfo(np.int64).max)
        index = rng.choice(np.flatnonzero(distances == distances.min()))
        is_free[index] = False
        chosen[concept] = candidates[index]
    indices: dict[str, list[int]] = {word: [] for word in chosen}
    for number, text in enumerate(texts):
        for word in indices.keys() & set(split_words(text)):
            indices[word].append(number)
    return chosen, [np.array(indices[word], np.int64) for word in chosen]
