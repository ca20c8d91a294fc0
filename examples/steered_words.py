"""Which words gain from clamping: `python examples/steered_words.py STORE`, after steering.yaml.

Remove its `concepts` first, so that all are steered and each kind has many words.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from pathlib import Path

import numpy as np

from alignment.statistics.steering import mean_two_way_clustered
from cluster.models.tokenizer import Tokenizer
from cluster.models.weights import ensure_local, resolve
from storage.database import open_store


def main(store: Path) -> None:
    """Print the change of log P with 30 and 100 experts clamped, selected by AP, by kind of word."""
    tokenizer = Tokenizer(ensure_local(resolve("smollm2-135m-instruct", "main", store)), 512)
    with open_store(store) as connection:
        domains = dict(connection.sql("SELECT concept, domain FROM concepts").fetchall())
        rows = connection.sql(
            "SELECT concept, k, list(change ORDER BY prompt), any_value(prompt) FROM steering_prompts "
            "WHERE selection = 'ap' AND intervention = 'clamp' AND k IN (30, 100) "
            "GROUP BY ALL ORDER BY ALL"
        ).fetchall()
    changes_by_kind: dict[tuple[str, int], list[list[float]]] = defaultdict(list)
    for concept, k, changes, prompt in rows:
        _, tokens = tokenizer.encode_prompt(prompt, concept.replace("_", " "))
        kind = "one token" if len(tokens) == 1 else "several tokens"
        if len(tokens) == 1 and concept in domains.values():
            kind = "one token, names a domain"
        changes_by_kind[kind, k].append(changes)
    for (kind, k), values in sorted(changes_by_kind.items()):
        mean = mean_two_way_clustered(np.array(values))
        change = f"{mean.value:+.1f} [{mean.low:+.1f}, {mean.high:+.1f}]"
        print(f"{kind:26} {len(values):3} words  k {k:3}  {change}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
