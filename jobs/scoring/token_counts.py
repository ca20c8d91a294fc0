"""Whether the number of a concept's experts depends on its word's tokens, as by maxima over them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pyarrow.compute as pc

from alignment.statistics.rank_correlation import weighted_correlation
from storage.store.paths import open_parquet

NOTED_CORRELATION = 0.3


def count_experts(paths: Iterable[Path], threshold: float) -> dict[str, Counter[str]]:
    """Number of neurons with an AP above a threshold by pooling and concept, from tables of experts."""
    counts: dict[str, Counter[str]] = {}
    for path in paths:
        with open_parquet(path) as file:
            table = file.read(["pooling", "concept", "ap"])
        experts = table.filter(pc.field("ap") > threshold).group_by(["pooling", "concept"])
        for row in experts.aggregate([([], "count_all")]).to_pylist():
            counts.setdefault(row["pooling"], Counter())[row["concept"]] += row["count_all"]
    return counts


def token_count_notes(
    n_experts: Mapping[str, Counter[str]], n_tokens: Mapping[str, int], threshold: float
) -> list[str]:
    """One line for each pooling in which the number of experts (0 for a concept that is not listed)
    depends on the number of tokens of the concept's word."""
    tokens = np.array(list(n_tokens.values()), np.float64)
    notes = []
    for pooling, counts in sorted(n_experts.items()):
        experts = np.array([counts[concept] for concept in n_tokens], np.float64)
        (rho,) = weighted_correlation("spearman", tokens, experts, np.ones((1, len(tokens))))
        if abs(rho) > NOTED_CORRELATION:
            notes.append(
                f"{pooling} pooling: the number of neurons with AP > {threshold} depends on the number "
                f"of tokens of the word (rank correlation {rho:.2f} over {len(tokens)} concepts, "
                f"{(tokens > 1).sum()} with several tokens; view concept_tokens)"
            )
    return notes
