"""Rho of GloVe-50 on MEN: on all pairs of nouns, and on ever denser cores of the graph of its pairs.

Shows why correlations on the densest core (men-core.yaml) are lower than those on all of MEN.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np
from demo_nouns import read_noun_pairs

from alignment.statistics.rank_correlation import weighted_correlation
from storage.readers.word_vectors import read_glove

SIZES = (645, 400, 200, 100, 64)


def main() -> None:
    """Print the number of pairs, the range of human scores and rho for each size of the core."""
    scores = read_noun_pairs()
    neighbors: dict[str, set[str]] = defaultdict(set)
    for first, second in scores:
        neighbors[first].add(second)
        neighbors[second].add(first)
    vectors = read_glove(sorted(neighbors))
    print("nouns  pairs  human scores (5%, 50%, 95%)  rho of GloVe-50")
    core = set(vectors)
    for size in SIZES:
        while len(core) > size:
            core.remove(min(core, key=lambda word: (len(neighbors[word] & core), word)))
        pairs = [pair for pair in scores if core.issuperset(pair)]
        human = np.array([scores[pair] for pair in pairs])
        model = np.array([_cosine(vectors[first], vectors[second]) for first, second in pairs])
        rho = weighted_correlation("spearman", model, human, np.ones((1, len(pairs))))[0]
        low, middle, high = np.percentile(human, [5, 50, 95])
        spread = f"{low:.0f}, {middle:.0f}, {high:.0f}"
        print(f"{len(core):5}  {len(pairs):5}  {spread:>27}  {rho:15.3f}")


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


if __name__ == "__main__":
    main()
