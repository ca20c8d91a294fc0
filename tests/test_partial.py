"""Sharding could change activations for some architecture or split."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    FalconConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    GPTJConfig,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    Olmo2Config,
    OPTConfig,
    Phi3Config,
    PhiConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
)

from cluster.activations.block_shard import BlockShard
from cluster.activations.model_pass import Block, ModelPass
from cluster.activations.pooling_shard import ActivationSettings
from cluster.activations.spool import SpoolSettings
from cluster.models.hooks import extract_hidden_state
from cluster.models.partial_model import load_layers, shard_layers
from cluster.models.sites import find_sites_from_config
from cluster.models.size import model_size
from cluster.models.tokenizer import Text
from cluster.models.weights import resolve
from storage.errors import UserError
from tests import tiny
from tests.pooled import pool, read_texts, run_layers

LAYERS = 4
_SIZES: dict[str, Any] = {"vocab_size": 301, "num_hidden_layers": LAYERS, "num_attention_heads": 4}
_PLAIN = _SIZES | {"hidden_size": 32, "intermediate_size": 48, "max_position_embeddings": 64}
_GROUPED = _PLAIN | {"num_key_value_heads": 2}
_GPT2: dict[str, Any] = {
    "vocab_size": 301,
    "n_embd": 32,
    "n_layer": LAYERS,
    "n_head": 4,
    "n_positions": 64,
}
_WINDOW: dict[str, Any] = {"head_dim": 8, "sliding_window": 4, "query_pre_attn_scalar": 8}

ARCHITECTURES: dict[str, PretrainedConfig] = {
    "bloom": BloomConfig(vocab_size=301, hidden_size=32, n_layer=LAYERS, n_head=4),
    "falcon": FalconConfig(**_SIZES, hidden_size=32),
    "gemma": GemmaConfig(**_GROUPED, head_dim=8),
    "gemma2": Gemma2Config(**_GROUPED, **_WINDOW),
    "gemma3": Gemma3TextConfig(**_GROUPED, **_WINDOW),
    "gpt2": GPT2Config(**_GPT2),
    "gptj": GPTJConfig(**_GPT2, rotary_dim=4),
    "gpt_neox": GPTNeoXConfig(**_PLAIN),
    "llama": LlamaConfig(**_GROUPED),
    "mistral": MistralConfig(**_GROUPED, sliding_window=4),
    "olmo2": Olmo2Config(**_GROUPED),
    "opt": OPTConfig(
        **_SIZES, hidden_size=32, ffn_dim=48, word_embed_proj_dim=32, max_position_embeddings=64
    ),
    "phi": PhiConfig(**_GROUPED),
    "phi3": Phi3Config(**_GROUPED, pad_token_id=0),
    "qwen2": Qwen2Config(**_GROUPED),
    "qwen3": Qwen3Config(**_GROUPED, head_dim=8),
    "smollm3": SmolLM3Config(**_GROUPED, pad_token_id=0),
}

Values = dict[tuple[str, str], Any]


def save_model(folder: Path, tiny_model: Path, config: PretrainedConfig, dtype: torch.dtype) -> Path:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((tiny_model / name).read_bytes())
    config.initializer_range = 0.2
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).to(dtype).save_pretrained(folder)
    return folder


def read_in_shards(folder: Path, settings: ActivationSettings, shards: int, texts: list[Text]) -> Values:
    """Run texts through all shards, one after another."""
    activations: Values = {}
    sentences = read_texts(folder, settings, texts)
    hidden: list[torch.Tensor] | None = None
    for number in range(shards):
        shard = BlockShard(folder, settings, shard_layers(folder, number, shards))
        reading, hidden = run_layers(shard, sentences, 100, hidden)
        activations |= {(pooling, str(site)): values for (pooling, site), values in reading.items()}
    return activations


def read_in_blocks(folder: Path, settings: ActivationSettings, blocks: int, texts: list[Text]) -> Values:
    """Run the same texts in a pass over blocks of layers, with hidden states on disk between them."""
    layers = [shard_layers(folder, number, blocks) for number in range(blocks)]
    sentences = read_texts(folder, settings, texts)
    activations: Values = {}

    def consume(block: Block) -> None:
        for pooled in block.pooled:
            for site, values in pooled.of_sites():
                activations[pooled.pooling, str(site)] = values.numpy().copy()

    with TemporaryDirectory() as name:
        spool = SpoolSettings(Path(name), memory_bytes=0)
        ModelPass(folder, settings, sentences, 100, spool, blocks=layers).run(consume)
    return activations


def assert_identical(actual: Values, expected: Values, name: object) -> None:
    assert actual.keys() == expected.keys()
    for key, values in expected.items():
        assert np.array_equal(actual[key], values), (key, name)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_shards_are_bit_identical_to_the_full_model(
    tmp_path: Path, tiny_model: Path, name: str, dtype: str
) -> None:
    """A shard could lack state of earlier layers, such as masks or positions."""
    folder = save_model(tmp_path, tiny_model, ARCHITECTURES[name], getattr(torch, dtype))
    texts = [Text(text, []) for _, text in tiny.sentences()[:9]]
    for sites in ("linears", "mlp"):
        settings = ActivationSettings(dtype, sites, ["max", "last"])
        full = read_in_shards(folder, settings, 1, texts)
        assert len(full) >= 3 * LAYERS
        for shards in (2, 3, LAYERS):
            assert_identical(read_in_shards(folder, settings, shards, texts), full, shards)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_mlp_sites_are_the_hidden_neurons(tmp_path: Path, tiny_model: Path, name: str) -> None:
    """Another linear module of the same width could pass for the down projection."""
    folder = save_model(tmp_path, tiny_model, ARCHITECTURES[name], torch.float32)
    sites = BlockShard(folder, ActivationSettings("float32", "mlp", ["max"])).sites
    assert [site.layer for site in sites] == list(range(LAYERS))
    config = ARCHITECTURES[name].to_dict()
    expected = config.get("intermediate_size") or config.get("ffn_dim") or 4 * 32
    assert {site.width for site in sites} == {expected}


def test_a_shard_loads_only_its_layers(tiny_model: Path) -> None:
    """Other layers or the embedding would take memory."""
    loaded = load_layers(tiny_model, range(1, 3), torch.float32)
    assert list(loaded.layers) == [1, 2]
    names = [name for name, _ in loaded.model.named_parameters()]
    assert {name.split(".")[2] for name in names if name.startswith("model.layers")} == {"1", "2"}
    assert not [name for name in names if "embed" in name or "head" in name]


def test_shards_are_contiguous_and_nearly_equal(tiny_model: Path) -> None:
    """A layer could be read twice or by no shard."""
    layers = [shard_layers(tiny_model, number, 2) for number in range(2)]
    assert layers == [range(1), range(1, 3)]
    with pytest.raises(UserError, match="has 3 layers, too few for 4 shards"):
        shard_layers(tiny_model, 0, 4)
    with pytest.raises(UserError, match="has layers 0 to 2; requested 2 to 3"):
        load_layers(tiny_model, range(2, 4), torch.float32)


def list_sites(folder: Path, *patterns: str) -> list[str]:
    sites = BlockShard(folder, ActivationSettings("float32", list(patterns), ["max"])).sites
    return [f"{site} {site.width}" for site in sites if site.layer == 0]


def test_sites_are_selected_by_regular_expressions(tiny_model: Path) -> None:
    """A pattern could match parts of paths, or the wrong side of a module."""
    assert list_sites(tiny_model, r"mlp\.(up|gate)_proj", r"self_attn\.o_proj:input") == [
        "L00.mlp.gate_proj.output 48",
        "L00.mlp.up_proj.output 48",
        "L00.self_attn.o_proj.input 32",
    ]
    assert list_sites(tiny_model, "mlp.act_fn", "self_attn", "post_attention_layernorm:input") == [
        "L00.mlp.act_fn.output 48",
        "L00.self_attn.output 32",
        "L00.post_attention_layernorm.input 32",
    ]
    for pattern, message in (
        (
            "mlp.nothing",
            "no layer of LlamaModel has 'mlp.nothing'; the modules of a layer are self_attn",
        ),
        ("(", "is not a valid regular"),
        ("self_attn:input", "input of self_attn in layer 0 of LlamaModel is not one vector per token"),
    ):
        with pytest.raises(UserError, match=message):
            list_sites(tiny_model, pattern)


def test_hidden_states_are_extracted_from_all_output_types() -> None:
    """GPT-1's layers return lists, others tuples or the tensor itself."""
    hidden = torch.zeros(1, 2, 3)
    for output in (hidden, (hidden, None), [hidden, None]):
        assert extract_hidden_state(output) is hidden
    assert extract_hidden_state(()) is None
    assert extract_hidden_state(("a", hidden)) is None


