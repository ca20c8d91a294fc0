"""A store with as many concepts as THINGS (Hebart et al. 2019) and random numbers instead of a model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from storage import tables
from storage.store import layout
from storage.store.commit import write_table
from storage.store.manifest import Manifest

CONCEPTS, DOMAINS, LAYERS = 1854, 27, 16
_EXPERTS, _UNITS, _RATED = 40, 8192, 100_000
_SET = {"concept_set": "things@00000000"}
_Table = tuple[pa.Schema, Mapping[str, Any], Mapping[str, Any]]
"""A schema and two groups of columns (an array, or one value for all rows)."""

_MODEL = {"model": "drawn-1b", "revision": "main", **_SET}


def make_store(root: Path, n: int = CONCEPTS) -> Path:
    """A store with one model, whose concepts share experts mostly within domains, and with ratings."""
    random = np.random.default_rng(0)
    names = np.array([f"concept {number:04}" for number in range(n)])
    domains = np.arange(n) % DOMAINS
    first, second = np.triu_indices(n, 1)
    same = domains[first] == domains[second]
    shared = random.poisson(np.where(same, 4.0, 0.4))
    representation = {
        **_MODEL,
        "representation": "experts",
        "pooling": "max",
        "measure": "jaccard",
        "threshold": 0.5,
    }
    pairs = {"concept_a": names[first], "concept_b": names[second]}
    one_site: dict[str, Any] = {"layer": 0, "site": "mlp.hidden", "pooling": "max", "width": 1}
    layout.create_store(root)
    numbers = np.arange(4 * n)
    sentences: dict[str, _Table] = {
        "concepts.parquet": (
            tables.CONCEPTS.schema,
            _SET | {"concept": names, "domain": np.array([f"domain {domain}" for domain in domains])},
            {"n_sentences": 4},
        ),
        "sentences.parquet": (
            tables.SENTENCES.schema,
            _SET
            | {
                "sentence_id": numbers,
                "text": np.array([f"A sentence {number}." for number in numbers]),
            },
            {"flags": []},
        ),
        "memberships.parquet": (
            tables.MEMBERSHIPS.schema,
            _SET | {"sentence_id": numbers, "concept": names[numbers // 4]},
            {"role": "positive", "spans": []},
        ),
    }
    sentences_stage = _commit(root, "sentences", _SET, {}, sentences)
    activations_stage = _commit(
        root,
        "activations",
        {**_MODEL, "identity": "none", "dtype": "float32", "sites": "mlp", "poolings": ["max"]},
        {"sentences": sentences_stage},
        {
            "sites.parquet": (
                tables.SITES.schema,
                _MODEL,
                one_site,
            )
        },
    )
    ap = np.sort(random.uniform(0.5, 1, (n, _EXPERTS)), axis=1)[:, ::-1].ravel()
    neurons = np.concatenate([random.choice(LAYERS * _UNITS, _EXPERTS, False) for _ in names])
    expert_columns = {
        "concept": np.repeat(names, _EXPERTS),
        "layer": (neurons // _UNITS).astype(np.int32),
        "unit": (neurons % _UNITS).astype(np.int32),
        "ap": ap,
        "ap_raw": ap / 2,
        "auroc": ap,
    }
    values = {"pooling": "max", "site": "mlp.hidden", "on_p50": 1.0, "on_p90": 2.0, "off_mean": 0.5}
    experts_stage = _commit(
        root,
        "experts",
        _MODEL,
        {"activations": activations_stage},
        {"experts/all.parquet": (tables.EXPERTS.schema, _MODEL | expert_columns, values)},
    )
    counts = {"n_a": _EXPERTS, "n_b": _EXPERTS}
    similarity = shared / (2 * _EXPERTS - shared)
    similarity_stage = _commit(
        root,
        "similarity",
        {**_MODEL, "representation": "experts", "measures": ["jaccard"], "thresholds": [0.5]},
        {"experts": experts_stage},
        {
            "similarity.parquet": (
                tables.SIMILARITY.schema,
                representation | pairs | {"similarity": similarity, "n_shared": shared},
                counts,
            )
        },
    )
    layers: list[int | None] = [None, *range(LAYERS)]
    rho = np.linspace(0.2, 0.5, len(layers))
    rated = np.sort(random.choice(len(first), min(len(first), _RATED), False))
    agreement = {
        "human_set": "drawn",
        "agreement": "spearman",
        "subset": "all",
        "n_pairs": len(rated),
        "n_undefined": 0,
        "n_concepts": n,
        "ci_by": "jackknife",
        "p": 0.0005,
        "q": 0.0005,
    }
    rows = {"layer": np.array(layers), "rho": rho, "ci_low": rho - 0.1, "ci_high": rho + 0.1}
    _commit(
        root,
        "alignment",
        {"human": {"drawn": "none"}, "measures": ["spearman"]},
        {"sentences": sentences_stage, "similarity 0": similarity_stage},
        {
            "alignment.parquet": (tables.ALIGNMENT.schema, representation | rows, agreement),
            "human-pairs.parquet": (
                tables.HUMAN_PAIRS.schema,
                {name: ends[rated] for name, ends in pairs.items()}
                | {"score": random.normal(same[rated], 0.5)},
                {"human_set": "drawn"},
            ),
        },
    )
    return root


def _commit(
    root: Path,
    kind: str,
    params: dict[str, Any],
    inputs: dict[str, str],
    files: Mapping[str, _Table],
) -> str:
    """Commit the tables of a stage and return its folder's name."""
    fingerprint = f"{layout.STAGE_KINDS.index(kind):016x}"
    folder = layout.stage_folder(root, kind, "drawn", fingerprint)
    records = []
    for name, (schema, columns, more) in files.items():
        values = {**columns, **more}
        n = max((len(value) for value in values.values() if isinstance(value, np.ndarray)), default=1)
        arrays = [
            pa.array(value, field.type, from_pandas=True)
            if isinstance(value := values.get(field.name), np.ndarray)
            else pa.array([value] * n, field.type)
            for field in schema
        ]
        records.append(write_table(folder, name, pa.Table.from_arrays(arrays, schema=schema)))
    Manifest(folder, kind, "drawn", fingerprint, params, inputs, records, 1.0).commit()
    return folder.name
