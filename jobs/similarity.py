"""Stage `similarity`: how similar two concepts' experts are, by DuckDB SQL over the experts."""

from __future__ import annotations

from pathlib import Path

import duckdb
import pyarrow as pa

from jobs import sentences
from jobs.stage import Outcome, Stage
from storage import schemas, sql
from storage.commit import write_table

KIND = "similarity"
FILE = "similarity.parquet"
EXPERTS = "experts"


def plan(experts: Stage, thresholds: list[float]) -> Stage:
    """The stage that compares the experts of one model, for each of its poolings."""
    params = {
        **{name: experts.params[name] for name in ("model", "revision", "concept_set")},
        "representation": EXPERTS,
        "measure": "jaccard",
        "thresholds": sorted(thresholds),
    }
    return Stage(KIND, experts.label, params, _run, {"experts": experts})


def _run(stage: Stage, store: Path) -> Outcome:
    experts = stage.inputs["experts"]
    read = experts.inputs["activations"]
    paths = [str(experts.result(store).folder / each.path) for each in experts.result(store).files]
    concepts = sentences.read_concept_names(read.inputs["sentences"], store)
    with duckdb.connect() as connection:
        connection.from_parquet(paths).create_view("scored")
        sql.provide(connection, "concepts", {"concept": concepts})
        sql.provide(connection, "thresholds", {"threshold": stage.params["thresholds"]})
        sql.provide(connection, "poolings", {"pooling": read.params["poolings"]})
        rows = connection.sql(sql.query("jaccard")).to_arrow_table()
    constant = {
        **{name: stage.params[name] for name in ("model", "revision", "concept_set")},
        "representation": EXPERTS,
        "measure": "jaccard",
        "layer": None,
    }
    return Outcome([write_table(stage.folder(store), FILE, complete(rows, constant))])


def complete(rows: pa.Table, constant: dict[str, str | None]) -> pa.Table:
    """Rows of the `similarity` table: the columns found in `rows`, then the constant ones."""
    columns = {}
    for field in schemas.SIMILARITY:
        if field.name in rows.column_names:
            columns[field.name] = rows.column(field.name).cast(field.type)
        else:
            value = pa.scalar(constant.get(field.name), field.type)
            columns[field.name] = pa.repeat(value, rows.num_rows)
    return pa.table(columns, schemas.SIMILARITY)


if __name__ == "__main__":
    from jobs.cli import run_file

    run_file("similarity")
