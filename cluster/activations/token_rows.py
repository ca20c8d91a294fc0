"""Finds the tokens for rows of the table `top_tokens`, and commits them by layer. Imports no Ray."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch

from alignment.arrays import Ints
from cluster.activations.pass_request import layer_unit
from cluster.activations.pooling_shard import ActivationSettings
from cluster.activations.sentence_set import tokenize
from cluster.activations.token_pass import TokenPass
from cluster.activations.token_shard import NO_TOKEN, SiteTargets
from cluster.models.model_config import read_config
from cluster.models.shard import token_limit
from cluster.models.token_roles import role_bits
from cluster.models.tokenizer import Text, Tokenizer
from storage import tables
from storage.store.commit import write_table
from storage.store.manifest import read_work_units, write_work_unit

_TOLERANCE = 2**-4
"""Relative difference of a maximum from the stored value that counts as rounding: in bfloat16 values
depend on the batch, after many layers by up to 3% in the demo's model."""

_SMALLEST = float(torch.finfo(torch.float16).tiny)
"""Smaller differences are those of float16."""

UNREPEATED = "unrepeated"
"""Fact of a layer: number of rows whose value was another one when the sentence was read again."""


@dataclass(frozen=True)
class TokenRequest:
    """Rows of the table without their tokens, sorted by layer and site, and the `texts` of the sentences
    with the ascending ids `sentence_ids`, which are read in batches of at most `budget` tokens.

    Layers are recorded as work units in `folder`.
    """

    rows: pa.Table
    sentence_ids: Ints
    texts: Sequence[Text]
    budget: int
    folder: Path

    def halve_batches(self) -> TokenRequest:
        """The request to retry when memory ran out."""
        return replace(self, budget=max(1, self.budget // 2))


class TokenRows:
    """The rows of a request whose layers are not recorded, and the pass that finds their tokens.

    Raises UserError if the model's files cannot be read.
    """

    def __init__(
        self, request: TokenRequest, folder: Path, settings: ActivationSettings, device: str
    ) -> None:
        self._request = request
        limit = token_limit(read_config(folder, settings.trust_remote_code).get_text_config())
        tokenizer = Tokenizer(folder, limit, settings.trust_remote_code)
        self._sentences = tokenize(tokenizer, request.texts, settings.inputs, settings.poolings)
        self._offsets = tokenizer.offsets(request.texts, settings.inputs)
        recorded = read_work_units(request.folder)
        self._rows = {
            (layer, site): rows
            for (layer, site), rows in _split_by_site(request.rows).items()
            if layer_unit(layer) not in recorded
        }
        self._targets = {site: self._make_targets(rows) for site, rows in self._rows.items()}
        self.tokens = TokenPass(folder, settings, self._sentences, self._targets, request.budget, device)

    def record(self) -> None:
        """Find the tokens, and record each layer."""
        self.tokens.run(self._record)

    def _make_targets(self, rows: pa.Table) -> SiteTargets:
        return SiteTargets.make(
            rows.column("unit").to_numpy().astype(np.int64),
            np.array([role_bits(pooling) for pooling in rows.column("pooling").to_pylist()]),
            np.searchsorted(self._request.sentence_ids, rows.column("sentence_id").to_numpy()),
        )

    def _record(self, layers: range) -> None:
        for layer in layers:
            sites = [site for site in self._rows if site[0] == layer]
            if not sites:
                continue
            rows = [row for site in sites for row in self._add_tokens(site)]
            n_unrepeated = sum(self._count_unrepeated(site) for site in sites)
            table = pa.Table.from_pylist(rows, tables.TOP_TOKENS.schema)
            folder, name = self._request.folder, layer_unit(layer)
            file = write_table(folder, f"{tables.TOP_TOKENS.file}/{name}.parquet", table)
            write_work_unit(folder, name, [file], {UNREPEATED: n_unrepeated})

    def _add_tokens(self, site: tuple[int, str]) -> list[dict[str, Any]]:
        """A site's rows, without a token where there is none, or its value is not the stored one."""
        rows: list[dict[str, Any]] = self._rows[site].to_pylist()
        targets = self._targets[site]
        has_token = self._are_repeated(site) & (targets.tokens != NO_TOKEN)
        for index in np.flatnonzero(has_token).tolist():
            sentence, token = int(targets.sentences[index]), int(targets.tokens[index])
            start, end = self._offsets[sentence][token]
            text = self._request.texts[sentence].text[start:end]
            rows[index] |= {
                "token_index": token,
                "token": text,
                "char_start": start,
                "char_end": end,
            }
        return rows

    def _are_repeated(self, site: tuple[int, str]) -> npt.NDArray[np.bool_]:
        """Whether the maxima are the stored values."""
        values = self._rows[site].column("value").to_numpy()
        difference = np.abs(self._targets[site].maxima - values)
        are_repeated: npt.NDArray[np.bool_] = difference <= _TOLERANCE * np.abs(values) + _SMALLEST
        return are_repeated

    def _count_unrepeated(self, site: tuple[int, str]) -> int:
        return int((~self._are_repeated(site)).sum())


def _split_by_site(rows: pa.Table) -> dict[tuple[int, str], pa.Table]:
    """Rows by layer and site."""
    columns = (rows.column(name).to_pylist() for name in ("layer", "site"))
    return {
        (layer, site): rows.filter((pc.field("layer") == layer) & (pc.field("site") == site))
        for layer, site in dict.fromkeys(zip(*columns, strict=True))
    }
