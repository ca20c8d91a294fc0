"""Activations that are not kept: the rows that are made of them at the end of a pass must be those that
are made of kept activations, whatever happens to the run."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from cluster.activations import prepared_pass
from cluster.activations.block_shard import BlockShard
from jobs import planner, sweep
from jobs.config.loader import read_sweep
from jobs.page.pairs import ConceptPairs
from jobs.page.sections.concepts import concept_details
from storage.database import open_store
from storage.store.gc import find_garbage
from storage.store.verify import verify
from tests import tiny
from tests.commands import neuralign
from tests.faults import in_child, in_one_process, kill
from tests.hostile import open_study

LAYERS = 4
_EVERYTHING = """resamples: 100
baselines:
  - input-embedding
  - contextual
  - shuffled
  - masked
  - random-init
  - {name: sae, dictionary: sae.safetensors, layer: 1}
controls: [split-half, length-matched, pseudo-concepts]
similarity: [jaccard, auroc, auroc-halves, centred cosine, spearman, kl]
"""
_NOT_IN_BOTH = {
    "activations",
    "activation_files",
    "missing_states",
    "top_sentences",
    "concept_states",
    "runs",
}
Rows = dict[str, list[tuple[Any, ...]]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_model(tmp_path_factory.mktemp("scored") / "model", LAYERS)


@pytest.fixture(autouse=True)
def _one_process() -> Iterator[None]:
    with in_one_process():
        yield


def make_study(
    folder: Path, model: Path, experts: str, extra: str = "", poolings: str = "[max]"
) -> Path:
    shutil.copytree(model, folder / "model", dirs_exist_ok=True)
    file = tiny.write_sweep(folder, extra=f"{extra}experts: {{{experts}}}\n")
    file.write_text(file.read_text().replace("[max, concept, context]", poolings))
    return file


def run(file: Path, store: Path) -> planner.Plan:
    planned = planner.plan_sweep(read_sweep(file, store))
    return sweep.run(planned).plan


def read_rows(store: Path) -> Rows:
    """All rows of all views, without the runs that wrote them."""
    with open_store(store) as connection:
        views = connection.sql("SELECT view_name FROM duckdb_views() WHERE NOT internal").fetchall()
        rows: Rows = {}
        for (view,) in [*views, ("runs",)]:
            names = [name for name, *_ in connection.sql(f"DESCRIBE {view}").fetchall()]
            columns = ", ".join(name for name in names if not name.startswith("run"))
            table = connection.sql(f"SELECT {columns} FROM {view}").fetchall()  # noqa: S608
            rows[view] = sorted(table, key=_sort_key)
    return rows


def _sort_key(row: tuple[Any, ...]) -> str:
    """Sorts rows by what identifies them: not by numbers, which may differ in the last digit."""
    return repr([value for value in row if not isinstance(value, float)]) + repr(
        [f"{value:.6f}" for value in row if isinstance(value, float)]
    )


def assert_same_rows(actual: Rows, expected: Rows) -> None:
    assert actual.keys() == expected.keys()
    for view in expected.keys() - _NOT_IN_BOTH:
        assert len(actual[view]) == len(expected[view]), view
        for row, expected_row in zip(actual[view], expected[view], strict=True):
            for value, wanted in zip(row, expected_row, strict=True):
                if isinstance(wanted, float):
                    assert value == pytest.approx(wanted, rel=1e-12, abs=1e-12), view
                else:
                    assert value == wanted, view


def test_the_rows_are_those_of_kept_activations(model: Path, tmp_path: Path) -> None:
    """With all controls, baselines and measures: rows of another labeling, or of another layer."""
    torch.manual_seed(0)
    save_file({"W_enc": torch.randn(32, 80).numpy()}, tmp_path / "sae.safetensors")
    stores = {}
    for keep in ("true", "false"):
        settings = f"scores: true, permutations: 3, keep_activations: {keep}"
        file = make_study(tmp_path, model, settings, _EVERYTHING, "[max, concept, context]")
        stores[keep] = tmp_path / keep
        run(file, stores[keep])
    rows, expected = read_rows(stores["false"]), read_rows(stores["true"])
    assert_same_rows(rows, expected)
    for view in (
        "experts",
        "control_experts",
        "chance_counts",
        "reliability",
        "pseudo_concepts",
        "scores",
        "auroc",
        "hierarchy_cuts",
    ):
        assert expected[view], view
    assert rows["activations"] == rows["activation_files"] == []
    assert expected["activations"]
    assert list(verify(stores["false"])) == []
    assert not list(stores["false"].glob("activations/*/pooling=*"))
    assert not list(stores["false"].glob("activations/*/_hidden_states"))
    assert [each for each in find_garbage(stores["false"]) if not each.is_entire_stage] == []
    top, expected_top = (read_top_sentences(stores[keep]) for keep in ("false", "true"))
    assert top == expected_top
    assert len(top) > 6


def read_top_sentences(store: Path) -> list[Any]:
    """Those on the page, of all concepts' experts."""
    with open_study(store) as data:
        ConceptPairs(data)
        details = concept_details(data).values()
    return [expert["top_sentences"] for each in details for expert in each["experts"][:3]]


