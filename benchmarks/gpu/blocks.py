"""A complete pass over Pythia-6.9b in one block, and in four on a device with less memory.

`python -m benchmarks.gpu.capture blocks`; the weights are random, 13.7 GB. Without a GPU it runs a tiny
model, which only proves that it runs.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM
from transformers.utils import logging

from benchmarks.gpu.capture import BUDGET, DEMO_SENTENCES, make_sentences
from cluster.activations import model_pass as model_pass_module
from cluster.activations.block_plan import measure_model, plan_blocks
from cluster.activations.block_shard import BlockShard
from cluster.activations.model_pass import Block, ModelPass
from cluster.activations.pooling_shard import ActivationSettings
from cluster.activations.sentence_set import SentenceSet
from cluster.activations.spool import SpoolSettings
from cluster.models.checkpoint import INDEX_FILE
from storage.errors import UserError

N_BLOCKS = 4
_ROUNDS = 2
_WRITERS = 8
_STEPS = 400
_NEEDED_BYTES = 20 * 10**9
_MEMORY_FOLDER = Path("/dev/shm")  # noqa: S108
_SHARED: dict[str, Any] = {"rotary_pct": 0.25, "use_parallel_residual": True, "dtype": "bfloat16"}


def make_config(is_large: bool) -> GPTNeoXConfig:
    """Pythia-6.9b's configuration, or a tiny one."""
    if not is_large:
        return GPTNeoXConfig(
            num_hidden_layers=8,
            hidden_size=32,
            intermediate_size=64,
            num_attention_heads=4,
            vocab_size=512,
            max_position_embeddings=64,
            **_SHARED,
        )
    return GPTNeoXConfig(
        num_hidden_layers=32,
        hidden_size=4096,
        intermediate_size=16_384,
        num_attention_heads=32,
        vocab_size=50_432,
        max_position_embeddings=2048,
        **_SHARED,
    )


def write_model(folder: Path, config: GPTNeoXConfig, device: str) -> Path:
    """Write random weights without a head, a file for each layer and one for the rest."""
    folder.mkdir()
    with torch.device("meta"):
        model = GPTNeoXForCausalLM(config)
    files: dict[str, dict[str, torch.Size]] = {}
    for name, parameter in model.named_parameters():
        if name.startswith("gpt_neox."):
            layer = name.split(".")[2] if ".layers." in name else "rest"
            files.setdefault(f"model-{layer}.safetensors", {})[name] = parameter.shape

    def write(file: str) -> None:
        write_weights(folder / file, files[file], device)

    with ThreadPoolExecutor(_WRITERS) as threads:
        list(threads.map(write, files))
    weight_map = {name: file for file, shapes in files.items() for name in shapes}
    (folder / INDEX_FILE).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    config.architectures = ["GPTNeoXForCausalLM"]
    config.save_pretrained(folder)
    return folder


def write_weights(path: Path, shapes: dict[str, torch.Size], device: str) -> None:
    """Write a file of safetensors; its own writer would copy the weights several times."""
    header, start = {}, 0
    for name, shape in shapes.items():
        stop = start + shape.numel() * torch.bfloat16.itemsize
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [start, stop]}
        start = stop
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb", buffering=0) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, shape in shapes.items():
            values = torch.randn(shape, dtype=torch.bfloat16, device=device) * 0.02
            if "norm" in name and name.endswith("weight"):
                values += 1
            remaining = memoryview(values.cpu().view(torch.int16).numpy()).cast("B")
            while remaining:
                remaining = remaining[file.write(remaining) :]


