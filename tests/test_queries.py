"""SQL must work as documented: every query returns rows, files of other sites are not opened, and an
exported database does not need neuralign."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import duckdb
import pytest

import storage
from jobs import planner, sweep
from jobs.config.loader import read_sweep
from storage.database import export_database, run_query
from storage.errors import UserError
from storage.readers.concepts import read_concepts
from storage.store.layout import slug
from storage.store.paths import parse_store_path
from tests import tiny
from tests.faults import in_one_process

PAGE = (Path(__file__).parent.parent / "docs/queries.md").read_text()
QUESTIONS = re.findall(r"```sql\n(.*?)```", PAGE, re.DOTALL)
_TINY = {
    "lizard": "cat",
    "reptile": "dog",
    "bed": "car",
    "cafe": "cat",
    "diner": "dog",
}
"""Concepts and domains of the demo, which the questions name, and those of the tiny concept set."""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A store with one model's results for two sets of poolings; its name looks like a part of it."""
    folder = tmp_path_factory.mktemp("queries")
    shutil.copytree(tiny_model, folder / "model")
    extra = "resamples: 100\nbaselines: []\nsimilarity: [jaccard, containment]\n"
    file = tiny.write_sweep(folder / "sweeps", "../model", extra)
    both = "[max, context]"
    for poolings in (both, "[max]"):
        file.write_text(re.sub(r"\[max.*?\]", poolings, file.read_text()))
        read = read_sweep(file, folder / "pooling=a'b")
        planned = planner.plan_sweep(read)
        with in_one_process():
            sweep.run(planned)
    return folder / "pooling=a'b"


def test_there_are_ten_questions() -> None:
    """A question without a query would not be tested."""
    assert re.findall(r"^## (\d+)\.", PAGE, re.MULTILINE) == [str(number) for number in range(1, 11)]
    assert len(QUESTIONS) >= 10


def test_the_questions_name_concepts_of_the_demo() -> None:
    """Their queries would find nothing in its store."""
    demo = read_concepts(Path(__file__).parent.parent / "examples/demo-concepts.csv", "demo")
    assert _TINY.keys() <= {concept.name for concept in demo.concepts}


@pytest.mark.parametrize("question", QUESTIONS)
def test_every_documented_query_returns_rows(store: Path, question: str) -> None:
    """docs/queries.md would contain a query that fails or finds nothing."""
    with storage.open(str(store)) as connection:
        query = re.sub(r"'(\w+)'", lambda match: f"'{_TINY.get(match[1], match[1])}'", question)
        assert run_query(connection, query).num_rows > 0


def test_a_neurons_activations_are_read_only_from_its_sites_files(store: Path) -> None:
    """A query for one neuron would read all activations of the store."""
    with storage.open(str(store)) as connection:
        (run, label) = connection.sql(
            "SELECT run, label FROM runs WHERE stage = 'activations' ORDER BY bytes DESC LIMIT 1"
        ).fetchall()[0]
        query = (
            "SELECT sentence_id, value FROM activations WHERE model = '../model' AND revision = 'main' "  # noqa: S608
            f"AND run = '{run}' AND pooling = 'context' AND layer = 1 AND site = 'mlp.hidden' "
            "AND unit = 7"
        )
        rows = connection.sql(query).fetchall()
        plan = connection.sql(f"EXPLAIN ANALYZE {query}").fetchall()[0][1]
        other_plan = connection.sql("EXPLAIN ANALYZE " + query.replace("'main'", "'none'")).fetchall()[
            0
        ][1]
    assert len(rows) == 36
    folder = store / f"activations/{slug(label)}-{run}"
    files = sorted(folder.glob("pooling=context/layer=1/site=mlp.hidden/*.parquet"))
    assert len(files) == 1
    # the site's file and the table of files; for a missing revision, no file
    assert list(map(int, re.findall(r"Total Files Read: (\d+)", plan))) == [1, 1]
    assert "Scanning Files: 1/6" in plan
    assert "Total Files Read" not in other_plan


def test_an_exported_database_is_read_by_plain_duckdb(store: Path, tmp_path: Path) -> None:
    """The database would need neuralign to be installed."""
    file = tmp_path / "results.duckdb"
    export_database(store, file)
    code = (
        "import duckdb, sys; c = duckdb.connect(sys.argv[1], read_only=True);"
        "print(c.sql('SELECT count(*) FROM activations').fetchall()[0][0],"
        " c.sql('SELECT count(*) FROM runs').fetchall()[0][0])"
    )
    process = subprocess.run(
        [sys.executable, "-I", "-c", code, str(file)],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    with storage.open(str(store)) as connection:
        counts = connection.sql(
            "SELECT (SELECT count(*) FROM activations), (SELECT count(*) FROM runs)"
        ).fetchall()[0]
    assert process.stdout.split() == [str(count) for count in counts], process.stderr
    with pytest.raises(UserError, match="already exists"):
        export_database(parse_store_path(store), file)


@pytest.mark.parametrize(
    "query",
    [
        "COPY (SELECT 1) TO 'STORE/out.csv'",
        "PIVOT (SELECT 1 a, 2 b) ON b USING first(a); COPY (SELECT 1) TO 'STORE/out.csv'",
        "CREATE TABLE x AS PIVOT (SELECT 1 a, 2 b) ON b USING first(a)",
        "IMPORT DATABASE 'STORE'",
        "EXPORT DATABASE 'STORE/out'",
        "ATTACH 'STORE/out.duckdb'",
        "PRAGMA database_list",
        "SELECT * FROM read_text('/etc/hostname')",
        "SELECT * FROM read_text('STORE/../../sweeps/sweep.yaml')",
        "EXPLAIN ANALYZE COPY (SELECT 1) TO 'STORE/out.csv'",
        "CALL pragma_version()",
        "EXPLAIN ANALYZE WITH some AS (SELECT 1) DELETE FROM runs",
        "WITH gone AS (DELETE FROM runs RETURNING *) SELECT * FROM gone",
    ],
)
def test_no_query_writes_or_reads_outside_the_store(store: Path, query: str) -> None:
    """A query from elsewhere could change the store or read other files."""
    before = sorted(store.parent.rglob("*"))
    with storage.open(str(store)) as connection, pytest.raises(UserError, match="SQL"):
        run_query(connection, query.replace("STORE", str(store).replace("'", "''")))
    assert sorted(store.parent.rglob("*")) == before


def test_a_connection_cannot_regain_external_access(store: Path) -> None:
    """A query could read files outside the store."""
    with storage.open(str(store)) as connection, pytest.raises(duckdb.Error):
        connection.execute("SET enable_external_access = true")