@pytest.mark.parametrize("negatives", ["own", "pool", "others:5"])
def test_the_rows_for_other_negatives_are_those_of_kept_activations(
    model: Path, tmp_path: Path, negatives: str
) -> None:
    """Sentences without labels, and negatives that a half of the sentences lacks."""
    rows = []
    for keep in ("true", "false"):
        file = make_study(
            tmp_path,
            model,
            f"negatives: {negatives}, permutations: 2, keep_activations: {keep}",
            "resamples: 100\nbaselines: []\ncontrols: [split-half]\n",
        )
        _add_negatives(tmp_path / "concepts.csv")
        run(file, tmp_path / keep)
        rows.append(read_rows(tmp_path / keep))
    assert rows[0]["experts"]
    assert_same_rows(rows[1], rows[0])


@pytest.mark.parametrize("has_all", [True, False])
def test_sentences_without_a_state_at_the_word_are_left_out(
    model: Path, tmp_path: Path, has_all: bool
) -> None:
    """Kept or not: a mean over zeros; or a concept without a state that has similarities of 0, or takes
    those of other states with it."""
    added = [
        'cat,animal,"Nothing of the kind was seen here."',
        'cow,animal,"Nothing of the kind was heard here."',
        'cow,animal,"Something of the kind was heard there."',
        f'dog,animal,"{"Not " * 70}an end: a dog."',
    ]
    rows = {}
    for keep in ("true", "false"):
        settings = f"permutations: 0, keep_activations: {keep}"
        file = make_study(tmp_path, model, settings, "resamples: 100\nbaselines: [contextual]\n")
        lines = (tmp_path / "concepts.csv").read_text().splitlines()
        lines = [line for line in lines if has_all or not line.startswith("cow")] + added
        (tmp_path / "concepts.csv").write_text("\n".join(lines) + "\n")
        plan = run(file, tmp_path / keep)
        rows[keep] = read_rows(tmp_path / keep)
        notes = [n for stage in plan.stages for n in stage.read_manifest(tmp_path / keep).notes]
        count = f"4 of {len(lines) - 1} sentences have no hidden state at their concept's word: they"
        assert sum(note.startswith(count) for note in notes) == 1
        left_out = [note for note in notes if note.endswith("has a state at the word of cow")]
        assert len(left_out) == (not has_all)
    assert_same_rows(rows["false"], rows["true"])
    with open_store(tmp_path / "false") as connection:
        query = "SELECT DISTINCT pooling FROM alignment WHERE representation = 'hidden state'"
        poolings = {pooling for (pooling,) in connection.sql(query).fetchall()}
    assert poolings == {"mean", "last", *(["concept"] if has_all else [])}
    assert_states_equal_plain_means(tmp_path / "true", tmp_path / "false")


