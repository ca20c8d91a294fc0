"""What a page is made of: the runs of one sweep, and the model and pooling that it looks at closely."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from alignment.statistics.correlation import FEWEST_PAIRS
from cluster.models.weights import RANDOM_INIT
from jobs.similarity import EXPERTS
from storage import sql
from storage.errors import UserError
from storage.store import layout, manifest
from storage.store.activation_files import POOLINGS
from storage.store.manifest import Manifest

HEADLINE_THRESHOLD = 0.5
"""The papers' threshold."""

_VIEWS = """
SELECT model, revision, concept_set, pooling, measure, threshold, top, min(run) AS run
FROM similarity
WHERE representation = $experts AND layer IS NULL AND site IS NULL AND measure != 'containment'
GROUP BY ALL
"""

_RATED = """
WITH named AS (SELECT concept FROM concepts WHERE concept_set = $concept_set)
SELECT human_set, count(*) AS n
FROM human_pairs
WHERE concept_a IN (FROM named) AND concept_b IN (FROM named)
GROUP BY human_set HAVING n >= $fewest
ORDER BY n DESC, human_set
"""

_STEP = re.compile(r"step[-_]?(\d+)$")


@dataclass(frozen=True)
class View:
    """A model and a pooling, and how its experts are compared."""

    model: str
    revision: str
    concept_set: str
    pooling: str
    measure: str
    threshold: float | None
    top: int | None

    @property
    def label(self) -> str:
        return f"{self.model}@{self.revision} ({self.pooling} pooling)"

    @property
    def measured(self) -> str:
        """The measure, named as in a sentence."""
        return self.measure.capitalize() if self.measure in ("jaccard", "dice") else self.measure

    @property
    def cut(self) -> str:
        """What makes a neuron an expert here."""
        return f"AP > {self.threshold}" if self.threshold is not None else f"the {self.top} highest APs"

    @property
    def parameters(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("model", "revision", "concept_set", "pooling")}


@dataclass(frozen=True)
class Study:
    """The done stages of one concept set of a sweep, by fingerprint; the study's name and the set's; and
    what the sweep file asks for, where that is known: it is once the sweep is done."""

    name: str
    runs: Mapping[str, Manifest]
    asked: Mapping[str, Any] | None = None
    set_name: str = ""


class Source:
    """A store's views, restricted to one sweep, and the view that the page looks at closely."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, study: Study, number: int = 0) -> None:
        self.connection = connection
        self.study = study
        self.runs = list(study.runs.values())
        self.number = number

    def ask(self, query: str, **parameters: Any) -> list[dict[str, Any]]:
        """Rows of a query."""
        found: pa.Table = self.connection.sql(query, params=parameters).to_arrow_table()
        rows: list[dict[str, Any]] = found.to_pylist()
        return rows

    def ask_named(self, name: str, **parameters: Any) -> list[dict[str, Any]]:
        """Rows of one of the queries in storage/sql."""
        return self.ask(sql.query(name), **parameters)

    def has(self, view: str, column: str | None = None) -> bool:
        """Whether the store's version has a view, and a column of it."""
        return column in self._columns.get(view, ()) if column else view in self._columns

    @cached_property
    def _columns(self) -> dict[str, list[str]]:
        rows = self.ask(
            "SELECT table_name, list(column_name) AS columns FROM duckdb_columns() "
            "WHERE NOT internal GROUP BY table_name"
        )
        return {row["table_name"]: row["columns"] for row in rows}

    @cached_property
    def views(self) -> list[View]:
        """Models and poolings that were compared: trained ones first, of checkpoints the last first."""
        rows = self.ask(_VIEWS, experts=EXPERTS)
        measures = self._measures
        groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
        for row in rows:
            groups.setdefault(
                (row["model"], row["revision"], row["concept_set"], row["pooling"]), []
            ).append(row)
        views = []
        for (model, revision, concept_set, pooling), found in groups.items():
            first = measures.get(found[0]["run"]) or min(row["measure"] for row in found)
            best = min((row for row in found if row["measure"] == first), key=_from_headline)
            views.append(
                View(model, revision, concept_set, pooling, first, best["threshold"], best["top"])
            )
        return sorted(views, key=self._rank)

    @cached_property
    def _measures(self) -> dict[str, str]:
        """The measure that each similarity stage reports: its first."""
        return {
            each.fingerprint: each.params["measures"][0]
            for each in self.runs
            if each.kind == "similarity" and each.params.get("measures")
        }

    def _rank(self, view: View) -> tuple[Any, ...]:
        models = [each.params.get("model") for each in self._in_order("activations")]
        place = models.index(view.model) if view.model in models else len(models)
        step = training_step(view.revision)
        return (
            view.revision == RANDOM_INIT,
            place,
            -(step or 0),
            view.revision,
            POOLINGS.index(view.pooling),
        )

    def _in_order(self, kind: str) -> list[Manifest]:
        return sorted((each for each in self.runs if each.kind == kind), key=lambda each: each.finished)

    @property
    def view(self) -> View:
        """The view that is looked at closely."""
        return self.views[self.number]

    @cached_property
    def concept_set(self) -> str:
        """The concepts that the page is about."""
        if self.views:
            return self.view.concept_set
        (first, *_) = self._in_order("sentences")
        return str(first.params["concept_set"])

    @cached_property
    def domains(self) -> dict[str, str | None]:
        """The domain of each concept, in the set's order."""
        rows = self.ask("FROM concepts WHERE concept_set = $set", set=self.concept_set)
        return {row["concept"]: row["domain"] for row in rows}

    @cached_property
    def rated(self) -> dict[str, int]:
        """Human sets with enough rated pairs of the concepts, the largest first, and how many."""
        rows = self.ask(_RATED, fewest=FEWEST_PAIRS, concept_set=self.concept_set)
        return {row["human_set"]: row["n"] for row in rows}

    @cached_property
    def absent(self) -> list[str]:
        """The models that the sweep names and of which there is nothing, because they failed. What a
        pattern of revisions stands for is not known here."""
        there = {
            (each.params["model"], each.params["revision"]) for each in self._in_order("activations")
        }
        asked = (self.study.asked or {}).get("models", [])
        return [
            f"{model['id']}@{revision}"
            for model in asked
            for revision in model["revisions"]
            if (model["id"], revision) not in there
            and revision != "all"
            and not set("*?[") & set(revision)
        ]

    @property
    def human_set(self) -> str | None:
        """The human data that models are held against closely."""
        return next(iter(self.rated), None)


