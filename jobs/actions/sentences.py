"""`neuralign sentences`: the concepts of a sweep, or a sample of one concept's sentences."""

from __future__ import annotations

import difflib
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
from rich.console import Console

from jobs import sentences as sentences_stage
from jobs.actions.output import stdout_console, text_table
from jobs.actions.run import run_stages
from jobs.engine.stage import Stage
from storage.errors import UserError
from storage.readers.concepts import ConceptSet, write_concepts

_SAMPLE_SIZE = 10


def print_sentences(file: Path, show: str | None, out: Path | None, name: str | None) -> None:
    """Make missing sentences, write the set `name` to `out`, and print its concepts or a sample."""
    planned = run_stages(file, sentences_stage.KIND).plan
    store = planned.sweep.store_path
    names = ", ".join(item.name for item in planned.concept_sets)
    selection = [item for item in planned.concept_sets if name in (None, item.name)]
    if not selection:
        raise UserError(f"--concepts {name}: no such concept set; the sweep has {names}")
    if len(selection) > 1 and not (show is None and out is None):
        raise UserError(f"the sweep has several concept sets; choose one with --concepts: {names}")
    console = stdout_console()
    for planned_set in selection:
        stage = planned_set.stages[0]
        if out is not None:
            write_concepts(out, sentences_stage.read_concept_set(stage, store))
        if len(selection) > 1:
            console.print(f"{planned_set.name}:")
        if show is None:
            print_concepts(console, stage, store)
        else:
            concept_set = sentences_stage.read_concept_set(stage, store)
            print_sample(console, concept_set, show, planned.sweep.seed)


def print_concepts(console: Console, stage: Stage, store: Path) -> None:
    """Print one line per concept: its sentences, how many are flagged or were dropped, and why."""
    is_collected = stage.params.get("source") is not None
    reasons = defaultdict[str, Counter[str]](Counter)
    if is_collected:
        for row in sentences_stage.read_dropped(stage, store):
            reasons[row["concept"]][row["reason"]] = row["dropped"]
    else:
        reasons.update(sentences_stage.count_flags(stage, store))
    counts, rows = sentences_stage.count_sentences(stage, store), []
    for name, count in counts.items():
        counter = reasons[name]
        main_reason = counter.most_common(1)[0][0] if counter else ""
        rows.append((name, count, counter.total(), main_reason))
    names = ("concept", "sentences", "dropped" if is_collected else "flagged", "main reason")
    console.print(text_table("lrrl", names, rows))
    n_neutral = sentences_stage.count_neutral_sentences(stage, store)
    console.print(
        f"{len(counts)} concepts, {sum(counts.values()):,} sentences"
        + (f", {n_neutral:,} neutral sentences" if n_neutral else "")
    )


def print_sample(console: Console, concept_set: ConceptSet, name: str, seed: int) -> None:
    """Print randomly drawn sentences of a concept, in the order of the set.

    Raises:
        UserError: if the set does not have the concept.
    """
    names = [concept.name for concept in concept_set.concepts]
    if name not in names:
        close = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {close[0]}?" if close else f"it has {', '.join(names[:10])} ..."
        raise UserError(f"--show {name}: the set has no such concept; {hint}")
    candidates = [sentence for sentence in concept_set.sentences if name in sentence.concepts]
    size = min(_SAMPLE_SIZE, len(candidates))
    indices = np.sort(np.random.default_rng(seed).choice(len(candidates), size, replace=False))
    for sentence in (candidates[index] for index in indices):
        details = ", ".join(detail for detail in (sentence.prompt, *sentence.flags) if detail)
        console.print(f"- {sentence.text}" + (f"  [{details}]" if details else ""))
    console.print(f"{size} of {len(candidates)} sentences of {name}")
