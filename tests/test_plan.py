"""A plan must take seconds for thousands of models, and its numbers must be correct."""

from __future__ import annotations

import io
import subprocess
import sys
import threading
from contextlib import nullcontext
from pathlib import Path
from unittest.mock import patch

import pytest
import yaml
from rich.console import Console
from transformers import AutoConfig

from cluster.activations import pass_placement
from cluster.models.size import _MLPS, _size_from_config, measure_size
from cluster.runtime.devices import default_dtype
from jobs import device_params
from jobs.actions import shard_plan
from jobs.actions.shard_plan import print_shards
from jobs.config.loader import read_sweep
from jobs.config.models import Model
from jobs.device_params import activation_dtype, token_budget
from jobs.planner import Plan, plan_sweep
from jobs.sweep import check_disk_space
from storage.errors import UserError
from storage.store import layout
from storage.store.manifest import Manifest
from tests import tiny
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
    # 12 layers of 256 neurons as float16, and of 64 coordinates, three poolings, as float32
    expected = 2000 * 37_080 * 12 * (256 * 2 + 3 * 64 * 4) / 1e9
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


def _unwrap(printed: str) -> str:
    return " ".join(printed.split())


def _label(file: Path) -> str:
    from storage.readers.concepts import read_concepts

    return read_concepts(file.parent / "concepts.csv", "study").label


def test_times_of_kept_and_scored_activations_are_not_mixed(tmp_path: Path) -> None:
    """Experts whose rows were only copied would make those of kept activations look free, and passes
    with scoring would make those without look slow."""
    file = write_study(tmp_path, 1, 2, 6, 6)
    file.write_text(f"{file.read_text()}experts: {{keep_activations: true}}\n")
    store = layout.create_store(tmp_path / "results/study")
    params = {"model": "zoo/model-0", "revision": "step0", "concept_set": _label(file)}

    def add(kind: str, number: int, is_kept: bool, seconds: float) -> None:
        fingerprint = str(number) * 16
        folder = layout.stage_folder(store, kind, "zoo/model-0@step0", fingerprint)
        inputs = {"activations": folder.name} if kind == "experts" else {}
        own = {**params, "keep": is_kept} if kind == "activations" else params
        Manifest(folder, kind, "zoo/model-0@step0", fingerprint, own, inputs, [], seconds).commit()

    for kind, seconds in (("activations", 7200), ("experts", 1)):
        add(kind, 0, is_kept=False, seconds=seconds)
    printed = _plan(file)
    lines = [line for line in printed.splitlines() if line.startswith(("activations ", "experts "))]
    assert len(lines) == 4
    assert all(line.endswith("?") for line in lines)
    for kind, seconds in (("activations", 60), ("experts", 40)):
        add(kind, 1, is_kept=True, seconds=seconds)
    printed = _plan(file)
    assert [line.split()[-2] for line in printed.splitlines() if line.startswith("activations ")] == [
        "60",
        "60",
    ]
    assert [line.split()[-2] for line in printed.splitlines() if line.startswith("experts ")] == [
        "40",
        "40",
    ]


def test_a_plan_without_sentences_decides_as_the_run_that_makes_them(tmp_path: Path) -> None:
    """A plan that counts no sentences, or not the controls, says that activations are kept which the run
    then does not keep."""
    write_study(tmp_path, 1, 1, 6, 6)
    add_revision(tmp_path / "hub", 0, 1)
    words, models = "[a, b, c, d, e, f]", "[{id: zoo/model-0, revisions: all}]"
    (tmp_path / "corpus.txt").write_text("Nothing.\n")
    file = tmp_path / "harvest.yaml"
    text = (
        f"concepts: {{source: harvest, words: {words}, sentences: 1000, pool: 500, "
        f"corpus: corpus.txt}}\nmodels: {models}\nbaselines: [shuffled, contextual]\n"
    )
    file.write_text(text)
    neurons, states = 12 * 256 * 2, 12 * 64 * 3 * 4
    expected = 6500 * 2 * (2 * neurons + states) / 1e9
    printed = _plan(file)
    assert f"Activations are kept (estimate: {expected:,.2f} GB, under 2 GB;" in _unwrap(printed)
    file.write_text(text.replace("sentences: 1000", "sentences: 20000"))
    assert "Activations are not kept" in _plan(file)


