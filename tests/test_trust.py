"""A model must not run its author's code on a user's machine unless the user has said so."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import dynamic_module_utils

from cluster.activations.shard import Settings, Shard
from cluster.activations.tokens import Text
from cluster.models.sites import describe
from cluster.models.weights import PICKLED_WEIGHTS, REMOTE_CODE, load_config, resolve
from storage.errors import UserError
from tests import tiny

TEXTS = [Text(text, []) for _, text in tiny.sentences()[:4]]
SETTINGS = Settings("float32", "mlp", ["max"])
OWN = """
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel

Path({mark!r}).touch()


class OwnConfig(LlamaConfig):
    model_type = "own"


class OwnModel(LlamaModel):
    config_class = OwnConfig


class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
"""


@pytest.fixture
def copied(tiny_model: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    for path in tiny_model.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def assert_reads_the_same(folder: Path, tiny_model: Path, settings: Settings) -> None:
    expected = Shard(tiny_model, SETTINGS).read(TEXTS, 100).values
    found = Shard(folder, settings).read(TEXTS, 100).values
    assert found.keys() == expected.keys()
    for place, values in expected.items():
        assert np.array_equal(found[place], values)


def test_pickled_weights_are_read_only_where_they_are_allowed(tiny_model: Path, copied: Path) -> None:
    torch.save(load_file(copied / "model.safetensors"), copied / "pytorch_model.bin")
    (copied / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"pickled weights only, .* `allow: \[pickled-weights\]`"):
        resolve(str(copied), "main", copied)
    assert resolve(str(copied), "main", copied, frozenset({PICKLED_WEIGHTS}))
    assert_reads_the_same(copied, tiny_model, SETTINGS)


def test_a_pickle_that_is_more_than_weights_is_not_run(copied: Path, tmp_path: Path) -> None:
    class Touch:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, (f"touch {tmp_path / 'run'}",)

    (copied / "pytorch_model.bin").write_bytes(pickle.dumps({"weight": Touch()}, protocol=2))
    (copied / "model.safetensors").unlink()
    with pytest.raises(UserError, match="hold more than weights"):
        Shard(copied, SETTINGS)
    assert not (tmp_path / "run").exists()


def test_a_models_own_code_runs_only_where_it_is_allowed(
    tiny_model: Path, copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    (copied / "own.py").write_text(OWN.format(mark=str(tmp_path / "run")))
    config = json.loads((copied / "config.json").read_text())
    parts = {"AutoConfig": "Config", "AutoModel": "Model", "AutoModelForCausalLM": "ForCausalLM"}
    config |= {
        "model_type": "own",
        "architectures": ["OwnForCausalLM"],
        "auto_map": {name: f"own.Own{part}" for name, part in parts.items()},
    }
    (copied / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"Python code of its own, .* `allow: \[remote-code\]`"):
        resolve(str(copied), "main", copied)
    with pytest.raises(UserError):
        Shard(copied, SETTINGS)
    assert not (tmp_path / "run").exists()
    weights = resolve(str(copied), "main", copied, frozenset({REMOTE_CODE}))
    assert weights.remote_code
    planned, _ = describe(load_config(weights), "mlp", weights.remote_code)
    assert planned == Shard(tiny_model, SETTINGS).sites
    assert_reads_the_same(copied, tiny_model, Settings("float32", "mlp", ["max"], remote_code=True))
    assert (tmp_path / "run").exists()
