"""A finished sweep of the tiny model, with names that are markup or code."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jobs import planner, sweep
from jobs.config.loader import read_sweep
from jobs.page.study import latest_study
from jobs.page.study_data import StudyData
from storage.database import open_store
from tests import tiny
from tests.faults import in_one_process

SCRIPT = "document.title='it ran'"
HOSTILE = {
    "cat": f"<script>{SCRIPT}</script>",
    "dog": f"</script><img src=x onerror={SCRIPT}>",
    "car": "a<br>b & %{x} $y$",
}
"""Concept names that run as code unless they are escaped."""

SENTENCE = f"Nobody saw </script><script>{SCRIPT}</script> coming."
DOMAIN, HUMAN = "<b>vehicle</b>", "<i>mine</i>"


def make_store(folder: Path, model: Path) -> Path:
    """A store of a sweep with baselines, controls and two poolings."""
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
    plan = planner.plan_sweep(read_sweep(file, folder / "store"))
    with in_one_process():
        sweep.run(plan)
    return folder / "store"


def _write(path: Path, header: tuple[str, ...], rows: list[Any]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


@contextmanager
def open_study(store: Path) -> Iterator[StudyData]:
    """The data of the store's latest study."""
    study = latest_study(store)
    with open_store(store, study.runs) as connection:
        yield StudyData(connection, study)
