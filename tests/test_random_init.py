"""Random weights are a control only if they are those of an untrained model, and several seeds of them
show a spread only if they differ."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from cluster.models.weights import ensure_local, is_random_init, random_init_number, resolve
from jobs.actions.summary import _format_agreement
from jobs.config.loader import read_sweep
from jobs.planner import random_revisions
from jobs.results.rows import headline_rows, select_rows
from storage.errors import UserError
from tests import tiny

INITIALIZER_RANGE = 0.3
"""Of the tiny model's configuration."""


def test_each_seed_has_weights_of_its_own_in_the_published_range(tmp_path: Path) -> None:
    """Three seeds with the same weights would have no spread, and a scale other than that of the
    configuration is not where training began."""
    model = tiny.make_model(tmp_path / "model")
    weights = [resolve(str(model), name, tmp_path) for name in ("random-init", "random-init-2")]
    assert len({each.identity for each in weights}) == 2
    first, second = (load_file(ensure_local(each) / "model.safetensors") for each in weights)
    name = "model.layers.0.mlp.up_proj.weight"
    assert not first[name].equal(second[name])
    for tensors in (first, second):
        assert float(tensors[name].float().std()) == pytest.approx(INITIALIZER_RANGE, rel=0.1)
        assert tensors["model.layers.0.input_layernorm.weight"].eq(1).all()


def test_only_numbers_from_2_name_further_seeds() -> None:
    """Two names of one seed would count it twice, and a checkpoint with a similar name is trained."""
    numbers = [random_init_number(name) for name in ("random-init", "random-init-2", "random-init-10")]
    assert numbers == [1, 2, 10]
    for name in ("random-init-1", "random-init-0", "random-init-02", "random-init-x", "main", None):
        assert not is_random_init(name)


def test_the_baseline_adds_three_seeds_to_models_that_list_none(tmp_path: Path) -> None:
    """A single seed shows no spread, and a sweep file that names its seeds would get others."""
    models = "[{id: a}, {id: b, revisions: [main, random-init-2]}]"
    file = tiny.write_sweep(tmp_path, model=models, extra="baselines: [random-init]\n")
    text = file.read_text()
    start, end = text.index("models:"), text.index("\n", text.index("models:"))
    file.write_text(f"{text[:start]}models: {models}{text[end:]}")
    sweep = read_sweep(file)
    added = [random_revisions(sweep, model) for model in sweep.models]
    assert added == [["random-init", "random-init-2", "random-init-3"], []]


def test_a_revision_with_a_similar_name_is_not_random(tmp_path: Path) -> None:
    """`random-init-0` would be a fourth name of a seed."""
    model = tiny.make_model(tmp_path / "model")
    with pytest.raises(UserError, match="has no revision 'random-init-0'"):
        resolve(str(model), "random-init-0", tmp_path)


def experts_row(revision: str, rho: float | None, **columns: Any) -> dict[str, Any]:
    """A row of the table `alignment`: experts of the whole model."""
    return {
        **{"representation": "experts", "model": "m", "revision": revision, "pooling": "max"},
        **{"measure": "jaccard", "threshold": 0.5, "layer": None, "site": None, "rho": rho},
        **{"ci_low": 0.0, "ci_high": 0.4, **columns},
    }


def test_the_headline_has_the_mean_and_range_of_the_seeds() -> None:
    """The first seed, or the best, would stand for random weights; and an interval of one seed would be
    taken for the spread of seeds."""
    names = ("random-init", "random-init-2", "random-init-3")
    rows = [experts_row("main", 0.5)]
    rows += [experts_row(name, rho) for name, rho in zip(names, (0.08, 0.1, 0.15), strict=True)]
    ((label, row, _),) = [line for line in headline_rows(rows, 0.5) if "random" in line[0]]
    assert (label, row["seed_range"]) == ("random weights, 3 seeds", (0.08, 0.15))
    assert row["rho"] == pytest.approx(0.11)
    assert _format_agreement(row) == "0.11, 0.08 to 0.15"
    assert [label for label, _ in select_rows(rows, 0.5)] == [
        "neurons, max pooling",
        *(f"random weights, max pooling, seed {number}" for number in (1, 2, 3)),
    ]


def test_random_weights_without_a_threshold_have_a_row_of_their_own() -> None:
    """Few random neurons are experts: agreement by them is low whatever the weights, and would be the
    only row of random weights."""
    rows = [experts_row("main", 0.5)]
    for name in ("random-init", "random-init-2"):
        rows += [experts_row(name, 0.1), experts_row(name, 0.2, measure="auroc", threshold=None)]
    assert [line[0] for line in headline_rows(rows, 0.5)] == [
        "expert neurons (AP > 0.5)",
        "random weights, 2 seeds",
        "random weights, no threshold, 2 seeds",
    ]


def test_a_seed_without_experts_is_not_averaged_as_zero() -> None:
    """Random weights without any expert have no agreement: it is undefined, and the label says of how
    many seeds the mean is."""
    rows = [
        experts_row("main", 0.5),
        experts_row("random-init", None),
        experts_row("random-init-2", 0.2),
    ]
    label, row, _ = headline_rows(rows, 0.5)[-1]
    assert (label, row["rho"]) == ("random weights, 1 of 2 seeds", 0.2)


def test_a_single_seed_keeps_its_interval() -> None:
    """The range of one value would hide the uncertainty of that value."""
    label, row, _ = headline_rows([experts_row("main", 0.5), experts_row("random-init", 0.1)], 0.5)[-1]
    assert (label, row["ci_high"], "seed_range" in row) == ("random weights", 0.4, False)


def test_the_row_of_masked_words_is_in_the_headline() -> None:
    """The control that shows what the word itself gives would be looked for on the screen."""
    masked = experts_row("main", 0.3, representation="experts, masked", concept_set="s masked")
    rows = [experts_row("main", 0.5), masked]
    assert [label for label, _, _ in headline_rows(rows, 0.5)][1] == "expert neurons, word masked"
    assert select_rows(rows, 0.5)[1][0] == "neurons, max, word masked"
