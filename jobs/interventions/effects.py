"""The effects of steering: their means over prompts, sentences and concepts, with intervals."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from alignment.arrays import Floats
from alignment.statistics.resampling import IntervalEstimate
from alignment.statistics.steering import mean_of_sample, mean_two_way_clustered
from jobs.interventions.neurons import CONTROL_OF, INTERVENTIONS, SELECTIONS, Dose
from jobs.results.rows import Row, group_rows
from storage import tables

_BY_PROMPT = ("change", "others", "containing")
_BY_SENTENCE = ("in_sentences", "log_perplexity")
MEASURES = (*_BY_PROMPT, *_BY_SENTENCE)

DIFFERENCE = "_difference"
"""Ends the names of the columns with differences from the control."""

_Values = Mapping[str, Mapping[str, Floats]]
"""By measure and concept: the values after each prompt, or the mean over sentences, of shape (1,)."""

_CONTROLS = {selection: control for control, selection in CONTROL_OF.items()}


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
    """Means over all concepts for every dose, and their differences from the dose's control, from the
    rows of `steering_prompts` and of `steering`."""
    key = ("selection", "intervention", "k")
    effects_by_dose, prompts_by_dose = (
        {Dose(*dose): rows for dose, rows in group_rows(table.to_pylist(), *key).items()}
        for table in (effects, prompts)
    )
    values_by_dose = {
        dose: _values_by_concept(rows, effects_by_dose[dose], params["samples"])
        for dose, rows in prompts_by_dose.items()
    }
    rows = []
    for dose in sorted(values_by_dose, key=_order):
        values = values_by_dose[dose]
        control = values_by_dose.get(replace(dose, selection=_CONTROLS.get(dose.selection, "")), {})
        differences = _subtract(values, control)
        change = values["change"]
        rows.append(
            {
                **{name: params[name] for name in ("model", "revision", "concept_set", "pooling")},
                **vars(dose),
                "n_concepts": len(change),
                "displacement": np.mean([row["displacement"] for row in effects_by_dose[dose]]),
                "n_prompts": len(next(iter(change.values()))),
                **_means(values),
                "n_compared": len(differences["change"]) if control else None,
                **_means(differences, DIFFERENCE),
                "positive": np.mean([of_prompts.mean() > 0 for of_prompts in change.values()]),
            }
        )
    return pa.Table.from_pylist(rows, tables.STEERING_DOSES.schema)


def _values_by_concept(prompt_rows: list[Row], effect_rows: list[Row], samples: int) -> _Values:
    """The values of one dose; a concept without a value of a measure is left out of it."""
    values: dict[str, dict[str, Floats]] = {name: {} for name in MEASURES}
    for concept, rows in group_rows(prompt_rows, "concept").items():
        values["change"][concept] = np.array([row["change"] for row in rows])
        if rows[0]["others"] is not None:
            values["others"][concept] = np.array([row["others"] for row in rows])
        if samples:
            values["containing"][concept] = np.array([row["containing"] for row in rows]) / samples
    for row in effect_rows:
        for name in _BY_SENTENCE:
            if row[name] is not None:
                values[name][row["concept"]] = np.array([row[name]])
    return values


def _subtract(values: _Values, control: _Values) -> _Values:
    """Differences of each concept from its own control, after each prompt or in the mean over
    sentences. Concepts without a control are left out."""
    return {
        name: {
            concept: of_concept - control[name][concept]
            for concept, of_concept in by_concept.items()
            if concept in control.get(name, {})
        }
        for name, by_concept in values.items()
    }


def _means(values: _Values, suffix: str = "") -> dict[str, float | None]:
    """Columns of the means over concepts, their names followed by the suffix."""
    columns: dict[str, float | None] = {}
    for name, by_concept in values.items():
        of_concepts = np.array(list(by_concept.values()))
        if name in _BY_PROMPT:
            columns |= mean_columns({name + suffix: of_concepts}, mean_two_way_clustered)
        else:
            columns |= mean_columns({name + suffix: of_concepts.ravel()}, mean_of_sample)
    return columns


def _order(dose: Dose) -> tuple[int, int, int]:
    return INTERVENTIONS.index(dose.intervention), SELECTIONS.index(dose.selection), dose.k
