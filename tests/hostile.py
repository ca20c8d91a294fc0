"""A finished sweep over the tiny model, in whose data every name is hostile."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jobs import planner, sweep
from jobs.config import read_sweep
from jobs.page.study import Source, newest_study
from storage.database import open_store
from tests import tiny
from tests.faults import in_one_process

RUNS = "document.title='it ran'"
HOSTILE = {
    "cat": f"<script>{RUNS}</script>",
    "dog": f"</script><img src=x onerror={RUNS}>",
    "car": "a<br>b & %{x} $y$",
}
"""Names of concepts that are code where they are not escaped."""

SENTENCE = f"Nobody saw </script><script>{RUNS}</script> coming."
DOMAIN, HUMAN = "<b>vehicle</b>", "<i>mine</i>"


def make_store(folder: Path, model: Path) -> Path:
    """The store of a sweep with baselines, controls and two poolings."""
    shutil.copytree(model, folder / "model")
    extra = "resamples: 100\nbaselines: [input-embedding, contextual]\ncontrols: [split-half]\n"
    file = tiny.write_sweep(folder, extra=extra)
    rows = [
        (HOSTILE.get(name, name), {"vehicle": DOMAIN}.get(tiny.CONCEPTS[name], "animal"), text)
        for name, text in [*tiny.sentences(), ("bus", SENTENCE)]
    ]
    pairs = [(HOSTILE.get(a, a), HOSTILE.get(b, b), score) for a, b, score in tiny.PAIR_SCORES]
    _write(folder / "concepts.csv", ("concept", "domain", "text"), rows)
    _write(folder / "human.csv", ("a", "b", "score"), pairs)
    text = file.read_text().replace("name: mine", f"name: '{HUMAN}'")
    file.write_text(text.replace("[max, concept, context]", "[max, context]"))
    read = read_sweep(file, folder / "store")
    planned = planner.plan(read)
    with in_one_process():
        sweep.run(planned)
    return folder / "store"


def _write(path: Path, header: tuple[str, ...], rows: list[Any]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


@contextmanager
def source_of(store: Path) -> Iterator[Source]:
    study = newest_study(store)
    with open_store(store, study.runs) as connection:
        yield Source(connection, study)
