"""Inputs that were once read wrongly without an error: other modules taken for the MLP, text towers that
were not found, the residual stream in a module's output."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaMLP

from cluster.activations.block_shard import BlockShard
from cluster.activations.pooling_shard import ActivationSettings
from cluster.models.partial_model import load_layers
from cluster.models.sites import ModelSites, find_sites_from_config
from cluster.models.size import model_size
from cluster.models.tokenizer import Text
from cluster.models.weights import ensure_local, resolve
from storage.errors import UserError
from tests.architectures import tiny_config
from tests.plain_forward import SENTENCES, PlainForward, save_model
from tests.pooled import pool, read_texts, run_layers
from tests.test_partial import read_in_shards
from tests.test_steered_shard import load_shards

TEXTS = [Text(sentence, []) for sentence in SENTENCES]


def planned_modules(model_type: str) -> dict[str, list[int]]:
    """Layers of each site of `sites: mlp`, by name, module and width."""
    modules: dict[str, list[int]] = {}
    for site in find_sites_from_config(tiny_config(model_type), "mlp").sites:
        modules.setdefault(f"{site.name} = {site.module} {site.width}", []).append(site.layer)
    return modules


def check_run(folder: Path, model_type: str, selection: str | list[str], planned: ModelSites) -> None:
    """A loaded model has the planned sites, and runs."""
    save_model(folder, model_type)
    settings = ActivationSettings("float32", selection, ["max"])
    shard = BlockShard(folder, settings)
    assert shard.sites == planned.sites
    run_layers(shard, read_texts(folder, settings, TEXTS), 100)


@pytest.mark.parametrize("model_type", ["gemma3n_text", "gemma4_text"])
def test_a_projection_of_per_layer_inputs_is_no_mlp(model_type: str) -> None:
    """It is the last linear module of a layer, and as wide as the residual stream."""
    modules = planned_modules(model_type)
    assert all(name.startswith("mlp.hidden = mlp.down_proj") for name in modules)
    assert sorted(layer for layers in modules.values() for layer in layers) == [0, 1, 2, 3]


def test_a_mixer_is_no_mlp() -> None:
    """Its output projection is as wide as the residual stream, too."""
    assert planned_modules("falcon_h1") == {"mlp.hidden = feed_forward.down_proj 48": [0, 1, 2, 3]}
    assert planned_modules("bamba") == {"mlp.hidden = feed_forward.down_proj 48": [0, 1, 2, 3]}
    assert planned_modules("zamba2") == {
        "mlp.hidden = shared_transformer.feed_forward.down_proj 48": [1, 3]
    }
    found = find_sites_from_config(tiny_config("zamba2"), "mlp")
    assert found.notes == ["2 of 4 layers have none of the selected sites: 0, 2"]
    with pytest.raises(UserError, match="no layer of MambaModel has an MLP"):
        planned_modules("mamba")


def test_dense_shared_and_routed_neurons_have_names_of_their_own() -> None:
    """The shared expert alone passed for the MLP, under the name of dense layers of other widths."""
    assert planned_modules("qwen2_moe") == {
        "mlp.hidden = mlp.down_proj 48": [0, 2],
        "mlp.shared = mlp.shared_expert.down_proj 40": [1, 3],
        "mlp.experts = mlp.experts 96": [1, 3],
    }
    assert planned_modules("mixtral") == {"mlp.experts = mlp.experts 96": [0, 1, 2, 3]}


def test_linear_modules_include_routed_experts(tmp_path: Path) -> None:
    """Of the units of the papers, a mixture of experts had its attention alone."""
    found = find_sites_from_config(tiny_config("olmoe"), "linears")
    assert sum(site.name == "mlp.experts" for site in found.sites) == 4
    assert found.notes == ["mlp.experts: a neuron is 0 on tokens that are not routed to its expert"]
    check_run(tmp_path, "olmoe", "linears", found)


@pytest.mark.parametrize(
    ("model_type", "module", "inner"),
    [
        ("bloom", "mlp", "mlp.dense_4h_to_h"),
        ("bloom", "self_attention", "self_attention.dense"),
        ("mpt", "ffn", "ffn.down_proj"),
        ("bert", "output", "output.dense"),
    ],
)
def test_an_output_with_the_residual_stream_is_rejected(
    tmp_path: Path, model_type: str, module: str, inner: str
) -> None:
    """Such modules add the residual stream inside, so that their output is all but equal to it."""
    for selection in ([f"{module}:output"], [module]):
        with pytest.raises(UserError, match="includes the residual stream; choose a module in it"):
            find_sites_from_config(tiny_config(model_type), selection)
    save_model(tmp_path, model_type)
    with pytest.raises(UserError, match="includes the residual stream"):
        BlockShard(tmp_path, ActivationSettings("float32", [module], ["max"]))
    assert len(find_sites_from_config(tiny_config(model_type), [inner]).sites) == 4


@pytest.mark.parametrize("model_type", ["qwen2_moe", "mixtral", "deepseek_v3", "gpt_oss", "llama4_text"])
def test_outputs_of_mixtures_can_be_planned(tmp_path: Path, model_type: str) -> None:
    """Their experts' kernels need values, which a plan does not have: a traceback."""
    module = "feed_forward" if model_type == "llama4_text" else "mlp"
    planned = find_sites_from_config(tiny_config(model_type), [f"{module}:output"])
    assert [site.width for site in planned.sites] == [32] * 4
    check_run(tmp_path, model_type, [f"{module}:output"], planned)


