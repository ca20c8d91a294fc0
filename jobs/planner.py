"""The planner: checks everything that a sweep refers to, and lays out its stages."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING

from alignment.expertise.scoring import AP, AUROC
from alignment.text.word_matching import NOUN
from cluster.models import hub
from cluster.models.size import ModelSize, model_size
from cluster.models.weights import (
    RANDOM_INIT,
    Weights,
    is_random_init,
    load_config,
    local_revisions,
    resolve,
)
from jobs import (
    activations,
    alignment,
    attributions,
    experts,
    hierarchy,
    pseudo_concepts,
    reliability,
    report,
    sentences,
    similarity,
    steering,
    top_tokens,
)
from jobs.config.analysis import AUROC_HALVES, AUROC_MEASURES, VECTOR_MEASURES
from jobs.config.comparison import (
    SentenceEncoderBaseline,
    SparseAutoencoderBaseline,
    WordVectorsBaseline,
)
from jobs.config.concepts import HarvestedSentences, ProvidedSentences, SentencesToMake
from jobs.config.models import Model
from jobs.config.sweep import Sweep
from jobs.engine.disk_budget import (
    activation_bytes_per_sentence,
    kept_bytes,
    latent_bytes_per_sentence,
)
from jobs.engine.stage import Stage
from jobs.representations import domain_labels, embeddings, sentence_encoder, sentence_words
from jobs.scoring.labelings import COUNT_MATCHED, HALVES, LENGTH_MATCHED, PSEUDO_CONCEPTS
from jobs.sources import generate, harvest
from jobs.sources.human_judgments import Judgments, load_judgments
from storage.errors import UserError
from storage.readers.concepts import ConceptSet, concepts_from_names, read_concept_names, read_concepts

if TYPE_CHECKING:
    from cluster.models.sparse_autoencoder import SparseAutoencoder

_MAX_CONCURRENT_LOOKUPS = 16
_KEPT_BYTES = 2_000_000_000
"""Activations of a sweep that are kept if the sweep file does not say."""

MAX_AUROC_BYTES = 256_000_000
"""Most bytes of a model's AUROCs, those of halves of the sentences included, that are kept if the sweep
file does not say."""

_DEFAULT_ENCODER = SentenceEncoderBaseline(name="all-minilm-l6-v2", encoder="all-minilm-l6-v2")
"""The baseline `sentence-encoder`."""
_N_RANDOM_INITS = 3
"""Seeds of the baseline `random-init`: enough to show how far one is from another."""
LATENTS_SUFFIX = "latents"
"""Last word of the control name of a sparse autoencoder."""


@dataclass(frozen=True)
class PlannedConceptSet:
    """The stages of one concept set of a sweep, the first of which is its sentences.

    Until the sentences exist (when they are harvested or generated), that is the only stage.
    """

    name: str
    concepts: ConceptSet | None  # None until the sentences exist
    stages: list[Stage]
    judgments: list[Judgments] = field(default_factory=list)


@dataclass(frozen=True)
class Keeping:
    """Whether a sweep's activations are kept, and why."""

    is_kept: bool
    reason: str

    def __str__(self) -> str:
        action = "kept" if self.is_kept else "not kept: neurons are scored where they are computed"
        return f"Activations are {action} ({self.reason})."


