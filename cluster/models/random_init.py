"""Models with randomly initialized weights: the control."""

from __future__ import annotations

import shutil
from pathlib import Path

from cluster.models.model_config import read_config

SEED = 0


def init_random_weights(trained: Path, target: Path, trust_remote_code: bool) -> None:
    """Write a model of the same architecture with random weights, and the trained model's tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM

    config = read_config(trained, trust_remote_code)
    torch.manual_seed(SEED)
    model = AutoModelForCausalLM.from_config(
        config, dtype=torch.float32, trust_remote_code=trust_remote_code
    )
    model.to(config.dtype or torch.float32).save_pretrained(target)
    for path in trained.iterdir():
        if path.suffix not in (".safetensors", ".bin") and not (target / path.name).exists():
            shutil.copy(path, target / path.name)
