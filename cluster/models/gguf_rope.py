"""Scaled rotary position embeddings of GGUF files, which transformers does not read from them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from alignment.arrays import Floats
from cluster.models.gguf_header import GgufHeader
from storage.errors import UserError

FREQUENCIES = "rope_freqs.weight"
"""Divisors of the rotary frequencies: Llama 3.1 and later."""

_LLAMA3: dict[str, Any] = {
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
_TOLERANCE = 1e-3


def check_rope_scaling(header: GgufHeader) -> None:
    """Raise UserError for a scaling that would be lost in the conversion."""
    kind = header.metadata.get(f"{header.architecture}.rope.scaling.type", "none")
    if kind != "none":
        raise UserError(
            f"{header.files[0]}: its position embeddings are scaled ({kind}), which is not read from "
            "GGUF files; use the model's safetensors files"
        )


def set_llama3_scaling(config: Any, header: GgufHeader, divisors: Floats) -> None:
    """Set the scaling in a configuration whose divisors are those of the file.

    Raises UserError if no scaling of Llama 3 has these divisors.
    """
    parameters: dict[str, Any] = {"rope_type": "llama3", "factor": float(divisors.max()), **_LLAMA3}
    frequencies = _rotary_frequencies(config.head_dim, float(config.rope_parameters["rope_theta"]))
    if not np.allclose(divisors, _llama3_divisors(frequencies, **parameters), rtol=_TOLERANCE):
        raise UserError(
            f"{header.files[0]}: {FREQUENCIES} is not a scaling of Llama 3; use the model's safetensors "
            "files"
        )
    config.rope_parameters = {**config.rope_parameters, **parameters}


def _rotary_frequencies(width: int, theta: float) -> Floats:
    return theta ** -(np.arange(0, width, 2) / width)


def _llama3_divisors(
    frequencies: Floats,
    factor: float,
    low_freq_factor: float,
    high_freq_factor: float,
    original_max_position_embeddings: int,
    **_: Any,
) -> Floats:
    """1 for short wavelengths, `factor` for long ones, and interpolated between them."""
    turns = original_max_position_embeddings * frequencies / (2 * math.pi)
    share = np.clip((turns - low_freq_factor) / (high_freq_factor - low_freq_factor), 0, 1)
    return 1 / ((1 - share) / factor + share)
