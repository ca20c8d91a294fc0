"""Differences of steering from its control: two separate intervals say less than that of the difference,
and values of other concepts or prompts would pass for its pairs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from scipy import stats

from alignment.statistics.steering import mean_two_way_clustered
from jobs.interventions.effects import MEASURES, dose_table
from storage import tables

PARAMS = {"model": "m", "revision": "main", "concept_set": "set", "pooling": "max", "samples": 4}
CONCEPTS, PROMPTS = ["cat", "boat", "bus", "tree", "fog", "tea"], ["The", "I saw the", "We had the"]


def make_dose(
    selection: str, k: int, concepts: list[str], values: dict[str, np.ndarray]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of `steering_prompts` and of `steering`; `values` have shape (concepts, prompts) or
    (concepts,)."""
    dose = {"selection": selection, "intervention": "clamp", "k": k}
    key = {**{name: PARAMS[name] for name in ("model", "revision", "concept_set", "pooling")}, **dose}
    prompt_rows, effect_rows = [], []
    for i, concept in enumerate(concepts):
        prompt_rows += [
            {
                **key, "concept": concept, "prompt": prompt, "log_p": 0.0, "continuations": [],
                "change": values["change"][i, j], "others": values["others"][i, j],
                "containing": round(values["containing"][i, j] * 4),
            }
            for j, prompt in enumerate(PROMPTS)
        ]  # fmt: skip
        effect_rows.append(
            {
                **dict.fromkeys(tables.STEERING.schema.names),
                **key, "concept": concept, "displacement": 1.0, "n_prompts": 3, "n_sentences": 8,
                **{name: values[name][i].mean() for name in MEASURES},
            }
        )  # fmt: skip
    return prompt_rows, effect_rows


def make_values(seed: int, shift: float, n: int) -> dict[str, np.ndarray]:
    """Values of which those of one concept, or after one prompt, are alike whatever is steered."""
    shared, own = np.random.default_rng(9), np.random.default_rng(seed)
    common = shared.normal(0, 5, (6, 1)) + shared.normal(0, 5, (1, 3))
    return {
        "change": (common + shift + own.normal(size=(6, 3)))[:n],
        "others": own.normal(size=(n, 3)),
        "containing": own.integers(0, 5, (n, 3)) / 4,
        "in_sentences": (common[:, 0] + shift + own.normal(size=6))[:n],
        "log_perplexity": own.normal(size=n),
    }


def table_of(*doses: tuple[list[dict[str, Any]], list[dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    prompts, effects = (
        pa.Table.from_pylist([row for dose in doses for row in dose[part]], table.schema)
        for part, table in enumerate((tables.STEERING_PROMPTS, tables.STEERING))
    )
    return {row["selection"]: row for row in dose_table(PARAMS, prompts, effects).to_pylist()}


def test_differences_are_paired_by_concept_and_prompt() -> None:
    """An interval of unpaired differences includes what both have in common: here it hides an effect."""
    steered, control = make_values(1, 2, 6), make_values(2, 0, 6)
    rows = table_of(make_dose("ap", 3, CONCEPTS, steered), make_dose("random", 3, CONCEPTS, control))
    row = rows["ap"]
    assert row["n_compared"] == 6
    for name in ("change", "others", "containing"):
        differences = np.empty((6, 3))
        for i in range(6):
            for j in range(3):
                differences[i, j] = steered[name][i, j] - control[name][i, j]
        expected = mean_two_way_clustered(differences)
        found = [row[f"{name}_difference{end}"] for end in ("", "_low", "_high")]
        assert found == pytest.approx([expected.value, expected.low, expected.high])
    for name in ("in_sentences", "log_perplexity"):
        interval = stats.ttest_rel(steered[name], control[name]).confidence_interval()
        found = [row[f"{name}_difference{end}"] for end in ("", "_low", "_high")]
        mean = np.mean(steered[name] - control[name])
        assert found == pytest.approx([mean, interval.low, interval.high])
    assert row["change_low"] < rows["random"]["change_high"]
    assert row["change_difference_low"] > 0
    assert row["in_sentences_difference_low"] > 0


def test_concepts_without_a_control_are_left_out_of_the_difference() -> None:
    """A concept whose layers have too few random neurons would be subtracted from another one's."""
    steered, control = make_values(1, 2, 6), make_values(2, 0, 4)
    rows = table_of(
        make_dose("ap", 3, CONCEPTS[::-1], {name: values[::-1] for name, values in steered.items()}),
        make_dose("random", 3, CONCEPTS[:4], control),
        make_dose("attribution", 3, CONCEPTS, steered),
    )
    assert (rows["ap"]["n_concepts"], rows["ap"]["n_compared"]) == (6, 4)
    expected = np.mean(steered["change"][:4] - control["change"])
    assert rows["ap"]["change_difference"] == pytest.approx(expected)
    assert rows["ap"]["change"] == pytest.approx(np.mean(steered["change"]))
    for selection in ("random", "attribution"):
        assert rows[selection]["n_compared"] is None
        assert rows[selection]["change_difference"] is None
