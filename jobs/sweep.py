"""The sweep: every stage of every model, in order. `python -m jobs.sweep FILE` runs one."""

from __future__ import annotations

from collections.abc import Collection, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path

from alignment.words import NOUN
from cluster import hub
from cluster.reach import check_reach
from cluster.session import connect, disconnected_after, is_shared
from cluster.weights import (
    RANDOM_INIT,
    Weights,
    local_revisions,
    resolve,
)
from jobs import (
    activations,
    alignment,
    attributions,
    experts,
    generate,
    harvest,
    hierarchy,
    report,
    sentences,
    similarity,
    space,
)
from jobs.config import Brought, Harvest, Latents, Model, Sweep
from jobs.judgments import Judgments, judge
from jobs.model_stages import baseline_stages, latent_stages, model_stages, shuffled_stages
from jobs.overlap import in_order, side_by_side
from jobs.progress import say
from jobs.stage import Stage
from storage import layout
from storage.concepts import ConceptSet, named, read_concepts, read_words
from storage.database import is_activations
from storage.errors import UserError, WorkFailed
from storage.manifest import drop

_LOOK_UPS_AT_ONCE = 16


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
        needed = {id(each) for stage in wanted for each in stage.with_inputs()}
        return [stage for stage in self.stages if id(stage) in needed]


@dataclass(frozen=True)
class Done:
    """What a run came to: how many stages it carried out, the plan of the models that did not fail, and
    what stopped the others."""

    planned: Plan
    ran: int
    failures: list[str] = field(default_factory=list)


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


def with_sentences(planned: Plan) -> Plan:
    """The whole plan, after the sentences that were still to be made are made."""
    if planned.is_whole:
        return planned
    to_make = [each for each in planned.sets if each.concepts is None]
    run(replace(planned, sets=to_make))
    return plan(planned.sweep)


def run(planned: Plan, until: str | None = None) -> Done:
    """Run the stages that are not done, up to those of the kind `until`.

    Stages of different models run side by side, and a model that fails does not stop the others: what
    compares models then compares those that are left.
    """
    store = layout.create(planned.sweep.store_path)
    ran, failed = 0, dict[str, str]()
    space.check(planned, store)
    with disconnected_after():
        stages = planned.until(until)
        if is_shared() and not all(stage.is_done(store) for stage in stages):
            connect()
            check_reach(store)
        several = len(planned.weights) > 1
        keep = planned.sweep.experts.keep_activations
        may_start = (lambda *_: True) if keep else partial(_may_start, _with_readers(stages))
        overlapped = partial(side_by_side, may_start=may_start)
        for stage, has_run, error in (overlapped if several else in_order)(stages, store):
            if error is not None:
                failed[_model_of(stage, error)] = f"{stage.name}: {error}"
                say(f"{stage.name}: failed; the other models go on")
            if has_run:
                ran += 1
                result = stage.result(store)
                say(f"{stage.name}: done in {result.seconds:.1f} s")
                for note in result.notes:
                    say(f"  note: {note}")
            if not keep:
                _drop_activations(planned, stage, store)
        if not failed:
            return Done(planned, ran)
        if len(failed) == len(planned.weights):
            raise WorkFailed("all models failed", list(failed.values()))
        rest = run(plan(planned.sweep, without=failed), until)
    return Done(rest.planned, ran + rest.ran, [*failed.values(), *rest.failures])


def _model_of(stage: Stage, error: Exception) -> str:
    """The label of the one model that a stage is of. Raises its error where it is of several."""
    models = {each.label for each in stage.with_inputs() if each.kind == activations.KIND}
    if len(models) != 1:
        raise error
    return models.pop()


def _with_readers(stages: list[Stage]) -> dict[str, set[str]]:
    """Fingerprints of the stages of activations, in order, each with its own and its readers'."""
    found = {each.fingerprint: {each.fingerprint} for each in stages if each.kind == activations.KIND}
    for stage in stages:
        for read in stage.inputs.values():
            if read.fingerprint in found:
                found[read.fingerprint].add(stage.fingerprint)
    return found


def _may_start(with_readers: dict[str, set[str]], stage: Stage, ended: Set[str]) -> bool:
    """Where activations are dropped once the stages of a run have read them, those of two models are
    there at a time; the next model's wait."""
    unread = 0
    for read, needed in with_readers.items():
        if stage.fingerprint not in with_readers or read == stage.fingerprint:
            return True
        unread += not needed <= ended
        if unread == space.MODELS_AT_ONCE:
            return False
    return True


def _drop_activations(planned: Plan, ended: Stage, store: Path) -> None:
    """Delete the raw activations that a stage wrote or read, if all have read them that would."""
    for read in [ended, *ended.inputs.values()]:
        if read.kind != activations.KIND:
            continue
        if all(stage.is_done(store) for stage in [read, *planned.readers(read)]):
            freed = drop(read.result(store), is_activations, "experts.keep_activations is false")
            if freed:
                say(f"{read.name}: {freed / 1e6:,.0f} MB of raw activations dropped")


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


if __name__ == "__main__":
    from jobs.cli import run_file

    run_file()
