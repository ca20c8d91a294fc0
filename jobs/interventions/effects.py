"""The effects of steering: their means over prompts, sentences and concepts, with intervals."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from alignment.arrays import Floats
from alignment.statistics.resampling import IntervalEstimate
from alignment.statistics.steering import mean_of_sample, mean_two_way_clustered
from jobs.interventions.neurons import INTERVENTIONS, SELECTIONS, Dose
from jobs.results.rows import group_rows
from storage import tables

_BY_PROMPT = ("change", "others", "containing")
_BY_SENTENCE = ("in_sentences", "log_perplexity")
MEASURES = (*_BY_PROMPT, *_BY_SENTENCE)


def mean_columns(
    values_by_name: Mapping[str, Floats | None], mean: Callable[[Floats], IntervalEstimate]
) -> dict[str, float | None]:
    """Columns of means and their 95% CIs; null without values. The CI of a share is clipped to
    [0, 1]."""
    columns: dict[str, float | None] = {}
    for name, values in values_by_name.items():
        if values is None or not values.size:
            columns |= {name: None, f"{name}_low": None, f"{name}_high": None}
            continue
        estimate = mean(values)
        low, high = estimate.low, estimate.high
        if name == "containing" and low is not None and high is not None:
            low, high = max(0.0, low), min(1.0, high)
        columns |= {name: estimate.value, f"{name}_low": low, f"{name}_high": high}
    return columns


def dose_table(params: Any, prompts: pa.Table, effects: pa.Table) -> pa.Table:
    """Means over all concepts for every dose, from the rows of `steering_prompts` and of `steering`."""
    key = ("selection", "intervention", "k")
    effects_by_dose = group_rows(effects.to_pylist(), *key)
    rows = []
    for dose, prompt_rows in sorted(
        group_rows(prompts.to_pylist(), *key).items(), key=lambda item: _order(Dose(*item[0]))
    ):
        concept_rows = list(group_rows(prompt_rows, "concept").values())
        change, others, containing = (
            np.array([[row[name] for row in of_concept] for of_concept in concept_rows], np.float64)
            for name in _BY_PROMPT
        )
        by_prompt = {
            "change": change,
            "others": None if np.isnan(others).any() else others,
            "containing": containing / params["samples"] if params["samples"] else None,
        }
        by_concept = {
            name: np.array([row[name] for row in effects_by_dose[dose] if row[name] is not None])
            for name in _BY_SENTENCE
        }
        rows.append(
            {
                **{name: params[name] for name in ("model", "revision", "concept_set", "pooling")},
                **dict(zip(key, dose, strict=True)),
                "n_concepts": len(concept_rows),
                "displacement": np.mean([row["displacement"] for row in effects_by_dose[dose]]),
                "n_prompts": change.shape[1],
                **mean_columns(by_prompt, mean_two_way_clustered),
                **mean_columns(by_concept, mean_of_sample),
                "positive": float((change.mean(axis=1) > 0).mean()),
            }
        )
    return pa.Table.from_pylist(rows, tables.STEERING_DOSES.schema)


def _order(dose: Dose) -> tuple[int, int, int]:
    return INTERVENTIONS.index(dose.intervention), SELECTIONS.index(dose.selection), dose.k
