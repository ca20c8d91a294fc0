"""Sentence encoders: models that make one vector of a text, in the layout of sentence-transformers.

They are read with transformers alone: the model, how its tokens are pooled, and whether the vector is
brought to length 1.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from cluster.models.weights import Weights, materialise
from storage.errors import UserError

TEXTS_AT_ONCE = 32

_MODULES = "modules.json"
_POOLINGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_lasttoken": "last",
}
_KNOWN = ["Transformer", "Pooling", "Normalize"]


class Encoder:
    """One sentence encoder on the CPU, in float32."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModel, AutoTokenizer

        self._pooling, self._unit_length = _read_modules(folder)
        settings = _read_json(folder / "sentence_bert_config.json", {})
        if settings.get("do_lower_case"):
            raise UserError(f"{folder}: wants its texts in lower case, which is not supported")
        prompts = _read_json(folder / "config_sentence_transformers.json", {})
        if prompts.get("default_prompt_name"):
            raise UserError(f"{folder}: wants a prompt before its texts, which is not supported")
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(folder)
            self._model = AutoModel.from_pretrained(folder, use_safetensors=True, dtype=torch.float32)
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"{folder}: cannot be loaded: {error}".splitlines()[0]) from error
        self._model.eval()
        longest = [settings.get("max_seq_length"), self._tokenizer.model_max_length]
        self._longest = min(length for length in longest if length)

    def __call__(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """The vectors of texts, of shape (texts, width). A text that is too long is cut."""
        rows = np.argsort([len(text) for text in texts], kind="stable")
        vectors: list[Any] = [None] * len(texts)
        for start in range(0, len(rows), TEXTS_AT_ONCE):
            batch = rows[start : start + TEXTS_AT_ONCE]
            encoded = self._encode([texts[row] for row in batch])
            for row, vector in zip(batch, encoded, strict=True):
                vectors[row] = vector
        stacked: npt.NDArray[np.float32] = torch.stack(vectors).numpy()
        return stacked

    def _encode(self, texts: list[str]) -> torch.Tensor:
        given = self._tokenizer(
            texts,
            padding=True,
            truncation=True,
            max_length=self._longest,
            padding_side="right",
            return_tensors="pt",
        )
        with torch.inference_mode():
            hidden = self._model(**given).last_hidden_state
        real = given["attention_mask"].bool().unsqueeze(-1)
        if self._pooling == "cls":
            pooled = hidden[:, 0]
        elif self._pooling == "last":
            pooled = hidden[torch.arange(len(hidden)), real.sum(dim=1).squeeze(1) - 1]
        elif self._pooling == "max":
            pooled = hidden.masked_fill(~real, -torch.inf).amax(dim=1)
        else:
            pooled = (hidden * real).sum(dim=1) / real.sum(dim=1)
        return torch.nn.functional.normalize(pooled, dim=1) if self._unit_length else pooled


def encode(weights: Weights, texts: Sequence[str]) -> npt.NDArray[np.float32]:
    """Vectors of texts, by an encoder that this process loads once."""
    return _loaded(weights)(texts)


@cache
def _loaded(weights: Weights) -> Encoder:
    from transformers.utils import logging as transformers_logging

    logging.getLogger("transformers").setLevel(logging.ERROR)
    transformers_logging.disable_progress_bar()
    torch.set_num_threads(1)
    return Encoder(materialise(weights))


def _read_modules(folder: Path) -> tuple[str, bool]:
    """How tokens are pooled, and whether the vector is brought to length 1."""
    modules = _read_json(folder / _MODULES, None)
    if modules is None:
        raise UserError(
            f"{folder}: is no sentence encoder: it has no {_MODULES} (sentence-transformers)"
        )
    kinds = [module["type"].rpartition(".")[2] for module in modules]
    if kinds not in (_KNOWN, _KNOWN[:2]):
        raise UserError(
            f"{folder}: {_MODULES} has the modules {', '.join(kinds)}; known are {', '.join(_KNOWN)}"
        )
    pooling = _read_json(folder / modules[1]["path"] / "config.json", {})
    chosen = [key for key, value in pooling.items() if key.startswith("pooling_mode") and value is True]
    if len(chosen) != 1 or chosen[0] not in _POOLINGS:
        known = ", ".join(_POOLINGS)
        raise UserError(f"{folder}: pools by {', '.join(chosen) or 'nothing'}; known are {known}")
    return _POOLINGS[chosen[0]], kinds == _KNOWN


def _read_json(path: Path, otherwise: Any) -> Any:
    if not path.is_file():
        return otherwise
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: is no JSON: {error}") from error