def assert_states_equal_plain_means(kept: Path, scored: Path) -> None:
    """The vectors of `concept_states` are means of the kept states of sentences with the word."""
    with open_store(kept) as connection:
        query = "SELECT sentence_id, layer, list(value ORDER BY unit) FROM activations "
        query += "WHERE site = 'residual' AND pooling = 'concept' GROUP BY ALL"
        values = {row[:2]: np.array(row[2], float) for row in connection.sql(query).fetchall()}
        members = connection.sql(
            "SELECT concept, sentence_id, text FROM memberships JOIN sentences USING (sentence_id)"
        ).fetchall()
        missing = {
            number for (number,) in connection.sql("SELECT sentence_id FROM missing_states").fetchall()
        }
    with open_store(scored) as connection:
        query = "SELECT concept, layer, vector FROM concept_states WHERE pooling = 'concept'"
        vectors = {row[:2]: row[2] for row in connection.sql(query).fetchall()}
    chosen: dict[str, list[int]] = {}
    for concept, number, text in members:
        has_word = concept in text and not text.startswith("Not ")
        assert has_word == (number not in missing)
        if has_word:
            chosen.setdefault(concept, []).append(number)
        else:
            assert not any(values[number, layer].any() for layer in range(LAYERS))
    assert vectors.keys() == {(concept, layer) for concept in chosen for layer in range(LAYERS)}
    for (concept, layer), vector in vectors.items():
        mean = sum(values[number, layer] for number in chosen[concept]) / len(chosen[concept])
        np.testing.assert_allclose(vector, mean, rtol=0, atol=1e-12)


def _add_negatives(file: Path) -> None:
    header, *lines = file.read_text().splitlines()
    names = list(tiny.CONCEPTS)
    more = [
        f'{name},{tiny.CONCEPTS[name]},"Nothing of the kind {number}.",negative'
        for number, name in enumerate(names * 2)
    ]
    more += [f',,"A sentence of the pool {number}.",pool' for number in range(9)]
    file.write_text("\n".join([f"{header},role", *(f"{line},positive" for line in lines), *more]) + "\n")


def one_layer_blocks() -> Any:
    return patch.object(prepared_pass, "_SECONDS_IN_BLOCK", 0)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, model: Path) -> tuple[Path, Rows]:
    folder = tmp_path_factory.mktemp("undisturbed")
    file = make_study(folder, model, "permutations: 2, keep_activations: false", "resamples: 100\n")
    with in_one_process():
        run(file, folder / "store")
    return file, read_rows(folder / "store")


@pytest.mark.parametrize(
    "point", ["after replace _units/L01", "before replace _units/L02", "complete.json"]
)
def test_a_killed_pass_continues_at_its_last_block(
    undisturbed: tuple[Path, Rows], tmp_path: Path, point: str
) -> None:
    """Hours of work lost, or rows of a layer that was read before."""
    file, expected = undisturbed
    store = tmp_path / "store"

    def kill_at(current: str) -> None:
        call, _, path = point.rpartition(" ")
        if current.startswith(call) and path in current and ".tmp" not in current:
            kill()

    read: list[int] = []
    with one_layer_blocks():
        assert in_child(lambda: run(file, store), kill_at)
        recorded = len(list(store.glob("activations/*/_units/*.json")))
        with counted_layers(read):
            run(file, store)
    assert_same_rows(read_rows(store), expected)
    assert read_rows(store)["top_sentences"] == expected["top_sentences"]
    assert min(read) == {"after": 2, "before": 2, "complete.json": 0}[point.split(maxsplit=1)[0]], (
        recorded
    )
    assert not list(store.glob("activations/*/_hidden_states"))
    assert list(verify(store)) == []


def counted_layers(read: list[int]) -> Any:
    made = BlockShard.__init__

    def recorded(shard: Any, folder: Any, settings: Any, layers: Any, device: Any) -> None:
        read.extend(layers)
        made(shard, folder, settings, layers, device)

    return patch.object(BlockShard, "__init__", recorded)


