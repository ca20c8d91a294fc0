"""What may be said of a number: never more than its interval allows."""

from __future__ import annotations

from typing import Any

_LONGEST_NAME = 22


def number(value: float | None, digits: int = 2, sign: str = "") -> str:
    """A number as it stands in a sentence."""
    return "–" if value is None else f"{value:{sign}.{digits}f}"


def interval(value: float | None, low: float | None, high: float | None, sign: str = "") -> str:
    """A value and its 95% interval."""
    if value is None:
        return "–"
    if low is None or high is None:
        return f"{number(value, sign=sign)}, no interval"
    return f"{number(value, sign=sign)} [{number(low, sign=sign)}, {number(high, sign=sign)}]"


def short(name: str) -> str:
    """A name in a figure, where there is little room."""
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"


def scaled(value: float) -> str:
    """A number that may be large, in the few letters that an axis has for it: 1k, 1.7B."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def against(
    low: float | None, high: float | None, nothing: float, above: str, below: str, unclear: str
) -> str:
    """Which of three sayings an interval allows. Without one, or where it holds `nothing`, it is the
    last."""
    if low is not None and low > nothing:
        return above
    if high is not None and high < nothing:
        return below
    return unclear


def agrees(who: str, row: dict[str, Any], whom: str) -> str:
    """Whether a representation agrees with people, in one sentence."""
    if row["rho"] is None:
        return f"{who}: all similarities are equal, so nothing can agree with {whom}."
    if row["ci_low"] is None:
        return f"{who}: agreement with {whom} is {number(row['rho'])}, and no interval can be had."
    said = against(
        row["ci_low"],
        row["ci_high"],
        chance(row),
        f"{who} agrees with {whom}",
        f"{who} disagrees with {whom}",
        f"{who}: agreement with {whom} is not distinguishable from chance",
    )
    return f"{said}: {interval(row['rho'], row['ci_low'], row['ci_high'])}."


def differs(row: dict[str, Any]) -> str | None:
    """How a representation compares with the reference, in one sentence; None without one."""
    if row["difference"] is None:
        return None
    low, high = row["difference_low"], row["difference_high"]
    told = interval(row["difference"], low, high, "+")
    if low is None:
        return f"Its difference to {row['reference']} is {told}."
    how = against(
        low, high, 0, "That is more than", "That is less than", "That is not distinguishable from"
    )
    return f"{how} that of {row['reference']}: a difference of {told}."


def chance(row: dict[str, Any]) -> float:
    """The agreement that says nothing: of three pairs in a triplet one is the most alike by chance."""
    return 1 / 3 if row["agreement"] == "triplets" else 0.0


def count(n: int, thing: str) -> str:
    """A number of things."""
    return f"{n:,} {thing}" if n == 1 else f"{n:,} {thing}s"
