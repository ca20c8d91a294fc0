"""How well neurons detect concepts."""
