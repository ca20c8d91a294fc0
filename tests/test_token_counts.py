"""Words of several tokens must not make experts unnoticed."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from scipy.stats import spearmanr

from jobs.scoring.token_counts import count_experts, token_count_notes


def test_a_number_of_experts_that_depends_on_the_words_tokens_is_noted() -> None:
    """Words of several tokens have several times as many experts by a maximum over their tokens, and
    similarities would follow the tokenizer."""
    n_tokens = {f"c{number}": 1 + number % 3 for number in range(30)}
    counts = {
        "concept": Counter({concept: 5 * number % 7 for number, concept in enumerate(n_tokens)}),
        "concept-max": Counter({concept: n**2 for concept, n in n_tokens.items() if n > 1}),
        "max": Counter({concept: 10 - n for concept, n in n_tokens.items() if concept != "c0"}),
    }
    tokens = list(n_tokens.values())
    rho = {
        pooling: spearmanr(tokens, [experts[concept] for concept in n_tokens]).statistic
        for pooling, experts in counts.items()
    }
    assert abs(rho["concept"]) < 0.3
    assert token_count_notes(counts, n_tokens, 0.5) == [
        f"{pooling} pooling: the number of neurons with AP > 0.5 depends on the number of tokens of the "
        f"word (rank correlation {rho[pooling]:.2f} over 30 concepts, 20 with several tokens; view "
        "concept_tokens)"
        for pooling in ("concept-max", "max")
    ]
    assert token_count_notes(counts, dict.fromkeys(n_tokens, 2), 0.5) == []


def test_only_neurons_above_the_threshold_are_counted(tmp_path: Path) -> None:
    """Neurons that are stored for their attributions or ranks are no experts."""
    rows = [("max", "cat", 0.5), ("max", "cat", 0.6), ("max", "dog", 0.9), ("before", "cat", 0.7)]
    for number, part in enumerate((rows[:2], rows[2:])):
        table = pa.table(dict(zip(("pooling", "concept", "ap"), zip(*part, strict=True), strict=True)))
        pq.write_table(table, tmp_path / f"{number}.parquet")
    counts = count_experts(sorted(tmp_path.glob("*.parquet")), 0.5)
    assert counts == {"max": {"cat": 1, "dog": 1}, "before": {"cat": 1}}