@dataclass(frozen=True)
class Plan:
    """The resolved models of a sweep and the stages of each of its concept sets."""

    sweep: Sweep
    models: list[tuple[Model, Weights]]
    concept_sets: list[PlannedConceptSet]
    keeping: Keeping

    @cached_property
    def weights(self) -> list[Weights]:
        """The models at all their revisions."""
        return [weights for _, weights in self.models]

    @cached_property
    def stages(self) -> list[Stage]:
        """All stages, in topological order."""
        return [stage for concept_set in self.concept_sets for stage in concept_set.stages]

    @property
    def is_complete(self) -> bool:
        """Whether the sentences of all concept sets exist."""
        return all(concept_set.concepts is not None for concept_set in self.concept_sets)

    def unusable_human_sets(self, until: str | None) -> Iterator[str]:
        """Reasons why human data sets that are still to be compared with the concepts cannot be."""
        pending = {
            stage.concept_set_name
            for stage in self.stages_until(until)
            if stage.kind == alignment.KIND and not stage.is_done(self.sweep.store_path)
        }
        for concept_set in self.concept_sets:
            if concept_set.stages[0].concept_set_name in pending:
                prefix = f"{concept_set.name}: " if len(self.concept_sets) > 1 else ""
                for judgments in concept_set.judgments:
                    for reason in alignment.reasons_not_comparable(
                        judgments, judgments.groups, self.sweep.agreement
                    ):
                        yield f"{prefix}{reason}"

    def stages_of_kind(self, kind: str) -> list[Stage]:
        return [stage for stage in self.stages if stage.kind == kind]

    def stages_until(self, kind: str | None) -> list[Stage]:
        """The stages of a kind and their ancestors; all stages if `kind` is None."""
        if kind is None:
            return self.stages
        targets = self.stages_of_kind(kind)
        if not targets:
            raise UserError(f"{self.sweep.file}: has no {kind} stage")
        needed = {id(ancestor) for stage in targets for ancestor in stage.ancestors()}
        return [stage for stage in self.stages if id(stage) in needed]


def plan_sweep(sweep: Sweep, exclude: Collection[str] = ()) -> Plan:
    """Check everything that a sweep refers to and lay out its stages. Writes nothing.

    `exclude` contains the labels of models to leave out.
    """
    set_sweeps = sweep.per_concept_set()
    has_several_sets = len(set_sweeps) > 1
    planned_sentences = [_plan_sentences(set_sweep, has_several_sets) for set_sweep in set_sweeps]
    with ThreadPoolExecutor(_MAX_CONCURRENT_LOOKUPS) as threads:
        resolved = list(threads.map(partial(_resolve_revisions, sweep), sweep.models))
    all_models = [
        (model, weights)
        for model, revisions in zip(sweep.models, resolved, strict=True)
        for weights in revisions
    ]
    models = [(model, weights) for model, weights in all_models if weights.label not in exclude]
    concept_sets = [concepts for _, concepts in planned_sentences if concepts is not None]
    is_complete = len(concept_sets) == len(set_sweeps)
    if sweep.steering is not None and is_complete:
        concept_names = {concept.name for concepts in concept_sets for concept in concepts.concepts}
        attributions.check_concepts(concept_names, sweep.steering)
    n_sentences = sum(
        _count_sentences(set_sweep, stage, concepts)
        for set_sweep, (stage, concepts) in zip(set_sweeps, planned_sentences, strict=True)
    )
    # Of all models, so that a model that failed does not change what is done with the others.
    sizes = (
        (model, model_size(weights, sweep.neurons.sites), weights.is_random_init)
        for model, weights in all_models
    )
    keeping = decide_keeping(sweep, n_sentences, sizes, is_estimate=not is_complete)
    planned_sets = [
        _plan_concept_set(sweep, set_sweep, stage, concepts, models, keeping.is_kept)
        for set_sweep, (stage, concepts) in zip(set_sweeps, planned_sentences, strict=True)
    ]
    return Plan(sweep, models, planned_sets, keeping)


def count_sentences_to_make(config: SentencesToMake, n_concepts: int) -> int:
    """Sentences that are to be made for concepts, if enough are found."""
    n_neutral = config.pool if isinstance(config, HarvestedSentences) else 0
    return n_concepts * config.sentences + n_neutral


def _count_sentences(set_sweep: Sweep, stage: Stage, concepts: ConceptSet | None) -> int:
    """Sentences of a sweep with one concept set: those that exist, or else those to be made."""
    (config,) = set_sweep.concepts
    if concepts is None and not isinstance(config, ProvidedSentences):
        return count_sentences_to_make(config, len(stage.params["concepts"]))
    return len(concepts.sentences) if concepts else 0


