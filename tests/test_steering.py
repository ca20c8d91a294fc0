"""Steering as a user runs it: attributions and effects that are not those of the model, of the concept,
or of the neurons that are named would look like any other numbers."""

from __future__ import annotations
