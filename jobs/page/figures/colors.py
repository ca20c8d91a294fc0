"""Color-blind-safe colors for light and dark backgrounds.

Group colors are those of Okabe and Ito (2008), as listed in Wong 2011 (Nature Methods 8, 441). Figures
are drawn for a light background; the page substitutes the dark variants.
"""

from __future__ import annotations

INK, MUTED, GRID, BACKGROUND = "#1b1f24", "#5a6270", "#d8dce2", "#ffffff"

GROUPS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Concepts without a domain are MUTED."""

KINDS = {"neurons": GROUPS[0], "control": MUTED, "baseline": GROUPS[1]}

_DARK_GROUPS = ("#4aa8e0", "#f07a2a", "#2bc49a", "#e39bc6", "#f0b429", "#8fd0f5")
DARK = {INK: "#e6e8eb", MUTED: "#a3abb8", GRID: "#3a3f47", BACKGROUND: "#14171c"}
DARK |= zip(GROUPS, _DARK_GROUPS, strict=True)
"""The dark variant of every color."""

SCALE = "cividis"
"""Color scale of heatmaps, safe for color-blind readers (Nuñez, Anderton and Renslow 2018)."""
