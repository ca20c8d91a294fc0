"""Colours that readers with any colour vision tell apart, on light and on dark ground.

The groups' are those of Okabe and Ito (2008), as given by Wong 2011 (Nature Methods 8, 441).
Figures are made
for light ground; the page replaces each colour by its dark one.
"""

from __future__ import annotations

INK, MUTED, GRID, GROUND = "#1b1f24", "#5a6270", "#d8dce2", "#ffffff"

GROUPS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Groups that have no number of their own are MUTED."""

KINDS = {"neurons": GROUPS[0], "control": MUTED, "baseline": GROUPS[1]}

DARK = {
    INK: "#e6e8eb",
    MUTED: "#a3abb8",
    GRID: "#3a3f47",
    GROUND: "#14171c",
    GROUPS[0]: "#4aa8e0",
    GROUPS[1]: "#f07a2a",
    GROUPS[2]: "#2bc49a",
    GROUPS[3]: "#e39bc6",
    GROUPS[4]: "#f0b429",
    GROUPS[5]: "#8fd0f5",
}
"""What stands for each colour on dark ground."""

SCALE = "cividis"
"""Scale of a matrix: the same to readers with any colour vision (Nuñez, Anderton and Renslow 2018)."""
