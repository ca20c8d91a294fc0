"""Stage `top_tokens`: what the best experts of each concept fire on, that is, the tokens of the maximum
in their top sentences.

A pass keeps the maximum over a sentence's tokens, not the token, for which it would need half as much
memory again. So these few sentences are read once more, each up to the last layer that is asked for.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from alignment.arrays import Ints
from cluster.models.token_roles import POOLED_ROLES
from cluster.models.weights import Weights
from jobs import activations, sentences
from jobs.config.models import Model
from jobs.engine.stage import Stage, StageOutput
from jobs.model_pass import find_tokens
from jobs.scoring.block_scores import SiteKey
from jobs.scoring.stored_top_sentences import read_top_sentences
from jobs.scoring.top_sentences import top_sentence_table
from storage import sql, tables
from storage.errors import NeuralignError
from storage.store import layout
from storage.store.lease import update_lease
from storage.store.manifest import read_work_units

KIND = "top_tokens"
_CONSTANTS = ("model", "revision", "concept_set")


def has_maxima(experts: Stage) -> bool:
    """Whether a pooling of these experts is a maximum."""
    return not POOLED_ROLES.keys().isdisjoint(experts.inputs["activations"].params["poolings"])


def plan(experts: Stage, weights: Weights, model: Model) -> Stage:
    """The stage for the experts of one model."""
    params = {name: experts.params[name] for name in _CONSTANTS}
    params |= {"n_experts": tables.N_TOKEN_EXPERTS, "n_sentences": tables.N_TOP_SENTENCES}

    def run(stage: Stage, store: Path) -> StageOutput:
        return _run(stage, store, weights, model)

    inputs = {"experts": experts, "activations": experts.inputs["activations"]}
    return Stage(KIND, experts.label, params, run, inputs, activations.resource_for(model))


def _run(stage: Stage, store: Path, weights: Weights, model: Model) -> StageOutput:
    from cluster.activations.pass_request import layer_unit
    from cluster.activations.token_rows import UNREPEATED, TokenRequest
    from cluster.models.tokenizer import Text

    folder, activations_stage = stage.folder(store), stage.inputs["activations"]
    rows = _make_rows(stage, store)
    layers = rows.column("layer").to_numpy()
    units = [layer_unit(layer) for layer in np.unique(layers).tolist()]
    update_lease(folder / layout.RUNNING, units=len(units))
    recorded = read_work_units(folder)
    missing = np.array([layer_unit(layer) not in recorded for layer in layers.tolist()], bool)
    if missing.any():
        texts = sentences.read_texts(activations_stage.inputs["sentences"], store)
        rows = rows.filter(missing)
        ids = np.unique(rows.column("sentence_id"))
        budget = activations_stage.params["token_budget"]
        request = TokenRequest(rows, ids, [Text(*texts[each]) for each in ids.tolist()], budget, folder)
        settings = activations.make_settings(activations_stage, weights, model, None)
        settings = replace(settings, include_hidden_states=False)
        find_tokens(stage.name, weights, model, settings, request, _count_items(rows))
        recorded = read_work_units(folder)
    if lost := [name for name in units if name not in recorded]:
        raise NeuralignError(f"{stage.name}: layer {lost[0]} was not read")
    n_unrepeated = sum(recorded[name][1][UNREPEATED] for name in units)
    notes = []
    if n_unrepeated:
        notes.append(
            f"{n_unrepeated} of {len(layers)} values were others when their sentences were read again, "
            "in other batches; their tokens are left out"
        )
    return StageOutput([record for name in units for record in recorded[name][0]], notes)


def _make_rows(stage: Stage, store: Path) -> pa.Table:
    """The rows of the table without their tokens, by layer and site."""
    experts_stage, activations_run = (
        stage.inputs["experts"],
        stage.inputs["activations"].read_manifest(store),
    )
    by_site = _read_best_experts(experts_stage, store)
    tables_of_sites = [
        top_sentence_table(read_top_sentences(activations_run, site, units), site, stage.params)
        for site, units in by_site.items()
    ]
    return pa.concat_tables([tables.TOP_SENTENCES.schema.empty_table(), *tables_of_sites])


def _read_best_experts(experts_stage: Stage, store: Path) -> dict[SiteKey, Ints]:
    """The units of each site that are among the best experts of any concept, sorted like the sites by
    layer and site."""
    paths = experts_stage.read_manifest(store).paths(tables.EXPERTS.file)
    poolings = [p for p in experts_stage.inputs["activations"].params["poolings"] if p in POOLED_ROLES]
    units: dict[tuple[int, str, str], set[int]] = {}
    with duckdb.connect() as connection:
        sql.scan_parquet(connection, paths).project("*, '' AS run").create_view("experts")
        for pooling in poolings:
            params = {name: experts_stage.params[name] for name in _CONSTANTS}
            params |= {"pooling": pooling, "concept": None, "count": tables.N_TOKEN_EXPERTS}
            best = connection.sql(sql.read_query("best_experts"), params=params)
            for layer, site, unit in best.project("layer, site, unit").fetchall():
                units.setdefault((layer, site, pooling), set()).add(unit)
    return {
        SiteKey(pooling, layer, site): np.array(sorted(found), np.int64)
        for (layer, site, pooling), found in sorted(units.items())
    }


def _count_items(rows: pa.Table) -> int:
    """Sentences times the layers up to the last one that each is read for."""
    last = rows.group_by("sentence_id").aggregate([("layer", "max")])
    total: int = pc.sum(last.column("layer_max")).as_py() + last.num_rows
    return total


if __name__ == "__main__":
    from jobs.commands.main import run_stage

    run_stage("top_tokens")
