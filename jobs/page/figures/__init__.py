"""Figures: their specifications and renderers."""
