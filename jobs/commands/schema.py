"""The command `neuralign schema`."""

import json

from jobs.config.sweep import sweep_schema


def schema() -> None:
    """Print the JSON Schema of the sweep file."""
    print(json.dumps(sweep_schema(), indent=2))
