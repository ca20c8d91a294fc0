"""Stage `activations`: one pass of every sentence through the model, in blocks of layers.

What becomes of a layer's values depends on whether they are kept: they are written to Parquet, or its
neurons are scored at once under all labelings of the sweep, and only the rows are written that the
stages `experts`, `controls` and `similarity` take from here. A layer is a work unit.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterable, Mapping, Sequence
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from alignment.arrays import Ints
from cluster.models.architecture import count_layers
from cluster.models.size import model_size
from cluster.models.weights import Weights, load_config
from jobs import sentences
from jobs.config.models import Model, Neurons
from jobs.device_params import activation_dtype, token_budget
from jobs.engine.keeping import are_kept
from jobs.engine.stage import Resource, Stage, StageOutput
from jobs.model_pass import run_pass
from storage import tables
from storage.errors import NeuralignError
from storage.store.activation_files import (
    BEFORE,
    CONCEPT,
    INPUT_EMBEDDINGS_FILE,
    RESIDUAL,
    SiteActivations,
    activation_folder,
)
from storage.store.commit import FileRecord, write_table
from storage.store.fingerprint import hash_file
from storage.store.layout import HIDDEN_STATES
from storage.store.manifest import Manifest, read_work_units
from storage.store.paths import is_remote

if TYPE_CHECKING:
    from cluster.activations.pass_request import LayerConsumer
    from cluster.activations.pooling_shard import ActivationSettings
    from cluster.models.sparse_autoencoder import SparseAutoencoder
    from cluster.models.tokenizer import InputOptions

KIND = "activations"
_SITE_KEY = ("pooling", "layer", "site")


def plan(
    weights: Weights,
    model: Model,
    neurons: Neurons,
    sentences_stage: Stage,
    states: bool,
    scored: Sequence[Mapping[str, Any]] | None,
    autoencoder: SparseAutoencoder | None = None,
) -> Stage:
    """The stage of one model revision on one concept set.

    `states` adds the hidden states after every layer, and an `autoencoder` replaces the neurons by its
    latents. `scored` are the parameters of the stages that take rows from this one; None if activations
    are kept. Blocks of layers, shards and threads are not part of the fingerprint: they do not change
    the values.
    """
    params = {
        "model": weights.model,
        "revision": weights.revision,
        "identity": weights.identity,
        "concept_set": sentences_stage.params["concept_set"],
        "dtype": activation_dtype(model),
        "sites": neurons.sites,
        "poolings": list(neurons.pooling),
        "states": states,
        **model.input_params(),
        "keep": scored is None,
        "token_budget": token_budget(model),
    }
    if autoencoder is not None:
        params |= {"sites": [autoencoder.name], "dictionary": _autoencoder_params(autoencoder)}
    if scored is not None:
        params["scored"] = [dict(each) for each in scored]

    def run(stage: Stage, store: Path) -> StageOutput:
        return _run(stage, store, weights, model, autoencoder)

    return Stage(KIND, weights.label, params, run, {"sentences": sentences_stage}, resource_for(model))


def input_options(model: Model) -> InputOptions:
    """How the inputs of a model are made from texts."""
    from cluster.models.tokenizer import InputOptions

    return InputOptions(model.add_bos, model.skip_first_token)


def resource_for(model: Model) -> Resource:
    """What stages that hold the model's shards run on."""
    return Resource.GPUS if model.gpus_per_shard else Resource.CPUS


def open_site(stage: Stage, store: Path, pooling: str, layer: int, site: str) -> SiteActivations:
    """Activations of one site on all sentences."""
    return open_site_of_run(stage.read_manifest(store), pooling, layer, site)


def open_site_of_run(run: Manifest, pooling: str, layer: int, site: str) -> SiteActivations:
    """The same, of a completed stage."""
    records = run.records(activation_folder(pooling, layer, site))
    records.sort(key=attrgetter("path"))
    (width,) = (
        row["width"]
        for row in run.read_table(tables.SITES.file).to_pylist()
        if tuple(row[name] for name in _SITE_KEY) == (pooling, layer, site)
    )
    return SiteActivations([run.folder / record.path for record in records], width, records)


