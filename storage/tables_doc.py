"""The page docs/tables.md, made from the schemas: `python -m storage.tables_doc > docs/tables.md`."""

from __future__ import annotations

import pyarrow as pa

from storage import tables
from storage.database import TABLES
from storage.store.commit import key_columns

_HEAD = """# Tables

Made by `python -m storage.tables_doc` from the schemas. Each table is a view of a store:
`neuralign sql STORE "SELECT * FROM experts LIMIT 5"`. Every view also has the column `run`, the
fingerprint of the stage that wrote the row; `runs` says how each was made, so
`JOIN runs USING (run)` tells apart what was computed in several ways.
"""

_ACTIVATIONS = """
## activations

| column | type | meaning |
| --- | --- | --- |
| model, revision, concept_set, pooling, layer, site | | as in `sites` |
| unit | int32 | coordinate in the site, from 0 |
| sentence_id | int64 | number of the sentence in its set, from 0 |
| value | float | the pooled activation |

One row a (sentence, unit, site, pooling). The files hold one flat column, neuron by neuron: row r of a
file with n sentences from `first` is unit r // n and sentence first + r % n. Filter on model, revision,
pooling, layer and site by what is written in the query (or by a variable, as in
[queries.md](queries.md)): files of others are then not opened. Runs whose activations were dropped have
no rows here; `runs.dropped` counts their files.
"""


_VIEWS = """
## expert_places

| column | type | meaning |
| --- | --- | --- |
| model, revision, concept_set, pooling, layer, site | | as in `experts` |
| threshold | double | experts have an AP strictly above it |
| n_experts | int64 | (concept, expert) pairs of the layer and site |
| share | double | their share of all of the model's at this threshold |

## expert_stability

| column | type | meaning |
| --- | --- | --- |
| model, concept_set, pooling, concept, threshold | | as in `experts` |
| revision_a, revision_b | string | two revisions of the model, in the order of their names |
| n_a, n_b, n_shared | int64 | experts of the concept in each, and in both |
| stability | double | Jaccard similarity of the two sets |
| run_a, run_b | string | the runs that the experts are of |

## training

| column | type | meaning |
| --- | --- | --- |
| model, revision, concept_set, pooling, threshold | | as in `similarity`; revisions named by a step |
| step | int64 | the step of training, from the revision's name |
| n_experts | double | median over the concepts of how many experts they have |
| revision_before | string | the checkpoint before |
| stability | double | mean over the concepts of `expert_stability` with it |
| human_set, agreement, measure, n_pairs, rho, ci_low, ci_high | | as in `alignment` |
| run_experts | string | the run that the experts are of; `run` is the alignment's |
"""

_CHANCE = """
## chance

| column | type | meaning |
| --- | --- | --- |
| model, revision, concept_set, pooling, concept | | as in `experts` |
| threshold | double | experts have an AP strictly above it: 0, 0.05, ... 0.95 |
| n_experts | int64 | experts of the concept in the whole model |
| chance_mean, chance_p95 | double | mean and 95th percentile of their number with labels shuffled |
| p | double | share of the shuffles, and of the labels as they are, with as many |
| best_ap | double | highest AP of the concept |
| best_chance_mean, best_chance_p95, best_p | double | the same of the highest AP |
| shuffles | int64 | how many shuffles |

## scores

| column | type | meaning |
| --- | --- | --- |
| model, revision, concept_set, pooling, concept, layer, site, unit | | as in `experts` |
| ap | float | AP at the reference prevalence, of every neuron and concept |

There are scores only with `experts: {scores: true}`. The files hold one flat column, neuron by neuron:
row r of a file with c concepts is concept r % c (`scored_concepts.number`) of the unit r // c after the
one that the file is named by.
"""


def page() -> str:
    """The whole page."""
    schemas = {name: schema for name, (_, _, schema) in TABLES.items()} | {"runs": tables.RUNS}
    schemas["experts"] = tables.EXPERTS_VIEW
    parts = [_HEAD, *(_section(name, schema) for name, schema in schemas.items())]
    parts += [_VIEWS, _CHANCE, _ACTIVATIONS]
    return "".join(parts)


def _section(name: str, schema: pa.Schema) -> str:
    rows = "".join(
        f"| {field.name} | {field.type} | {field.metadata[b'meaning'].decode()} |\n" for field in schema
    )
    key = ", ".join(key_columns(schema))
    head = f"\n## {name}\n\nOne row for each {key}, in one run.\n"
    return f"{head}\n| column | type | meaning |\n| --- | --- | --- |\n{rows}"


if __name__ == "__main__":
    print(page(), end="")
