"""What a sweep would run must be told in seconds for thousands of models, and with true numbers."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig

from cluster.models.sites import describe
from cluster.models.size import _KEYS, Size, _from_keys
from jobs.config import read_sweep
from jobs.planner import plan
from storage.errors import UserError
from storage.store import layout
from storage.store.manifest import Manifest
from tests.many_models import add_revision, environment, write_study

_ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("kind", sorted(_KEYS))
def test_a_size_from_the_configuration_is_that_of_the_model(kind: str) -> None:
    """A key that means something else in some architecture would give wrong bytes and times."""
    own = {"ffn_dim": 48, "word_embed_proj_dim": 32} if kind == "opt" else {"intermediate_size": 48}
    config = AutoConfig.for_model(
        kind,
        num_hidden_layers=3,
        hidden_size=32,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=8,
        vocab_size=64,
        pad_token_id=0,
        **own,
    )
    with torch.device("meta"):
        sites, hidden = describe(config, "mlp")
    expected = Size(3, sum(site.width for site in sites), hidden)
    assert expected == Size(3, 3 * 48, 32)
    assert _from_keys(config.to_dict()) == expected
    assert _from_keys({"model_type": kind}) is None


def _plan(file: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", "from jobs.commands.main import main; main()", "plan", str(file)],
        env=environment(file),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_hundred_models_of_twenty_revisions_are_planned(tmp_path: Path) -> None:
    """A plan that reads a model for each revision would take minutes."""
    file = write_study(tmp_path, 100, 20, 1854, 20)
    printed = _plan(file)
    assert "1854 concepts, 37,080 sentences, 2000 models" in printed
    assert "activations 0 of 2000" in printed
    # 12 layers of 256 neurons as float16, and of 64 coordinates, two poolings, as float32
    expected = 2000 * 37_080 * 12 * (256 * 2 + 2 * 64 * 4) / 1e9
    assert f"Activations to write: {expected:,.2f} GB" in printed


def test_models_are_looked_up_side_by_side_and_the_first_error_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One after another, a hundred models would take the hub's time a hundred times."""
    all_ask = threading.Barrier(4, timeout=60)

    def commits(model: str) -> dict[str, str]:
        all_ask.wait()
        raise UserError(f"model {model!r}: nobody has it")

    monkeypatch.setattr("cluster.models.hub.commits", commits)
    (tmp_path / "concepts.csv").write_text("concept,text\ncat,A.\ncat,B.\ndog,C.\ndog,D.\n")
    file = tmp_path / "study.yaml"
    file.write_text("concepts: concepts.csv\nmodels: [org/a, org/b, org/c, org/d]\n")
    with pytest.raises(UserError, match="model 'org/a': nobody has it"):
        plan(read_sweep(file))


def test_revisions_that_are_new_are_planned_and_times_are_those_measured(tmp_path: Path) -> None:
    file = write_study(tmp_path, 2, 3, 6, 6)
    printed = _plan(file)
    assert [line.split()[1] for line in printed.splitlines() if line.startswith("experts")] == [
        f"zoo/model-{model}@step{step}" for model in (0, 1) for step in range(3)
    ]
    assert "How long it takes can be told when" in printed
    add_revision(tmp_path / "hub", 1, 10)
    # one model's activations took 60 s
    store = layout.create(tmp_path / "results/study")
    params = {"model": "zoo/model-0", "revision": "step0", "concept_set": _label(file)}
    folder = layout.stage_folder(store, "activations", "zoo/model-0@step0", "0" * 16)
    Manifest(folder, "activations", "zoo/model-0@step0", "0" * 16, params, {}, [], 60.0).commit()
    printed = _plan(file)
    assert "zoo/model-1@step10" in printed
    assert "activations 0 of 7" in printed
    of_activations = [line for line in printed.splitlines() if line.startswith("activations")]
    assert all(line.endswith("60 s") for line in of_activations)
    assert "About 7 min at the rates measured in this store, and" in printed


def _label(file: Path) -> str:
    from storage.readers.concepts import read_concepts

    return read_concepts(file.parent / "concepts.csv", "study").label
