"""Some setting of an architecture could change what is read: depth, width, biases, tied embeddings,
sliding windows, numbers of experts, the side of padding, a missing BOS.

Random configurations of all architectures are read as in tests/test_every_architecture.py: equal to a
plain forward pass, or rejected with one line.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import PretrainedConfig, PreTrainedTokenizerFast

from cluster.activations.block_shard import BlockShard
from cluster.activations.pooling_shard import ActivationSettings
from cluster.models.model_config import read_config
from cluster.models.sites import find_sites_from_config
from storage.errors import UserError
from tests.architectures import CAUSAL, LAYERS, UNBUILDABLE, tiny_config
from tests.plain_forward import PlainForward, save_model
from tests.test_every_architecture import compare

# transformers' own
pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.* is deprecated and will be removed:FutureWarning"),
]

N_CONFIGURATIONS = 300
_PER_TEST = 10
_MODEL_TYPES = [name for name in CAUSAL if name not in UNBUILDABLE]

_CHOICES: dict[str, tuple[Any, ...]] = {
    "intermediate_size": (40, 56, 64),
    "ffn_dim": (40, 56),
    "n_inner": (40, None),
    "moe_intermediate_size": (20, 28),
    "shared_expert_intermediate_size": (36, 44),
    "num_hidden_layers": (2, 3, 5),
    "num_experts": (3, 4, 6),
    "num_local_experts": (3, 4, 6),
    "num_experts_per_tok": (1, 2, 3),
    "tie_word_embeddings": (True, False),
    "attention_bias": (True, False),
    "mlp_bias": (True, False),
    "use_bias": (True, False),
    "use_qkv_bias": (True, False),
    "parallel_attn": (True, False),
    "use_parallel_residual": (True, False),
    "norm_topk_prob": (True, False),
    "sliding_window": (2, 3, 8, None),
    "vocab_size": (301, 400, 512),
    "hidden_act": ("silu", "gelu", "relu"),
    "activation_function": ("gelu_new", "relu"),
    "num_key_value_heads": (1, 2, 4),
}


def random_configuration(random: np.random.Generator, model_type: str) -> PretrainedConfig:
    """A tiny configuration with about half of its settings changed."""
    config = tiny_config(model_type)
    for name, choices in _CHOICES.items():
        if getattr(config, name, None) is not None and random.random() < 0.5:
            setattr(config, name, choices[random.integers(len(choices))])
    depth = config.num_hidden_layers
    for name, value in list(vars(config).items()):
        if isinstance(value, list) and len(value) == LAYERS and "layer" in name:
            setattr(config, name, [value[number % LAYERS] for number in range(depth)])
    return config


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(N_CONFIGURATIONS // _PER_TEST))
def test_random_configurations_are_read_or_rejected(tmp_path: Path, seed: int) -> None:
    """A wrong number without an error, or a traceback."""
    random = np.random.default_rng(seed)
    built = 0
    while built < _PER_TEST:
        model_type = _MODEL_TYPES[random.integers(len(_MODEL_TYPES))]
        folder = tmp_path / f"{built}-{model_type}"
        try:
            save_model(folder, model_type, random_configuration(random, model_type))
        except Exception:  # noqa: S112
            # transformers has no such model
            continue
        built += 1
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
        tokenizer.padding_side = ("left", "right")[random.integers(2)]
        if random.random() < 0.5:
            tokenizer.backend_tokenizer.post_processor = None
        tokenizer.save_pretrained(folder)
        read_or_reject(folder, model_type)


def read_or_reject(folder: Path, model_type: str) -> None:
    """Compare a model with a plain forward pass; one that transformers cannot run must be rejected."""
    try:
        PlainForward(folder, model_type).run()
        can_run = True
    except Exception:
        can_run = False
    problem = ""
    try:
        config = read_config(folder, False)
        planned = find_sites_from_config(config, "mlp")
        if can_run:
            compare(folder, model_type, config, planned, "mlp")
        else:
            BlockShard(folder, ActivationSettings("float32", "mlp", ["max"]))
    except UserError as error:
        problem = str(error)
    assert can_run or problem
    assert "\n" not in problem
