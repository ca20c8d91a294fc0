"""Top sentences of single neurons in a store, whether or not activations are kept."""

from __future__ import annotations

import numpy as np
import pyarrow.compute as pc

from alignment.arrays import Ints
from jobs.activations import open_site_of_run
from jobs.engine.keeping import are_kept
from jobs.scoring.block_scores import SiteKey, layer_file
from jobs.scoring.top_sentences import TopSentences, find_top_sentences
from storage import tables
from storage.store.manifest import Manifest, read_rows


def read_top_sentences(activations: Manifest, site: SiteKey, units: Ints) -> TopSentences:
    """The top sentences of some neurons, from the activations of a completed stage or, if it did not
    keep them, from its table, which has all experts.

    Raises:
        StoreError: if a file is missing, damaged, or was deleted after scoring.
    """
    if are_kept(activations.params):
        values = open_site_of_run(activations, *site).read_units(units)
        top = find_top_sentences(values, np.arange(len(units)))
        return top._replace(units=units)
    name = layer_file(tables.TOP_SENTENCES.file, site.layer)
    rows = read_rows(activations.folder, activations.records(name))
    is_site = pc.and_(
        pc.equal(rows.column("pooling"), site.pooling), pc.equal(rows.column("site"), site.site)
    )
    rows = rows.filter(is_site).sort_by([("unit", "ascending"), ("rank", "ascending")])
    count = pc.max(rows.column("rank")).as_py()
    stored, ids, values = (
        rows.column(column).to_numpy().reshape(-1, count) for column in ("unit", "sentence_id", "value")
    )
    indices = np.searchsorted(stored[:, 0], units)
    return TopSentences(units, ids[indices], values[indices].astype(np.float16))
