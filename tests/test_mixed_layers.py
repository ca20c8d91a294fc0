"""Models whose layers differ: a layer without MLP could count as zeros, a mixture's sites be confused,
or results of wrong sites be reused."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import duckdb
import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file, save_file

from alignment.expertise.scoring import REFERENCE_PREVALENCE
from jobs import activations
from jobs.actions.plan import print_plan
from jobs.config.analysis import ExpertSettings
from jobs.config.loader import read_sweep
from jobs.page.study import latest_study
from jobs.page.study_data import StudyData
from jobs.planner import plan_sweep
from jobs.report import write_latest
from storage.database import open_store
from storage.errors import UserError
from storage.store import manifest
from storage.store.commit import write_table
from storage.store.manifest import Manifest
from storage.store.verify import verify
from tests import tiny
from tests.commands import neuralign
from tests.faults import in_one_process
from tests.plain_forward import save_model

SITES = {
    # layers 0 and 2 are Mamba and attention, without MLP
    ("nemotron_h", 1, "mlp.shared"): (40, "mixer.shared_experts.down_proj", "input"),
    ("nemotron_h", 1, "mlp.experts"): (4 * 24, "mixer.experts", "experts"),
    ("nemotron_h", 1, "mlp.router"): (4, "mixer.gate", "logits"),
    ("nemotron_h", 3, "mlp.hidden"): (48, "mixer.down_proj", "input"),
    ("deepseek_v3", 0, "mlp.hidden"): (48, "mlp.down_proj", "input"),
    **{
        ("deepseek_v3", layer, site): values
        for layer in (1, 2, 3)
        for site, values in {
            "mlp.shared": (3 * 24, "mlp.shared_experts.down_proj", "input"),
            "mlp.experts": (4 * 24, "mlp.experts", "experts"),
            "mlp.router": (4, "mlp.gate", "logits"),
        }.items()
    },
}
"""Widths, modules and parts by model, layer and site."""

_EXTRA = """
experts: {scores: true, permutations: 2}
controls: [split-half]
baselines: [contextual]
resamples: 100
similarity: {measures: [jaccard, centred cosine]}
steering: {k: [1, 3], singles: 4, single_concepts: 1, samples: 1, tokens: 2, concepts: [cat, bus],
  prompts: [The, My aunt drew one]}