def decide_keeping(
    sweep: Sweep, n_sentences: int, models: Iterable[tuple[Model, ModelSize, bool]], is_estimate: bool
) -> Keeping:
    """Whether a sweep's activations are kept.

    `models` are each model at each revision, its size, and whether its weights are random.
    `is_estimate` says that sentences or revisions are still to be counted.
    """
    setting = sweep.experts.keep_activations
    if setting != "auto":
        return Keeping(setting, f"experts.keep_activations: {str(setting).lower()}")
    n_bytes = n_sentences * _bytes_per_sentence(sweep, models)
    is_kept = n_bytes < _KEPT_BYTES
    relation = "under" if is_kept else "not under"
    estimate = "estimate: " if is_estimate else ""
    size = f"{estimate}{n_bytes / 1e9:,.2f} GB, {relation} {_KEPT_BYTES / 1e9:.0f} GB"
    return Keeping(is_kept, f"{size}; experts.keep_activations: auto")


def _bytes_per_sentence(sweep: Sweep, models: Iterable[tuple[Model, ModelSize, bool]]) -> int:
    """Bytes of one sentence's activations in all stages of all models."""
    poolings = len(sweep.neurons.pooling)
    total = 0
    for model, size, is_random in models:
        is_trained = not is_random
        has_states = is_trained and "contextual" in sweep.baselines
        total += activation_bytes_per_sentence(size, poolings, has_states)
        n_altered = sum(name in sweep.baselines for name in sentences.ALTERATIONS) * is_trained
        total += n_altered * activation_bytes_per_sentence(size, poolings, states=False)
        for baseline in sweep.baselines:
            if not is_trained or not isinstance(baseline, SparseAutoencoderBaseline):
                continue
            if model in sweep.models_for(baseline):
                width = _make_autoencoder(sweep, baseline, model, size.layers).validate()
                total += latent_bytes_per_sentence(width, poolings)
    return total


def _plan_concept_set(
    sweep: Sweep,
    set_sweep: Sweep,
    sentences_stage: Stage,
    concept_set: ConceptSet | None,
    models: list[tuple[Model, Weights]],
    keeps_activations: bool,
) -> PlannedConceptSet:
    """The stages of one concept set; `set_sweep` is the sweep restricted to it."""
    concepts = concept_set.concepts if concept_set else []
    senses = {concept.name: concept.sense for concept in concepts}
    human_sets = [human.resolve(set_sweep.folder) for human in set_sweep.human]
    judgments = [load_judgments(human_set, list(senses), senses) for human_set in human_sets]
    if concept_set is None:
        return PlannedConceptSet(set_sweep.concept_set, None, [sentences_stage])
    experts.check_negatives(concept_set, set_sweep.experts)
    set_sweep = _restrict_steering(set_sweep, senses)
    planner = _ModelPlanner(set_sweep, sentences_stage, keeps_activations, len(concepts))
    stages = [sentences_stage, *baseline_stages(set_sweep, sentences_stage)]
    for model, weights in models:
        stages += planner.model_stages(model, weights)
    trained = [(model, weights) for model, weights in models if not weights.is_random_init]
    for alteration in sentences.ALTERATIONS:
        if alteration in set_sweep.baselines:
            language = set_sweep.concepts[0].language
            altered_stage = sentences.plan_altered(
                concept_set, sentences_stage, language, set_sweep.seed, alteration
            )
            stages.append(altered_stage)
            for model, weights in trained:
                stages += planner.altered_stages(model, weights, altered_stage, alteration)
    for baseline in set_sweep.baselines:
        if isinstance(baseline, SparseAutoencoderBaseline):
            for model, weights in trained:
                if model in set_sweep.models_for(baseline):
                    stages += planner.sparse_autoencoder_stages(baseline, model, weights)
    similarity_stages = [stage for stage in stages if stage.kind == similarity.KIND]
    domains = {concept.name: concept.domain for concept in concepts}
    if hierarchy.has_domains(domains):
        stages.append(domain_labels.plan(sentences_stage))
        similarity_stages.append(stages[-1])
    name = sweep.name if len(sweep.concepts) == 1 else f"{sweep.name} {set_sweep.concept_set}"
    settings = alignment.AgreementSettings(
        set_sweep.agreement, set_sweep.interval, set_sweep.resamples, set_sweep.seed
    )
    stages.append(alignment.plan(name, sentences_stage, similarity_stages, judgments, settings))
    if hierarchy.has_domains(domains):
        stages += [
            hierarchy.plan(stage, sentences_stage, set_sweep.resamples, set_sweep.seed)
            for stage in similarity_stages
            if not similarity.is_control(stage) and not domain_labels.is_label(stage)
        ]
    stages.append(report.plan(name, stages, sweep.model_dump(mode="json", exclude={"store"})))
    return PlannedConceptSet(set_sweep.concept_set, concept_set, stages, judgments)


