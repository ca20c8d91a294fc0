"""Times as people say them."""


def duration(seconds: float) -> str:
    """So many seconds in the unit that fits: 90 s, 5 min, 3 h, 2 d."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:,.0f} {unit}"
    return f"{seconds:,.0f} s"
