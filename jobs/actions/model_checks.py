"""Checks of a plan's models and sentences that need no weights: what a run would reject, in seconds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import TYPE_CHECKING

from alignment.text.word_matching import find_word
from jobs import activations, sentences, steering
from jobs.engine.stage import Stage
from jobs.planner import Plan, PlannedConceptSet
from storage.errors import UserError
from storage.store.paths import list_dir

if TYPE_CHECKING:
    from cluster.models.tokenizer import InputOptions, Text, Tokenizer

_FEW_WORDS = 2
"""A sentence with at most this many words beside its concept's may have no tokens beside it."""

_SHORT = 20
"""Words of the sentences whose concepts are located for this; longer ones have words beside them."""


def check_models(plan: Plan) -> None:
    """Raise UserError for a model or a sentence that a run would reject before it reads weights.

    Only models whose activations are still to be computed are checked, and one revision of each model on
    the hub: revisions share the configuration and the tokenizer.
    """
    from cluster.models.model_checks import check_model

    store, checked = plan.sweep.store_path, set[str]()
    existing = {path.name for path in list_dir(store / activations.KIND)}
    pending = defaultdict[str, list[tuple[Stage, PlannedConceptSet]]](list)
    for concept_set in plan.concept_sets:
        for stage in concept_set.stages:
            is_new = stage.kind == activations.KIND and stage.folder(store).name not in existing
            if is_new or (stage.kind == activations.KIND and not stage.is_done(store)):
                pending[stage.label].append((stage, concept_set))
    for model, weights in plan.models:
        stages = pending[weights.label]
        if weights.location in checked or (plan.is_complete and not stages):
            continue
        checked.add(weights.location)
        options = activations.input_options(model)
        try:
            n_shards = None if model.shards == "auto" else model.shards
            tokenizer = check_model(weights, options, n_shards)
            if tokenizer is not None:
                for stage, concept_set in stages:
                    _check_sentences(tokenizer, options, stage, concept_set)
                    _check_prompts(tokenizer, options, stage.label, concept_set)
        except UserError as error:
            raise UserError(f"model {weights.label}: {error}") from error


def _check_sentences(
    tokenizer: Tokenizer, options: InputOptions, stage: Stage, planned: PlannedConceptSet
) -> None:
    """Raise UserError for a sentence in which a pooling would have no tokens."""
    from cluster.activations.sentence_checks import check_tokens

    if stage.inputs["sentences"] is not planned.stages[0]:
        # Altered sentences are made by the run.
        return
    texts = list(_doubtful_texts(options, planned, tokenizer.max_tokens))
    tokenized_texts = tokenizer(texts, options) if texts else []
    for text, tokenized in zip(texts, tokenized_texts, strict=True):
        check_tokens(text, tokenized, stage.params["poolings"])


def _check_prompts(
    tokenizer: Tokenizer, options: InputOptions, label: str, planned: PlannedConceptSet
) -> None:
    """Raise UserError for a steering prompt or a word that has no tokens, or too many for the model."""
    from cluster.steering.tokens import tokenize_with

    names = [concept.name for concept in planned.concepts.concepts] if planned.concepts else []
    for stage in planned.stages:
        if stage.kind == steering.KIND and stage.label == label:
            params = stage.params
            words = [name.replace("_", " ") for name in params["concepts"] or names]
            n_continuation = params["tokens"] if params["samples"] else 0
            tokenize_with(tokenizer, label, params["prompts"], words, n_continuation, options)


def _doubtful_texts(
    options: InputOptions, planned: PlannedConceptSet, max_tokens: int
) -> Iterator[Text]:
    """The sentences that may be too short or too long: the only ones that need tokenizing."""
    from cluster.models.tokenizer import Text

    if planned.concepts is None:
        return
    language = planned.stages[0].params["language"]
    words = {
        concept.name: sentences.concept_word(concept, language) for concept in planned.concepts.concepts
    }
    for sentence in planned.concepts.sentences:
        is_short = len(sentence.text.split()) <= _SHORT
        # A token has at least one byte.
        may_be_truncated = len(sentence.text.encode()) >= max_tokens - _FEW_WORDS
        if not is_short and not may_be_truncated and not options.skip_first_token:
            continue
        found = [span for name in sentence.concepts for span in find_word(sentence.text, words[name])]
        outside = sentence.text
        for start, end in sorted(found, reverse=True):
            outside = outside[:start] + " " + outside[end:]
        if len(outside.split()) <= _FEW_WORDS or may_be_truncated or options.skip_first_token:
            yield Text(sentence.text, [offset for span in found for offset in span])
