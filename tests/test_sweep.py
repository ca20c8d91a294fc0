"""A sweep must print and store the same results however it runs, and resume after failures."""

from __future__ import annotations

import io
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from safetensors.numpy import load_file, save_file

from cluster.runtime.session import connect, shutdown_on_exit
from jobs.actions.summary import print_summary
from storage.database import open_store
from tests import tiny
from tests.commands import neuralign, python_m, rows

_ROWS = [
    "expert neurons (AP > 0.5)",
    "expert neurons, other tokens",
    "all neurons, no threshold",
    "glove-50",
    "mine",
    "input embeddings",
    "hidden states, best of 27 (L0)",
    "random weights, 3 seeds",
    "random weights, no threshold, 3 seeds",
]
_REMARK = "best on these pairs"


def test_a_sweep_prints_alignment_hierarchy_and_next_steps(study: Path) -> None:
    printed = (study / "printed.txt").read_text()
    assert printed.startswith("sweep: model; 6 concepts, 36 sentences\n")
    assert "mine: Spearman's rho, 12 pairs of 6 concepts, AP > 0.5, with 95% CI." in printed
    as_one_line = " ".join(printed.split())
    table = printed.split("\n\n")[2].splitlines()
    assert [re.split(r"\s{2,}", line)[1] for line in table] == [*_ROWS[:7], _REMARK, *_ROWS[7:]]
    assert re.search(r"^Expert neurons \(AP > 0\.5\) vs\. mine word vectors [+-]", printed, re.M)
    assert re.search(r"Hierarchy: within- vs\. between-domain AUC .*; mine .*; glove-50 ", as_one_line)
    assert max(map(len, printed.split("Next steps:")[0].splitlines())) <= 80


def _read_summary(study: Path) -> Any:
    (file,) = study.glob("results/sweep/report/*/summary.json")
    return json.loads(file.read_text())


def _print(summary: Any, width: int) -> str:
    out = io.StringIO()
    print_summary(Console(file=out, width=width), summary)
    return out.getvalue()


def test_the_summary_lists_only_neighbors_that_share_experts(study: Path) -> None:
    """Concepts without any would be listed in the order of the file, as if they were near."""
    summary = _read_summary(study)
    near = [["dog", 0.5], ["cow", 0.25], ["bus", 0.2], ["boat", 0.1], ["car", 0.0]]
    others = {"bus": [["car", 0]], "boat": [["bus", 0.3], ["cat", 0]]}
    summary["nearest"]["concepts"] = {"cat": near, **others}
    assert _print(summary, 80).endswith("\nNearest: cat: dog, cow, bus; boat: bus.\n")


@pytest.mark.parametrize(("width", "n_lines"), [(80, 2), (90, 1)])
def test_a_remark_is_beside_its_row_or_else_below(study: Path, width: int, n_lines: int) -> None:
    """A terminal would break it anywhere, and its end would look like a row."""
    table = _print(_read_summary(study), width).split("\n\n")[2].splitlines()
    assert len(table) == len(_ROWS) + n_lines - 1
    assert re.fullmatch(rf"  {re.escape(_ROWS[6])} .*\]\s+{_REMARK}", " ".join(table[6 : 6 + n_lines]))


def test_a_finished_sweep_computes_nothing_and_reports_it(study: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (study / "results").rglob("*")}
    rerun = neuralign("run", study / "sweep.yaml")
    assert rerun.returncode == 0
    assert "Nothing to compute: all 43 stages are done" in rerun.stderr
    assert rerun.stdout == (study / "printed.txt").read_text()
    assert before == {path: path.stat().st_mtime_ns for path in (study / "results").rglob("*")}


