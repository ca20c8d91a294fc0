"""A model could run its author's code without the user's permission."""

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

from cluster.activations.block_shard import BlockShard
from cluster.activations.pooling_shard import ActivationSettings
from cluster.models.model_config import REMOTE_CODE
from cluster.models.model_files import PICKLED_WEIGHTS
from cluster.models.sites import find_sites_from_config
from cluster.models.tokenizer import Text
from cluster.models.weights import load_config, resolve
from storage.errors import UserError
from tests import tiny
from tests.pooled import pool

TEXTS = [Text(text, []) for _, text in tiny.sentences()[:4]]
SETTINGS = ActivationSettings("float32", "mlp", ["max"])
CUSTOM_CODE = """
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
def model_copy(tiny_model: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    for path in tiny_model.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def assert_same_activations(folder: Path, tiny_model: Path, settings: ActivationSettings) -> None:
    expected = pool(tiny_model, SETTINGS, TEXTS, 100)
    activations = pool(folder, settings, TEXTS, 100)
    assert activations.keys() == expected.keys()
    for key, values in expected.items():
        assert np.array_equal(activations[key], values)


def test_pickled_weights_are_loaded_only_if_allowed(tiny_model: Path, model_copy: Path) -> None:
    """Unpickling can execute code."""
    torch.save(load_file(model_copy / "model.safetensors"), model_copy / "pytorch_model.bin")
    (model_copy / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"only pickled weights, .* `allow: \[pickled-weights\]`"):
        resolve(str(model_copy), "main", model_copy)
    assert resolve(str(model_copy), "main", model_copy, frozenset({PICKLED_WEIGHTS}))
    assert_same_activations(model_copy, tiny_model, SETTINGS)


def test_pickles_never_execute_code(model_copy: Path, tmp_path: Path) -> None:
    """Even allowed pickles could contain more than weights."""

    class Touch:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, (f"touch {tmp_path / 'run'}",)

    (model_copy / "pytorch_model.bin").write_bytes(pickle.dumps({"weight": Touch()}, protocol=2))
    (model_copy / "model.safetensors").unlink()
    with pytest.raises(UserError, match="more than weights"):
        BlockShard(model_copy, SETTINGS)
    assert not (tmp_path / "run").exists()


def test_remote_code_runs_only_if_allowed(
    tiny_model: Path, model_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    (model_copy / "own.py").write_text(CUSTOM_CODE.format(mark=str(tmp_path / "run")))
    config = json.loads((model_copy / "config.json").read_text())
    parts = {"AutoConfig": "Config", "AutoModel": "Model", "AutoModelForCausalLM": "ForCausalLM"}
    config |= {
        "model_type": "own",
        "architectures": ["OwnForCausalLM"],
        "auto_map": {name: f"own.Own{part}" for name, part in parts.items()},
    }
    (model_copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"requires remote code, .* `allow: \[remote-code\]`"):
        resolve(str(model_copy), "main", model_copy)
    with pytest.raises(UserError):
        BlockShard(model_copy, SETTINGS)
    assert not (tmp_path / "run").exists()
    weights = resolve(str(model_copy), "main", model_copy, frozenset({REMOTE_CODE}))
    assert weights.trust_remote_code
    planned = find_sites_from_config(load_config(weights), "mlp", weights.trust_remote_code)
    assert planned.sites == BlockShard(tiny_model, SETTINGS).sites
    assert_same_activations(
        model_copy, tiny_model, ActivationSettings("float32", "mlp", ["max"], trust_remote_code=True)
    )
    assert (tmp_path / "run").exists()
