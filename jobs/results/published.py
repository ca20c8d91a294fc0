"""Published agreement with human data, shown beside a store's own where both have the same model."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from jobs.alignment import ALL_PAIRS
from jobs.results.rows import Row, format_estimate
from jobs.similarity import EXPERTS

SOURCE = "arXiv 2502.15090"
PEOPLE = "people"

CAVEAT = (
    f"Published: {SOURCE}, Spearman's rho, AP > 0.5, with the paper's own sentences and pairs; taken to "
    "be of the last checkpoint. Here: max pooling, Jaccard."
)

# The store's rows that use the paper's method.
_SAME_METHOD = {
    "representation": EXPERTS,
    "pooling": "max",
    "measure": "jaccard",
    "threshold": 0.5,
    "layer": None,
    "site": None,
    "agreement": "spearman",
    "subset": ALL_PAIRS,
}
# Pythia's `main` is its last checkpoint.
_LAST_CHECKPOINTS = ("main", "step143000")

_MODELS = {
    ("EleutherAI/pythia-70m", "men"): 0.70,
    ("EleutherAI/pythia-1b", "men"): 0.77,
    ("EleutherAI/pythia-12b", "men"): 0.79,
}
_PEOPLE = {"men": 0.84}


class PublishedValue(NamedTuple):
    """A published Spearman's rho, and this store's value with its interval, in words."""

    label: str
    published: float
    here: str


def find_published(rows: Iterable[Row]) -> list[PublishedValue]:
    """The published values of the models of `alignment` rows of one human set, and of people.

    Empty unless a model of the rows has one.
    """
    found = []
    human_set = ""
    for row in rows:
        value = _MODELS.get((row["model"], row["human_set"]))
        is_last = row["revision"] in _LAST_CHECKPOINTS
        if value is not None and is_last and _SAME_METHOD.items() <= row.items():
            human_set = row["human_set"]
            here = format_estimate(row["rho"], row["ci_low"], row["ci_high"])
            found.append(PublishedValue(f"{row['model']}@{row['revision']}", value, here))
    if found:
        found.append(PublishedValue(PEOPLE, _PEOPLE[human_set], ""))
    return found
