"""Several concept sets in one sweep must not affect each other, and every view of a sweep must show
all."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from pathlib import Path

import pytest

from jobs.actions.working_dir import write_working_dir
from jobs.commands.main import app
from jobs.config.loader import read_sweep
from jobs.page.study import latest_studies
from jobs.planner import plan_sweep
from jobs.report import write_latest
from storage.database import open_store
from storage.errors import UserError
from storage.store.gc import find_garbage
from tests import tiny
from tests.faults import in_one_process
from tests.test_harvest import write_corpus

_SETS = (
    "concepts:\n- {name: things, source: concepts.csv}\n"
    "- {name: nature, source: harvest, words: [bird, flower, fish], corpus: corpus.jsonl, "
    "sentences: 8}\n"
)


def _printed(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    app([str(argument) for argument in arguments], standalone_mode=False)
    return " ".join(capsys.readouterr().out.split())


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A sweep over a provided concept set and one that is not harvested yet."""
    folder = tmp_path_factory.mktemp("zoo")
    shutil.copytree(tiny_model, folder / "model")
    write_corpus(folder)
    path = tiny.write_sweep(folder, extra="name: zoo\nresamples: 100\nbaselines: [shuffled]\n")
    text = path.read_text().replace("concepts: concepts.csv\n", _SETS)
    path.write_text(text.replace("[max, concept, context]", "[max]"))
    return path


@pytest.fixture(scope="module")
def store(file: Path) -> Path:
    with in_one_process():
        app(["run", str(file)], standalone_mode=False)
    return file.parent / "results/zoo"


def test_a_plan_shows_all_concept_sets_before_they_are_harvested(
    file: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """A plan of the provided set alone would understate the cost."""
    shutil.copytree(file.parent, tmp_path / "copy", ignore=shutil.ignore_patterns("results"))
    printed = _printed(capsys, "plan", tmp_path / "copy/sweep.yaml")
    assert "things: 6 concepts, 36 sentences; nature: 3 concepts, 8 sentences of each to be" in printed
    assert "9 concepts, 60 sentences, ~24 tokens each" in printed
    assert (
        "things: mine: 12 pairs of these concepts nature: mine: 0 pairs of these concepts; left out"
        in printed
    )


def test_a_concept_set_has_the_same_stages_as_in_a_sweep_of_its_own(file: Path, store: Path) -> None:
    """Other stages would contain sentences, experts or rated pairs of the other set."""
    single = file.parent / "alone.yaml"
    for line in _SETS.splitlines()[1:]:
        single.write_text(file.read_text().replace(_SETS, f"concepts: {line.removeprefix('- ')}\n"))
        stages = plan_sweep(read_sweep(single)).stages
        assert Counter(stage.kind for stage in stages)["experts"] == 1
        not_done = [stage.kind for stage in stages if not stage.is_done(store)]
        assert sorted(not_done) == ["alignment", "report"]  # they are named after their sweep
    assert all(stage.is_done(store) for stage in plan_sweep(read_sweep(file)).stages)
    with open_store(store) as connection:
        sets = connection.sql(
            "SELECT split_part(concept_set, '@', 1), list(DISTINCT concept ORDER BY concept) "
            "FROM experts GROUP BY 1 ORDER BY 1"
        ).fetchall()
    assert sets == [("nature", ["bird", "fish", "flower"]), ("things", sorted(tiny.CONCEPTS))]


def test_status_plan_compare_and_sentences_name_the_sets(
    file: Path, store: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the name, the rows of two sets could not be told apart."""
    monkeypatch.setenv("COLUMNS", "200")
    capsys.readouterr()
    status = _printed(capsys, "status", store)
    assert re.search(r"experts nature@\w{8} model@main done", status)
    assert re.search(r"experts things@\w{8} model@main done", status)
    printed = _printed(capsys, "plan", file)
    assert "experts things model@main done" in printed
    assert "Stages done: sentences 4 of 4, " in printed
    # only `things` has rated pairs
    assert "mine: Spearman's rho, 12 pairs" in _printed(capsys, "compare", store, "--human", "mine")
    assert "nature: concept sentences" in _printed(capsys, "sentences", file)
    assert "sentences of fish" in _printed(
        capsys, "sentences", file, "--show", "fish", "--concepts", "nature"
    )
    with pytest.raises(UserError, match="choose one with --concepts: things, nature"):
        _printed(capsys, "sentences", file, "--show", "fish")


def test_each_concept_set_has_a_page_of_its_own(store: Path, tmp_path: Path) -> None:
    """A page that mixes the sets, or overwrites the other, would show wrong neighbours."""
    assert [study.concept_set_name for study in latest_studies(store)] == ["things", "nature"]
    written = write_latest(store, tmp_path)
    pages = {path.parent.name: path.read_text() for path in written if path.suffix == ".html"}
    assert set(pages) == {"things", "nature"}
    for name, member, stranger in (("things", "boat", "flower"), ("nature", "flower", "boat")):
        assert f">{member}<" in pages[name]
        assert f">{stranger}<" not in pages[name]
    # both reports are the latest of their concept set
    assert not [garbage for garbage in find_garbage(store) if garbage.is_entire_stage]


def test_the_files_of_all_sets_are_sent_to_a_cluster(file: Path, tmp_path: Path) -> None:
    """A file that is missing on the cluster would stop the job after it was submitted."""
    sweep = read_sweep(file)
    with pytest.raises(UserError, match=r"concepts.corpus: corpus.jsonl: is not uploaded"):
        write_working_dir(sweep, tmp_path / "refused")
    elsewhere = sweep.concepts[1].model_copy(update={"corpus": "/corpora/corpus.jsonl"})
    name = write_working_dir(
        sweep.model_copy(update={"concepts": [sweep.concepts[0], elsewhere]}), tmp_path / "to"
    )
    copied = read_sweep(tmp_path / "to" / name)
    assert [concept_set.name for concept_set in copied.concepts] == ["things", "nature"]
    assert (copied.folder / "concepts.csv").is_file()
