"""GGUF files of tiny models, written from safetensors folders as llama.cpp's converter writes them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from gguf import MODEL_ARCH, GGUFWriter, get_tensor_name_map
from safetensors.numpy import load_file

_NORMAL, _CONTROL = 1, 3
Tensors = dict[str, npt.NDArray[np.float32]]


def llama_tensors(folder: Path) -> Tensors:
    """Tensors of a Llama by their names in GGUF files, which order rotary dimensions in another way."""
    config = json.loads((folder / "config.json").read_text())
    names = get_tensor_name_map(MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    heads = {"q": config["num_attention_heads"], "k": config["num_key_value_heads"]}
    tensors = {}
    for name, saved in load_file(folder / "model.safetensors").items():
        tensor = saved
        n_heads = next((n for key, n in heads.items() if f"{key}_proj" in name), None)
        if n_heads is not None:
            pairs = tensor.reshape(n_heads, 2, tensor.shape[0] // n_heads // 2, tensor.shape[1])
            tensor = pairs.swapaxes(1, 2).reshape(tensor.shape)
        tensors[names.get_name(name, try_suffixes=(".weight",)) or name] = tensor
    return tensors


def llama_metadata(folder: Path) -> dict[str, Any]:
    """Settings of a Llama in a folder, by key."""
    config = json.loads((folder / "config.json").read_text())
    return {
        "llama.block_count": config["num_hidden_layers"],
        "llama.context_length": config["max_position_embeddings"],
        "llama.embedding_length": config["hidden_size"],
        "llama.feed_forward_length": config["intermediate_size"],
        "llama.attention.head_count": config["num_attention_heads"],
        "llama.attention.head_count_kv": config["num_key_value_heads"],
        "llama.attention.layer_norm_rms_epsilon": config["rms_norm_eps"],
        "llama.rope.freq_base": float(config["rope_parameters"]["rope_theta"]),
        "llama.rope.dimension_count": config["hidden_size"] // config["num_attention_heads"],
        "llama.vocab_size": config["vocab_size"],
    }


def gemma_tensors(folder: Path) -> Tensors:
    """Tensors of a Gemma 3 by their names in GGUF files, which add 1 to the weights of norms."""
    config = json.loads((folder / "config.json").read_text())
    names = get_tensor_name_map(MODEL_ARCH.GEMMA3, config["num_hidden_layers"])
    return {
        names.get_name(name, try_suffixes=(".weight",)) or name: tensor + ("norm" in name)
        for name, tensor in load_file(folder / "model.safetensors").items()
    }


def gemma_metadata(folder: Path) -> dict[str, Any]:
    """Settings of a Gemma 3 in a folder, by key."""
    config = json.loads((folder / "config.json").read_text())
    return {
        "gemma3.block_count": config["num_hidden_layers"],
        "gemma3.context_length": config["max_position_embeddings"],
        "gemma3.embedding_length": config["hidden_size"],
        "gemma3.feed_forward_length": config["intermediate_size"],
        "gemma3.attention.head_count": config["num_attention_heads"],
        "gemma3.attention.head_count_kv": config["num_key_value_heads"],
        "gemma3.attention.key_length": config["head_dim"],
        "gemma3.attention.sliding_window": config["sliding_window"],
        "gemma3.attention.layer_norm_rms_epsilon": config["rms_norm_eps"],
    }


def tokenizer_metadata(file: Path, model: str = "gpt2", pre: str = "gpt-2") -> dict[str, Any]:
    """Settings of the BPE tokenizer in a tokenizer.json, by key; special tokens are control tokens."""
    content = json.loads(file.read_text())
    vocabulary = {**content["model"]["vocab"]}
    special = {token["id"]: token["content"] for token in content["added_tokens"]}
    vocabulary |= {token: number for number, token in special.items()}
    tokens = sorted(vocabulary, key=lambda token: int(vocabulary[token]))
    settings = {
        "model": model,
        "pre": pre,
        "tokens": tokens,
        "token_type": [_CONTROL if number in special else _NORMAL for number in range(len(tokens))],
        "merges": [" ".join(merge) for merge in content["model"]["merges"]],
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    return {f"tokenizer.ggml.{name}": value for name, value in settings.items()}


def write(
    file: Path, metadata: Mapping[str, Any], tensors: Mapping[str, Any], architecture: str = "llama"
) -> Path:
    """Write a GGUF file."""
    writer = GGUFWriter(file, architecture)
    for key, value in metadata.items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, value)
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def write_parts(folder: Path, metadata: Mapping[str, Any], tensors: Tensors, n_parts: int) -> list[Path]:
    """Write a GGUF model in several files."""
    parts = []
    for part in range(n_parts):
        names: Iterable[str] = list(tensors)[part::n_parts]
        split = {"split.no": part, "split.count": n_parts, "split.tensors.count": len(tensors)}
        file = folder / f"x-{part + 1:05}-of-{n_parts:05}.gguf"
        parts.append(write(file, {**metadata, **split}, {name: tensors[name] for name in names}))
    return parts
