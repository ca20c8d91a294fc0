"""Sentences and labels for numbers; no claim goes beyond what its interval supports."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

_MAX_NAME_LENGTH = 22


def format_interval(value: float | None, low: float | None, high: float | None, sign: str = "") -> str:
    """A value and its 95% CI."""
    if value is None:
        return "–"
    if low is None or high is None:
        return f"{value:{sign}.2f}, no CI"
    return f"{value:{sign}.2f} [{low:{sign}.2f}, {high:{sign}.2f}]"


def truncate(name: str) -> str:
    """A name cut to fit into a figure."""
    return name if len(name) <= _MAX_NAME_LENGTH else f"{name[: _MAX_NAME_LENGTH - 1]}…"


def si_format(value: float) -> str:
    """A number with three significant digits and a suffix: 1k, 1.7B."""
    for size, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{suffix}"
    return f"{value:.3g}"


def verdict(
    low: float | None, high: float | None, null_value: float, above: str, below: str, unclear: str
) -> str:
    """The one of three phrases that an interval supports; `unclear` without one."""
    if low is not None and low > null_value:
        return above
    if high is not None and high < null_value:
        return below
    return unclear


def agreement_sentence(subject: str, row: dict[str, Any], humans: str) -> str:
    """Whether a representation agrees with human judgments."""
    if row["rho"] is None:
        return f"{subject}: all similarities are equal; agreement with {humans} is undefined."
    if row["ci_low"] is None:
        agreement = f"agreement with {humans} is {row['rho']:.2f}"
        return f"{subject}: {agreement}; CI unavailable (too few distinct values)."
    claim = verdict(
        row["ci_low"],
        row["ci_high"],
        chance_level(row),
        f"{subject} agrees with {humans}",
        f"{subject} disagrees with {humans}",
        f"{subject}: agreement with {humans} is not distinguishable from chance",
    )
    return f"{claim}: {format_interval(row['rho'], row['ci_low'], row['ci_high'])}."


def difference_sentence(differences: Sequence[dict[str, Any]]) -> str | None:
    """How a representation compares with each of the references; None without any."""
    clauses = []
    for row in differences:
        low, high = row["difference_low"], row["difference_high"]
        claim = verdict(low, high, 0, "higher than", "lower than", "not distinguishable from")
        if low is None:
            claim = "not compared, for lack of a CI, with"
        difference = format_interval(row["difference"], low, high, "+")
        clauses.append(f"{claim} that of {row['reference']} (difference {difference})")
    return f"This agreement is {', and '.join(clauses)}." if clauses else None


def pseudo_concept_sentence(counts: Sequence[tuple[int, int]]) -> str:
    """What the control by pseudo-concepts shows. `counts` has the numbers of experts of each concept and
    of its pseudo-concept."""
    n_more = sum(concept > pseudo for concept, pseudo in counts)
    own, other = (f"{median(column):,.0f}" for column in zip(*counts, strict=True))
    word = "another word that was chosen by frequency alone"
    if 2 * n_more > len(counts):
        return (
            f"Control (pseudo-concepts): {n_more} of {len(counts)} concepts have more experts than "
            f"{word} (median {own}, of these words {other})."
        )
    return (
        f"Control (pseudo-concepts): for {len(counts) - n_more} of {len(counts)} concepts, {word} has "
        f"at least as many experts (median {other}, of the concepts {own}): to have many is not special "
        "to these concepts."
    )


def chance_level(row: dict[str, Any]) -> float:
    """Agreement expected by chance: one of the three pairs of a triplet, or no correlation."""
    return 1 / 3 if row["agreement"] == "triplets" else 0.0


def pluralize(n: int, noun: str) -> str:
    """A count and its noun."""
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"
