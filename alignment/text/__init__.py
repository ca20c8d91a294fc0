"""Concept words and sentences."""