def no_similarities(source: Source) -> str:
    """Why a store has no similarities."""
    if len(source.domains) < 2:
        return "No similarities: they are of two concepts, and this set has only one."
    return "No similarities in this store: run the sweep to its end (`neuralign run FILE`)."


def by_step(row: Mapping[str, Any]) -> tuple[str, float]:
    """What sorts each model's checkpoints as they came, before what is none."""
    step = training_step(row["revision"] or "")
    return row["model"] or "", math.inf if step is None else step


def training_step(revision: str) -> int | None:
    """The training step that a revision is named after."""
    found = _STEP.match(revision)
    return int(found[1]) if found else None


def newest_study(root: Path, set_name: str | None = None) -> Study:
    """One of `newest_studies`: the first, or that of a concept set. Raises UserError."""
    studies = newest_studies(root)
    if set_name is None:
        return studies[0]
    for study in studies:
        if study.set_name == set_name:
            return study
    there = ", ".join(study.set_name for study in studies)
    raise UserError(f"--concepts {set_name}: the newest sweep of {root} has {there}")


def newest_studies(root: Path) -> list[Study]:
    """A store's newest sweep, one concept set after another: what its newest reports were made of or,
    where none is done, its newest comparison with humans (or what comes before one) and all that was
    made of the same sentences.

    Raises UserError for a store in which nothing is done.
    """
    layout.check(root)
    done = {each.folder.name: each for kind in layout.KINDS for each in manifest.done(root, kind)}
    for kind in ("report", "alignment", "similarity", "experts", "activations", "sentences"):
        found = [each for each in done.values() if each.kind == kind]
        if found:
            newest = max(found, key=_finished)
            break
    else:
        raise UserError(f"{root}: nothing is done in this store yet; `neuralign status` shows its state")
    if newest.kind == "report":
        asked = newest.params["sweep"]
        reports = sorted((each for each in found if each.params["sweep"] == asked), key=_finished)
        latest = {each.label: each for each in reports}.values()
        studies = [
            _study(each, manifest.made_of(each, done) - {each.folder.name}, done) for each in latest
        ]
        if len(studies) == 1:
            return studies
        order = [each["name"] for each in asked["concepts"]]
        return sorted(studies, key=lambda study: order.index(study.set_name))
    names = manifest.made_of(newest, done)
    texts = {name for name in names if done[name].kind == "sentences"}
    for each in done.values():
        below = manifest.made_of(each, done)
        if texts & below and each.kind not in ("report", "alignment"):
            names |= below
    return [_study(newest, names, done)]


def _study(newest: Manifest, names: set[str], done: Mapping[str, Manifest]) -> Study:
    runs = {done[name].fingerprint: done[name] for name in names}
    (texts,) = [each for each in runs.values() if each.kind == "sentences" and not each.inputs]
    name = newest.label if newest.kind in ("report", "alignment") else texts.label
    return Study(name, runs, newest.params.get("sweep"), texts.label)


def _finished(stage: Manifest) -> str:
    return stage.finished


def _from_headline(row: dict[str, Any]) -> tuple[bool, float, int]:
    threshold = row["threshold"]
    return threshold is None, abs((threshold or 0) - HEADLINE_THRESHOLD), row["top"] or 0