"""
_LISTED = "sites: [mlp.hidden, mlp.shared, mlp.experts, mlp.router]"


def save_with_tokenizer(folder: Path, model_type: str, tokenizer: Path) -> None:
    """Save a tiny model with a tokenizer that reads the tiny concept set."""
    save_model(folder, model_type)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tokenizer / name, folder)


def write_sweep(folder: Path, models: list[str], extra: str = "", neurons: str = "") -> Path:
    """Write a sweep of tiny models; `neurons` are further settings of the key of that name."""
    file = tiny.write_sweep(folder, extra=extra)
    listed = ", ".join(f"{{id: {name}, dtype: float32}}" for name in models)
    text = re.sub(r"models: .*", f"models: [{listed}]", file.read_text())
    file.write_text(text.replace("concept, context]}", f"concept, context]{neurons}}}"))
    return file


@dataclass(frozen=True)
class FinishedSweep:
    """A finished sweep: its file, its store and what the commands printed."""

    file: Path
    planned: str
    printed: str

    @property
    def store(self) -> Path:
        return self.file.parent / "results/sweep"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> FinishedSweep:
    """Two mixtures of experts, with steering."""
    folder = tmp_path_factory.mktemp("mixed")
    for name in ("nemotron_h", "deepseek_v3"):
        save_with_tokenizer(folder / name, name, tiny_model)
    weights = load_file(folder / "deepseek_v3/model.safetensors")
    # No token is routed to expert 0 of layer 1.
    weights["model.layers.1.mlp.gate.e_score_correction_bias"][0] = -100
    save_file(weights, folder / "deepseek_v3/model.safetensors", {"format": "pt"})
    file = write_sweep(folder, ["nemotron_h", "deepseek_v3"], _EXTRA, f", {_LISTED}")
    planned = neuralign("plan", file)
    with in_one_process():
        done = neuralign("run", file)
    assert (planned.returncode, done.returncode) == (0, 0), planned.stderr + done.stderr
    return FinishedSweep(file, planned.stdout, done.stderr)


@pytest.fixture
def connection(finished: FinishedSweep) -> Iterator[duckdb.DuckDBPyConnection]:
    with open_store(finished.store) as opened:
        yield opened


@pytest.mark.parametrize("table", ["scores", "auroc", "chance_counts", "experts", "control_experts"])
def test_exactly_the_layers_with_an_mlp_have_results(
    connection: duckdb.DuckDBPyConnection, table: str
) -> None:
    """Zeros for a layer without MLP, or a layer that is left out because the one before differs."""
    rows = connection.sql(f"SELECT DISTINCT model, layer, site FROM {table}").fetchall()  # noqa: S608
    assert set(rows) == set(SITES)


def test_every_neuron_is_scored_once(connection: duckdb.DuckDBPyConnection) -> None:
    """Widths of another layer would cut or repeat the neurons of a site."""
    rows = connection.sql(
        "SELECT model, layer, site, count(*), count(DISTINCT (unit, concept)), max(unit) + 1 "
        "FROM scores WHERE pooling = 'max' GROUP BY ALL"
    ).fetchall()
    concepts = len(tiny.CONCEPTS)
    assert {row[:3]: row[3:] for row in rows} == {
        site: (width * concepts, width * concepts, width) for site, (width, _, _) in SITES.items()
    }


def test_similarities_are_of_layers_and_sites_that_exist(connection: duckdb.DuckDBPyConnection) -> None:
    """A similarity of 0 in a layer without neurons would enter the comparison of layers."""
    for column, index in (("layer", 1), ("site", 2)):
        rows = connection.sql(
            f"SELECT DISTINCT model, {column} FROM similarity "  # noqa: S608
            f"WHERE representation = 'experts' AND {column} IS NOT NULL"
        ).fetchall()
        assert set(rows) == {(site[0], site[index]) for site in SITES}


def test_the_module_of_every_site_is_stored_and_shown(
    finished: FinishedSweep, connection: duckdb.DuckDBPyConnection, tmp_path: Path
) -> None:
    """Which module was read as the MLP could not be checked before or after a run."""
    rows = connection.sql(
        "SELECT DISTINCT model, layer, site, width, module, part FROM sites WHERE site != 'residual'"
    ).fetchall()
    assert {row[:3]: row[3:] for row in rows} == SITES
    write_latest(finished.store, tmp_path)
    page = (tmp_path / "report.html").read_text()
    for (_, _, site), (width, module, part) in SITES.items():
        assert re.search(rf"  {site} = {module} \({part}\), \d layers?, {width} units", finished.planned)
        assert module in page
    assert "mlp.experts = mlp.experts (experts), 3 layers, 96 units" in finished.planned
    assert max(map(len, finished.planned.split("Sites of")[1].splitlines())) <= 80


def test_notes_say_which_layers_have_no_mlp(finished: FinishedSweep, tmp_path: Path) -> None:
    """A user would take the neurons for those of all layers."""
    write_latest(finished.store, tmp_path)
    page = (tmp_path / "report.html").read_text()
    note = "2 of 4 layers have none of the selected sites: 0, 2"
    assert all(note in text for text in (finished.planned, finished.printed, page))


def test_the_layer_with_the_most_experts_is_counted_over_its_sites(
    finished: FinishedSweep, connection: duckdb.DuckDBPyConnection, tmp_path: Path
) -> None:
    """The share of a layer's largest site would pass for the layer's."""
    write_latest(finished.store, tmp_path)
    view = StudyData(connection, latest_study(finished.store)).view
    layer, share = connection.execute(
        "SELECT layer, sum(share) FROM expert_places WHERE (model, pooling, threshold) = (?, ?, ?) "
        "GROUP BY layer ORDER BY sum(share) DESC LIMIT 1",
        [view.model, view.pooling, view.threshold],
    ).fetchall()[0]
    found = f"layer {layer} has the most experts ({share:.0%} of all)"
    assert found in (tmp_path / "report.html").read_text()


def test_router_logits_are_not_steered(
    finished: FinishedSweep, connection: duckdb.DuckDBPyConnection
) -> None:
    """Clamped logits change nothing, so a router's experts would count as experts without effect."""
    for table in ("attributions", "steering_neurons"):
        sites = connection.sql(f"SELECT DISTINCT site FROM {table}").fetchall()  # noqa: S608
        assert sites
        assert ("mlp.router",) not in sites
    assert "note: mlp.router is left out of attributions and steering" in finished.printed