def _restrict_steering(set_sweep: Sweep, concept_names: Collection[str]) -> Sweep:
    """The sweep of one concept set, steering only concepts of this set."""
    if set_sweep.steering is None or set_sweep.steering.concepts is None:
        return set_sweep
    concepts = [name for name in set_sweep.steering.concepts if name in concept_names]
    settings = set_sweep.steering.model_copy(update={"concepts": concepts}) if concepts else None
    return set_sweep.model_copy(update={"steering": settings})


def baseline_stages(sweep: Sweep, sentences_stage: Stage) -> Iterator[Stage]:
    """Baselines that need none of the sweep's models."""
    for item in sweep.baselines:
        baseline = _DEFAULT_ENCODER if item == "sentence-encoder" else item
        if baseline == "glove":
            yield embeddings.plan_glove(sentences_stage)
        elif baseline == "bag-of-words":
            yield sentence_words.plan_bag_of_words(sentences_stage)
        elif baseline == "context-words":
            yield sentence_words.plan_context_words(sentences_stage)
        elif isinstance(baseline, WordVectorsBaseline):
            path = sweep.folder / baseline.path
            yield embeddings.plan_word_vectors(baseline.name, path, sentences_stage)
        elif isinstance(baseline, SentenceEncoderBaseline):
            yield sentence_encoder.plan(baseline, sweep.models_folder, sentences_stage)


