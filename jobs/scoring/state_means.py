"""Mean hidden states of each concept's sentences, on the device of the states."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from alignment.arrays import Floats, Ints
from jobs.scoring.block_scores import SiteKey, site_columns
from jobs.scoring.labelings import Labeling
from storage import tables

if TYPE_CHECKING:
    import torch

_WORKING_BYTES = 64 << 20
_BYTES_PER_STATE = 20


class StateMeans:
    """Means over the sentences of each of `n_concepts` concepts.

    `ids` and `members`, concept indices, are parallel arrays; every concept has a sentence.
    """

    def __init__(self, ids: Ints, members: Ints, n_concepts: int) -> None:
        self._by_concept = np.argsort(members, kind="stable")
        self._ids, self._counts = ids[self._by_concept], np.bincount(members, minlength=n_concepts)

    def chunk_size(self) -> int:
        """Rows of states to average at a time."""
        return max(1, _WORKING_BYTES // (_BYTES_PER_STATE * len(self._ids)))

    def __call__(self, states: torch.Tensor) -> Floats:
        """Means of states, (width, sentences): (width, concepts).

        Summed in the order of the sentences, so that they do not depend on the other rows.
        """
        import torch

        device = states.device
        chosen = states.index_select(1, torch.from_numpy(self._ids).to(device)).double()
        lengths = torch.from_numpy(self._counts).to(device).expand(len(states), -1)
        means = torch.segment_reduce(chosen, "mean", lengths=lengths, axis=1, unsafe=True)
        result: Floats = means.cpu().numpy()
        return result


def state_table(means: Sequence[Floats], site: SiteKey, labeling: Labeling) -> pa.Table:
    """Rows of a layer, of means of all states in parts."""
    columns = {
        **site_columns(site, labeling.params, len(labeling.concepts)),
        "concept": labeling.concepts,
        "vector": list(np.concatenate(means).T),
    }
    schema = tables.CONCEPT_STATES.schema
    return pa.table({name: columns[name] for name in schema.names}, schema)
