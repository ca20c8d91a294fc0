"""Models with randomly initialized weights: the control."""

from __future__ import annotations

import shutil
from pathlib import Path

from cluster.models.model_config import read_config

_WEIGHTS = (".safetensors", ".bin", ".index.json")
"""Endings of the names of weights, and of indexes of weights in several files."""


def init_random_weights(trained: Path, target: Path, trust_remote_code: bool, seed: int) -> None:
    """Write a model of the same architecture, initialized by its own class with a seed, and the trained
    model's tokenizer."""
    import torch

    from cluster.models.architecture import model_class

    chosen, config = model_class(read_config(trained, trust_remote_code), trust_remote_code, trained)
    torch.manual_seed(seed)
    model = chosen._from_config(config, dtype=torch.float32)
    model.to(config.dtype or torch.float32).save_pretrained(target)
    # not the folders: in them are checkpoints, and models in other formats
    for path in filter(Path.is_file, trained.iterdir()):
        if not path.name.endswith(_WEIGHTS) and not (target / path.name).exists():
            shutil.copy(path, target / path.name)