def test_status_and_plan_show_finished_stages(study: Path, tmp_path: Path) -> None:
    status = neuralign("status", study / "results/sweep").stdout
    assert status.count(" done ") == 43
    plan = neuralign("plan", study / "sweep.yaml").stdout
    assert "6 concepts, 36 sentences, 4 models" in plan
    assert plan.count(" done ") == 43
    shutil.copytree(study / "model", tmp_path / "model")
    file = tiny.write_sweep(tmp_path)
    plan = neuralign("plan", file).stdout
    assert plan.count("to do") == 11
    assert "3 of 3" in plan
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("name", ["hash-0123456789abcdef", "a b'c"])
def test_a_store_may_be_moved_to_any_folder(study: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(study / "results/sweep", tmp_path / name / "store")
    assert rows(tmp_path / name / "store") == rows(study / "results/sweep")


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """One cluster for the sweeps that run in this process."""
    with shutdown_on_exit():
        connect()
        yield


@pytest.mark.usefixtures("cluster")
def test_stages_run_separately_and_results_are_reproducible(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A result must not depend on when, in which order, with how many threads or by which process it
    was computed (the study runs without Ray). A stage with a missing file must be rerun, not read."""
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    for name in ("model", "encoder"):
        shutil.copytree(study / name, tmp_path / name)
    for name in ("sweep.yaml", "concepts.csv", "human.csv", "vectors.txt", "sae.safetensors"):
        shutil.copy(study / name, tmp_path)
    file, store = tmp_path / "sweep.yaml", tmp_path / "results/sweep"
    assert python_m("jobs.experts", file).returncode == 0
    stages = {path.name for path in store.iterdir() if path.is_dir()}
    assert stages == {"sentences", "activations", "experts"}
    (deleted,) = store.glob("experts/model-main-*/experts/max.L01.mlp.hidden.parquet")
    content = deleted.read_bytes()
    deleted.unlink()
    result = neuralign("sql", store, "SELECT 1")
    assert result.returncode == 2
    assert f"{deleted}: is missing" in result.stderr
    assert neuralign("run", file).returncode == 0
    assert deleted.read_bytes() == content
    assert rows(store) == rows(study / "results/sweep")
    assert "usage: python -m jobs.experts FILE" in python_m("jobs.experts").stderr


def _corrupt_weights(model: Path) -> None:
    """Put a NaN into the weights of layer 2."""
    file = model / "model.safetensors"
    weights = load_file(file)
    weights["model.layers.2.mlp.up_proj.weight"][3] = np.nan
    save_file(weights, file, {"format": "pt"})


@pytest.mark.usefixtures("cluster")
def test_nan_weights_fail_the_sweep_and_write_no_result(tmp_path: Path, tiny_model: Path) -> None:
    shutil.copytree(tiny_model, tmp_path / "model")
    _corrupt_weights(tmp_path / "model")
    result = neuralign("run", tiny.write_sweep(tmp_path))
    assert result.returncode == 1
    assert "L02.mlp.hidden" in result.stderr
    assert "model@main" in result.stderr
    assert "Traceback" not in result.stderr
    assert not list((tmp_path / "results").rglob("activations/*/_SUCCESS.json"))
    assert "failed" in neuralign("status", tmp_path / "results/sweep").stdout


@pytest.mark.usefixtures("cluster")
def test_a_sweep_continues_without_a_failed_model_and_reports_it(
    tmp_path: Path, tiny_model: Path
) -> None:
    """One failed model must not lose the results of the others, nor go unnoticed."""
    for name in ("good", "bad"):
        shutil.copytree(tiny_model, tmp_path / name)
    _corrupt_weights(tmp_path / "bad")
    sweep = tiny.write_sweep(tmp_path, extra="resamples: 100\nbaselines: [input-embedding]\n")
    text = sweep.read_text().replace("[max, concept, context]", "[max]")
    models = ", ".join(f"{{id: {name}, dtype: float32}}" for name in ("bad", "good"))
    sweep.write_text(text.replace("{id: model, dtype: float32}", models))
    result = neuralign("run", sweep)
    assert result.returncode == 1, result.stderr
    assert "activations bad@main: failed; continuing with the other models" in result.stderr
    assert "1 models failed" in result.stderr
    assert "L02.mlp.hidden" in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout.startswith("sweep: good; 6 concepts, 36 sentences\n")
    with open_store(tmp_path / "results/sweep") as connection:
        assert connection.sql("SELECT DISTINCT model FROM experts").fetchall() == [("good",)]
        compared = connection.sql("SELECT DISTINCT model FROM alignment WHERE revision IS NOT NULL")
        assert compared.fetchall() == [("good",)]
