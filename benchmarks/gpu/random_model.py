"""A model with random weights and a tokenizer of its own, and sentences of random words."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import tokenizers
import torch
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedTokenizerFast

from cluster.models.checkpoint import INDEX_FILE
from cluster.models.tokenizer import Text

_WRITERS = 8
_BYTES_IN_FILE = 1 << 30
_MAX_WORDS = 50_000
_LENGTHS = 12, 25


def write_model(folder: Path, config: PretrainedConfig, device: str) -> Path:
    """Write a model in bfloat16 and its tokenizer, whose words are its tokens."""
    folder.mkdir()
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    files: list[dict[str, torch.Size]] = [{}]
    n_bytes = 0
    for name, weights in model.named_parameters():
        if n_bytes > _BYTES_IN_FILE:
            files.append({})
            n_bytes = 0
        files[-1][name] = weights.shape
        n_bytes += weights.nbytes
    names = [f"model-{number:05d}.safetensors" for number in range(len(files))]
    with ThreadPoolExecutor(_WRITERS) as threads:
        list(threads.map(lambda name, shapes: _write(folder / name, shapes, device), names, files))
    weight_map = {name: file for file, shapes in zip(names, files, strict=True) for name in shapes}
    (folder / INDEX_FILE).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    config.architectures = [type(model).__name__]
    config.dtype = "bfloat16"
    config.save_pretrained(folder)
    words = {_word(number): number for number in range(_count_words(config))}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token=_word(0)))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    return folder


def make_texts(count: int, config: PretrainedConfig) -> list[Text]:
    """Sentences of 12 to 24 random words, of which one or two are the concept's."""
    random = np.random.default_rng(0)
    texts = []
    for length in random.integers(*_LENGTHS, count):
        words = [_word(number) for number in random.integers(1, _count_words(config), length)]
        first = random.integers(1, length - 2)
        start = len(" ".join(words[:first])) + 1
        concept = " ".join(words[first : first + random.integers(1, 3)])
        texts.append(Text(" ".join(words), [start, start + len(concept)]))
    return texts


def _count_words(config: PretrainedConfig) -> int:
    return min(_MAX_WORDS, config.get_text_config().vocab_size)


def _word(number: int) -> str:
    return f"w{number}"


def _write(path: Path, shapes: dict[str, torch.Size], device: str) -> None:
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
