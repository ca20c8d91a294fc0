"""Hands the values of a block's layers to their consumer, and records what it commits."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import pyarrow as pa

from cluster.activations.model_pass import Block
from cluster.activations.pass_request import PassRequest, SiteValues, layer_unit
from cluster.activations.sentence_set import SentenceSet
from cluster.models.sites import Site
from cluster.models.tokenizer import Tokenizer
from storage import tables
from storage.store.activation_files import CONCEPT, INPUT_EMBEDDINGS_FILE, RESIDUAL
from storage.store.commit import FileRecord, write_table
from storage.store.manifest import write_work_unit


class LayerRecorder:
    """Records the `missing` layers of a pass, each as a work unit with the notes so far."""

    def __init__(
        self,
        request: PassRequest,
        sentences: SentenceSet,
        tokenizer: Tokenizer,
        missing: Collection[int],
        threads: int,
        notes: Sequence[str],
    ) -> None:
        self._request, self._sentences, self._tokenizer = request, sentences, tokenizer
        self._missing, self._threads, self._notes = set(missing), threads, notes

    def record(self, block: Block) -> None:
        """Consume and record the layers of a block that are missing."""
        for layer in sorted(self._missing.intersection(block.layers)):
            sites = sites_of(block, layer)
            values = [
                SiteValues(pooling, site.name, tensor, self._find_missing(pooling, site))
                for pooling, site, tensor in sites
            ]
            files = self._request.consumer(layer, values, self._threads)
            facts: dict[str, Any] = {}
            if layer == 0:
                files.append(self._write_embeddings(block))
                facts |= self._describe_inputs()
                facts["missing_states"] = sorted({n for site in values for n in site.missing})
            places = [
                [pooling, site.layer, site.name, site.width, site.module, site.part]
                for pooling, site, _ in sites
            ]
            self._write(layer, files, places, facts)

    def record_empty(self, layers: Collection[int]) -> None:
        """Record missing layers without sites, which need not be read."""
        for layer in sorted(self._missing.intersection(layers)):
            self._write(layer, [], [], {})

    def _write(
        self, layer: int, files: Sequence[FileRecord], places: list[Any], facts: dict[str, Any]
    ) -> None:
        notes = [*self._request.notes, *self._notes, *self._request.consumer.notes]
        facts |= {"places": places, "notes": notes}
        write_work_unit(self._request.folder, layer_unit(layer), list(files), facts)
        # A layer that is read again, for the hidden states after it, is not recorded again.
        self._missing.discard(layer)

    def _find_missing(self, pooling: str, site: Site) -> tuple[int, ...]:
        """The sentences without a value of a site."""
        is_at_word = (pooling, site.name) == (CONCEPT, RESIDUAL)
        return self._sentences.without_state_at_word if is_at_word else ()

    def _write_embeddings(self, block: Block) -> FileRecord:
        words = self._request.words
        vectors = block.embed_tokens([self._tokenizer.word_ids(word) for word in words])
        columns = {"concept": list(words), "vector": list(vectors)}
        table = pa.Table.from_pydict(columns, tables.INPUT_EMBEDDINGS)
        return write_table(self._request.folder, INPUT_EMBEDDINGS_FILE, table)

    def _describe_inputs(self) -> dict[str, Any]:
        word_ids = self._tokenizer.word_ids
        return {
            "tokens": sum(self._sentences.lengths),
            "cut": self._sentences.n_truncated,
            "begin_with_word": self._sentences.n_begin_with_word,
            "word_tokens": {word: len(word_ids(word.replace("_", " "))) for word in self._request.words},
        }


def sites_of(block: Block, layer: int) -> list[tuple[str, Site, Any]]:
    """Pooling, site and values of a layer's sites."""
    return [
        (pooled.pooling, site, values)
        for pooled in block.pooled
        for site, values in pooled.of_sites()
        if site.layer == layer
    ]
