"""Stage `similarity` for the domains alone: 1 for two concepts of the same domain, else 0.

What agreement the coarsest description of the concepts gives.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from jobs import sentences
from jobs.engine.stage import Stage, StageOutput
from jobs.representations.embeddings import similarity_rows
from jobs.similarity import KIND
from storage import tables
from storage.store.commit import write_table

SAME_DOMAIN = "same domain"
LABEL = "label"
"""The measure of similarity."""


def plan(sentences_stage: Stage) -> Stage:
    """The stage that compares the concepts' domains; a concept without one is like no other."""
    concept_set = sentences_stage.params["concept_set"]
    params = {
        "model": concept_set,
        "revision": None,
        "concept_set": concept_set,
        "representation": SAME_DOMAIN,
    }
    return Stage(KIND, SAME_DOMAIN, params, _run, {"sentences": sentences_stage})


def _run(stage: Stage, store: Path) -> StageOutput:
    domains = sentences.read_domains(stage.inputs["sentences"], store)
    labels = list(domains.values())
    matrix = np.array([[a is not None and a == b for b in labels] for a in labels], np.float64)
    rows = similarity_rows(list(domains), matrix, stage, representation=SAME_DOMAIN, measure=LABEL)
    return StageOutput([write_table(stage.folder(store), tables.SIMILARITY.file, rows)])


def is_label(stage: Stage) -> bool:
    """Whether a similarity stage compares the domains themselves."""
    return bool(stage.params.get("representation") == SAME_DOMAIN)
