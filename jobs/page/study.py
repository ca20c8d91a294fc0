"""The finished stages that a page is made from: one concept set of a sweep."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

from storage.errors import UserError
from storage.store import layout, manifest
from storage.store.manifest import Manifest

HEADLINE_THRESHOLD = 0.5
"""AP above which a neuron is an expert, as in the papers."""


@dataclass(frozen=True)
class Study:
    """Finished stages by fingerprint. `config` is the sweep file, known once the sweep has finished."""

    name: str
    runs: Mapping[str, Manifest]
    config: Mapping[str, Any] | None = None
    concept_set_name: str = ""


def latest_study(root: Path, concept_set_name: str | None = None) -> Study:
    """The first of `latest_studies`, or the one of a concept set.

    Raises:
        UserError: if nothing has finished, or the concept set is unknown.
    """
    studies = latest_studies(root)
    if concept_set_name is None:
        return studies[0]
    for study in studies:
        if study.concept_set_name == concept_set_name:
            return study
    names = ", ".join(study.concept_set_name for study in studies)
    raise UserError(f"--concepts {concept_set_name}: the latest sweep of {root} has {names}")


def latest_studies(root: Path) -> list[Study]:
    """The latest sweep in a store, one study per concept set: the inputs of its latest reports. Without
    a report, the most advanced stage with everything derived from the same sentences.

    Raises:
        UserError: if no stage has finished.
    """
    layout.check_store(root)
    done = {stage.folder.name: stage for stage in manifest.completed(root)}
    for kind in ("report", "alignment", "similarity", "experts", "activations", "sentences"):
        candidates = [stage for stage in done.values() if stage.kind == kind]
        if candidates:
            latest = max(candidates, key=attrgetter("finished"))
            break
    else:
        raise UserError(f"{root}: no stage has finished yet; `neuralign status` shows the progress")
    if latest.kind == "report":
        config = latest.params["sweep"]
        reports = [stage for stage in candidates if stage.params["sweep"] == config]
        reports.sort(key=attrgetter("finished"))
        latest_reports = {stage.label: stage for stage in reports}.values()
        studies = [
            _study(stage, manifest.ancestors(stage, done) - {stage.folder.name}, done)
            for stage in latest_reports
        ]
        if len(studies) == 1:
            return studies
        order = [concept_set["name"] for concept_set in config["concepts"]]
        return sorted(studies, key=lambda study: order.index(study.concept_set_name))
    names = manifest.ancestors(latest, done)
    sentences = {name for name in names if done[name].kind == "sentences"}
    for stage in done.values():
        ancestors = manifest.ancestors(stage, done)
        if sentences & ancestors and stage.kind not in ("report", "alignment"):
            names |= ancestors
    return [_study(latest, names, done)]


def _study(latest: Manifest, names: set[str], done: Mapping[str, Manifest]) -> Study:
    runs = {stage.fingerprint: stage for name, stage in done.items() if name in names}
    (sentences,) = [stage for stage in runs.values() if stage.kind == "sentences" and not stage.inputs]
    name = latest.label if latest.kind in ("report", "alignment") else sentences.label
    return Study(name, runs, latest.params.get("sweep"), sentences.label)
