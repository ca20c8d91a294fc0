"""Scoring neurons as detectors of concepts, in a stage of its own or at the end of a model's pass."""
