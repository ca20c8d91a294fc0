"""A store of as many concepts as THINGS has (Hebart et al. 2019), made without a model: its numbers are
drawn."""

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
"""A schema, columns (an array, or one value for all rows), and more of them."""

_MODEL = {"model": "drawn-1b", "revision": "main", **_SET}


def make_store(root: Path, n: int = CONCEPTS) -> Path:
    """A store with one model, whose concepts share experts mostly within their domains, and
    ratings of many pairs."""
    random = np.random.default_rng(0)
    names = np.array([f"concept {number:04}" for number in range(n)])
    domains = np.arange(n) % DOMAINS
    first, second = np.triu_indices(n, 1)
    same = domains[first] == domains[second]
    shared = random.poisson(np.where(same, 4.0, 0.4))
    whole = {
        **_MODEL,
        "representation": "experts",
        "pooling": "max",
        "measure": "jaccard",
        "threshold": 0.5,
    }
    pairs = {"concept_a": names[first], "concept_b": names[second]}
    one_site: dict[str, Any] = {"layer": 0, "site": "mlp.hidden", "pooling": "max", "width": 1}
    layout.create(root)
    numbers = np.arange(4 * n)
    sentences: dict[str, _Table] = {
        "concepts.parquet": (
            tables.CONCEPTS,
            _SET | {"concept": names, "domain": np.array([f"domain {each}" for each in domains])},
            {"n_sentences": 4},
        ),
        "sentences.parquet": (
            tables.SENTENCES,
            _SET
            | {"sentence_id": numbers, "text": np.array([f"A sentence {each}." for each in numbers])},
            {"flags": []},
        ),
        "memberships.parquet": (
            tables.MEMBERSHIPS,
            _SET | {"sentence_id": numbers, "concept": names[numbers // 4]},
            {"role": "positive", "spans": []},
        ),
    }
    texts = _commit(root, "sentences", _SET, {}, sentences)
    read = _commit(
        root,
        "activations",
        {**_MODEL, "identity": "none", "dtype": "float32", "sites": "mlp", "poolings": ["max"]},
        {"sentences": texts},
        {
            "sites.parquet": (
                tables.SITES,
                _MODEL,
                one_site,
            )
        },
    )
    ap = np.sort(random.uniform(0.5, 1, (n, _EXPERTS)), axis=1)[:, ::-1].ravel()
    places = np.concatenate([random.choice(LAYERS * _UNITS, _EXPERTS, False) for _ in names])
    of_experts = {
        "concept": np.repeat(names, _EXPERTS),
        "layer": (places // _UNITS).astype(np.int32),
        "unit": (places % _UNITS).astype(np.int32),
        "ap": ap,
        "ap_raw": ap / 2,
        "auroc": ap,
    }
    values = {"pooling": "max", "site": "mlp.hidden", "on_p50": 1.0, "on_p90": 2.0, "off_mean": 0.5}
    scored = _commit(
        root,
        "experts",
        _MODEL,
        {"activations": read},
        {"experts/all.parquet": (tables.EXPERTS, _MODEL | of_experts, values)},
    )
    counts = {"n_a": _EXPERTS, "n_b": _EXPERTS}
    similarity = shared / (2 * _EXPERTS - shared)
    compared = _commit(
        root,
        "similarity",
        {**_MODEL, "representation": "experts", "measures": ["jaccard"], "thresholds": [0.5]},
        {"experts": scored},
        {
            "similarity.parquet": (
                tables.SIMILARITY,
                whole | pairs | {"similarity": similarity, "n_shared": shared},
                counts,
            )
        },
    )
    layers: list[int | None] = [None, *range(LAYERS)]
    rho = np.linspace(0.2, 0.5, len(layers))
    rated = np.sort(random.choice(len(first), min(len(first), _RATED), False))
    aligned = {
        "human_set": "drawn",
        "agreement": "spearman",
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
        {"sentences": texts, "similarity 0": compared},
        {
            "alignment.parquet": (tables.ALIGNMENT, whole | rows, aligned),
            "human-pairs.parquet": (
                tables.HUMAN_PAIRS,
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
    tables: Mapping[str, _Table],
) -> str:
    """Commit a stage of tables: their columns (an array, or one value for all rows) and more values."""
    fingerprint = f"{layout.KINDS.index(kind):016x}"
    folder = layout.stage_folder(root, kind, "drawn", fingerprint)
    records = []
    for name, (schema, columns, more) in tables.items():
        given = {**columns, **more}
        n = max((len(each) for each in given.values() if isinstance(each, np.ndarray)), default=1)
        made = [
            pa.array(value, field.type, from_pandas=True)
            if isinstance(value := given.get(field.name), np.ndarray)
            else pa.array([value] * n, field.type)
            for field in schema
        ]
        records.append(write_table(folder, name, pa.Table.from_arrays(made, schema=schema)))
    Manifest(folder, kind, "drawn", fingerprint, params, inputs, records, 1.0).commit()
    return folder.name