@pytest.mark.parametrize(
    ("model_type", "left_out"),
    [
        ("mamba", "mixer.dt_proj"),
        ("jamba", "mamba.dt_proj"),
        ("zamba2", "shared_transformer.feed_forward.gate_up_proj_adapter_list.1.0"),
    ],
)
def test_linear_modules_that_do_not_run_are_left_out(
    tmp_path: Path, model_type: str, left_out: str
) -> None:
    """The run ended with advice to name another module, which the user had not named."""
    planned = find_sites_from_config(tiny_config(model_type), "linears")
    (note,) = [note for note in planned.notes if "left out" in note]
    assert left_out in note
    check_run(tmp_path, model_type, "linears", planned)


@pytest.mark.parametrize(
    ("model_type", "reason"),
    [
        ("rwkv", "those of rwkv are not known to equal the whole"),
        ("jamba", "those of jamba are not known"),
        ("bamba", "those of bamba are not known"),
        ("zamba2", "those of zamba2 are not known"),
        ("gemma3n_text", "because of its num_kv_shared_layers"),
        ("gemma4_text", "because of its num_kv_shared_layers"),
    ],
)
def test_shards_that_would_differ_are_rejected_before_they_are_loaded(
    tmp_path: Path, model_type: str, reason: str
) -> None:
    """RWKV's second shard was off by up to 89%; others failed after three tries."""
    save_model(tmp_path, model_type)
    with pytest.raises(UserError, match=f"cannot be divided into shards.* {reason}.*; set shards: 1"):
        load_layers(tmp_path, range(2), torch.float32)


def test_an_embedding_of_another_width_can_be_divided(tmp_path: Path) -> None:
    """OPT-350m projects its embeddings: its second shard began with hidden states of their width."""
    config = tiny_config("opt")
    assert config.word_embed_proj_dim != config.hidden_size
    save_model(tmp_path, "opt", config)
    assert len(load_shards(tmp_path, "mlp", 2)) == 2


def test_a_gemma_4_without_shared_keys_can_be_divided(tmp_path: Path) -> None:
    """A shard without a layer of full attention could not be loaded."""
    config = tiny_config("gemma4_text")
    config.num_kv_shared_layers = config.hidden_size_per_layer_input = 0
    config.use_double_wide_mlp = False
    save_model(tmp_path, "gemma4_text", config)
    settings = ActivationSettings("float32", "mlp", ["max"])
    whole = read_in_shards(tmp_path, settings, 1, TEXTS)
    for shards in (2, 4):
        divided = read_in_shards(tmp_path, settings, shards, TEXTS)
        assert all((divided[key] == values).all() for key, values in whole.items())


