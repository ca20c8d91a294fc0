"""The sweep: every stage of every model, in order. `python -m jobs.sweep FILE` runs one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from cluster.devices import native_dtype
from cluster.session import disconnected_after
from cluster.weights import RANDOM_INIT, Weights, resolve
from jobs import (
    activations,
    alignment,
    baselines,
    experts,
    hierarchy,
    reliability,
    report,
    sentences,
    similarity,
)
from jobs.config import Model, Sweep
from jobs.judgments import judge
from jobs.progress import say
from jobs.stage import Stage, ensure
from storage import layout
from storage.concepts import ConceptSet, read_concepts
from storage.errors import UserError


@dataclass(frozen=True)
class Plan:
    """What a sweep comes to: its stages, each after those that it reads."""

    sweep: Sweep
    concepts: ConceptSet
    weights: list[Weights]
    stages: list[Stage]

    def of_kind(self, kind: str) -> list[Stage]:
        return [stage for stage in self.stages if stage.kind == kind]

    def until(self, kind: str | None) -> list[Stage]:
        """The stages up to the last of a kind; all without one."""
        if kind and not self.of_kind(kind):
            raise UserError(f"{self.sweep.file}: asks for no stage of the kind {kind}")
        last = self.of_kind(kind)[-1] if kind else self.stages[-1]
        return self.stages[: self.stages.index(last) + 1]


def plan(sweep: Sweep) -> Plan:
    """Check everything that a sweep names and lay out its stages. Writes nothing."""
    concepts = read_concepts(sweep.concepts_path, sweep.name)
    experts.check(concepts, sweep.experts.sampled)
    senses = {concept.name: concept.sense for concept in concepts.concepts}
    human = [judge(each, list(senses), senses) for each in sweep.human_sets()]
    models = [
        (model, resolve(model.id, revision, sweep.folder))
        for model in sweep.models
        for revision in _revisions(model, sweep)
    ]
    texts = sentences.plan(concepts)
    stages: list[Stage] = [texts]
    compared: list[Stage] = []
    controls: list[Stage] = []
    checks: list[Stage] = []
    places = {
        experts.CONTROL_KIND: controls,
        similarity.KIND: compared,
        reliability.KIND: checks,
    }
    if "glove" in sweep.baselines:
        compared.append(baselines.plan_word_vectors(texts))
    for model, weights in models:
        for stage in _model_stages(sweep, model, weights, texts, len(concepts.sentences)):
            places.get(stage.kind, stages).append(stage)
    how = alignment.How(sweep.agreement, sweep.interval, sweep.resamples, sweep.seed)
    aligned = alignment.plan(sweep.name, texts, compared, human, how)
    trees: list[Stage] = []
    if hierarchy.has_domains({concept.name: concept.domain for concept in concepts.concepts}):
        trees = [
            hierarchy.plan(each, texts, sweep.resamples, sweep.seed)
            for each in compared
            if not similarity.is_control(each)
        ]
    told = report.plan(sweep.name, aligned, compared, texts, checks, trees)
    stages += [*controls, *compared, *checks, aligned, *trees, told]
    return Plan(sweep, concepts, [weights for _, weights in models], stages)


def run(planned: Plan, until: str | None = None) -> int:
    """Run the stages that are not done, up to those of the kind `until`; return how many were run."""
    store = layout.create(planned.sweep.store_path)
    ran = 0
    with disconnected_after():
        for stage in planned.until(until):
            if ensure(stage, store):
                ran += 1
                result = stage.result(store)
                say(f"{stage.name}: done in {result.seconds:.1f} s")
                for note in result.notes:
                    say(f"  note: {note}")
    return ran


def _revisions(model: Model, sweep: Sweep) -> list[str]:
    control = "random-init" in sweep.baselines and RANDOM_INIT not in model.revisions
    return [*model.revisions, *([RANDOM_INIT] if control else [])]


def _model_stages(
    sweep: Sweep, model: Model, weights: Weights, texts: Stage, n_sentences: int
) -> Iterator[Stage]:
    dtype = native_dtype() if model.dtype == "auto" else model.dtype
    read = activations.plan(weights, model, dtype, sweep.neurons, texts, n_sentences)
    yield read
    wanted = sweep.experts
    how = (wanted.negatives, wanted.sampled, wanted.prevalence, wanted.floor, sweep.seed)
    scored = experts.plan(read, *how)
    yield scored
    yield similarity.plan(scored, wanted.threshold)
    if not weights.random:
        yield from _control_stages(sweep, lambda control: experts.plan(read, *how, control))
    input_embedding = "input-embedding" in sweep.baselines
    contextual = "contextual" in sweep.baselines
    if (input_embedding or contextual) and not weights.random:
        yield baselines.plan_embeddings(read, input_embedding, contextual)


def _control_stages(sweep: Sweep, score: Callable[[str], Stage]) -> Iterator[Stage]:
    halves = []
    if "length-matched" in sweep.controls:
        matched = score(experts.LENGTH_MATCHED)
        yield from (matched, similarity.plan(matched, sweep.experts.threshold))
    for half in experts.HALVES if "split-half" in sweep.controls else ():
        scored = score(half)
        halves.append(similarity.plan(scored, sweep.experts.threshold))
        yield from (scored, halves[-1])
    if halves:
        yield reliability.plan(*halves)


if __name__ == "__main__":
    from jobs.cli import run_file

    run_file()
