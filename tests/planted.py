"""A planted model, in which each activation identifies its layer, unit, sentence and token.

Nearby sentences share no words. Word embeddings are one-hot and no layer changes the residual stream, so
an MLP's hidden neurons equal the weights of its up projection: a distinct float16 number for each
(layer, unit, word), larger for later words.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from cluster.activations.layer_writer import LayerWriter
from cluster.activations.pass_actor import PassWorker
from cluster.activations.pass_request import PassRequest
from cluster.activations.pooling_shard import ActivationSettings
from cluster.models.tokenizer import Text
from cluster.runtime.queue import WorkQueue
from storage.store.activation_files import MLP_HIDDEN, SiteActivations, activation_folder

POOLINGS = ["max", "concept", "context"]
SETTINGS = ActivationSettings("float32", "mlp", POOLINGS)
CPU = {"CPU": 1.0}

LAYERS, UNITS, WORDS = 3, 16, 256
LENGTHS = (2, 3, 4, 5, 6)
_MIN_NORMAL_BITS = 1024
_GATE = 32.0
"""Large enough for SiLU to be the identity."""


@dataclass(frozen=True)
class Sentence:
    """Words numbered from `first`; the middle one is the concept's."""

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

    def max_word(self, pooling: str) -> int:
        """The word with the largest activation that a pooling includes."""
        last = self.first + self.length - 1
        if pooling == "concept":
            return self.concept
        return last - 1 if pooling == "context" and last == self.concept else last


def make_sentences(count: int) -> list[Sentence]:
    """Sentences of different lengths; 64 consecutive ones share no word."""
    sentences, first = [], 0
    for number in range(count):
        length = LENGTHS[number % len(LENGTHS)]
        if first + length > WORDS:
            first = 0
        sentences.append(Sentence(first, length))
        first += length
    return sentences


def planted_activation(layer: int, unit: int, word: int) -> np.float16:
    """The activation of a unit for a word."""
    index = (layer * UNITS + unit) * WORDS + word
    return np.uint16(_MIN_NORMAL_BITS + index).view(np.float16)


def expected_activations(
    layer: int, pooling: str, sentences: Sequence[Sentence]
) -> npt.NDArray[np.float16]:
    """Pooled activations of a layer's MLP, (units, sentences)."""
    words = [sentence.max_word(pooling) for sentence in sentences]
    return np.array([[planted_activation(layer, unit, word) for word in words] for unit in range(UNITS)])


def make_model(folder: Path) -> Path:
    """Save the planted model and its word-level tokenizer."""
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
            planted = [
                [planted_activation(layer, unit, word) for word in range(WORDS)] for unit in range(UNITS)
            ]
            block.mlp.up_proj.weight.copy_(torch.tensor(np.array(planted, np.float32)) / (norm * _GATE))
    model.save_pretrained(folder)
    return folder


def make_request(sentences: Sequence[Sentence], folder: Path) -> PassRequest:
    """A pass that keeps the activations of some sentences in a folder."""
    texts = [sentence.text for sentence in sentences]
    return PassRequest(texts, ["w1"], 24, folder, folder / "_hidden_states", LayerWriter(folder))


def make_queue(
    start: Callable[[], PassWorker], delay_seconds: float = 0.0
) -> WorkQueue[PassRequest, None]:
    def submit(worker: PassWorker, request: PassRequest) -> Any:
        time.sleep(delay_seconds)
        return worker.run(request)

    return WorkQueue(start, submit, lambda request: request.folder.name, lambda request: request)


def assert_every_activation(folder: Path, sentences: Sequence[Sentence]) -> None:
    """Assert that exactly the expected files exist, apart from hidden temporary ones, with exactly the
    planted activations."""
    for layer in range(LAYERS):
        for pooling in POOLINGS:
            site_folder = folder / activation_folder(pooling, layer, MLP_HIDDEN)
            (path,) = site_folder.glob("[!.]*")
            activations = SiteActivations([path], UNITS).read()
            assert np.array_equal(activations, expected_activations(layer, pooling, sentences)), (
                layer,
                pooling,
            )