def test_a_finished_pass_is_not_repeated_whatever_the_blocks(
    undisturbed: tuple[Path, Rows], tmp_path: Path
) -> None:
    """Another device, with room for fewer layers, would compute everything again."""
    file, expected = undisturbed
    store = tmp_path / "store"
    read: list[int] = []
    with counted_layers(read):
        with one_layer_blocks():
            run(file, store)
        assert read == list(range(LAYERS))
        assert sweep.run(planner.plan_sweep(read_sweep(file, store))).stages_run == 0
    assert read == list(range(LAYERS))
    assert_same_rows(read_rows(store), expected)


def test_hidden_states_of_another_run_are_not_used(
    undisturbed: tuple[Path, Rows], tmp_path: Path
) -> None:
    """Those of other sentences, left by a run that was killed before its inputs were replaced."""
    file, expected = undisturbed
    store = tmp_path / "store"

    def kill_at(current: str) -> None:
        if current.startswith("after replace") and "_units/L01.json" in current:
            kill()

    with one_layer_blocks():
        assert in_child(lambda: run(file, store), kill_at)
        (folder,) = store.glob("activations/*")
        assert list(folder.glob("_hidden_states/*/complete.json"))
        shutil.rmtree(folder / "_units")
        for states in folder.glob("_hidden_states/*/*.safetensors"):
            states.write_bytes(b"those of other sentences")
        run(file, store)
    assert_same_rows(read_rows(store), expected)


def test_a_value_that_is_not_finite_is_named(model: Path, tmp_path: Path) -> None:
    """Its layer and sentence; the layers before it remain."""
    for name, factor in (("nan", np.nan), ("large", 1e6)):
        folder = tmp_path / name
        file = make_study(folder, model, "keep_activations: false", "baselines: []\n")
        weights = load_file(folder / "model/model.safetensors")
        weights["model.layers.2.mlp.up_proj.weight"][3] *= factor
        save_file(weights, folder / "model/model.safetensors", {"format": "pt"})
        with one_layer_blocks() if name == "large" else nullcontext():
            result = neuralign("run", file)
        assert result.returncode == 1, result.stderr
        assert "model model@main: L02.mlp.hidden, pooling max, sentence" in result.stderr
        assert "Traceback" not in result.stderr
    units = sorted(folder.glob("results/sweep/activations/*/_units/*.json"))
    assert [unit.stem for unit in units] == ["L00", "L01"]


def test_activations_are_kept_if_they_are_few(model: Path, tmp_path: Path) -> None:
    """A grid of models whose activations fill the disk, or a demo without activations to look at."""
    file = make_study(tmp_path, model, "permutations: 0", "baselines: []\n")
    keeping = planner.plan_sweep(read_sweep(file)).keeping
    assert keeping.is_kept
    assert "Activations are kept (0.00 GB, under 2 GB; experts.keep_activations: auto)." in neuralign(
        "plan", file
    ).stdout.replace("\n", " ")
    # 36 sentences, 4 layers of 48 neurons in float16
    n_bytes = 36 * LAYERS * 48 * 2
    for limit, is_kept in ((n_bytes, False), (n_bytes + 1, True)):
        with patch.object(planner, "_KEPT_BYTES", limit):
            planned = planner.plan_sweep(read_sweep(file))
            assert planned.keeping.is_kept is is_kept
            (stage,) = planned.stages_of_kind("activations")
            assert stage.params["keep"] is is_kept
    with patch.object(planner, "_KEPT_BYTES", 1):
        printed = neuralign("plan", file).stdout
        assert "Activations are not kept" in printed
        assert "Activations to write: 0.00 GB" in printed
        assert "4 of 4" in printed


def test_a_failed_model_does_not_change_whether_activations_are_kept(
    model: Path, tmp_path: Path
) -> None:
    """The other models would be read again."""
    file = make_study(tmp_path, model, "permutations: 0", "baselines: []\n")
    shutil.copytree(model, tmp_path / "other")
    models = "{id: model, dtype: float32}"
    file.write_text(file.read_text().replace(models, f"{models}, {models.replace('model', 'other')}"))
    with patch.object(planner, "_KEPT_BYTES", 36 * LAYERS * 48 * 3):
        for excluded in ([], ["other@main"]):
            assert not planner.plan_sweep(read_sweep(file), excluded).keeping.is_kept
