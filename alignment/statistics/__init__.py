"""Correlations, confidence intervals and tests."""
