"""Three tiny models of different architectures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPTNeoXConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from tests import tiny


def make_models(folder: Path) -> list[str]:
    """Save a Llama, a GPT-2 and a GPT-NeoX with one tokenizer in a folder; return their names."""
    tiny.make_model(folder / "llama", layers=2)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder / "llama")
    words = LlamaForCausalLM.from_pretrained(folder / "llama").config.vocab_size
    common: dict[str, Any] = {"vocab_size": words, "bos_token_id": 0, "eos_token_id": None}
    configs = {
        "gpt2": GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=64, **common),
        "neox": GPTNeoXConfig(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=64,
            **common,
        ),
    }
    for number, (name, config) in enumerate(configs.items()):
        torch.manual_seed(number)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return ["llama", *configs]
