"""Stage `similarity`: how similar two concepts' experts are, by DuckDB SQL over the experts: those of
the whole model, of each layer and of each kind of site."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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
        "representation": _representation(experts),
        "measure": "jaccard",
        "thresholds": sorted(thresholds),
    }
    return Stage(KIND, experts.label, params, _run, {"experts": experts})


def _run(stage: Stage, store: Path) -> Outcome:
    experts = stage.inputs["experts"]
    read = experts.inputs["activations"]
    paths = [str(experts.result(store).folder / each.path) for each in experts.result(store).files]
    concepts = sentences.read_concept_names(read.inputs["sentences"], store)
    tables = []
    with duckdb.connect() as connection:
        connection.from_parquet(paths).create("everywhere")
        sql.provide(connection, "concepts", {"concept": concepts})
        sql.provide(connection, "thresholds", {"threshold": stage.params["thresholds"]})
        sql.provide(connection, "poolings", {"pooling": read.params["poolings"]})
        constant = {
            **{name: stage.params[name] for name in ("model", "revision", "concept_set")},
            "representation": stage.params["representation"],
            "measure": "jaccard",
        }
        # a control is of the whole model's experts
        for place in [{}] if is_control(stage) else _places(connection):
            here = connection.table("everywhere")
            for column, value in place.items():
                here = here.filter(duckdb.ColumnExpression(column) == duckdb.ConstantExpression(value))
            here.create_view("scored")
            rows = connection.sql(sql.query("jaccard")).to_arrow_table()
            tables.append(complete(rows, {**constant, **place}))
    return Outcome([write_table(stage.folder(store), FILE, pa.concat_tables(tables))])


def is_control(stage: Stage) -> bool:
    """Whether a similarity stage is of experts that were found as a control."""
    return "experts" in stage.inputs and "control" in stage.inputs["experts"].params


def _representation(experts: Stage) -> str:
    control = experts.params.get("control")
    return f"{EXPERTS}, {control}" if control else EXPERTS


def _places(connection: duckdb.DuckDBPyConnection) -> list[dict[str, Any]]:
    """The whole model, each layer, and each kind of site where there are several."""
    found = connection.execute("SELECT DISTINCT layer, site FROM everywhere").fetchall()
    layers = sorted({layer for layer, _ in found})
    sites = sorted({site for _, site in found})
    kinds = [{"site": site} for site in sites] if len(sites) > 1 else []
    return [{}, *({"layer": layer} for layer in layers), *kinds]


def complete(rows: pa.Table, constant: dict[str, Any]) -> pa.Table:
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
