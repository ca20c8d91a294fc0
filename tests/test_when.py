"""Checkpoints of one model in one folder: confusing two would give a false training history."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from cluster.models.hub import expand_revisions
from cluster.models.weights import local_revisions, resolve
from jobs.actions.cost_estimate import print_cost_estimate, read_configs
from jobs.commands.main import app
from jobs.config.concepts import GeneratedSentences
from jobs.config.loader import read_sweep
from storage.database import open_store
from storage.errors import UserError
from storage.readers.concepts import read_concept_names
from tests import tiny
from tests.commands import neuralign

ROOT = Path(__file__).parent.parent


def test_a_revision_of_a_folder_is_its_subfolder(tmp_path: Path) -> None:
    model = tiny.make_model(tmp_path / "model", seed=2)
    tiny.make_model(model / "step1", seed=1)
    main, step = (resolve(str(model), revision, tmp_path) for revision in ("main", "step1"))
    assert main.identity == resolve(str(model), "main", tmp_path).identity != step.identity
    assert step.location == str(model / "step1")
    control = resolve(str(model), "random-init", tmp_path)
    assert control.location == str(model)
    tiny.make_model(model / "step10")
    assert expand_revisions("m", ["step*", "main"], local_revisions(str(model), tmp_path)) == [
        "step1",
        "step10",
        "main",
    ]
    for wrong in ("step2", "../model", ".", "step1/../step1"):
        with pytest.raises(UserError, match=r"this local model has main, random-init, step1, step10$"):
            resolve(str(model), wrong, tmp_path)


def test_the_example_trains_a_model_and_prints_its_checkpoints(tmp_path: Path) -> None:
    """The example itself, on an even smaller model and a few steps."""
    file = tiny.write_sweep(tmp_path)
    checkpoints = "dtype: float32, revisions: [step0, step2, step10]"
    file.write_text(file.read_text().replace("dtype: float32", checkpoints))
    sizes = ["--width", "16", "--layers", "2", "--vocabulary", "300"]
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples/when.py"), str(file), *sizes],
        capture_output=True,
        text=True,
        timeout=1200,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    losses = [line.split()[3] for line in done.stdout.splitlines() if "  loss " in line]
    assert len(losses) == 3
    assert float(losses[2]) < float(losses[0])
    with open_store(tmp_path / "results/sweep") as connection:
        rows = connection.sql(
            "SELECT step, revision, revision_before, stability, n_experts, rho FROM training "
            "WHERE pooling = 'max' AND threshold = 0.5 ORDER BY step"
        ).fetchall()
        experts = connection.sql(
            "SELECT revision, concept, layer, unit FROM experts WHERE pooling = 'max' AND ap > 0.5"
        ).fetchall()
        concepts = [name for (name,) in connection.sql("SELECT concept FROM concepts").fetchall()]
        aligned = dict(
            connection.sql(
                "SELECT revision, rho FROM alignment WHERE representation = 'experts' "
                "AND pooling = 'max' AND threshold = 0.5 AND layer IS NULL AND site IS NULL"
            ).fetchall()
        )
    sets: dict[tuple[str, str], set[tuple[int, int]]] = {}
    for revision, concept, layer, unit in experts:
        sets.setdefault((revision, concept), set()).add((layer, unit))
    assert [row[:3] for row in rows] == [
        (0, "step0", None),
        (2, "step2", "step0"),
        (10, "step10", "step2"),
    ]
    for _, revision, before, stability, n_experts, rho in rows:
        current = [sets.get((revision, name), set()) for name in concepts]
        assert n_experts == np.median([len(neurons) for neurons in current])
        assert rho == aligned[revision]
        if before:
            earlier = [sets.get((before, name), set()) for name in concepts]
            both = [(a, b) for a, b in zip(current, earlier, strict=True) if a and b]
            jaccards = [len(a & b) / len(a | b) for a, b in both]
            assert stability == pytest.approx(np.mean(jaccards))


def test_the_cost_of_the_papers_grid_is_estimated_without_its_weights(tmp_path: Path) -> None:
    grid = read_sweep(ROOT / "examples/paper.yaml")
    out = io.StringIO()
    print_cost_estimate(Console(file=out, width=80), grid, read_configs(grid))
    printed = out.getvalue()
    sentences = 645 * 400
    assert f"645 concepts, {sentences:,} sentences" in printed
    total = 0
    for name, hidden, layers in (("70m", 512, 6), ("1b", 2048, 16), ("12b", 5120, 36)):
        # query, key and value in one; the attention's output; up and down
        neurons = layers * (3 + 1 + 4 + 1) * hidden
        weights = layers * (3 + 1 + 4 + 4) * hidden**2
        total += 7 * neurons * 2 * sentences
        (line,) = (line for line in printed.splitlines() if line.startswith(f"EleutherAI/pythia-{name}"))
        assert f"{neurons:,}" in line
        assert f"{neurons * 2 * sentences / 1e9:,.1f} GB" in line
        assert float(line.split()[-2]) == pytest.approx(
            2 * weights * 24 * sentences / 1e15, rel=1e-3, abs=0.06
        )
    assert f"{total / 1e12:.2f} TB" in printed
    assert "Activations to write: 0.00 GB." in printed
    times = re.findall(r"(\d+) min", " ".join(printed.split()).partition("One H100")[2])
    # Forward passes, scoring and hidden states on disk.
    assert len(times) == 3
    assert sum(map(int, times)) < 180
    assert "men: 2,005 pairs" in printed
    assert max(map(len, printed.splitlines())) <= 80
    (tmp_path / "words.csv").write_text("concept\ncat\ndog\n")
    file = tmp_path / "offline.yaml"
    file.write_text(
        "concepts: {source: generate, words: words.csv, model: ./writer}\n"
        f"models: [{{id: ./nowhere, config: {ROOT}/examples/pythia/70m.json}}]\n"
    )
    result = CliRunner().invoke(app, ["plan", str(file)])
    assert result.exit_code == 0
    assert "Cannot run here: model './writer': no such file or folder" in result.stdout
    assert "2 concepts, 64 sentences" in result.stdout
    for config, message in (("none.json", "no such file"), ("bad.json", "is not a model configuration")):
        (tmp_path / "bad.json").write_text("{}")
        (tmp_path / "sweep.yaml").write_text(
            f"concepts: a.csv\nmodels: [{{id: a/b, config: {config}}}]\n"
        )
        with pytest.raises(UserError, match=message):
            read_configs(read_sweep(tmp_path / "sweep.yaml"))


def test_the_hierarchy_example_is_planned_and_has_the_names_of_its_domains() -> None:
    """Recovery and containment need every domain's name as a concept, and a plan no weights."""
    file = ROOT / "examples/hierarchy.yaml"
    planned = neuralign("plan", file)
    assert planned.returncode == 0, planned.stderr
    assert "82 concepts, 32,800 sentences" in planned.stdout
    (concepts,) = read_sweep(file).concepts
    assert isinstance(concepts, GeneratedSentences)
    assert isinstance(concepts.words, str)
    words = read_concept_names(ROOT / "examples" / concepts.words)
    domains = {word.domain for word in words}
    assert len(domains) == 14
    assert domains <= {word.name for word in words}
