"""Generate docs/tables.md: `python -m storage.tables_doc > docs/tables.md`."""

from __future__ import annotations

import textwrap

from storage import tables

_INTRODUCTION = """# Tables

Generated from `storage/tables.py` by `python -m storage.tables_doc`. Each table is a view of a store:
`neuralign sql STORE "SELECT * FROM experts LIMIT 5"`. Unless it lists other run columns, a view also has
the column `run`, the fingerprint of the stage that wrote the row. The view `runs` has the parameters of
each run, so `JOIN runs USING (run)` distinguishes results computed in several ways.
"""


def page() -> str:
    """Markdown of all tables and views."""
    return "".join([_INTRODUCTION, *map(_section, tables.VIEWS)])


def _section(view: tables.View) -> str:
    rows = "".join(
        f"| {column.name} | {column.type} | {column.metadata[b'meaning'].decode()} |\n"
        for column in (*view.schema, *view.joined)
    )
    meaning = textwrap.fill(view.meaning, 105, break_on_hyphens=False)
    key = ", ".join(column.name for column in view.key) + (" within a run" if view.has_run else "")
    head = f"\n## {view.name}\n\n{meaning}\n\nOne row per {key}.\n"
    return f"{head}\n| column | type | meaning |\n| --- | --- | --- |\n{rows}"


if __name__ == "__main__":
    print(page(), end="")
