"""The command `neuralign schema`."""

from __future__ import annotations

import json


def schema() -> None:
    """Print the JSON Schema of the sweep file."""
    from jobs.config.sweep import sweep_schema

    print(json.dumps(sweep_schema(), indent=2))
