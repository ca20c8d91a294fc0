"""Stage `activations` of activations that are not kept: one pass of all sentences through the model, in
blocks of layers, at the end of each of which its neurons are scored under all labelings of the sweep.

It commits the rows that the stages `experts`, `controls` and `similarity` take from here. A layer is a
work unit.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.models.architecture import count_layers
from cluster.models.weights import Weights, load_config
from cluster.runtime.devices import count_gpus
from jobs import activations, sentences
from jobs.config.models import Model, Neurons
from jobs.engine.progress import Advance, progress
from jobs.engine.stage import Stage, StageOutput
from jobs.scoring.labelings import make_labeling
from jobs.scoring.layer_scorer import LayerScorer
from storage.errors import NeuralignError
from storage.store import layout
from storage.store.lease import update_lease
from storage.store.manifest import read_work_units
from storage.store.paths import is_remote

if TYPE_CHECKING:
    from cluster.activations.pass_actor import PassRequest, PassWorker
    from cluster.models.sparse_autoencoder import SparseAutoencoder

_CPU_TOKEN_BUDGET, _GPU_TOKEN_BUDGET = 1024, 16384
_SPOOL = "_hidden_states"
_SECONDS_BETWEEN_COUNTS = 2.0


def plan(
    weights: Weights,
    model: Model,
    neurons: Neurons,
    sentences_stage: Stage,
    states: bool,
    scored: Sequence[dict[str, Any]],
    autoencoder: SparseAutoencoder | None = None,
) -> Stage:
    """The stage for one model revision and one concept set; `scored` are the parameters of the stages
    that take rows from it. See `jobs.activations.make_params` for the rest.

    The blocks of layers are not part of the fingerprint: they do not change the values.
    """
    params = {
        **activations.make_params(weights, model, neurons, sentences_stage, states, autoencoder),
        "keep": False,
        "scored": list(scored),
        "token_budget": _GPU_TOKEN_BUDGET if count_gpus() else _CPU_TOKEN_BUDGET,
    }

    def run(stage: Stage, store: Path) -> StageOutput:
        return _run(stage, store, weights, model, autoencoder)

    resource = activations.resource_for(model)
    inputs = {"sentences": sentences_stage}
    return Stage(activations.KIND, weights.label, params, run, inputs, resource)


def _run(
    stage: Stage, store: Path, weights: Weights, model: Model, autoencoder: SparseAutoencoder | None
) -> StageOutput:
    from cluster.activations.pass_actor import PassRequest, layer_unit
    from cluster.models.shard import MAX_TOKENS
    from cluster.models.tokenizer import Text

    folder, sentences_stage = stage.folder(store), stage.inputs["sentences"]
    texts = [Text(text, spans) for text, spans in sentences.read_texts(sentences_stage, store)]
    words = sentences.read_concept_names(sentences_stage, store)
    ids, members, _ = sentences.read_memberships(sentences_stage, store)
    labelings = [make_labeling(params, sentences_stage, store) for params in stage.params["scored"]]
    spool = None if is_remote(folder) else folder / _SPOOL
    request = PassRequest(
        texts,
        words,
        stage.params["token_budget"],
        folder,
        spool,
        LayerScorer(folder, labelings, ids, members),
    )
    units = [layer_unit(layer) for layer in range(count_layers(load_config(weights)))]
    update_lease(folder / layout.RUNNING, units=len(units))
    n_recorded = len(read_work_units(folder).keys() & units)
    if n_recorded < len(units):
        n_items, n_done = len(units) * len(texts), n_recorded * len(texts)
        with (
            progress(stage.name, n_items, "sentences x layers", n_done) as advance,
            _counted(advance, n_items - n_done) as workers,
        ):
            _run_pass(stage, weights, model, autoencoder, request, workers)
    if spool is not None:
        shutil.rmtree(spool, ignore_errors=True)
    recorded = read_work_units(folder)
    if missing := [name for name in units if name not in recorded]:
        raise NeuralignError(f"{stage.name}: layer {missing[0]} was not read")
    facts = [recorded[name][1] for name in units]
    files = [record for name in units for record in recorded[name][0]]
    sites = activations.site_rows(stage.params, [place for each in facts for place in each["places"]])
    files += activations.write_site_tables(stage, folder, sites, words, facts[0]["word_tokens"])
    notes = [
        *activations.size_notes(stage, weights),
        *activations.make_notes(facts[:1], len(texts), MAX_TOKENS),
        # Each layer has those of the layers before it.
        *dict.fromkeys(note for each in facts for note in each["notes"]),
    ]
    return StageOutput(files, notes)


def _run_pass(
    stage: Stage,
    weights: Weights,
    model: Model,
    autoencoder: SparseAutoencoder | None,
    request: PassRequest,
    workers: list[PassWorker],
) -> None:
    """Run the missing layers in an actor, on a GPU if the model asks for one and the cluster has it; the
    last of the `workers` is the one at work.

    Raises:
        WorkFailed: if a value is not finite, or the actor fails repeatedly.
    """
    from cluster.activations.pass_actor import PassWorker
    from cluster.runtime.placement import plan_placement
    from cluster.runtime.queue import WorkQueue
    from cluster.runtime.session import connect

    settings = activations.make_settings(stage, weights, model, autoencoder)
    connect()
    placement = plan_placement(weights, stage.params["dtype"], 1, 1, model.gpus_per_shard)

    def start() -> PassWorker:
        workers.append(PassWorker(weights, settings, 1, placement.resources))
        return workers[-1]

    queue: WorkQueue[PassRequest, None] = WorkQueue(
        start,
        lambda worker, unit: worker.run(unit),
        lambda _: stage.name,
        lambda unit: unit.leave_more_memory(),
    )
    list(queue.run([request], 1, model.wait_seconds))


@contextmanager
def _counted(advance: Advance, total: int) -> Iterator[list[PassWorker]]:
    """A list of workers: what the last of them has done is reported every few seconds, and the rest of
    the `total` at the end."""
    workers: list[PassWorker] = []
    is_finished, reported = threading.Event(), 0

    def count() -> None:
        nonlocal reported
        while not is_finished.wait(_SECONDS_BETWEEN_COUNTS):
            done = workers[-1].count_done() if workers else 0
            # A later worker begins again at its first layer.
            if done > reported:
                advance(done - reported)
                reported = done

    thread = threading.Thread(target=count, daemon=True)
    thread.start()
    try:
        yield workers
    finally:
        is_finished.set()
        thread.join()
    if reported < total:
        advance(total - reported)
