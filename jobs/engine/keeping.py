"""Whether activations are kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def are_kept(params: Mapping[str, Any]) -> bool:
    """Whether a stage `activations` with these parameters keeps them; else it has the rows that are made
    of them."""
    # Stages of earlier versions, in manifests, lack the parameter.
    return bool(params.get("keep", True))
