"""The planner: checks everything that a sweep names and lays out the stages of its concept sets, models
and baselines."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property, partial

from alignment.text.word_matching import NOUN
from cluster.models import hub
from cluster.models.weights import (
    MAIN,
    RANDOM_INIT,
    Weights,
    load_config,
    local_revisions,
    resolve,
    resolve_encoder,
)
from cluster.runtime.devices import native_dtype
from jobs import (
    activations,
    alignment,
    attributions,
    experts,
    hierarchy,
    reliability,
    report,
    sentences,
    similarity,
    steering,
)
from jobs.config import Brought, Harvest, Latents, Model, SentenceEncoder, Sweep, WordVectors
from jobs.engine.stage import Stage
from jobs.representations import embeddings, sentence_encoder
from jobs.sources import generate, harvest
from jobs.sources.human_judgments import Judgments, judge
from storage.errors import UserError
from storage.readers.concepts import ConceptSet, named, read_concepts, read_words

_LOOK_UPS_AT_ONCE = 16

ENCODER = "all-minilm-l6-v2"
"""The baseline `sentence-encoder`."""
LATENTS = "latents"
"""What the control of a dictionary ends with."""


@dataclass(frozen=True)
class PlannedSet:
    """The stages of one concept set of a sweep, the first of which is its sentences.

    While these are still to be made (harvested or written), that is the only stage known. `human` is
    what people say of the concepts.
    """

    name: str
    concepts: ConceptSet | None  # None while they are still to be made
    stages: list[Stage]
    human: list[Judgments] = field(default_factory=list)


@dataclass(frozen=True)
class Plan:
    """What a sweep comes to: its models, and the stages of each of its concept sets."""

    sweep: Sweep
    weights: list[Weights]
    sets: list[PlannedSet]

    @cached_property
    def stages(self) -> list[Stage]:
        """All stages, each after those that it reads."""
        return [stage for each in self.sets for stage in each.stages]

    @property
    def is_whole(self) -> bool:
        """Whether all sentences are made."""
        return all(each.concepts is not None for each in self.sets)

    def useless(self, until: str | None) -> list[str]:
        """Why some of the human data that are still to be compared with will give no agreement."""
        store = self.sweep.store_path
        left = [each for each in self.until(until) if each.kind == alignment.KIND]
        compared = {each.of_set for each in left if not each.is_done(store)}
        reasons = [
            (each.name, alignment.why_not(judgments, judgments.groups))
            for each in self.sets
            for judgments in each.human
            if each.stages[0].of_set in compared
        ]
        several = len(self.sets) > 1
        return [f"{name}: {reason}" if several else reason for name, reason in reasons if reason]

    def of_kind(self, kind: str) -> list[Stage]:
        return [stage for stage in self.stages if stage.kind == kind]

    def readers(self, read: Stage) -> list[Stage]:
        """The stages that read a stage."""
        return [stage for stage in self.stages if read in stage.inputs.values()]

    def until(self, kind: str | None) -> list[Stage]:
        """The stages of a kind and those that they are made of; all without one."""
        if kind is None:
            return self.stages
        wanted = self.of_kind(kind)
        if not wanted:
            raise UserError(f"{self.sweep.file}: asks for no stage of the kind {kind}")
        needed = {id(each) for stage in wanted for each in stage.ancestors()}
        return [stage for stage in self.stages if id(stage) in needed]


def plan(sweep: Sweep, without: Collection[str] = ()) -> Plan:
    """Check everything that a sweep names and lay out its stages, `without` the models of these labels.
    Writes nothing."""
    alone = sweep.each_set()
    texts = [_sentences(one) for one in alone]
    if len(alone) > 1:
        texts = [
            (replace(stage, set_name=one.concept_set), concepts)
            for one, (stage, concepts) in zip(alone, texts, strict=True)
        ]
    with ThreadPoolExecutor(_LOOK_UPS_AT_ONCE) as threads:
        found = list(threads.map(partial(_resolved, sweep), sweep.models))
    models = [
        (model, weights)
        for model, revisions in zip(sweep.models, found, strict=True)
        for weights in revisions
        if weights.label not in without
    ]
    sets = [concepts for _, concepts in texts]
    if sweep.steering is not None and None not in sets:
        known = {concept.name for each in sets if each for concept in each.concepts}
        attributions.check(known, sweep.steering)
    planned = [_plan_set(sweep, one, *each, models) for one, each in zip(alone, texts, strict=True)]
    return Plan(sweep, [weights for _, weights in models], planned)


def _plan_set(
    sweep: Sweep,
    one: Sweep,
    texts: Stage,
    concepts: ConceptSet | None,
    models: list[tuple[Model, Weights]],
) -> PlannedSet:
    """The stages of one concept set; `one` is the sweep of that set alone."""
    named_concepts = concepts.concepts if concepts else []
    senses = {concept.name: concept.sense for concept in named_concepts}
    human = [judge(each, list(senses), senses) for each in one.human_sets()]
    if concepts is None:
        return PlannedSet(one.concept_set, None, [texts])
    experts.check(concepts, one.experts)
    one = _steered(one, senses)
    n_sentences = len(concepts.sentences)
    stages = [texts, *baseline_stages(one, texts)]
    for model, weights in models:
        stages += model_stages(one, model, weights, texts, n_sentences)
    if "shuffled" in one.baselines:
        mixed = sentences.plan_shuffled(concepts, texts, one.concepts[0].language, one.seed)
        stages.append(mixed)
        for model, weights in models:
            if not weights.random:
                stages += shuffled_stages(one, model, weights, mixed, n_sentences)
    for wanted in [each for each in one.baselines if isinstance(each, Latents)]:
        for model, weights in models:
            if model in one.models_of(wanted) and not weights.random:
                stages += latent_stages(one, wanted, model, weights, texts, n_sentences)
    compared = [stage for stage in stages if stage.kind == similarity.KIND]
    name = sweep.name if len(sweep.concepts) == 1 else f"{sweep.name} {one.concept_set}"
    how = alignment.How(one.agreement, one.interval, one.resamples, one.seed)
    aligned = alignment.plan(name, texts, compared, human, how)
    trees: list[Stage] = []
    if hierarchy.has_domains({concept.name: concept.domain for concept in concepts.concepts}):
        trees = [
            hierarchy.plan(each, texts, one.resamples, one.seed)
            for each in compared
            if not similarity.is_control(each)
        ]
    stages += [aligned, *trees]
    asked = sweep.model_dump(mode="json", exclude={"store"})
    stages.append(report.plan(name, stages, asked))
    return PlannedSet(one.concept_set, concepts, stages, human)


def _steered(one: Sweep, known: Collection[str]) -> Sweep:
    """The sweep of one set, which steers those concepts that it has."""
    if one.steering is None or one.steering.concepts is None:
        return one
    own = [name for name in one.steering.concepts if name in known]
    steering = one.steering.model_copy(update={"concepts": own}) if own else None
    return one.model_copy(update={"steering": steering})


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
        yield embeddings.plan_embeddings(read, input_embedding, contextual)


def baseline_stages(sweep: Sweep, texts: Stage) -> Iterator[Stage]:
    """What needs none of the sweep's models."""
    for wanted in sweep.baselines:
        if wanted == "glove":
            yield embeddings.plan_glove(texts)
        elif wanted == "sentence-encoder":
            encoder = resolve_encoder(ENCODER, MAIN, sweep.models_folder)
            yield sentence_encoder.plan(ENCODER, encoder, texts)
        elif isinstance(wanted, WordVectors):
            yield embeddings.plan_word_vectors(wanted.name, sweep.folder / wanted.path, texts)
        elif isinstance(wanted, SentenceEncoder):
            encoder = resolve_encoder(wanted.encoder, wanted.revision, sweep.models_folder)
            yield sentence_encoder.plan(wanted.name, encoder, texts)


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
    from cluster.models.sparse_autoencoder import Dictionary

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


