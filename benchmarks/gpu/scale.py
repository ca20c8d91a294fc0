"""What is run: large models on a GPU, a tiny one on a CPU, where it only proves that it runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoConfig, GPTNeoXConfig, PretrainedConfig


@dataclass(frozen=True)
class Scale:
    """Sizes of the benchmarks on one kind of device.

    `sentences` are read in batches of each of the `budgets`, and scored for `concepts`. A model whose
    pooled values of so many do not fit `pooled_bytes` reads `few_sentences`, as do passes with loading
    and writing. `matrix` is the size of a matrix product at the device's full speed. Scoring is compared
    with the CPU for each of the `scored` numbers of sentences, concepts and neurons.
    """

    device: str
    sentences: int
    few_sentences: int
    budgets: tuple[int, ...]
    budget: int
    concepts: int
    pooled_bytes: int
    rounds: int
    matrix: int
    scored: tuple[tuple[int, int, int], ...]


_GPU = Scale(
    device="cuda",
    sentences=20_992,
    few_sentences=2624,
    budgets=(1024, 4096, 16_384, 32_768),
    budget=16_384,
    concepts=82,
    pooled_bytes=20 << 30,
    rounds=2,
    matrix=8192,
    scored=((2624, 82, 8192), (32_250, 645, 4096)),
)
_CPU = Scale(
    device="cpu",
    sentences=96,
    few_sentences=48,
    budgets=(64, 256),
    budget=256,
    concepts=6,
    pooled_bytes=20 << 30,
    rounds=1,
    matrix=256,
    scored=((48, 6, 32),),
)


def choose_scale() -> Scale:
    """The scale of this machine."""
    return _GPU if torch.cuda.is_available() else _CPU


def choose_models(scale: Scale, file: Path | None) -> dict[str, PretrainedConfig]:
    """Configurations by name: of the file if there is one, else of Pythia or of a tiny model."""
    if file is not None:
        folder = file if file.is_dir() else file.parent
        return {
            folder.name if file.name == "config.json" else file.stem: AutoConfig.from_pretrained(file)
        }
    if scale.device == "cpu":
        return {"tiny": _pythia(layers=4, width=32, heads=4, vocabulary=512)}
    return {
        "pythia-1b": _pythia(layers=16, width=2048, heads=8, vocabulary=50_304),
        "pythia-6.9b": _pythia(layers=32, width=4096, heads=32, vocabulary=50_432),
    }


def _pythia(layers: int, width: int, heads: int, vocabulary: int) -> GPTNeoXConfig:
    return GPTNeoXConfig(
        num_hidden_layers=layers,
        hidden_size=width,
        intermediate_size=4 * width,
        num_attention_heads=heads,
        vocab_size=vocabulary,
        max_position_embeddings=2048,
        rotary_pct=0.25,
        use_parallel_residual=True,
    )