def read_sites(stage: Stage, store: Path) -> list[dict[str, Any]]:
    """Rows of the stage's `sites` table."""
    rows: list[dict[str, Any]] = stage.read_table(store, tables.SITES.file).to_pylist()
    return rows


def read_neuron_sites(stage: Stage, store: Path) -> list[dict[str, Any]]:
    """Rows of the stage's `sites` table without the residual stream, which has no neurons."""
    return [row for row in read_sites(stage, store) if row["site"] != RESIDUAL]


def read_input_embeddings(stage: Stage, store: Path) -> dict[str, list[float]]:
    """Input embedding of each concept."""
    table = stage.read_table(store, INPUT_EMBEDDINGS_FILE)
    return {row["concept"]: row["vector"] for row in table.to_pylist()}


def read_missing_states(stage: Stage, store: Path) -> Ints:
    """Ids of the concepts' sentences without a hidden state at the word, of activations that are
    kept."""
    table = stage.read_table(store, tables.MISSING_STATES.file)
    ids: Ints = table.column("sentence_id").to_numpy()
    return ids


def read_token_counts(stage: Stage, store: Path) -> dict[str, int]:
    """Number of tokens of each concept's word."""
    table = stage.read_table(store, tables.CONCEPT_TOKENS.file)
    return {row["concept"]: row["n_tokens"] for row in table.to_pylist()}


def _autoencoder_params(autoencoder: SparseAutoencoder) -> dict[str, Any]:
    """The identity of an autoencoder: its settings, its width and its content, not its path."""
    settings = {name: value for name, value in vars(autoencoder).items() if name != "path"}
    return {**settings, "width": autoencoder.validate(), "sha256": hash_file(autoencoder.path)}


def _run(
    stage: Stage, store: Path, weights: Weights, model: Model, autoencoder: SparseAutoencoder | None
) -> StageOutput:
    from cluster.activations.pass_request import PassRequest, layer_unit
    from cluster.models.tokenizer import Text

    folder, sentences_stage = stage.folder(store), stage.inputs["sentences"]
    texts = [Text(text, spans) for text, spans in sentences.read_texts(sentences_stage, store)]
    words = sentences.read_concept_names(sentences_stage, store)
    spool = None if is_remote(folder) else folder / HIDDEN_STATES
    units = [layer_unit(layer) for layer in range(count_layers(load_config(weights)))]
    request = PassRequest(
        texts, words, stage.params["token_budget"], folder, spool, _make_consumer(stage, store)
    )
    settings = make_settings(stage, weights, model, autoencoder)
    run_pass(stage.name, weights, model, settings, request, units)
    if spool is not None:
        shutil.rmtree(spool, ignore_errors=True)
    recorded = read_work_units(folder)
    if missing := [name for name in units if name not in recorded]:
        raise NeuralignError(f"{stage.name}: layer {missing[0]} was not read")
    facts = [recorded[name][1] for name in units]
    files = [record for name in units for record in recorded[name][0]]
    sites, stateless = _site_rows(stage, facts), _find_missing_states(sentences_stage, store, facts[0])
    files.append(_write_rows(folder, tables.SITES, sites))
    files.append(_write_rows(folder, tables.CONCEPT_TOKENS, _word_rows(stage, words, facts[0])))
    if are_kept(stage.params):
        files.append(_write_rows(folder, tables.ACTIVATION_FILES, _file_rows(sites, len(texts))))
    if are_kept(stage.params) and stage.params["states"]:
        rows = [{**_constants(stage), "sentence_id": number} for number in stateless]
        files.append(_write_rows(folder, tables.MISSING_STATES, rows))
    notes = [] if "dictionary" in stage.params else model_size(weights, stage.params["sites"]).notes
    notes = [*notes, *make_notes(facts, stage.params["poolings"], len(texts))]
    return StageOutput(files, notes + _missing_state_notes(len(stateless), len(texts)))


