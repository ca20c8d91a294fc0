"""The picture of a similarity matrix, ordered by domain."""

from __future__ import annotations

import io
import itertools

import numpy as np

_INCHES_PER_CONCEPT = 0.135
_NO_DOMAIN = "(no domain)"


def draw_matrix(
    similarities: dict[tuple[str, str], float | None],
    domains: dict[str, str | None],
    described: str,
) -> bytes:
    """A PNG of the matrix. `similarities` holds each pair once, the smaller name first; None, for a
    pair without experts, is left grey."""
    # slow to load
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure

    order = [domain for domain in dict.fromkeys(domains.values()) if domain] + [None]
    names = sorted(domains, key=lambda name: (order.index(domains[name]), name != domains[name]))
    matrix = np.full((len(names), len(names)), np.nan)
    for (row, first), (column, second) in itertools.permutations(enumerate(names), 2):
        value = similarities.get((min(first, second), max(first, second)))
        matrix[row, column] = np.nan if value is None else value

    side = max(6.0, 2.5 + _INCHES_PER_CONCEPT * len(names))
    figure = Figure(figsize=(side + 1, side - 1), layout="constrained")
    axes = figure.subplots()
    axes.set_facecolor("0.85")
    top = float(np.nanmax(matrix)) if np.isfinite(matrix).any() else 1.0
    image = axes.imshow(matrix, cmap="viridis", norm=PowerNorm(0.5, vmin=0, vmax=top or 1.0))
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=7, parse_math=False)
    axes.set_yticks(range(len(names)), names, fontsize=7, parse_math=False)
    axes.tick_params(length=0)
    start = 0
    for domain, members in itertools.groupby(names, key=lambda name: domains[name]):
        size = len(list(members))
        if start:
            axes.axhline(start - 0.5, color="white", linewidth=0.8)
            axes.axvline(start - 0.5, color="white", linewidth=0.8)
        axes.annotate(
            domain or _NO_DOMAIN,
            (1.01, start + (size - 1) / 2),
            xycoords=("axes fraction", "data"),
            va="center",
            fontsize=8,
            parse_math=False,
        )
        start += size
    figure.colorbar(image, ax=axes, shrink=0.6, pad=0.07, label="Jaccard similarity of experts")
    axes.set_title(
        f"Concepts that share expert neurons, by domain\n{described}", fontsize=11, parse_math=False
    )
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=150)
    return content.getvalue()
