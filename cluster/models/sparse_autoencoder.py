"""Sparse autoencoders: their encoders, which make many latents of a hidden state."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError, safe_open

from cluster.models.sites import Side, Site
from storage.errors import UserError

Activation = Literal["relu", "jumprelu", "topk"]

_WEIGHTS = ("W_enc", "encoder.weight")
_BIASES = ("b_enc", "encoder.bias")
_DECODER_BIASES = ("b_dec", "decoder.bias", "pre_bias")
_THRESHOLDS = ("threshold",)


@dataclass(frozen=True)
class Dictionary:
    """An encoder in a safetensors file, and where it is to be read: the hidden state after a layer, or
    the input or output of a module of it.

    With the hidden state x, weights W and biases b of the file, its latents are f(x W + b), where f is
    `relu`; `jumprelu`, which keeps what is above the file's threshold and else gives 0 (Rajamanoharan et
    al. 2024, arXiv 2407.14435); or `topk`, which keeps the `k` greatest of a token (Gao et al. 2024,
    arXiv 2406.04093). Where `centred`, x is first less the decoder's bias.
    """

    name: str
    path: Path
    layer: int
    module: str
    side: Side
    activation: Activation
    k: int | None
    centred: bool | None

    def check(self) -> int:
        """How many latents it has: more than inputs. Raises UserError for a file that cannot be used as
        it is told."""
        with _opened(self.path) as file:
            keys = set(file.keys())
            weights = _find(self.path, keys, _WEIGHTS)
            shape = file.get_slice(weights).get_shape()
        if len(shape) != 2:
            raise UserError(f"{self.path}: {weights} has the shape {shape}; expected two dimensions")
        bias = [name for name in _DECODER_BIASES if name in keys]
        if bias and self.centred is None:
            raise UserError(
                f"{self.path}: has {bias[0]}; say whether it is taken off the hidden state first "
                "(b_dec: subtract or ignore)"
            )
        if self.centred and not bias:
            raise UserError(f"{self.path}: has no {_DECODER_BIASES[0]} to subtract")
        if self.activation == "jumprelu":
            _find(self.path, keys, _THRESHOLDS)
        latents: int = max(shape)
        if self.k is not None and self.k > latents:
            raise UserError(f"{self.path}: k is {self.k}, but there are {latents} latents")
        return latents

    def site(self, width: int) -> Site:
        """Where it is read, in a model whose values there are so wide."""
        return Site(self.layer, self.name, self.module, self.side, width)


class Encoder:
    """A dictionary's tensors on a device, in float32."""

    def __init__(self, dictionary: Dictionary, inputs: int, device: torch.device) -> None:
        self._kept = dictionary
        path = dictionary.path
        with _opened(path) as file:
            keys = set(file.keys())
            name = _find(path, keys, _WEIGHTS)

            def tensor(names: tuple[str, ...]) -> torch.Tensor | None:
                there = [each for each in names if each in keys]
                return file.get_tensor(there[0]).float().to(device) if there else None

            weights = file.get_tensor(name).float().to(device)
            self._bias = tensor(_BIASES)
            self._decoder_bias = tensor(_DECODER_BIASES) if dictionary.centred else None
            self._threshold = tensor(_THRESHOLDS) if dictionary.activation == "jumprelu" else None
        # a linear module holds its weights the other way round
        if name == "encoder.weight":
            weights = weights.T
        if inputs not in weights.shape:
            raise UserError(
                f"{path}: {name} has the shape {list(weights.shape)}, but values there are {inputs} wide"
            )
        self._weights = weights if weights.shape[0] == inputs else weights.T
        self.width = self._weights.shape[1]
        for part, sizes in (
            (self._bias, (self.width,)),
            (self._threshold, (1, self.width)),
            (self._decoder_bias, (inputs,)),
        ):
            if part is not None and part.numel() not in sizes:
                raise UserError(f"{path}: a bias has {part.numel()} numbers; expected {sizes[-1]}")

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        """Latents of hidden values of shape (..., inputs): (..., latents), in float32."""
        values: torch.Tensor = hidden.float()
        if self._decoder_bias is not None:
            values = values - self._decoder_bias
        values = values @ self._weights
        if self._bias is not None:
            values = values + self._bias
        if self._threshold is not None:
            return torch.where(values > self._threshold, values, 0.0).relu()
        values = values.relu()
        if self._kept.activation != "topk":
            return values
        greatest = values.topk(self._kept.k or 1, dim=-1)
        return torch.zeros_like(values).scatter(-1, greatest.indices, greatest.values)


def _opened(path: Path) -> safe_open:
    try:
        return safe_open(path, "pt")
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: cannot be read as safetensors: {error}".splitlines()[0]) from error


def _find(path: Path, keys: set[str], names: tuple[str, ...]) -> str:
    there = [name for name in names if name in keys]
    if not there:
        raise UserError(
            f"{path}: has none of {', '.join(names)}; it has {', '.join(sorted(keys)) or 'nothing'}"
        )
    return there[0]