def _find_missing_states(
    sentences_stage: Stage, store: Path, first_facts: Mapping[str, Any]
) -> list[int]:
    """The concepts' sentences without a hidden state at the word, from the facts of the first layer."""
    ids, _, _ = sentences.read_memberships(sentences_stage, store)
    return sorted(set(first_facts["missing_states"]) & set(ids.tolist()))


def _missing_state_notes(n_missing: int, n_sentences: int) -> list[str]:
    """A line on sentences without a hidden state at the word, if there are any."""
    return [
        f"{n_missing} of {n_sentences} sentences have no hidden state at their concept's word: they do "
        "not contain it, are truncated before it ends, or have it as their first token only; they are "
        f"left out of the means with pooling '{CONCEPT}'"
    ][: bool(n_missing)]


def _make_consumer(stage: Stage, store: Path) -> LayerConsumer:
    """What is done with the values of each layer."""
    folder, sentences_stage = stage.folder(store), stage.inputs["sentences"]
    if are_kept(stage.params):
        from cluster.activations.layer_writer import LayerWriter

        return LayerWriter(folder)
    from jobs.scoring.labelings import make_labeling
    from jobs.scoring.layer_scorer import LayerScorer

    ids, members, _ = sentences.read_memberships(sentences_stage, store)
    labelings = [make_labeling(params, sentences_stage, store) for params in stage.params["scored"]]
    return LayerScorer(folder, labelings, ids, members)


def make_settings(
    stage: Stage, weights: Weights, model: Model, autoencoder: SparseAutoencoder | None
) -> ActivationSettings:
    """What the pass records of the model."""
    from cluster.activations.pooling_shard import ActivationSettings

    return ActivationSettings(
        stage.params["dtype"],
        stage.params["sites"],
        list(stage.params["poolings"]),
        stage.params["states"],
        autoencoder,
        input_options(model),
        trust_remote_code=weights.trust_remote_code,
    )


def _constants(stage: Stage) -> dict[str, Any]:
    return {name: stage.params[name] for name in ("model", "revision", "concept_set")}


def _site_rows(stage: Stage, facts: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows of the table `sites`, from the facts of the layers."""
    columns = ("pooling", "layer", "site", "width", "module", "part")
    return [
        _constants(stage) | dict(zip(columns, place, strict=True))
        for each in facts
        for place in each["places"]
    ]


def _word_rows(
    stage: Stage, words: Iterable[str], first_facts: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Rows of the table of the concepts' tokens, from the facts of the first layer."""
    n_tokens = first_facts["word_tokens"]
    return [{**_constants(stage), "concept": word, "n_tokens": n_tokens[word]} for word in words]


def _file_rows(sites: Iterable[Mapping[str, Any]], n_sentences: int) -> list[dict[str, Any]]:
    """Rows of the table of the files: each has a site's activations of all sentences."""
    from cluster.activations.layer_writer import activation_file

    return [
        {
            **site,
            "first": 0,
            "sentences": n_sentences,
            "path": activation_file(*(site[name] for name in _SITE_KEY)),
        }
        for site in sites
    ]


def _write_rows(folder: Path, table: tables.Table, rows: list[dict[str, Any]]) -> FileRecord:
    return write_table(folder, table.file, pa.Table.from_pylist(rows, table.schema))


def make_notes(
    facts: Sequence[Mapping[str, Any]], poolings: Collection[str], n_sentences: int
) -> list[str]:
    """Notes on truncated sentences and on those without text before the word, and those of the pass,
    from the facts of the layers."""
    from cluster.models.shard import MAX_TOKENS

    notes = []
    if truncated := facts[0]["cut"]:
        notes.append(
            f"{truncated} of {n_sentences} sentences exceed the model's context or {MAX_TOKENS} tokens "
            "and were truncated"
        )
    if BEFORE in poolings and (n_empty := facts[0]["begin_with_word"]):
        notes.append(
            f"{n_empty} of {n_sentences} sentences begin with their concept's word; their values with "
            f"pooling '{BEFORE}' are 0"
        )
    # Each layer has those of the layers before it.
    return [*notes, *dict.fromkeys(note for each in facts for note in each["notes"])]


if __name__ == "__main__":
    from jobs.commands.main import run_stage

    run_stage("activations")
