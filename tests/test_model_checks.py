"""A plan that accepts what a run rejects costs the user the minutes until then."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from jobs.actions.model_checks import check_models
from jobs.actions.plan import print_plan
from jobs.config.loader import read_sweep
from jobs.planner import plan_sweep
from storage.errors import UserError
from tests import tiny

HEADER = "concept,domain,text\n"


@pytest.fixture
def sweep(tmp_path: Path, tiny_model: Path) -> Path:
    """A sweep of a copy of the tiny model."""
    shutil.copytree(tiny_model, tmp_path / "model")
    return tiny.write_sweep(tmp_path)


def edit_json(file: Path, **values: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def set_option(sweep: Path, option: str) -> None:
    sweep.write_text(sweep.read_text().replace("dtype: float32", f"dtype: float32, {option}"))


def add_row(sweep: Path, row: str) -> None:
    table = sweep.parent / "concepts.csv"
    table.write_text(table.read_text() + row)


def add_token(sweep: Path, token: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(sweep.parent / "model")
    tokenizer.add_tokens([token])
    tokenizer.save_pretrained(sweep.parent / "model")


def change_weights(sweep: Path, name: str, n_rows: int) -> None:
    """Keep the first rows of a tensor; drop it if none."""
    file = sweep.parent / "model/model.safetensors"
    tensors = load_file(file)
    tensors[name] = tensors[name][:n_rows].clone()
    kept = {key: tensor for key, tensor in tensors.items() if len(tensor)}
    save_file(kept, file, metadata={"format": "pt"})


def truncate(sweep: Path) -> None:
    file = sweep.parent / "model/model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def index_missing_file(sweep: Path) -> None:
    weight_map = {"model.norm.weight": "model-00002-of-00002.safetensors"}
    index = {"metadata": {}, "weight_map": weight_map}
    (sweep.parent / "model/model.safetensors.index.json").write_text(json.dumps(index))


def quantize(method: str, **settings: object) -> Callable[[Path], None]:
    config = {"quant_method": method, **settings}
    return lambda sweep: edit_json(sweep.parent / "model/config.json", quantization_config=config)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda sweep: set_option(sweep, "shards: 4"), "has 3 layers, too few for 4 shards"),
        (
            lambda sweep: set_option(sweep, "add_bos: false, skip_first_token: true"),
            "word that is pooled",
        ),
        (truncate, "truncated or corrupt"),
        (index_missing_file, "has no model-00002-of-00002.safetensors"),
        (
            lambda sweep: change_weights(sweep, "model.layers.1.mlp.down_proj.weight", 0),
            "1 weights are miss",
        ),
        (lambda sweep: change_weights(sweep, "model.norm.weight", 5), "missing or have the wrong shape"),
        (quantize("bitsandbytes", load_in_4bit=True), "weights are quantized: .*bitsandbytes"),
        (quantize("gptq", bits=4), "weights are quantized: .*optimum"),
        (quantize("awq", bits=4), "weights are quantized: .*gptqmodel"),
        (quantize("own"), "weights are quantized: Unknown quantization type"),
        (lambda sweep: add_token(sweep, "<new>"), "token '<new>' with id 300, but .* has 300 rows"),
        (
            lambda sweep: edit_json(sweep.parent / "model/config.json", model_type="unheard-of"),
            "config.json cannot be read",
        ),
        (
            lambda sweep: (sweep.parent / "model/tokenizer.json").write_text("{}"),
            "tokenizer cannot be read",
        ),
        (
            lambda sweep: (sweep.parent / "model/adapter_config.json").write_text("{}"),
            r"has a LoRA adapter \(adapter_config.json\), .* merge_and_unload",
        ),
        (lambda sweep: add_row(sweep, "cat,animal,Cats\n"), "is only its concept's word"),
        (
            lambda sweep: sweep.write_text(
                f"{sweep.read_text()}steering: {{prompts: [So, {'so ' * 70}]}}\n"
            ),
            "steering.prompts: .* tokens long with its continuation; the limit .* is 64",
        ),
        (
            lambda sweep: add_row(sweep, f"cat,animal,{'so ' * 90}the cat\n"),
            "is truncated after 64 tokens, before its concept's word",
        ),
    ],
)
def test_a_plan_rejects_what_a_run_would(
    sweep: Path, damage: Callable[[Path], object], message: str
) -> None:
    if "word that is pooled" in message:
        add_row(sweep, "x,letter,So on it goes with x\nx,letter,x and so on it goes\n")
    damage(sweep)
    with pytest.raises(UserError, match=message) as caught:
        print_plan(sweep)
    assert "\n" not in str(caught.value)


def test_an_intact_model_is_planned(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A check that rejects too much would stop every study."""
    print_plan(sweep)
    assert "activations" in capsys.readouterr().out


def test_models_whose_activations_exist_are_not_checked(
    study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plan of a finished study would read all its models again."""

    def fail(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr("cluster.models.model_checks.check_model", fail)
    check_models(plan_sweep(read_sweep(study / "sweep.yaml")))
