"""The sentences with the highest activations of every neuron that is an expert of any concept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from alignment.arrays import Ints
from alignment.expertise import top_sentences
from jobs.scoring.block_scores import SiteKey, site_columns
from storage import tables

if TYPE_CHECKING:
    import torch

    from alignment.expertise.device_chunks import DeviceChunks

_WORKING_BYTES = 256 << 20
_BYTES_PER_SORTED_VALUE = 32


class TopSentences(NamedTuple):
    """The sentences with the highest values of `units` of a site, and these values, (units, sentences),
    highest first, ties by sentence."""

    units: Ints
    sentence_ids: Ints
    values: npt.NDArray[np.float16]

    @classmethod
    def concatenate(cls, parts: Sequence[TopSentences]) -> TopSentences:
        """Those of further and further units of a site."""
        return cls(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def find_top_sentences(values: npt.NDArray[np.float16], units: Ints) -> TopSentences:
    """The top sentences of some rows of `values`, (neurons, sentences)."""
    ids = top_sentences.find_top_sentences(values, units, tables.N_TOP_SENTENCES)
    return TopSentences(units, ids, values[units[:, None], ids])


def find_top_sentences_torch(values: torch.Tensor, units: Ints, chunks: DeviceChunks) -> TopSentences:
    """The same on the device of the values."""
    import torch

    n_sentences = values.shape[1]
    count = min(tables.N_TOP_SENTENCES, n_sentences)
    # In front with equal values: the earlier sentence.
    earlier = n_sentences - 1 - torch.arange(n_sentences, device=values.device)

    def find(part: slice) -> TopSentences:
        rows = values[torch.from_numpy(units[part]).to(values.device)]
        bits = rows.view(torch.int16).long()
        # As integers in the order of the numbers; both zeros are 0.
        ordered = torch.where(bits < 0, -(bits & 0x7FFF), bits)
        ids = (ordered * n_sentences + earlier).topk(count, dim=1).indices
        return TopSentences(units[part], ids.cpu().numpy(), rows.gather(1, ids).cpu().numpy())

    size = max(1, _WORKING_BYTES // (_BYTES_PER_SORTED_VALUE * n_sentences))
    none = find(slice(0, 0))
    return TopSentences.concatenate([none, *chunks.run("top sentences", len(units), size, find)])


def top_sentence_table(top: TopSentences, site: SiteKey, params: Mapping[str, Any]) -> pa.Table:
    """Rows of a site; `params` are those of the stage."""
    count = top.sentence_ids.shape[1]
    columns = {
        **site_columns(site, params, top.sentence_ids.size),
        "unit": np.repeat(top.units, count).astype(np.int32),
        "rank": np.tile(np.arange(1, count + 1, dtype=np.int32), len(top.units)),
        "sentence_id": top.sentence_ids.ravel(),
        "value": top.values.ravel().astype(np.float32),
    }
    schema = tables.TOP_SENTENCES.schema
    return pa.table({name: columns[name] for name in schema.names}, schema)