@dataclass(frozen=True)
class _ModelPlanner:
    """Lays out the stages of the models for one concept set."""

    sweep: Sweep
    sentences_stage: Stage
    keeps_activations: bool
    n_concepts: int

    def model_stages(self, model: Model, weights: Weights) -> Iterator[Stage]:
        """Activations, experts and similarities of a model at one revision, controls and embeddings."""
        sweep, settings, comparison = self.sweep, self.sweep.experts, self.sweep.similarity
        is_trained = not weights.is_random_init
        input_embedding = is_trained and "input-embedding" in sweep.baselines
        contextual = is_trained and "contextual" in sweep.baselines
        controls = self._relabeled_controls() if is_trained else []
        activations_stage = self._plan_activations(model, weights, [None, *controls], states=contextual)
        yield activations_stage
        kept_scores = self._kept_scores(weights)
        experts_stage = experts.plan(activations_stage, settings, sweep.seed, None, kept_scores)
        yield experts_stage
        if is_trained and top_tokens.has_maxima(experts_stage):
            yield top_tokens.plan(experts_stage, weights, model)
        control_stages = self._control_stages(activations_stage, weights) if is_trained else []
        yield from control_stages
        yield similarity.plan(
            experts_stage,
            self._measures(weights),
            comparison.scopes,
            settings.threshold,
            settings.top,
            [stage for stage in control_stages if _is_half(stage)],
        )
        if is_trained and sweep.steering is not None:
            attributions_stage = attributions.plan(experts_stage, weights, model, sweep.steering)
            yield attributions_stage
            yield steering.plan(attributions_stage, weights, model, sweep.steering, sweep.seed)
        if input_embedding or contextual:
            yield embeddings.plan_embeddings(activations_stage, input_embedding, contextual)

    def altered_stages(
        self, model: Model, weights: Weights, altered_stage: Stage, alteration: str
    ) -> list[Stage]:
        """Control: experts on altered sentences."""
        activations_stage = self._plan_activations(model, weights, [alteration], altered_stage)
        return [activations_stage, *self._plan_control(activations_stage, alteration)]

    def sparse_autoencoder_stages(
        self, baseline: SparseAutoencoderBaseline, model: Model, weights: Weights
    ) -> list[Stage]:
        """Control: experts among the latents of a sparse autoencoder."""
        from cluster.models.architecture import count_layers

        layers = count_layers(load_config(weights))
        autoencoder = _make_autoencoder(self.sweep, baseline, model, layers)
        control = f"{baseline.name} {LATENTS_SUFFIX}"
        stage = self._plan_activations(model, weights, [control], autoencoder=autoencoder)
        return [stage, *self._plan_control(stage, control)]

    def _plan_activations(
        self,
        model: Model,
        weights: Weights,
        controls: Sequence[str | None],
        sentences_stage: Stage | None = None,
        states: bool = False,
        autoencoder: SparseAutoencoder | None = None,
    ) -> Stage:
        """The activations that are scored as each of the `controls` (None: the experts)."""
        sweep, stage = self.sweep, sentences_stage or self.sentences_stage
        run = {
            "model": weights.model,
            "revision": weights.revision,
            "concept_set": stage.params["concept_set"],
        }
        scored = [
            experts.make_params(
                run, sweep.experts, sweep.seed, control, self._kept_scores(weights, control)
            )
            for control in controls
        ]
        return activations.plan(
            weights,
            model,
            sweep.neurons,
            stage,
            states,
            None if self.keeps_activations else scored,
            autoencoder,
        )

    def _relabeled_controls(self) -> list[str]:
        length_matched = [LENGTH_MATCHED] if "length-matched" in self.sweep.controls else []
        has_pseudo = PSEUDO_CONCEPTS in self.sweep.controls
        pseudo = [PSEUDO_CONCEPTS, COUNT_MATCHED] if has_pseudo else []
        halves = HALVES if "split-half" in self.sweep.controls else ()
        return [*length_matched, *halves, *pseudo]

    def _keeps_auroc(self, weights: Weights) -> bool:
        """Whether the AUROCs of all neurons, and those of both halves of the sentences, are kept.

        Raises UserError if they are not, but the sweep file asks for a measure on them.
        """
        setting = self.sweep.experts.scores
        if setting != "auto":
            return setting
        n_neurons = model_size(weights, self.sweep.neurons.sites).neurons
        n_labelings = 1 + len(HALVES) * self._compares_halves
        n_poolings = len(self.sweep.neurons.pooling)
        n_bytes = n_labelings * kept_bytes([AUROC], n_neurons, self.n_concepts, n_poolings)
        if n_bytes <= MAX_AUROC_BYTES:
            return True
        comparison = self.sweep.similarity
        named = [measure for measure in comparison.measures if measure in AUROC_MEASURES]
        if named and not comparison.is_default:
            raise UserError(
                f"similarity.measures: {named[0]!r}: the AUROCs of all neurons of {weights.label} take "
                f"{n_bytes / 1e6:,.0f} MB; more than {MAX_AUROC_BYTES / 1e6:.0f} MB are kept only with "
                "experts: {scores: true}"
            )
        return False

    @property
    def _compares_halves(self) -> bool:
        is_measured = AUROC_HALVES in self.sweep.similarity.measures
        return is_measured and "split-half" in self.sweep.controls

    def _kept_scores(self, weights: Weights, control: str | None = None) -> list[str]:
        """The kinds of scores of all neurons that are kept, of the experts or a control."""
        if control is not None and not (control in HALVES and self._compares_halves):
            return []
        kept = [AP] if self.sweep.experts.scores is True and control is None else []
        return [*kept, AUROC] if self._keeps_auroc(weights) else kept

    def _measures(self, weights: Weights) -> list[str]:
        """The sweep's measures of similarity, without those that a model's scores do not allow."""
        measures: list[str] = list(self.sweep.similarity.measures)
        if not self._keeps_auroc(weights):
            return [measure for measure in measures if measure not in VECTOR_MEASURES]
        if weights.is_random_init or not self._compares_halves:
            return [measure for measure in measures if measure != AUROC_HALVES]
        return measures

    def _control_stages(self, activations_stage: Stage, weights: Weights) -> list[Stage]:
        """Experts with length-matched negatives, of either half of the sentences, of pseudo-concepts
        and of the concepts with as many sentences."""
        found: list[Stage] = []
        halves = []
        controls = self._relabeled_controls()
        if PSEUDO_CONCEPTS in controls:
            found += self._pseudo_concept_stages(activations_stage)
        for control in controls:
            if control in (PSEUDO_CONCEPTS, COUNT_MATCHED):
                continue
            kept_scores = self._kept_scores(weights, control)
            stages = self._plan_control(activations_stage, control, kept_scores)
            found += stages
            if control in HALVES:
                halves.append(stages[1])
        return [*found, reliability.plan(*halves)] if halves else found

    def _pseudo_concept_stages(self, activations_stage: Stage) -> list[Stage]:
        settings = self.sweep.experts
        matched, pseudo = (
            experts.plan(activations_stage, settings, self.sweep.seed, control)
            for control in (COUNT_MATCHED, PSEUDO_CONCEPTS)
        )
        return [matched, pseudo, pseudo_concepts.plan(matched, pseudo, settings.threshold)]

    def _plan_control(
        self, activations_stage: Stage, control: str, kept_scores: Sequence[str] = ()
    ) -> tuple[Stage, Stage]:
        """The experts of a control, and their similarities by the sweep's first measure."""
        settings = self.sweep.experts
        experts_stage = experts.plan(activations_stage, settings, self.sweep.seed, control, kept_scores)
        measures = self.sweep.similarity.measures[:1]
        return experts_stage, similarity.plan(experts_stage, measures, ["model"], settings.threshold)


