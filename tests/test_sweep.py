"""A sweep, from the outside: what it prints, what it leaves in the store, what it does again."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from cluster.runtime.session import connect, disconnected_after
from storage.database import open_store
from tests import tiny
from tests.commands import neuralign, python_m, rows


def test_a_sweep_prints_alignment_neighbours_and_where_to_look(study: Path) -> None:
    printed = (study / "printed.txt").read_text()
    assert "Alignment with mine: Spearman's rho, 12 pairs of 6 concepts" in printed
    for label in ("neurons, max", "neurons, context", "random weights, max", "input embedding"):
        assert label in printed
    assert "Nearest concepts by shared experts" in printed
    assert max(map(len, printed.split("Where to look next")[0].splitlines())) <= 80


def test_a_finished_sweep_computes_nothing_and_says_so(study: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (study / "results").rglob("*")}
    again = neuralign("run", study / "sweep.yaml")
    assert again.returncode == 0
    assert "Nothing to compute: all 33 stages are done" in again.stderr
    assert again.stdout == (study / "printed.txt").read_text()
    assert before == {path: path.stat().st_mtime_ns for path in (study / "results").rglob("*")}


def test_status_and_plan_tell_what_is_done(study: Path, tmp_path: Path) -> None:
    status = neuralign("status", study / "results/sweep").stdout
    assert status.count(" done ") == 33
    plan = neuralign("plan", study / "sweep.yaml").stdout
    assert "6 concepts, 36 sentences, 2 models" in plan
    assert plan.count(" done ") == 33
    shutil.copytree(study / "model", tmp_path / "model")
    file = tiny.write_sweep(tmp_path)
    plan = neuralign("plan", file).stdout
    assert plan.count("to do") == 9
    assert "1 of 1" in plan
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("place", ["hash-0123456789abcdef", "a b'c"])
def test_the_name_of_a_stores_folder_means_nothing(study: Path, tmp_path: Path, place: str) -> None:
    shutil.copytree(study / "results/sweep", tmp_path / place / "store")
    assert rows(tmp_path / place / "store") == rows(study / "results/sweep")


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """One for the sweeps that are run in this process."""
    with disconnected_after():
        connect()
        yield


@pytest.mark.usefixtures("cluster")
def test_each_stage_can_be_run_alone_and_numbers_come_again(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing in a result may depend on when, in which order, with how many threads or by which process
    it was computed: the study is made without Ray. A stage whose file is gone is done again and never
    read."""
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    for name in ("model", "encoder"):
        shutil.copytree(study / name, tmp_path / name)
    for name in ("sweep.yaml", "concepts.csv", "human.csv", "vectors.txt", "sae.safetensors"):
        shutil.copy(study / name, tmp_path)
    file, store = tmp_path / "sweep.yaml", tmp_path / "results/sweep"
    assert python_m("jobs.experts", file).returncode == 0
    stages = {path.name for path in store.iterdir() if path.is_dir()}
    assert stages == {"sentences", "activations", "experts"}
    (lost,) = store.glob("experts/model-main-*/experts/max.L01.mlp.hidden.parquet")
    whole = lost.read_bytes()
    lost.unlink()
    answer = neuralign("sql", store, "SELECT 1")
    assert answer.returncode == 2
    assert f"{lost}: is missing" in answer.stderr
    assert neuralign("run", file).returncode == 0
    assert lost.read_bytes() == whole
    assert rows(store) == rows(study / "results/sweep")
    assert "usage: python -m jobs.experts FILE" in python_m("jobs.experts").stderr


def _break(model: Path) -> None:
    """Put a number that is none into the weights of layer 2."""
    file = model / "model.safetensors"
    weights = load_file(file)
    weights["model.layers.2.mlp.up_proj.weight"][3] = np.nan
    save_file(weights, file, {"format": "pt"})


@pytest.mark.usefixtures("cluster")
def test_weights_with_a_number_that_is_none_fail_the_sweep_and_write_no_result(
    tmp_path: Path, tiny_model: Path
) -> None:
    shutil.copytree(tiny_model, tmp_path / "model")
    _break(tmp_path / "model")
    done = neuralign("run", tiny.write_sweep(tmp_path))
    assert done.returncode == 1
    assert "L02.mlp.hidden" in done.stderr
    assert "model@main" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "results").rglob("activations/*/_SUCCESS.json"))
    assert "failed" in neuralign("status", tmp_path / "results/sweep").stdout


@pytest.mark.usefixtures("cluster")
def test_a_sweep_goes_on_without_the_model_that_fails_and_tells_of_it(
    tmp_path: Path, tiny_model: Path
) -> None:
    """All else is computed and compared, the failure told, the exit code 1."""
    for name in ("good", "bad"):
        shutil.copytree(tiny_model, tmp_path / name)
    _break(tmp_path / "bad")
    sweep = tiny.write_sweep(tmp_path, extra="resamples: 100\nbaselines: [input-embedding]\n")
    text = sweep.read_text().replace("[max, concept, context]", "[max]")
    models = ", ".join(f"{{id: {name}, dtype: float32}}" for name in ("bad", "good"))
    sweep.write_text(text.replace("{id: model, dtype: float32}", models))
    done = neuralign("run", sweep)
    assert done.returncode == 1, done.stderr
    assert "activations bad@main: failed; the other models go on" in done.stderr
    assert "1 models failed" in done.stderr
    assert "L02.mlp.hidden" in done.stderr
    assert "Traceback" not in done.stderr
    assert "Nearest concepts by shared experts (good@main" in done.stdout
    with open_store(tmp_path / "results/sweep") as connection:
        assert connection.sql("SELECT DISTINCT model FROM experts").fetchall() == [("good",)]
        assert connection.sql("SELECT DISTINCT model FROM alignment").fetchall() == [("good",)]