@dataclass
class Pass:
    """A pass over some blocks: its seconds, those of loading, and the bytes of weights loaded."""

    folder: Path
    sentences: SentenceSet
    device: str
    blocks: Sequence[range]
    seconds: float = field(default=0.0, init=False)
    loading_seconds: float = field(default=0.0, init=False)
    weight_bytes: int = field(default=0, init=False)
    notes: list[str] = field(default_factory=list, init=False)

    def run(self) -> Pass:
        """Run it from the files on; its values are dropped."""
        with (
            tempfile.TemporaryDirectory() as name,
            patch.object(model_pass_module, "BlockShard", self._load),
        ):
            started = time.perf_counter()
            model_pass = ModelPass(
                self.folder,
                settings(),
                self.sentences,
                BUDGET,
                SpoolSettings(Path(name), 32 << 30),
                self.device,
                self.blocks,
            )
            model_pass.run(self._consume)
            self.seconds = time.perf_counter() - started
        self.notes = model_pass.notes
        return self

    def _load(self, *arguments: Any) -> BlockShard:
        started = time.perf_counter()
        shard = BlockShard(*arguments)
        synchronize(self.device)
        self.loading_seconds += time.perf_counter() - started
        self.weight_bytes += sum(weights.nbytes for weights in shard.model.parameters())
        return shard

    def _consume(self, _: Block) -> None:
        synchronize(self.device)


def settings() -> ActivationSettings:
    """Maxima of all MLP neurons."""
    return ActivationSettings("bfloat16", "mlp", ["max"], include_hidden_states=False)


def synchronize(device: str) -> None:
    """Wait for the device."""
    if device == "cuda":
        torch.cuda.synchronize()


def plan_small(folder: Path, n_sentences: int, budget: int) -> tuple[int, list[range]]:
    """The least memory that takes at most N_BLOCKS blocks, and the blocks."""
    model = measure_model(folder, settings())
    layers = model.layers
    total = model.embeddings + 2 * budget * model.token
    total += sum(layer.weights + layer.pooled * n_sentences for layer in layers)
    for step in range(1, _STEPS):
        memory = 2 * total * step // _STEPS
        try:
            blocks = plan_blocks(model, n_sentences, budget, memory)
        except UserError:
            continue
        if len(blocks) <= N_BLOCKS:
            return memory, blocks
    raise AssertionError("no size of memory takes so few blocks")


def main() -> None:
    """Print the seconds of both, in alternation."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    config = make_config(device == "cuda")
    sentences = make_sentences(DEMO_SENTENCES if device == "cuda" else 60, config.vocab_size)
    in_memory = device == "cuda" and _MEMORY_FOLDER.is_dir()
    in_memory = in_memory and shutil.disk_usage(_MEMORY_FOLDER).free > _NEEDED_BYTES
    with tempfile.TemporaryDirectory(dir=_MEMORY_FOLDER if in_memory else None) as name:
        started = time.perf_counter()
        folder = write_model(Path(name) / "model", config, device)
        n_bytes = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
        written = time.perf_counter() - started
        print(f"{n_bytes / 1e9:.2f} GB of weights written to {folder} in {written:.1f} s", flush=True)
        few = SentenceSet(sentences.texts[:8], sentences.tokens[:8])
        memory, blocks = plan_small(folder, len(sentences), BUDGET)
        whole = [range(config.num_hidden_layers)]
        Pass(folder, few, device, whole).run()
        print(
            f"{len(sentences):,} sentences, {len(whole[0])} layers; in {memory / 1e9:.1f} GB: {blocks}"
        )
        best: dict[int, float] = {}
        for _ in range(_ROUNDS):
            for layers in (whole, blocks):
                if device == "cuda":
                    total = torch.cuda.get_device_properties(device).total_memory
                    limit = 1.0 if layers is whole else memory / total
                    torch.cuda.set_per_process_memory_fraction(limit)
                    torch.cuda.reset_peak_memory_stats()
                done = Pass(folder, sentences, device, layers).run()
                peak = torch.cuda.max_memory_allocated() / 1e9 if device == "cuda" else 0.0
                print(
                    f"{len(layers)} blocks {done.seconds:6.2f} s, {done.loading_seconds:6.2f} of them "
                    f"loading; weights read {done.weight_bytes / n_bytes:.3f} times; peak {peak:.1f} GB "
                    f"{done.notes or ''}",
                    flush=True,
                )
                best[len(layers)] = min(done.seconds, best.get(len(layers), done.seconds))
        print(f"speed of {len(blocks)} blocks to that of one: {best[1] / best[len(blocks)]:.2f}")


if __name__ == "__main__":
    main()
