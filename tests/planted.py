"""A planted model: each activation says by itself which layer, unit, sentence and token it is from.

Every sentence has words of its own. The embedding of a word is one-hot and no layer changes the
residual stream, so that the hidden neurons of an MLP are read straight from its up projection, whose
weights are one float16 number for each (layer, unit, word), larger for a later word.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from cluster.activations.actor import Receipt, WorkUnit
from cluster.activations.pipeline import Pipeline
from cluster.activations.shard import Settings
from cluster.activations.tokens import Text
from cluster.runtime.queue import WorkQueue
from storage.store.activation_files import MLP_HIDDEN, SiteFiles, activation_folder

POOLINGS = ["max", "concept", "context"]
SETTINGS = Settings("float32", "mlp", POOLINGS)
CPU = {"CPU": 1.0}

LAYERS, UNITS, WORDS = 3, 16, 256
LENGTHS = (2, 3, 4, 5, 6)
_SMALLEST_NORMAL = 1024
_GATE = 32.0
"""Far above zero SiLU is the identity."""


@dataclass(frozen=True)
class Sentence:
    """Its words are numbered from `first`; the one in the middle is its concept's."""

    first: int
    length: int

    @property
    def concept(self) -> int:
        return self.first + self.length // 2

    @property
    def text(self) -> Text:
        words = [f"w{number}" for number in range(self.first, self.first + self.length)]
        start = sum(len(word) + 1 for word in words[: self.concept - self.first])
        return Text(" ".join(words), [start, start + len(f"w{self.concept}")])

    def largest(self, pooling: str) -> int:
        """The word whose activation a pooling keeps."""
        last = self.first + self.length - 1
        if pooling == "concept":
            return self.concept
        return last - 1 if pooling == "context" and last == self.concept else last


def sentences(count: int) -> list[Sentence]:
    """Sentences of different lengths, no two with a word in common among 64 that follow each other."""
    found, first = [], 0
    for number in range(count):
        length = LENGTHS[number % len(LENGTHS)]
        if first + length > WORDS:
            first = 0
        found.append(Sentence(first, length))
        first += length
    return found


def value(layer: int, unit: int, word: int) -> np.float16:
    """The activation that is planted there."""
    number = (layer * UNITS + unit) * WORDS + word
    return np.uint16(_SMALLEST_NORMAL + number).view(np.float16)


def expected(layer: int, pooling: str, given: list[Sentence]) -> npt.NDArray[np.float16]:
    """Activations of the MLP of a layer, of shape (units, sentences)."""
    words = [sentence.largest(pooling) for sentence in given]
    return np.array([[value(layer, unit, word) for word in words] for unit in range(UNITS)])


def make_model(folder: Path) -> Path:
    """Save the planted model with a tokenizer that knows its words."""
    vocabulary = {f"w{number}": number for number in range(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=WORDS,
        hidden_size=WORDS,
        intermediate_size=UNITS,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        rms_norm_eps=0.0,
        pad_token_id=None,
    )
    model = LlamaForCausalLM(config)
    norm = WORDS**0.5
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(torch.eye(WORDS))
        for layer, block in enumerate(model.model.layers):
            block.self_attn.o_proj.weight.zero_()
            block.mlp.down_proj.weight.zero_()
            block.mlp.gate_proj.weight.fill_(_GATE / norm)
            planted = [[value(layer, unit, word) for word in range(WORDS)] for unit in range(UNITS)]
            block.mlp.up_proj.weight.copy_(torch.tensor(np.array(planted, np.float32)) / (norm * _GATE))
    model.save_pretrained(folder)
    return folder


def work_units(given: list[Sentence], size: int) -> list[WorkUnit]:
    texts = [sentence.text for sentence in given]
    starts = range(0, len(texts), size)
    return [WorkUnit(at, first, texts[first : first + size], 24) for at, first in enumerate(starts)]


def queue_of(
    start: Callable[[], Pipeline], folder: Path, slow: float = 0.0
) -> WorkQueue[WorkUnit, Receipt]:
    def submit(pipeline: Pipeline, unit: WorkUnit) -> Any:
        time.sleep(slow)
        return pipeline.submit(unit, folder, [])

    return WorkQueue(start, submit, lambda unit: unit.name, lambda unit: unit)


def check_every_activation(folder: Path, given: list[Sentence], units: int) -> None:
    """All files are there, no other but what a killed writer left under a temporary name, and each
    number in them is the one that was planted."""
    expected_names = {f"{number:05d}.parquet" for number in range(units)}
    for layer in range(LAYERS):
        for pooling in POOLINGS:
            place = folder / activation_folder(pooling, layer, MLP_HIDDEN)
            paths = sorted(place.glob("[!.]*"))
            assert {path.name for path in paths} == expected_names
            found = SiteFiles(paths, UNITS).read()
            assert np.array_equal(found, expected(layer, pooling, given)), (layer, pooling)
