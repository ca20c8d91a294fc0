"""A shard that finds, for single neurons and sentences, the token of the maximum. Imports no Ray."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from alignment.arrays import Floats, Ints
from cluster.activations.batching import PaddedBatch
from cluster.activations.pooling import Pooler
from cluster.activations.pooling_shard import PoolingShard, PoolingState
from cluster.models.sites import Site

NO_TOKEN = -1
"""In the place of a token where a sentence has none with a role of the pooling."""


@dataclass(frozen=True)
class SiteTargets:
    """What to find at a site, and what was found: arrays of equal length.

    A target is a unit, the bits of the roles that its pooling takes in (`cluster.models.token_roles`)
    and the index of a sentence. `tokens` are the indices of the first tokens with the highest value
    among these roles, and `maxima` these values.
    """

    units: Ints
    role_bits: Ints
    sentences: Ints
    tokens: Ints
    maxima: Floats

    @classmethod
    def make(cls, units: Ints, role_bits: Ints, sentences: Ints) -> SiteTargets:
        """Targets of which nothing is found yet."""
        size = len(units)
        return cls(units, role_bits, sentences, np.full(size, NO_TOKEN), np.zeros(size))


Targets = Mapping[tuple[int, str], SiteTargets]
"""By layer and name of the site."""


@dataclass(kw_only=True)
class _TokenState(PoolingState):
    batch: PaddedBatch
    rows: Mapping[int, int]
    targets: Targets


class TokenShard(PoolingShard[_TokenState]):
    """The layers of one block."""

    with_tokenizer = False

    def run(
        self,
        batch: PaddedBatch,
        sentences: Sequence[int],
        incoming: torch.Tensor | None,
        targets: Targets,
    ) -> torch.Tensor:
        """Run the sentences with these indices from hidden states before the block (None at layer 0) to
        those after it, and enter the tokens of their targets."""
        rows = {sentence: row for row, sentence in enumerate(sentences)}
        state = _TokenState(pooler=Pooler(batch), batch=batch, rows=rows, targets=targets)
        self._run_batch(state, batch, incoming)
        return self._outgoing(state)

    def _pool(self, state: _TokenState, site: Site, hidden: torch.Tensor, first_unit: int) -> None:
        targets = state.targets.get((site.layer, site.name))
        if targets is None:
            return
        width, roles = hidden.shape[-1], state.batch.roles
        is_here = (targets.units >= first_unit) & (targets.units < first_unit + width)
        chosen = np.flatnonzero(is_here & np.isin(targets.sentences, list(state.rows)))
        if not len(chosen):
            return
        rows = np.array([state.rows[sentence] for sentence in targets.sentences[chosen].tolist()])
        index = torch.from_numpy(np.stack([rows, targets.units[chosen] - first_unit])).to(hidden.device)
        # Some layers flatten sentences and tokens for their MLP.
        values = hidden.reshape(*roles.shape, width)[index[0], :, index[1]].float().cpu().numpy()
        is_pooled = (targets.role_bits[chosen][:, np.newaxis] >> roles[rows] & 1).astype(bool)
        values = np.where(is_pooled, values, -np.inf)
        has_token = is_pooled.any(axis=1)
        targets.tokens[chosen] = np.where(has_token, values.argmax(axis=1), NO_TOKEN)
        targets.maxima[chosen] = np.where(has_token, values.max(axis=1), 0)
