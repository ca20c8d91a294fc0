"""Several concept sets in one sweep: nothing of one may reach the other, and whatever shows a sweep
must show both."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from pathlib import Path

import pytest

from jobs.commands.main import app
from jobs.commands.working_dir import make_bundle
from jobs.config import read_sweep
from jobs.page.study import newest_studies
from jobs.planner import plan
from jobs.report import write_newest
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
    app([str(each) for each in arguments], standalone_mode=False)
    return " ".join(capsys.readouterr().out.split())


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A sweep over a set that is there and one that is still to be harvested."""
    folder = tmp_path_factory.mktemp("zoo")
    shutil.copytree(tiny_model, folder / "model")
    write_corpus(folder)
    found = tiny.write_sweep(folder, extra="name: zoo\nresamples: 100\nbaselines: [shuffled]\n")
    text = found.read_text().replace("concepts: concepts.csv\n", _SETS)
    found.write_text(text.replace("[max, concept, context]", "[max]"))
    return found


@pytest.fixture(scope="module")
def store(file: Path) -> Path:
    with in_one_process():
        app(["run", str(file)], standalone_mode=False)
    return file.parent / "results/zoo"


def test_the_plan_tells_of_both_before_one_is_made(
    file: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    shutil.copytree(file.parent, tmp_path / "copy", ignore=shutil.ignore_patterns("results"))
    printed = _printed(capsys, "plan", tmp_path / "copy/sweep.yaml")
    assert "things: 6 concepts, 36 sentences; nature: 3 concepts, 8 sentences of each to be" in printed
    assert "9 concepts, 60 sentences of some 24 tokens" in printed
    assert (
        "things: mine: 12 pairs of these concepts nature: mine: 0 pairs of these concepts; left out"
        in printed
    )


def test_each_set_is_what_it_is_in_a_sweep_of_its_own(file: Path, store: Path) -> None:
    """The very stages: so no sentence, expert or rated pair of the other set is in them."""
    alone = file.parent / "alone.yaml"
    for one in _SETS.splitlines()[1:]:
        alone.write_text(file.read_text().replace(_SETS, f"concepts: {one.removeprefix('- ')}\n"))
        stages = plan(read_sweep(alone)).stages
        assert Counter(each.kind for each in stages)["experts"] == 1
        not_done = [each.kind for each in stages if not each.is_done(store)]
        assert sorted(not_done) == ["alignment", "report"]  # they are named after their sweep
    together = plan(read_sweep(file))
    assert all(each.is_done(store) for each in together.stages)
    with open_store(store) as connection:
        sets = connection.sql(
            "SELECT split_part(concept_set, '@', 1), list(DISTINCT concept ORDER BY concept) "
            "FROM experts GROUP BY 1 ORDER BY 1"
        ).fetchall()
    assert sets == [("nature", ["bird", "fish", "flower"]), ("things", sorted(tiny.CONCEPTS))]


def test_status_plan_compare_and_sentences_name_the_sets(
    file: Path, store: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    capsys.readouterr()
    shown = _printed(capsys, "status", store)
    assert re.search(r"experts nature@\w{8} model@main done", shown)
    assert re.search(r"experts things@\w{8} model@main done", shown)
    printed = _printed(capsys, "plan", file)
    assert "experts things model@main done" in printed
    assert "Stages done: sentences 4 of 4, " in printed
    # only the things are rated
    assert "mine: Spearman's rho on the same 12 pairs" in _printed(
        capsys, "compare", store, "--human", "mine"
    )
    assert "nature: concept sentences" in _printed(capsys, "sentences", file)
    assert "sentences of fish" in _printed(
        capsys, "sentences", file, "--show", "fish", "--concepts", "nature"
    )
    with pytest.raises(UserError, match="choose one with --concepts: things, nature"):
        _printed(capsys, "sentences", file, "--show", "fish")


def test_each_set_has_a_page_of_its_own(store: Path, tmp_path: Path) -> None:
    assert [study.set_name for study in newest_studies(store)] == ["things", "nature"]
    written = write_newest(store, tmp_path)
    pages = {path.parent.name: path.read_text() for path in written if path.suffix == ".html"}
    assert set(pages) == {"things", "nature"}
    for name, own, other in (("things", "boat", "flower"), ("nature", "flower", "boat")):
        assert f">{own}<" in pages[name]
        assert f">{other}<" not in pages[name]
    # both reports are the newest of their kind
    assert not [each for each in find_garbage(store) if each.whole]


def test_the_files_of_all_sets_are_sent_to_a_cluster(file: Path, tmp_path: Path) -> None:
    sweep = read_sweep(file)
    with pytest.raises(UserError, match=r"concepts.corpus: corpus.jsonl: is not sent"):
        make_bundle(sweep, tmp_path / "refused")
    away = sweep.concepts[1].model_copy(update={"corpus": "/corpora/corpus.jsonl"})
    sent = make_bundle(sweep.model_copy(update={"concepts": [sweep.concepts[0], away]}), tmp_path / "to")
    again = read_sweep(tmp_path / "to" / sent)
    assert [each.name for each in again.concepts] == ["things", "nature"]
    assert (again.folder / "concepts.csv").is_file()
