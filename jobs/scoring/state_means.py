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
    """Means over the sentences of each concept that has any of `ids`.

    `ids` and `members`, concept indices, are parallel arrays, and `concepts` the indices in order.
    """

    def __init__(self, ids: Ints, members: Ints) -> None:
        self._ids = ids[np.argsort(members, kind="stable")]
        self.concepts, self._counts = np.unique(members, return_counts=True)

    def chunk_size(self) -> int:
        """Rows of states to average at a time."""
        return max(1, _WORKING_BYTES // (_BYTES_PER_STATE * len(self._ids)))

    def __call__(self, states: torch.Tensor) -> Floats:
        """Means of states, (width, sentences): (width, concepts). There is at least one concept.

        Summed in the order of the sentences, so that they do not depend on the other rows.
        """
        import torch

        device = states.device
        chosen = states.index_select(1, torch.from_numpy(self._ids).to(device)).double()
        lengths = torch.from_numpy(self._counts).to(device).expand(len(states), -1)
        means = torch.segment_reduce(chosen, "mean", lengths=lengths, axis=1, unsafe=True)
        result: Floats = means.cpu().numpy()
        return result


def state_table(means: Sequence[Floats], concepts: Ints, site: SiteKey, labeling: Labeling) -> pa.Table:
    """Rows of a layer, of the means of all states of some concepts, by their indices, in parts."""
    columns = {
        **site_columns(site, labeling.params, len(concepts)),
        "concept": [labeling.concepts[number] for number in concepts],
        "vector": list(np.concatenate(means).T),
    }
    schema = tables.CONCEPT_STATES.schema
    return pa.table({name: columns[name] for name in schema.names}, schema)
