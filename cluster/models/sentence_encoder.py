"""Sentence encoders in the layout of sentence-transformers: one vector per text.

Loaded with transformers alone: the model, its token pooling, and whether vectors are normalized.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from cluster.models.weights import Weights, ensure_local
from storage.errors import UserError
from storage.readers.strict_json import parse_json

BATCH_SIZE = 32

_MODULES = "modules.json"
_POOLINGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_lasttoken": "last",
}
_SUPPORTED_MODULES = ["Transformer", "Pooling", "Normalize"]


class SentenceEncoder:
    """A sentence encoder on the CPU, in float32."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModel, AutoTokenizer

        self._pooling, self._normalizes = _read_modules(folder)
        settings = _read_json(folder / "sentence_bert_config.json", {})
        if settings.get("do_lower_case"):
            raise UserError(f"{folder}: requires lower-cased input, which is not supported")
        prompts = _read_json(folder / "config_sentence_transformers.json", {})
        if prompts.get("default_prompt_name"):
            raise UserError(f"{folder}: requires a prompt before its input, which is not supported")
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(folder)
            self._model = AutoModel.from_pretrained(folder, use_safetensors=True, dtype=torch.float32)
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"{folder}: cannot be loaded: {error}".splitlines()[0]) from error
        self._model.eval()
        limits = [settings.get("max_seq_length"), self._tokenizer.model_max_length]
        self._max_tokens = min(limit for limit in limits if limit)

    def __call__(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Encode texts to vectors of shape (texts, width). Long texts are truncated."""
        order = np.argsort([len(text) for text in texts], kind="stable")
        batches = [order[start : start + BATCH_SIZE] for start in range(0, len(order), BATCH_SIZE)]
        encoded = torch.cat([self._encode([texts[row] for row in batch]) for batch in batches])
        vectors: npt.NDArray[np.float32] = encoded.numpy()
        return vectors[np.argsort(order)]

    def _encode(self, texts: list[str]) -> torch.Tensor:
        inputs = self._tokenizer(
            texts,
            padding=True,
            truncation=True,
            max_length=self._max_tokens,
            padding_side="right",
            return_tensors="pt",
        )
        with torch.inference_mode():
            hidden = self._model(**inputs).last_hidden_state
        is_token = inputs["attention_mask"].bool().unsqueeze(-1)
        if self._pooling == "cls":
            pooled = hidden[:, 0]
        elif self._pooling == "last":
            pooled = hidden[torch.arange(len(hidden)), is_token.sum(dim=1).squeeze(1) - 1]
        elif self._pooling == "max":
            pooled = hidden.masked_fill(~is_token, -torch.inf).amax(dim=1)
        else:
            pooled = (hidden * is_token).sum(dim=1) / is_token.sum(dim=1)
        return torch.nn.functional.normalize(pooled, dim=1) if self._normalizes else pooled


def encode(weights: Weights, texts: Sequence[str]) -> npt.NDArray[np.float32]:
    """Encode texts with an encoder that this process loads once."""
    return _load_encoder(weights)(texts)


@cache
def _load_encoder(weights: Weights) -> SentenceEncoder:
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    torch.set_num_threads(1)
    return SentenceEncoder(ensure_local(weights))


def _read_modules(folder: Path) -> tuple[str, bool]:
    """Token pooling, and whether vectors are normalized."""
    modules = _read_json(folder / _MODULES, None)
    if modules is None:
        raise UserError(f"{folder}: is not a sentence-transformers model: it has no {_MODULES}")
    kinds = [module["type"].rpartition(".")[2] for module in modules]
    if kinds not in (_SUPPORTED_MODULES, _SUPPORTED_MODULES[:2]):
        supported = ", ".join(_SUPPORTED_MODULES)
        raise UserError(f"{folder}: {_MODULES} has {', '.join(kinds)}; supported: {supported}")
    pooling = _read_json(folder / modules[1]["path"] / "config.json", {})
    modes = [key for key, value in pooling.items() if key.startswith("pooling_mode") and value is True]
    if len(modes) != 1 or modes[0] not in _POOLINGS:
        supported = ", ".join(_POOLINGS)
        raise UserError(f"{folder}: pools by {', '.join(modes) or 'nothing'}; supported: {supported}")
    return _POOLINGS[modes[0]], kinds == _SUPPORTED_MODULES


def _read_json(path: Path, default: Any) -> Any:
    if not path.is_file():
        return default
    try:
        return parse_json(path.read_bytes())
    except ValueError as error:
        raise UserError(f"{path}: is not valid JSON: {error}") from error
