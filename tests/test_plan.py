"""A plan must take seconds for thousands of models, and its numbers must be correct."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest
from transformers import AutoConfig

from cluster.models.size import _MLPS, _size_from_config, measure_size
from jobs.config.loader import read_sweep
from jobs.planner import plan_sweep
from storage.errors import UserError
from storage.store import layout
from storage.store.manifest import Manifest
from tests.many_models import add_revision, environment, write_study

_ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("kind", sorted(_MLPS))
def test_the_size_from_the_configuration_is_that_of_the_model(kind: str) -> None:
    """A key with another meaning in some architecture would give wrong sites, bytes and times."""
    width_keys = (
        {"ffn_dim": 48, "word_embed_proj_dim": 32} if kind == "opt" else {"intermediate_size": 48}
    )
    config = AutoConfig.for_model(
        kind,
        num_hidden_layers=3,
        hidden_size=32,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=8,
        vocab_size=64,
        pad_token_id=0,
        **width_keys,
    )
    expected = measure_size(config, "mlp")
    assert (expected.layers, expected.neurons, expected.hidden_size) == (3, 3 * 48, 32)
    assert _size_from_config(config.to_dict()) == expected
    assert _size_from_config({"model_type": kind}) is None


def _plan(file: Path) -> str:
    process = subprocess.run(
        [sys.executable, "-c", "from jobs.commands.main import main; main()", "plan", str(file)],
        env=environment(file),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    return process.stdout


def test_a_hundred_models_of_twenty_revisions_are_planned(tmp_path: Path) -> None:
    """A plan that loads the configuration of every revision would take minutes."""
    file = write_study(tmp_path, 100, 20, 1854, 20)
    printed = _plan(file)
    assert "1854 concepts, 37,080 sentences, 2000 models" in printed
    assert "activations 0 of 2000" in printed
    # 12 layers of 256 neurons as float16, and of 64 coordinates, two poolings, as float32
    expected = 2000 * 37_080 * 12 * (256 * 2 + 2 * 64 * 4) / 1e9
    assert (
        f"Activations are not kept: neurons are scored where they are computed ({expected:,.2f} GB"
        in (printed)
    )
    assert "Activations to write: 0.00 GB" in printed
    file.write_text(f"{file.read_text()}experts: {{keep_activations: true}}\n")
    assert f"Activations to write: {expected:,.2f} GB" in _plan(file)


def test_models_are_looked_up_concurrently_and_the_first_error_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sequential look-ups of a hundred models would take a hundred Hub round trips."""
    all_started = threading.Barrier(4, timeout=60)

    def commits(model: str) -> dict[str, str]:
        all_started.wait()
        raise UserError(f"model {model!r}: nobody has it")

    monkeypatch.setattr("cluster.models.hub.list_revisions", commits)
    (tmp_path / "concepts.csv").write_text("concept,text\ncat,A.\ncat,B.\ndog,C.\ndog,D.\n")
    file = tmp_path / "study.yaml"
    file.write_text("concepts: concepts.csv\nmodels: [org/a, org/b, org/c, org/d]\n")
    with pytest.raises(UserError, match="model 'org/a': nobody has it"):
        plan_sweep(read_sweep(file))


def test_new_revisions_are_planned_and_times_are_extrapolated(tmp_path: Path) -> None:
    """A plan from the revisions of the last run would miss the new ones and their cost."""
    file = write_study(tmp_path, 2, 3, 6, 6)
    printed = _plan(file)
    assert [line.split()[1] for line in printed.splitlines() if line.startswith("experts")] == [
        f"zoo/model-{model}@step{step}" for model in (0, 1) for step in range(3)
    ]
    assert "No time estimate:" in printed
    add_revision(tmp_path / "hub", 1, 10)
    # one model's activations took 60 s
    store = layout.create_store(tmp_path / "results/study")
    params = {"model": "zoo/model-0", "revision": "step0", "concept_set": _label(file)}
    folder = layout.stage_folder(store, "activations", "zoo/model-0@step0", "0" * 16)
    Manifest(folder, "activations", "zoo/model-0@step0", "0" * 16, params, {}, [], 60.0).commit()
    printed = _plan(file)
    assert "zoo/model-1@step10" in printed
    assert "activations 0 of 7" in printed
    activation_lines = [line for line in printed.splitlines() if line.startswith("activations")]
    assert all(line.endswith("60 s") for line in activation_lines)
    assert "About 7 min at the rates measured in this store, plus" in printed


def _label(file: Path) -> str:
    from storage.readers.concepts import read_concepts

    return read_concepts(file.parent / "concepts.csv", "study").label
