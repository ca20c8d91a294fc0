"""The stages of one model of a sweep and those of its baselines, each after those that it reads."""

from __future__ import annotations

from collections.abc import Iterator

from cluster.devices import native_dtype
from cluster.weights import MAIN, Weights, load_config, resolve_encoder
from jobs import (
    activations,
    attributions,
    baselines,
    encoders,
    experts,
    reliability,
    sentences,
    similarity,
    steering,
)
from jobs.config import Latents, Model, SentenceEncoder, Sweep, WordVectors
from jobs.stage import Stage
from storage.errors import UserError

ENCODER = "all-minilm-l6-v2"
"""The baseline `sentence-encoder`."""
LATENTS = "latents"
"""What the control of a dictionary ends with."""


def model_stages(
    sweep: Sweep, model: Model, weights: Weights, texts: Stage, n_sentences: int
) -> Iterator[Stage]:
    """What a model at one revision is read and searched for, with its controls and embeddings."""
    dtype = native_dtype() if model.dtype == "auto" else model.dtype
    input_embedding = "input-embedding" in sweep.baselines
    contextual = "contextual" in sweep.baselines and not weights.random
    read = activations.plan(weights, model, dtype, sweep.neurons, texts, n_sentences, contextual)
    yield read
    scored = experts.plan(read, sweep.experts, sweep.seed)
    yield scored
    how, which = sweep.similarity, sweep.experts
    yield similarity.plan(scored, how.measures, how.scopes, which.threshold, which.top)
    if not weights.random:
        yield from _control_stages(sweep, read)
        if sweep.steering is not None:
            attributed = attributions.plan(scored, weights, model, sweep.steering)
            yield attributed
            yield steering.plan(read, attributed, weights, model, sweep.steering, sweep.seed)
    if (input_embedding or contextual) and not weights.random:
        yield baselines.plan_embeddings(read, input_embedding, contextual)


def baseline_stages(sweep: Sweep, texts: Stage) -> Iterator[Stage]:
    """What needs none of the sweep's models."""
    for wanted in sweep.baselines:
        if wanted == "glove":
            yield baselines.plan_glove(texts)
        elif wanted == "sentence-encoder":
            encoder = resolve_encoder(ENCODER, MAIN, sweep.models_folder)
            yield encoders.plan(ENCODER, encoder, texts)
        elif isinstance(wanted, WordVectors):
            yield baselines.plan_word_vectors(wanted.name, sweep.folder / wanted.path, texts)
        elif isinstance(wanted, SentenceEncoder):
            encoder = resolve_encoder(wanted.encoder, wanted.revision, sweep.models_folder)
            yield encoders.plan(wanted.name, encoder, texts)


def shuffled_stages(
    sweep: Sweep, model: Model, weights: Weights, mixed: Stage, n_sentences: int
) -> Iterator[Stage]:
    """Experts once more, on sentences whose words are shuffled."""
    dtype = native_dtype() if model.dtype == "auto" else model.dtype
    read = activations.plan(weights, model, dtype, sweep.neurons, mixed, n_sentences, False)
    yield read
    yield from _as_control(sweep, read, sentences.SHUFFLED)


def latent_stages(
    sweep: Sweep, wanted: Latents, model: Model, weights: Weights, texts: Stage, n_sentences: int
) -> Iterator[Stage]:
    """Experts among the latents of a sparse autoencoder."""
    from cluster.dictionary import Dictionary

    module, _, side = wanted.at.rpartition(":")
    if wanted.at and side not in ("input", "output"):
        raise UserError(f"baselines: {wanted.name}: at: {wanted.at!r}: expected MODULE:input or :output")
    layers = load_config(weights).get_text_config().num_hidden_layers
    if wanted.layer >= layers:
        raise UserError(
            f"baselines: {wanted.name}: layer: {wanted.layer}: {model.id!r} has layers 0 to {layers - 1}"
        )
    dictionary = Dictionary(
        wanted.name,
        sweep.folder / wanted.dictionary,
        wanted.layer,
        module,
        "input" if side == "input" else "output",
        wanted.activation,
        wanted.k,
        None if wanted.b_dec is None else wanted.b_dec == "subtract",
    )
    dtype = native_dtype() if model.dtype == "auto" else model.dtype
    read = activations.plan(weights, model, dtype, sweep.neurons, texts, n_sentences, False, dictionary)
    yield read
    yield from _as_control(sweep, read, f"{wanted.name} {LATENTS}")


def _control_stages(sweep: Sweep, read: Stage) -> Iterator[Stage]:
    """Experts found once more as controls."""
    if "length-matched" in sweep.controls:
        yield from _as_control(sweep, read, experts.LENGTH_MATCHED)
    if "split-half" in sweep.controls:
        halves = [_as_control(sweep, read, half) for half in experts.HALVES]
        for pair in halves:
            yield from pair
        yield reliability.plan(*(compared for _, compared in halves))


def _as_control(sweep: Sweep, read: Stage, control: str) -> tuple[Stage, Stage]:
    """The experts of a control, and their similarities by the measure that is reported."""
    scored = experts.plan(read, sweep.experts, sweep.seed, control)
    return scored, similarity.plan(
        scored, sweep.similarity.measures[:1], ["model"], sweep.experts.threshold
    )
