"""Reading a work unit's neurons against the bare model body: same batches, nothing read, no disk."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from alignment.words import find_word
from benchmarks.measure import record, side_by_side
from cluster.devices import native_dtype
from cluster.shard import PAD_ID, Settings, Shard
from cluster.tokens import Text, pad
from cluster.weights import materialise, resolve
from jobs.activations import TOKEN_BUDGET
from storage.activation_files import activation_folder
from storage.commit import write_values
from storage.concepts import read_concepts

_SENTENCES = 128
_CONCEPTS = Path(__file__).parent.parent / "examples" / "demo-concepts.csv"


def capture() -> None:
    """One shard, one thread, three poolings, and the commit of its files: sentences a second."""
    torch.set_num_threads(1)
    folder = materialise(resolve("smollm2-135m-instruct", "main", Path()))
    shard = Shard(folder, Settings(native_dtype(), "mlp", ["max", "concept", "context"]))
    texts = _texts()
    batches = shard.begin(texts, TOKEN_BUDGET)

    def bare() -> None:
        with torch.inference_mode():
            for rows in batches.batches:
                batch = pad([batches.tokens[row] for row in rows], PAD_ID, shard.device)
                shard.model(batch.ids, attention_mask=batch.attention, use_cache=False)

    with tempfile.TemporaryDirectory() as store:

        def ours() -> None:
            for (pooling, site), values in shard.read(texts, TOKEN_BUDGET).values.items():
                place = activation_folder(pooling, site.layer, site.name)
                write_values(Path(store), f"{place}/00000.parquet", values, values.size)

        ours_seconds, theirs_seconds = side_by_side(ours, bare)
    record(
        "capture",
        _SENTENCES / ours_seconds,
        _SENTENCES / theirs_seconds,
        "sentences/s",
        "ratio at least 0.95",
    )


def _texts() -> list[Text]:
    sentences = read_concepts(_CONCEPTS, "demo").sentences
    step = len(sentences) // _SENTENCES
    return [
        Text(each.text, [edge for span in find_word(each.text, each.concepts[0]) for edge in span])
        for each in sentences[: step * _SENTENCES : step]
    ]
