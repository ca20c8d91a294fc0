"""A model's values as transformers computes them, by hooks that share no code with the product."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMultimodalLM,
    PretrainedConfig,
    PreTrainedTokenizerFast,
)

from tests.architectures import CAUSAL, tiny_config

SENTENCES = (
    "the cat sat on a mat",
    "a dog ran",
    "the old bus came late and nobody was there to see them",
    "boats",
    "one more sentence of eight words is here",
)
EOS = 2
"""Id of the last special token."""
Values = npt.NDArray[np.floating[Any]]


def auto_class(model_type: str) -> Any:
    """transformers' class for a type of `tests.architectures`."""
    return AutoModelForCausalLM if model_type in CAUSAL else AutoModelForMultimodalLM


def save_model(folder: Path, model_type: str, config: PretrainedConfig | None = None) -> Path:
    """Save a tiny model with random weights, and a tokenizer whose tokens every architecture reads as
    text: ids from 3 to 249, after a BOS."""
    torch.manual_seed(0)
    model = auto_class(model_type).from_config(config or tiny_config(model_type), dtype=torch.float32)
    randomize(model)
    model.save_pretrained(folder)
    tokenizer = Tokenizer(models.BPE(unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(
        vocab_size=100, special_tokens=["<pad>", "<s>", "</s>"], show_progress=False
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    ).save_pretrained(folder)
    return folder


def randomize(model: nn.Module) -> None:
    """Give matrices random values: some architectures initialize a gate or a projection with zeros."""
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1 and not any(word in name for word in ("A_log", "conv", "norm")):
            nn.init.normal_(parameter.data, std=0.2)


class PlainForward:
    """The complete model in float32, run on one unpadded sentence at a time."""

    def __init__(self, folder: Path, model_type: str) -> None:
        self.tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
        self.is_text: list[npt.NDArray[np.bool_]] = []
        self.model: Any = auto_class(model_type).from_pretrained(folder, dtype=torch.float32).eval()

    def layers(self, count: int) -> list[Any]:
        """The layers of the language model: its longest list of modules of this length."""
        lists = [
            (name, module)
            for name, module in self.model.named_modules()
            if isinstance(module, nn.ModuleList) and len(module) == count
            if not any(word in name for word in ("vision", "visual", "audio", "image", "video"))
        ]
        ((_, layers),) = [
            (n, m) for n, m in lists if n.rpartition(".")[2] in ("layers", "layer", "h", "blocks")
        ]
        return list(layers)

    def run(self, sentences: Sequence[str] = SENTENCES) -> None:
        """Run sentences; hooks see (1, tokens, ...), of which `is_text` gives those that are text."""
        for sentence in sentences:
            ids = torch.tensor([self.tokenizer(sentence)["input_ids"]])
            self.is_text.append((ids[0] > EOS).numpy())
            with torch.no_grad():
                self.model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)


def first_tensor(values: Any) -> torch.Tensor:
    """The hidden state in a module's inputs or output."""
    while isinstance(values, tuple | list):
        values = values[0]
    tensor: torch.Tensor = values
    return tensor


def record(store: dict[Any, list[Values]], key: Any, transform: Callable[[Any], torch.Tensor]) -> Any:
    """A hook that appends values, (tokens, units)."""

    def hook(module: nn.Module, *arguments: Any) -> None:
        values = transform(arguments[-1])
        store.setdefault(key, []).append(values.reshape(-1, values.shape[-1]).double().numpy())

    return hook