def _is_half(stage: Stage) -> bool:
    """Whether a stage has the experts of a half of the sentences."""
    return stage.kind == experts.CONTROL_KIND and stage.params["control"] in HALVES


def _make_autoencoder(
    sweep: Sweep, baseline: SparseAutoencoderBaseline, model: Model, n_layers: int
) -> SparseAutoencoder:
    """The autoencoder of a baseline, for a model with so many layers."""
    from cluster.models.sparse_autoencoder import SparseAutoencoder

    if baseline.layer >= n_layers:
        raise UserError(
            f"baselines: {baseline.name}: layer: {baseline.layer}: {model.id!r} has layers 0 to "
            f"{n_layers - 1}"
        )
    module, _, side = baseline.at.rpartition(":")
    if baseline.at and side not in ("input", "output"):
        raise UserError(
            f"baselines: {baseline.name}: at: {baseline.at!r}: expected MODULE:input or :output"
        )
    return SparseAutoencoder(
        baseline.name,
        sweep.folder / baseline.dictionary,
        baseline.layer,
        module,
        "input" if side == "input" else "output",
        baseline.activation,
        baseline.k,
        None if baseline.b_dec is None else baseline.b_dec == "subtract",
    )


def _plan_sentences(set_sweep: Sweep, has_several_sets: bool) -> tuple[Stage, ConceptSet | None]:
    """The sentences stage of a sweep with one concept set, and its content if it exists already."""
    (config,) = set_sweep.concepts
    name, concepts = set_sweep.concept_set, None
    if isinstance(config, ProvidedSentences):
        concepts = read_concepts(set_sweep.folder / config.source, name, config.columns)
        stage = sentences.plan(concepts, config.language)
    else:
        if isinstance(config.words, str):
            words = read_concept_names(set_sweep.folder / config.words)
        else:
            words = concepts_from_names(config.words, f"{set_sweep.file}: concepts.words")
        # concepts without a part of speech default to nouns
        words = [replace(word, pos=word.pos or NOUN) for word in words]
        if isinstance(config, HarvestedSentences):
            stage = harvest.plan(set_sweep, config, words)
        else:
            stage = generate.plan(set_sweep, config, words)
        if stage.is_done(set_sweep.store_path):
            concepts = sentences.read_concept_set(stage, set_sweep.store_path)
    return replace(stage, set_name=name if has_several_sets else ""), concepts


def random_revisions(sweep: Sweep, model: Model) -> list[str]:
    """Revisions with random weights that the baseline adds to a model, unless it lists some itself."""
    if "random-init" not in sweep.baselines or any(map(is_random_init, model.revisions)):
        return []
    return [RANDOM_INIT, *(f"{RANDOM_INIT}-{number}" for number in range(2, _N_RANDOM_INITS + 1))]


def _resolve_revisions(sweep: Sweep, model: Model) -> list[Weights]:
    """A model at each of its revisions."""
    patterns = [*model.revisions, *random_revisions(sweep, model)]
    revisions = hub.expand_revisions(model.id, patterns, local_revisions(model.id, sweep.models_folder))
    allow = frozenset(model.allow)
    return [resolve(model.id, revision, sweep.models_folder, allow) for revision in revisions]
