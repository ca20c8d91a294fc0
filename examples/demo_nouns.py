"""The 100 nouns of the demo, chosen from MEN by the range of human scores alone.

From the graph of MEN's pairs of nouns, the noun with the least weighted degree is dropped, one after
another. Pairs that people rate as unlike weigh more, because a densest core has hardly any of them (see
men_range.py). No model's result takes part in the choice.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import numpy as np

from alignment.statistics.rank_correlation import weighted_correlation
from alignment.statistics.vectors import cosine_matrix
from storage.readers.human import builtin_human_set, read_pairs
from storage.readers.word_vectors import read_glove

COUNT = 100
UNLIKE, UNLIKE_WEIGHT = 20, 6
"""Pairs with a score below 20 (of 50) weigh 6, all others 1."""


def read_noun_pairs() -> dict[tuple[str, str], float]:
    """MEN's scores of pairs of nouns, 0 to 50."""
    scores = {}
    for pair in read_pairs(builtin_human_set("men")):
        first, second = sorted((pair.first, pair.second))
        if first.endswith("-n") and second.endswith("-n") and first != second:
            scores[first.removesuffix("-n"), second.removesuffix("-n")] = pair.score
    return scores


def choose_nouns(scores: Mapping[tuple[str, str], float], count: int) -> list[str]:
    """The `count` nouns that remain, in alphabetical order; of equals, the first in it is dropped."""
    weights: dict[str, dict[str, int]] = defaultdict(dict)
    for (first, second), score in scores.items():
        weights[first][second] = weights[second][first] = UNLIKE_WEIGHT if score < UNLIKE else 1
    degrees = {noun: sum(pairs.values()) for noun, pairs in weights.items()}
    while len(degrees) > count:
        dropped = min(degrees, key=lambda noun: (degrees[noun], noun))
        del degrees[dropped]
        for noun in weights[dropped].keys() & degrees.keys():
            degrees[noun] -= weights[dropped][noun]
    return sorted(degrees)


def main() -> None:
    """Print the nouns, and how their pairs compare with all of MEN's."""
    scores = read_noun_pairs()
    nouns = choose_nouns(scores, COUNT)
    print(" ".join(nouns))
    print("nouns  pairs  human scores (5%, 50%, 95%)  rho of GloVe-50")
    for chosen in (nouns, sorted({noun for pair in scores for noun in pair})):
        vectors = read_glove(chosen)
        index = {noun: number for number, noun in enumerate(vectors)}
        pairs = [pair for pair in scores if index.keys() >= set(pair)]
        human = np.array([scores[pair] for pair in pairs])
        first, second = np.array([[index[noun] for noun in pair] for pair in pairs]).T
        cosines = cosine_matrix(np.stack(list(vectors.values())))[first, second]
        rho = weighted_correlation("spearman", cosines, human, np.ones((1, len(pairs))))[0]
        low, middle, high = np.percentile(human, [5, 50, 95])
        spread = f"{low:.0f}, {middle:.0f}, {high:.0f}"
        print(f"{len(index):5}  {len(pairs):5}  {spread:>27}  {rho:15.3f}")


if __name__ == "__main__":
    main()
