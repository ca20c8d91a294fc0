"""Words that are about as frequent in some texts as the words of the concepts: a null for expert
neurons."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence

import numpy as np

from alignment.arrays import Ints
from alignment.text.bag_of_words import split_words

MIN_TEXTS = 5
"""Texts that have a word, at least."""


def choose_pseudo_words(
    texts: Sequence[str],
    fewest: Sequence[int],
    most: Sequence[int],
    excluded: Collection[str],
    seed: int,
) -> tuple[list[str], list[Ints]]:
    """For every concept another word, and the indices of the texts that have it.

    The words are chosen by frequency alone: the concepts, in random order, each take the remaining word
    of the most texts, of at least `fewest` and at most `most` for that concept; among equally frequent
    ones, one at random. Words of fewer than MIN_TEXTS texts, of all texts, and those `excluded` are left
    out.

    Raises:
        ValueError: if there is no word left for a concept.
    """
    counts = Counter(word for text in texts for word in set(split_words(text)))
    candidates = sorted(
        word
        for word, count in counts.items()
        if MIN_TEXTS <= count < len(texts) and word not in excluded
    )
    rng = np.random.default_rng(seed)
    frequencies = np.array([counts[word] for word in candidates], np.int64)
    is_free = np.ones(len(candidates), np.bool_)
    chosen = [""] * len(most)
    for number, concept in enumerate(rng.permutation(len(most))):
        is_in_range = (fewest[concept] <= frequencies) & (frequencies <= most[concept])
        found = np.flatnonzero(is_free & is_in_range)
        if not len(found):
            raise ValueError(
                f"of {len(most)} concepts, only {number} have another word that occurs in at most as "
                f"many of the concepts' sentences, but at least {max(MIN_TEXTS, fewest[concept])}"
            )
        index = rng.choice(found[frequencies[found] == frequencies[found].max()])
        is_free[index] = False
        chosen[concept] = candidates[index]
    indices: dict[str, list[int]] = {word: [] for word in chosen}
    for number, text in enumerate(texts):
        for word in indices.keys() & set(split_words(text)):
            indices[word].append(number)
    return chosen, [np.array(indices[word], np.int64) for word in chosen]
