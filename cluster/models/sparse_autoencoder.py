"""Encoders of sparse autoencoders (SAEs)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError, safe_open

from cluster.models.hooks import Side
from cluster.models.sites import Site
from storage.errors import UserError

Activation = Literal["relu", "jumprelu", "topk"]

_WEIGHTS = ("W_enc", "encoder.weight")
_BIASES = ("b_enc", "encoder.bias")
_DECODER_BIASES = ("b_dec", "decoder.bias", "pre_bias")
_THRESHOLDS = ("threshold",)


@dataclass(frozen=True)
class SparseAutoencoder:
    """An SAE encoder in a safetensors file, and the hidden state or module input/output it applies to.

    For input x, weights W and biases b, the latents are f(x W + b), where f is `relu`; `jumprelu`, which
    zeroes values up to the file's threshold (Rajamanoharan et al. 2024, arXiv 2407.14435); or `topk`,
    which keeps the `k` largest values of a token (Gao et al. 2024, arXiv 2406.04093). If `centred`, the
    decoder bias is first subtracted from x. The field names enter the identity of the stage.
    """

    name: str
    path: Path
    layer: int
    module: str
    side: Side
    activation: Activation
    k: int | None
    centred: bool | None

    def validate(self) -> int:
        """Check the file and return its number of latents. Raises UserError if it does not fit."""
        with _open(self.path) as file:
            keys = set(file.keys())
            name = _require_name(self.path, keys, _WEIGHTS)
            shape = file.get_slice(name).get_shape()
        if len(shape) != 2:
            raise UserError(f"{self.path}: {name} has shape {shape}; expected two dimensions")
        decoder_bias = _first_name(keys, _DECODER_BIASES)
        if decoder_bias and self.centred is None:
            raise UserError(f"{self.path}: has {decoder_bias}; set b_dec: subtract or ignore")
        if self.centred and not decoder_bias:
            raise UserError(f"{self.path}: has no {_DECODER_BIASES[0]} to subtract")
        if self.activation == "jumprelu":
            _require_name(self.path, keys, _THRESHOLDS)
        latents: int = max(shape)
        if self.k is not None and self.k > latents:
            raise UserError(f"{self.path}: k is {self.k}, but there are {latents} latents")
        return latents

    def count_weights(self) -> int:
        """Number of the encoder's weights, without its biases."""
        with _open(self.path) as file:
            name = _require_name(self.path, set(file.keys()), _WEIGHTS)
            return math.prod(file.get_slice(name).get_shape())

    def site(self, width: int) -> Site:
        """Site of the latents."""
        return Site(self.layer, self.name, self.module, self.side, width)


class LatentEncoder:
    """Encoder of a sparse autoencoder on a device, in float32."""

    def __init__(self, autoencoder: SparseAutoencoder, inputs: int, device: torch.device) -> None:
        self._autoencoder = autoencoder
        path = autoencoder.path
        with _open(path) as file:
            keys = set(file.keys())

            def load(names: tuple[str, ...]) -> torch.Tensor | None:
                name = _first_name(keys, names)
                return None if name is None else file.get_tensor(name).float().to(device)

            name = _require_name(path, keys, _WEIGHTS)
            weights = file.get_tensor(name).float().to(device)
            self._bias = load(_BIASES)
            self._decoder_bias = load(_DECODER_BIASES) if autoencoder.centred else None
            self._threshold = load(_THRESHOLDS) if autoencoder.activation == "jumprelu" else None
        # nn.Linear stores its weights transposed.
        if name == "encoder.weight":
            weights = weights.T
        if inputs not in weights.shape:
            shape = list(weights.shape)
            raise UserError(f"{path}: {name} has shape {shape}, but the activations have width {inputs}")
        self._weights = weights if weights.shape[0] == inputs else weights.T
        self.width = self._weights.shape[1]
        for vector, sizes in (
            (self._bias, (self.width,)),
            (self._threshold, (1, self.width)),
            (self._decoder_bias, (inputs,)),
        ):
            if vector is not None and vector.numel() not in sizes:
                raise UserError(f"{path}: a bias has {vector.numel()} values; expected {sizes[-1]}")

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        """Encode hidden states of shape (..., inputs) to float32 latents of shape (..., latents)."""
        values: torch.Tensor = hidden.float()
        if self._decoder_bias is not None:
            values = values - self._decoder_bias
        values = values @ self._weights
        if self._bias is not None:
            values = values + self._bias
        if self._threshold is not None:
            return torch.where(values > self._threshold, values, 0.0).relu()
        values = values.relu()
        if self._autoencoder.activation != "topk":
            return values
        largest = values.topk(self._autoencoder.k or 1, dim=-1)
        return torch.zeros_like(values).scatter(-1, largest.indices, largest.values)


def _open(path: Path) -> safe_open:
    # A pipe would be waited for without end.
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        return safe_open(path, "pt")
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: cannot be read as safetensors: {error}".splitlines()[0]) from error


def _first_name(keys: set[str], names: tuple[str, ...]) -> str | None:
    return next((name for name in names if name in keys), None)


def _require_name(path: Path, keys: set[str], names: tuple[str, ...]) -> str:
    name = _first_name(keys, names)
    if name is None:
        raise UserError(
            f"{path}: has none of {', '.join(names)}; it has {', '.join(sorted(keys)) or 'nothing'}"
        )
    return name
