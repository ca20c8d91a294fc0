"""Which models are compared by the AUROCs of all neurons, and where these comparisons are shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from scipy.stats import false_discovery_control

from jobs import experts, planner, similarity
from jobs.actions.plan import print_plan
from jobs.alignment import correct_p_values
from jobs.config.loader import read_sweep
from jobs.results.rows import headline_rows, select_rows, uses_measure
from storage.errors import UserError
from tests import tiny

_N_BYTES = 2 * 3 * 48 * 6 * 3
"""AUROCs of the tiny model: float16, layers, neurons, concepts and poolings."""


def _plan(tmp_path: Path, extra: str = "") -> planner.Plan:
    tiny.make_model(tmp_path / "model")
    return planner.plan_sweep(read_sweep(tiny.write_sweep(tmp_path, extra=f"baselines: []\n{extra}")))


def _measures(plan: planner.Plan) -> dict[str, list[str]]:
    """The measures on the experts of each revision."""
    stages = plan.stages_of_kind(similarity.KIND)
    return {
        stage.params["revision"]: stage.params["measures"]
        for stage in stages
        if "experts" in stage.inputs and not similarity.is_control(stage)
    }


def _kept(plan: planner.Plan) -> dict[str, list[str]]:
    """Scores of all neurons that are kept, of experts and controls."""
    stages = plan.stages_of_kind(experts.KIND) + plan.stages_of_kind(experts.CONTROL_KIND)
    return {stage.params.get("control", "experts"): stage.params["scores"] for stage in stages}


def test_halves_are_compared_where_there_are_halves(tmp_path: Path) -> None:
    """A measure that fails for lack of halves, or AUROCs of controls that nothing reads."""
    plan = _plan(tmp_path)
    assert list(_measures(plan).values()) == [["jaccard", "auroc"]]
    assert _kept(plan) == {"experts": ["auroc"]}
    plan = _plan(tmp_path, "controls: [split-half, length-matched]\n")
    assert list(_measures(plan).values()) == [["jaccard", "auroc", "auroc-halves"]]
    assert _kept(plan) == {
        "experts": ["auroc"], "half 1": ["auroc"], "half 2": ["auroc"], "length-matched": [],
    }  # fmt: skip
    plan = _plan(tmp_path, "controls: [split-half]\nsimilarity: [jaccard]\nexperts: {scores: true}\n")
    assert _kept(plan) == {"experts": ["ap", "auroc"], "half 1": [], "half 2": []}


def test_random_weights_are_compared_by_all_neurons(tmp_path: Path) -> None:
    """The measure that needs no threshold is the one that random weights can score on."""
    tiny.make_model(tmp_path / "model")
    with_random = tiny.write_sweep(tmp_path, extra="baselines: [random-init]\ncontrols: [split-half]\n")
    plan = planner.plan_sweep(read_sweep(with_random))
    random = [measures for name, measures in _measures(plan).items() if name.startswith("random-init")]
    assert random
    assert all(measures == ["jaccard", "auroc"] for measures in random)


def test_large_scores_are_kept_only_on_request(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Gigabytes that nobody asked for, or a measure that is left out without a word."""
    for limit, kept in ((_N_BYTES, ["auroc"]), (_N_BYTES - 1, [])):
        with patch.object(planner, "MAX_AUROC_BYTES", limit):
            plan = _plan(tmp_path)
            assert _kept(plan) == {"experts": kept}
            assert list(_measures(plan).values()) == [["jaccard", *kept]]
            print_plan(tmp_path / "sweep.yaml")
        assert ("AUROCs of all neurons are not kept" in capsys.readouterr().out) == (not kept)
    with patch.object(planner, "MAX_AUROC_BYTES", 0):
        with pytest.raises(
            UserError, match=r"similarity.measures: 'auroc': .* experts: \{scores: true\}"
        ):
            _plan(tmp_path, "similarity: [jaccard, auroc]\n")
        plan = _plan(tmp_path, "similarity: [jaccard, auroc]\nexperts: {scores: true}\n")
        assert _kept(plan) == {"experts": ["ap", "auroc"]}
    assert _kept(_plan(tmp_path, "experts: {scores: false}\n")) == {"experts": []}


def _row(measure: str, revision: str = "main", pooling: str = "max", **columns: Any) -> dict[str, Any]:
    threshold = 0.5 if measure == "jaccard" else None
    return {
        "representation": "experts", "model": "m", "revision": revision, "pooling": pooling,
        "measure": measure, "threshold": threshold, "layer": None, "site": None, "rho": 0.1,
        "subset": "all", **columns,
    }  # fmt: skip


def test_all_neurons_have_rows_of_their_own() -> None:
    """Rows without a threshold that pass for experts, or that a table of experts leaves out."""
    measures = ("auroc-halves", "auroc", "jaccard", "spearman")
    rows = [_row(measure, pooling=pooling) for measure in measures for pooling in ("max", "concept")]
    rows += [_row(measure, "random-init") for measure in ("jaccard", "auroc")]
    rows += [_row(measure, layer=3) for measure in measures]
    shown = [row for row in rows if uses_measure(row, "jaccard")]
    assert {row["measure"] for row in shown if row["layer"] is not None} == {"jaccard"}
    assert [(label, row["measure"]) for label, row in select_rows(shown, 0.5)] == [
        ("neurons, max pooling", "jaccard"),
        ("neurons, concept pooling", "jaccard"),
        ("all neurons, AUROC, max", "auroc"),
        ("all neurons, AUROC, concept", "auroc"),
        ("all neurons, AUROC, crossed halves, max", "auroc-halves"),
        ("all neurons, AUROC, crossed halves, concept", "auroc-halves"),
        ("best layer of 1 (L3), max", "jaccard"),
        ("random weights, max pooling", "jaccard"),
        ("random weights, all neurons, AUROC, max", "auroc"),
    ]
    assert [(label, row["measure"]) for label, row, _ in headline_rows(shown, 0.5)] == [
        ("expert neurons (AP > 0.5)", "jaccard"),
        ("all neurons, no threshold", "auroc"),
        ("random weights", "jaccard"),
        ("random weights, no threshold", "auroc"),
    ]


def test_p_values_are_corrected_over_everything_that_is_shown() -> None:
    """Corrected within a model or measure, the best of many rows would seem significant."""
    p = [0.01, 0.02, None, 0.04, 0.5]
    rows: list[dict[str, Any]] = [
        {"human_set": "men", "agreement": "spearman", "p": value, "measure": str(number)}
        for number, value in enumerate(p)
    ]
    rows.append({"human_set": "men", "agreement": "kendall", "p": 0.03})
    correct_p_values(rows)
    expected = false_discovery_control([value for value in p if value is not None])
    assert [row["q"] for row in rows[:5] if row["q"] is not None] == pytest.approx(expected)
    assert rows[2]["q"] is None
    assert rows[5]["q"] == 0.03