def test_steering_of_router_logits_alone_is_rejected(finished: FinishedSweep, tmp_path: Path) -> None:
    """The sweep would fail after hours of activations, or report that nothing has an effect."""
    shutil.copytree(finished.file.parent / "deepseek_v3", tmp_path / "deepseek_v3")
    file = write_sweep(tmp_path, ["deepseek_v3"], "steering: {}\n", ", sites: [mlp.router]")
    with pytest.raises(UserError, match=r"^steering: mlp.router cannot be clamped: .*"):
        plan_sweep(read_sweep(file))


def test_neurons_of_an_unused_expert_are_never_experts(connection: duckdb.DuckDBPyConnection) -> None:
    """Neurons that are 0 on all sentences would be experts of every concept."""
    unused = "model = 'deepseek_v3' AND layer = 1 AND site = 'mlp.experts' AND unit < 24"
    values = connection.execute(f"SELECT DISTINCT value FROM activations WHERE {unused}")  # noqa: S608
    assert values.fetchall() == [(0.0,)]
    scores = connection.execute(f"SELECT DISTINCT ap FROM scores WHERE {unused}")  # noqa: S608
    assert scores.fetchall() == [(pytest.approx(REFERENCE_PREVALENCE),)]
    experts = connection.execute(f"SELECT count(*) FROM experts WHERE {unused}")  # noqa: S608
    assert experts.fetchall() == [(0,)]
    assert ExpertSettings().floor > REFERENCE_PREVALENCE


@pytest.mark.parametrize("model_type", ["llama", "qwen2_moe"])
def test_activations_of_earlier_versions_are_computed_again(
    tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str], model_type: str
) -> None:
    """Their batches were others, and some of their neurons are of the wrong module: the experts of kept
    activations and of a pass would differ."""
    save_with_tokenizer(tmp_path / "model", model_type, tiny_model)
    file = write_sweep(tmp_path, ["model"])
    planned = plan_sweep(read_sweep(file))
    (stage,) = planned.stages_of_kind(activations.KIND)
    params = {name: value for name, value in stage.params.items() if name != "keep"}
    params |= {"sentences_in_unit": 64, "units": 1}
    earlier = replace(stage, params=params)
    folder = earlier.folder(planned.sweep.store_path)
    inputs = {"sentences": stage.inputs["sentences"].folder(planned.sweep.store_path).name}
    Manifest(folder, stage.kind, stage.label, earlier.fingerprint, params, inputs, [], 1.0).commit()
    print_plan(file)
    (line,) = [row for row in capsys.readouterr().out.splitlines() if row.startswith("activations")]
    assert " to do " in line


def test_a_store_without_modules_is_read(tmp_path: Path, finished: FinishedSweep) -> None:
    """Stores of earlier versions would be refused for want of two columns."""
    store = tmp_path / "store"
    shutil.copytree(finished.store, store)
    for stage in manifest.completed(store, activations.KIND):
        table = pq.read_table(stage.folder / "sites.parquet").drop_columns(["module", "part"])
        record = write_table(stage.folder, "sites.parquet", table)
        others = [file for file in stage.files if file.path != record.path]
        replace(stage, files=[*others, record]).commit()
    with open_store(store) as opened:
        rows = opened.sql("SELECT DISTINCT model, layer, site, width, module FROM sites").fetchall()
    assert {row[:3]: row[3:] for row in rows if row[2] != "residual"} == {
        site: (width, None) for site, (width, _, _) in SITES.items()
    }
    assert list(verify(store)) == []
    write_latest(store, tmp_path / "page")


def test_attributions_are_null_only_for_the_router(connection: duckdb.DuckDBPyConnection) -> None:
    """A neuron of an expert could be left out with the router."""
    rows = connection.sql(
        "SELECT DISTINCT site FROM experts WHERE concept IN ('cat', 'bus') AND attribution IS NULL"
    ).fetchall()
    assert rows == [("mlp.router",)]