@pytest.mark.parametrize(
    "model_type",
    ["llama4", "mistral3", "qwen2_5_vl", "qwen3_5", "llava", "smolvlm", "gemma3"],
)
def test_the_language_model_of_a_wrapper_is_read(tmp_path: Path, model_type: str) -> None:
    """It was "no causal language model", or its layers were not told from as many vision layers."""
    save_model(tmp_path, model_type)
    weights = resolve(str(tmp_path), "main", tmp_path)
    assert model_size(weights, "mlp").layers == len(PlainForward(tmp_path, model_type).layers(4))
    shard = BlockShard(ensure_local(weights), ActivationSettings("float32", "mlp", ["max"]))
    assert "vision" not in type(shard.model).__name__.lower()
    random_init = resolve(str(tmp_path), "random-init", tmp_path)
    folder = ensure_local(random_init)
    assert BlockShard(folder, ActivationSettings("float32", "mlp", ["max"])).sites == shard.sites


def test_a_module_with_a_known_name_is_rejected_if_it_is_no_mlp(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new architecture could give the name of an MLP to something else."""

    def mix_tokens(self: LlamaMLP, x: object) -> object:
        hidden = self.act_fn(self.gate_proj(x)) * self.up_proj(x)
        return self.down_proj(hidden.cumsum(1))

    save_model(tmp_path, "llama")
    monkeypatch.setattr(LlamaMLP, "forward", mix_tokens)
    with pytest.raises(
        UserError, match=r"L00\.mlp\.hidden .* is not an MLP's neurons: mlp\.up_proj does not change it"
    ):
        BlockShard(tmp_path, ActivationSettings("float32", "mlp", ["max"]))


@pytest.mark.parametrize("rope_type", ["dynamic", "longrope"])
@pytest.mark.parametrize("model_type", ["llama", "phi3", "minicpm3"])
def test_rotary_scalings_that_depend_on_the_length_can_be_planned(
    model_type: str, rope_type: str
) -> None:
    """They need the positions' values, which a plan does not have: such models were rejected."""
    config = tiny_config(model_type)
    parameters = {**config.rope_parameters, "rope_type": rope_type, "factor": 2.0}
    if rope_type == "longrope":
        dimensions = getattr(config, "qk_rope_head_dim", None) or config.hidden_size // 4
        factors = [1.0] * (dimensions // 2)
        parameters |= {"long_factor": factors, "short_factor": factors}
        parameters["original_max_position_embeddings"] = 32
    config.rope_parameters = parameters
    assert find_sites_from_config(config, "linears").sites


def test_positions_from_the_padding_token_on_limit_the_tokens(tmp_path: Path) -> None:
    """RoBERTa begins after its padding token: the last tokens were beyond its table of positions."""
    config = tiny_config("roberta")
    config.max_position_embeddings = 10
    save_model(tmp_path, "roberta", config)
    settings = ActivationSettings("float32", "mlp", ["max"])
    sentences = read_texts(tmp_path, settings, TEXTS)
    assert sentences.n_truncated == 1
    assert max(sentences.lengths) == 10 - config.pad_token_id - 1
    run_layers(BlockShard(tmp_path, settings), sentences, 100)


def test_an_mlp_that_runs_in_chunks_is_read_as_a_whole(tmp_path: Path) -> None:
    """The last chunk would pass for the values of all tokens."""
    config = tiny_config("bert")
    save_model(tmp_path / "whole", "bert", config)
    config.chunk_size_feed_forward = 1
    save_model(tmp_path / "chunks", "bert", config)
    settings = ActivationSettings("float32", "mlp", ["max"])
    whole, chunks = (pool(tmp_path / name, settings, TEXTS, 100) for name in ("whole", "chunks"))
    assert all((chunks[key] == values).all() for key, values in whole.items())


def test_an_encoder_is_no_language_model(tmp_path: Path) -> None:
    """BERT's class for language modeling also loads encoders, whose tokens see later ones."""
    config = tiny_config("bert")
    config.is_decoder = False
    save_model(tmp_path, "bert", config)
    with pytest.raises(UserError, match="BertModel reads later tokens too, so it is no causal language"):
        BlockShard(tmp_path, ActivationSettings("float32", "mlp", ["max"]))


def test_an_unknown_mlp_is_rejected_with_the_modules_to_choose_from() -> None:
    """An unknown architecture must not be read by guessing."""
    with pytest.raises(
        UserError, match=r"layer 1 of InklingTextModel has an MLP with an unknown part .*"
    ):
        find_sites_from_config(tiny_config("inkling_text"), "mlp")
    selected: ModelSites = find_sites_from_config(tiny_config("inkling_text"), ["mlp:output"])
    assert len(selected.sites) == 4
