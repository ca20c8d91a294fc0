"""Stage `similarity` for the other words of the concepts' sentences, which no language model has read:
what agreement an author's choice of words alone gives.

A concept's own word is left out of its sentences. The rest is compared as a bag of words (tf-idf), and
by its mean word vector.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from alignment.text.bag_of_words import split_words, tf_idf_similarity
from jobs import sentences
from jobs.engine.stage import Stage, StageOutput
from jobs.representations.embeddings import COSINE, GLOVE, cosine_tables, similarity_rows
from jobs.similarity import KIND
from storage import tables
from storage.assets import ASSETS
from storage.errors import UserError
from storage.readers.word_vectors import read_glove
from storage.store.commit import write_table

BAG_OF_WORDS = "bag of words"
CONTEXT_WORDS = "context words"


def plan_bag_of_words(sentences_stage: Stage) -> Stage:
    """The stage that compares the sentences' other words, by the cosine of their tf-idf."""
    concept_set = sentences_stage.params["concept_set"]
    params = {
        "model": concept_set,
        "revision": None,
        "concept_set": concept_set,
        "representation": BAG_OF_WORDS,
    }
    return Stage(KIND, BAG_OF_WORDS, params, _run_bag_of_words, {"sentences": sentences_stage})


def plan_context_words(sentences_stage: Stage) -> Stage:
    """The stage that compares the mean GloVe vectors of the sentences' other words."""
    params = {
        "model": GLOVE,
        "revision": None,
        "identity": ASSETS[GLOVE].sha256,
        "concept_set": sentences_stage.params["concept_set"],
        "representation": CONTEXT_WORDS,
    }
    label = f"{GLOVE} {CONTEXT_WORDS}"
    return Stage(KIND, label, params, _run_context_words, {"sentences": sentences_stage})


def _run_bag_of_words(stage: Stage, store: Path) -> StageOutput:
    documents = _documents(stage.inputs["sentences"], store)
    names = [name for name, words in documents.items() if words]
    _check_enough(stage, names, documents)
    matrix = tf_idf_similarity([documents[name] for name in names])
    rows = similarity_rows(names, matrix, stage, representation=BAG_OF_WORDS, measure=COSINE)
    notes = _missing_notes(stage, names, documents, "no sentence has another word")
    return StageOutput([write_table(stage.folder(store), tables.SIMILARITY.file, rows)], notes)


def _run_context_words(stage: Stage, store: Path) -> StageOutput:
    documents = _documents(stage.inputs["sentences"], store)
    vectors = read_glove(sorted(set().union(*documents.values())))
    means = {
        name: np.mean([vectors[word] for word in words if word in vectors], axis=0, dtype=np.float64)
        for name, words in documents.items()
        if any(word in vectors for word in words)
    }
    names = list(means)
    _check_enough(stage, names, documents)
    rows = cosine_tables(names, np.stack(list(means.values())), stage, representation=CONTEXT_WORDS)
    notes = _missing_notes(stage, names, documents, "no other word has a vector")
    return StageOutput([write_table(stage.folder(store), tables.SIMILARITY.file, rows)], notes)


def _documents(sentences_stage: Stage, store: Path) -> dict[str, list[str]]:
    """The words of each concept's sentences, without the concept's own word in any inflection."""
    documents: dict[str, list[str]] = {
        name: [] for name in sentences.read_concept_names(sentences_stage, store)
    }
    for name, text, spans in sentences.read_positives(sentences_stage, store):
        ends = [0, *spans[1::2]]
        starts = [*spans[::2], len(text)]
        rest = " ".join(text[end:start] for end, start in zip(ends, starts, strict=True))
        documents[name] += split_words(rest)
    return documents


def _check_enough(stage: Stage, names: list[str], documents: dict[str, list[str]]) -> None:
    if len(names) < 2:
        raise UserError(
            f"{stage.label}: {len(names)} of {len(documents)} concepts have sentences with other words; "
            "at least 2 are needed"
        )


def _missing_notes(
    stage: Stage, names: list[str], documents: dict[str, list[str]], problem: str
) -> list[str]:
    missing = documents.keys() - set(names)
    return [f"{stage.label}: {problem} for {', '.join(sorted(missing))}"] if missing else []
