"""A model in shards must be the model: the very same numbers, for every architecture and every cut."""

from __future__ import annotations

from pathlib import Path
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
    MixtralConfig,
    Olmo2Config,
    OPTConfig,
    Phi3Config,
    PhiConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
)

from cluster.activations.shard import Hidden, Settings, Shard
from cluster.activations.tokens import Text
from cluster.models.partial_model import load_layers, shard_layers
from cluster.models.sites import describe, hidden_values
from cluster.models.size import size_of
from cluster.models.weights import resolve
from storage.errors import UserError
from tests import tiny

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


def make(folder: Path, tiny_model: Path, config: PretrainedConfig, dtype: torch.dtype) -> Path:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((tiny_model / name).read_bytes())
    config.initializer_range = 0.2
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).to(dtype).save_pretrained(folder)
    return folder


def read_in_shards(folder: Path, settings: Settings, shards: int, given: list[Text]) -> Values:
    """Pass a work unit through all shards, in two pieces."""
    found: Values = {}
    incoming: list[Hidden | None] = [None, None]
    for number in range(shards):
        shard = Shard(folder, settings, shard_layers(folder, number, shards))
        work = shard.begin(given, 100)
        half = len(work.batches) // 2
        pieces = (range(half), range(half, len(work.batches)))
        incoming = [
            shard.step(work, piece, hidden) for piece, hidden in zip(pieces, incoming, strict=True)
        ]
        reading = shard.finish(work)
        found |= {(pooling, str(site)): values for (pooling, site), values in reading.values.items()}
    return found


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_shards_give_exactly_what_the_whole_model_gives(
    tmp_path: Path, tiny_model: Path, name: str, dtype: str
) -> None:
    folder = make(tmp_path, tiny_model, ARCHITECTURES[name], getattr(torch, dtype))
    given = [Text(text, []) for _, text in tiny.sentences()[:9]]
    for sites in ("linears", "mlp"):
        settings = Settings(dtype, sites, ["max", "last"])
        whole = read_in_shards(folder, settings, 1, given)
        assert len(whole) >= 3 * LAYERS
        for shards in (2, 3, LAYERS):
            found = read_in_shards(folder, settings, shards, given)
            assert found.keys() == whole.keys()
            for key, values in whole.items():
                assert np.array_equal(found[key], values), (key, shards)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_mlps_hidden_neurons_are_found(tmp_path: Path, tiny_model: Path, name: str) -> None:
    folder = make(tmp_path, tiny_model, ARCHITECTURES[name], torch.float32)
    sites = Shard(folder, Settings("float32", "mlp", ["max"])).sites
    assert [site.layer for site in sites] == list(range(LAYERS))
    given = ARCHITECTURES[name].to_dict()
    expected = given.get("intermediate_size") or given.get("ffn_dim") or 4 * 32
    assert {site.width for site in sites} == {expected}


def test_a_shard_holds_its_own_layers_and_no_other(tiny_model: Path) -> None:
    model, layers = load_layers(tiny_model, range(1, 3), torch.float32)
    assert list(layers) == [1, 2]
    names = {name.split(".")[1] for name, _ in model.named_parameters() if name.startswith("layers")}
    assert names == {"1", "2"}
    assert not [name for name, _ in model.named_parameters() if "embed" in name]


def test_shards_are_contiguous_and_even(tiny_model: Path) -> None:
    cut = [shard_layers(tiny_model, number, 2) for number in range(2)]
    assert cut == [range(1), range(1, 3)]
    with pytest.raises(UserError, match="has 3 layers, too few for 4 shards"):
        shard_layers(tiny_model, 0, 4)
    with pytest.raises(UserError, match="has layers 0 to 2; asked for 2 to 3"):
        load_layers(tiny_model, range(2, 4), torch.float32)


def sites_of(folder: Path, *patterns: str) -> list[str]:
    found = Shard(folder, Settings("float32", list(patterns), ["max"])).sites
    return [f"{site} {site.width}" for site in found if site.layer == 0]


def test_sites_are_named_by_regular_expressions(tiny_model: Path) -> None:
    assert sites_of(tiny_model, r"mlp\.(up|gate)_proj", r"self_attn\.o_proj:input") == [
        "L00.mlp.gate_proj.output 48",
        "L00.mlp.up_proj.output 48",
        "L00.self_attn.o_proj.input 32",
    ]
    assert sites_of(tiny_model, "mlp.act_fn", "self_attn", "post_attention_layernorm:input") == [
        "L00.mlp.act_fn.output 48",
        "L00.self_attn.output 32",
        "L00.post_attention_layernorm.input 32",
    ]
    for wrong, message in (
        ("mlp.nothing", "matches no module; a layer has self_attn, self_attn.q_proj"),
        ("(", "is no regular"),
        ("self_attn:input", "input of self_attn in layer 0 of LlamaModel is not one row of values"),
    ):
        with pytest.raises(UserError, match=message):
            sites_of(tiny_model, wrong)


def test_a_hidden_state_is_found_in_whatever_a_layer_gives() -> None:
    """The first GPT's layers give lists, others tuples or the tensor itself."""
    hidden = torch.zeros(1, 2, 3)
    for given in (hidden, (hidden, None), [hidden, None]):
        assert hidden_values(given) is hidden
    assert hidden_values(()) is None
    assert hidden_values(("a", hidden)) is None


def test_a_plan_names_the_model_that_lacks_a_site(tiny_model: Path) -> None:
    """Of a sweep over many models the user must know which."""
    with pytest.raises(UserError, match=r"model \S+@main: sites: 'mlp.nothing' matches no module"):
        size_of(resolve(str(tiny_model), "main", Path()), ["mlp.nothing"])


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_what_a_plan_says_of_the_sites_is_what_the_model_has(
    tmp_path: Path, tiny_model: Path, name: str
) -> None:
    """The plan has no weights; a wrong width there would be a wrong number of bytes."""
    folder = make(tmp_path, tiny_model, ARCHITECTURES[name], torch.float32)
    for wanted in ("mlp", "linears", ["mlp|self_attn|attn|self_attention|attention|activation_fn"]):
        planned, width = describe(ARCHITECTURES[name], wanted)
        assert planned == Shard(folder, Settings("float32", wanted, ["max"])).sites
        assert width == 32


def test_a_mixture_of_experts_with_fused_weights_says_so(tmp_path: Path, tiny_model: Path) -> None:
    config = MixtralConfig(**_GROUPED, num_local_experts=2, num_experts_per_tok=1)
    folder = make(tmp_path, tiny_model, config, torch.float32)
    with pytest.raises(UserError, match=r"layer 0 of MixtralModel has no linear .* mixture of experts"):
        Shard(folder, Settings("float32", "mlp", ["max"]))
    assert sites_of(folder, "mlp:output") == ["L00.mlp.output 32"]


def test_the_residual_stream_is_no_site_of_neurons(tiny_model: Path) -> None:
    """With `mean` pooling both have the same pooling; the residual stream would pass for neurons."""
    reading = Shard(tiny_model, Settings("float32", "mlp", ["mean"])).read([Text("A cat.", [])], 100)
    assert {(pooling, site.name) for pooling, site in reading.values} == {
        ("mean", "mlp.hidden"),
        ("mean", "residual"),
        ("last", "residual"),
    }
    only_neurons = Shard(tiny_model, Settings("float32", "mlp", ["mean"], states=False))
    assert {site.name for _, site in only_neurons.read([Text("A cat.", [])], 100).values} == {
        "mlp.hidden"
    }
