"""JSON Schema of sweep files, for editors and validators."""

from __future__ import annotations

from typing import Any

from jobs.config.sweep import Sweep


def sweep_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of a sweep file, with descriptions, defaults and allowed values."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **Sweep.model_json_schema(),
        "title": "neuralign sweep file",
    }