def _sentences(sweep: Sweep) -> tuple[Stage, ConceptSet | None]:
    """The stage of the sentences of a sweep with one concept set and, unless they are still to be made,
    what it holds."""
    (wanted,) = sweep.concepts
    if isinstance(wanted, Brought):
        concepts = read_concepts(sweep.folder / wanted.source, sweep.concept_set, wanted.columns)
        return sentences.plan(concepts, wanted.language), concepts
    if isinstance(wanted.words, str):
        words = read_words(sweep.folder / wanted.words)
    else:
        words = named(wanted.words, f"{sweep.file}: concepts.words")
    # a concept that is nothing else is a noun
    words = [replace(each, pos=each.pos or NOUN) for each in words]
    stage = (
        harvest.plan(sweep, wanted, words)
        if isinstance(wanted, Harvest)
        else generate.plan(sweep, wanted, words)
    )
    store = sweep.store_path
    return stage, sentences.read_set(stage, store) if stage.is_done(store) else None


def _resolved(sweep: Sweep, model: Model) -> list[Weights]:
    """A model at each of its revisions."""
    control = "random-init" in sweep.baselines and RANDOM_INIT not in model.revisions
    asked = [*model.revisions, *([RANDOM_INIT] if control else [])]
    revisions = hub.expand(model.id, asked, local_revisions(model.id, sweep.models_folder))
    allowed = frozenset(model.allow)
    return [resolve(model.id, each, sweep.models_folder, allowed) for each in revisions]
