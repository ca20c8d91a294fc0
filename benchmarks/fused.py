"""Activations that are scored and not kept, against the model and the kernel alone."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from alignment.arrays import AnyFloats
from alignment.expertise.label_permutations import permute_labels
from alignment.expertise.labels import labels_against_others
from alignment.expertise.scoring import REFERENCE_PREVALENCE, score_neurons
from benchmarks import zoo
from benchmarks.measure import empty, record, side_by_side
from cluster.activations.batching import batch_sentences, pad
from cluster.activations.layer_recorder import sites_of
from cluster.activations.model_pass import Block, ModelPass
from cluster.activations.pass_request import SiteValues
from cluster.activations.pooling_shard import PAD_ID
from cluster.activations.sentence_set import tokenize
from cluster.activations.spool import SpoolSettings
from cluster.models.shard import MAX_TOKENS
from cluster.models.tokenizer import Tokenizer
from cluster.models.weights import ensure_local
from jobs.scoring.labelings import Labeling
from jobs.scoring.layer_scorer import LayerScorer

_ROUNDS = 2


def fused() -> None:
    """The demo's model with three poolings and one labeling without permutations, on one core: a pass
    whose rows are committed, against the model with the same batches and the kernel on arrays in
    memory. Both load the model."""
    torch.set_num_threads(1)
    concept_set = zoo.demo_concepts()
    n_sentences = len(concept_set.sentences)
    texts = zoo.demo_texts(n_sentences)
    folder = ensure_local(zoo.demo_model())
    settings = replace(zoo.SETTINGS, include_hidden_states=False)
    tokenizer = Tokenizer(folder, MAX_TOKENS)
    names = [concept.name for concept in concept_set.concepts]
    ids = np.arange(n_sentences)
    members = np.array([names.index(sentence.concepts[0]) for sentence in concept_set.sentences])
    labels = labels_against_others(ids, members, n_sentences, len(names))
    params = {
        **dict.fromkeys(("model", "revision", "concept_set"), "m"),
        **{"prevalence": REFERENCE_PREVALENCE, "floor": 0.4, "permutations": 0, "scores": []},
    }
    labeling = Labeling(params, names, labels, ids, permute_labels(labels, 0, 0))
    values: list[AnyFloats] = []

    with tempfile.TemporaryDirectory() as name:
        store = Path(name)
        scorer = LayerScorer(store / "stage", [labeling], ids, members)

        def read(consume: Callable[[Block], None]) -> None:
            sentences = tokenize(tokenizer, texts, settings.inputs, settings.poolings)
            spool = SpoolSettings(store / "spool", 0)
            ModelPass(folder, settings, sentences, zoo.TOKEN_BUDGET, spool).run(consume)

        def score(block: Block) -> None:
            for layer in block.layers:
                sites = sites_of(block, layer)
                values = [SiteValues(pooling, site.name, each) for pooling, site, each in sites]
                scorer(layer, values, 1)

        def copy(block: Block) -> None:
            values.extend(
                each.numpy().copy() for pooled in block.pooled for _, each in pooled.of_sites()
            )

        def alone() -> None:
            model = zoo.bare_model(folder)
            sentences = tokenize(tokenizer, texts, settings.inputs, settings.poolings)
            with torch.inference_mode():
                for rows in batch_sentences(sentences.lengths, zoo.TOKEN_BUDGET):
                    batch = pad([sentences.tokens[row] for row in rows], PAD_ID, torch.device("cpu"))
                    model(batch.ids, attention_mask=batch.attention, use_cache=False)
            for of_site in values:
                score_neurons(of_site, labels)

        read(copy)
        ours, theirs = side_by_side(lambda: read(score), alone, _ROUNDS, lambda: empty(store))
    record("fused", n_sentences / ours, n_sentences / theirs, "sentences/s", "ratio at least 0.95")