def test_a_missing_site_is_reported_with_its_model(tiny_model: Path) -> None:
    """In a sweep over many models, the user could not tell which one is affected."""
    with pytest.raises(UserError, match=r"model \S+@main: sites: no layer of LlamaModel has 'mlp"):
        model_size(resolve(str(tiny_model), "main", Path()), ["mlp.nothing"])


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_sites_from_the_configuration_are_those_of_the_model(
    tmp_path: Path, tiny_model: Path, name: str
) -> None:
    """The plan builds models without weights; a wrong width would give wrong sizes."""
    folder = save_model(tmp_path, tiny_model, ARCHITECTURES[name], torch.float32)
    modules = "mlp|self_attn|attn|self_attention|attention|activation_fn"
    if name == "bloom":
        modules = "self_attention.dense|mlp.dense_4h_to_h"
    for selection in ("mlp", "linears", [modules]):
        planned = find_sites_from_config(ARCHITECTURES[name], selection)
        settings = ActivationSettings("float32", selection, ["max"])
        assert planned.sites == BlockShard(folder, settings).sites
        assert (planned.hidden_size, planned.n_layers, planned.notes) == (32, LAYERS, [])


def test_the_residual_stream_is_a_separate_site(tiny_model: Path) -> None:
    """With `mean` pooling, the residual stream could pass for neurons."""
    texts = [Text("A cat.", [])]
    reading = pool(tiny_model, ActivationSettings("float32", "mlp", ["mean"]), texts, 100)
    assert {(pooling, site.name) for pooling, site in reading} == {
        ("mean", "mlp.hidden"),
        ("mean", "residual"),
        ("last", "residual"),
        ("concept", "residual"),
    }
    settings = ActivationSettings("float32", "mlp", ["mean"], include_hidden_states=False)
    assert {site.name for _, site in pool(tiny_model, settings, texts, 100)} == {"mlp.hidden"}