def _model(text: str) -> Model:
    return Model.model_validate(yaml.safe_load(text))


def test_batches_and_dtype_of_gpus_do_not_depend_on_the_machine_that_plans() -> None:
    """A head node without GPUs would give workers' GPUs small batches, a laptop with one would give CPUs
    large batches, and a store that is continued from another machine would be computed again."""
    for n_gpus in (0, 1):
        with patch.object(device_params, "count_gpus", lambda n_gpus=n_gpus: n_gpus):
            on_gpu = _model("{id: m, gpus_per_shard: 1}")
            assert token_budget(on_gpu) == token_budget(_model("{id: m, gpus_per_shard: 0.5}")) == 16_384
            assert activation_dtype(on_gpu) == "bfloat16"
            on_cpu = _model("{id: m, gpus_per_shard: 0}")
            assert token_budget(on_cpu) == 1024
            assert activation_dtype(on_cpu) == default_dtype(on_gpus=False)
            assert token_budget(_model("{id: m}")) == (16_384 if n_gpus else 1024)
            assert activation_dtype(_model("{id: m, dtype: float16}")) == "float16"


def _plan_here(folder: Path, settings: str) -> Plan:
    """The plan of a sweep of a tiny model with such settings, on 36 sentences."""
    if not (folder / "model").is_dir():
        tiny.make_model(folder / "model")
        rows = "".join(f"{concept},{text}\n" for concept, text in tiny.sentences() if "," not in text)
        (folder / "concepts.csv").write_text(f"concept,text\n{rows}")
    file = folder / "sweep.yaml"
    file.write_text(
        f"concepts: concepts.csv\nmodels: [{{id: ./model, dtype: float32, {settings}}}]\n"
        "experts: {keep_activations: false, scores: false}\nbaselines: []\n"
    )
    return plan_sweep(read_sweep(file))


def _print_shards(planned: Plan) -> str:
    out = io.StringIO()
    print_shards(Console(file=out, width=300), planned)
    return out.getvalue()


def test_the_plan_says_how_many_shards_and_why(tmp_path: Path) -> None:
    """Whether a model is divided over GPUs, or one GPU takes blocks of layers, would be a guess."""
    assert _print_shards(_plan_here(tmp_path, "gpus_per_shard: 0")) == ""
    assert "3 (set by `shards`)." in _print_shards(_plan_here(tmp_path, "shards: 3"))
    planned = _plan_here(tmp_path, "gpus_per_shard: 0.5")
    assert "decided when the run starts" in _print_shards(planned)
    sizes = ((80e9, 4, "1 (weights"), (13.2e9, 4, "fit a pipeline of"), (13.2e9, 0.5, "in turn"))
    for n_bytes, n_gpus, expected in sizes:
        with (
            patch.object(shard_plan, "count_gpus", lambda n_gpus=n_gpus: n_gpus),
            patch.object(pass_placement, "gpu_bytes", lambda n_bytes=n_bytes: int(n_bytes)),
        ):
            printed = _print_shards(planned)
        assert expected in printed


def test_hidden_states_on_disk_are_counted(tmp_path: Path) -> None:
    """A pass in blocks would fill a disk for which the run had said that nothing is written."""
    planned = _plan_here(tmp_path, "gpus_per_shard: 0")
    (concept_set,) = planned.concept_sets
    assert concept_set.concepts is not None
    n_characters = sum(len(sentence.text) for sentence in concept_set.concepts.sentences)
    # Before and after a block, 32 coordinates of four bytes, four characters a token.
    expected = 2 * 32 * 4 * (n_characters // 4)
    for free, context in (
        (expected, nullcontext()),
        (expected - 1, pytest.raises(UserError, match="hidden states and scores need")),
    ):
        with patch("jobs.engine.disk_budget.free_bytes", lambda _, free=free: free), context:
            check_disk_space(planned, tmp_path)
    # Beside a GPU they may be in host memory.
    with patch("jobs.engine.disk_budget.free_bytes", lambda _: 1):
        check_disk_space(_plan_here(tmp_path, "gpus_per_shard: 1"), tmp_path)
