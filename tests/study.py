"""A finished sweep over a tiny model, with all baselines and controls."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from tests import tiny
from tests.commands import neuralign
from tests.faults import in_one_process

_EXTRA = """
baselines:
  - input-embedding
  - {name: mine, path: vectors.txt}
  - contextual
  - glove
  - {name: tiny, encoder: encoder}
  - shuffled
  - {name: sae, dictionary: sae.safetensors, layer: 1}
  - random-init
controls: [split-half, length-matched]
"""
PRINTED = "printed.txt"


def make_study(folder: Path, model: Path) -> None:
    """Run the sweep in a folder and save what it prints there."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(model, folder / "model")
    tiny.make_encoder(folder / "encoder")
    numbers = np.random.default_rng(0).standard_normal((6, 5))
    lines = [
        f"{word} {' '.join(map(str, row))}" for word, row in zip(tiny.CONCEPTS, numbers, strict=True)
    ]
    (folder / "vectors.txt").write_text("\n".join(lines) + "\n")
    torch.manual_seed(0)
    save_file({"W_enc": torch.randn(32, 80)}, folder / "sae.safetensors")
    with in_one_process():
        done = neuralign("run", tiny.write_sweep(folder, extra=_EXTRA))
    assert done.returncode == 0, done.stderr
    (folder / PRINTED).write_text(done.stdout)
