"""A tiny configuration of every architecture that transformers can build as a language model.

Widths are distinct where the architecture lets them be, so that a module mistaken for another shows:
the residual stream is 32 wide, a dense MLP 48, an expert 24, shared experts 40 or 3 * 24, an input
per layer 16, a vision tower 16 with MLPs of 20. Where an architecture mixes sorts of layers, so do its
four. Token ids below `ORDINARY_TOKENS` have no special meaning but 0, 1 and 2, which pad, begin and
end a text.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import AutoConfig, PretrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES,
)

LAYERS = 4
VOCABULARY = 301
ORDINARY_TOKENS = 250

# Types for AutoModelForCausalLM, and for AutoModelForImageTextToText or AutoModelForMultimodalLM. Some
# are in both: the first may then be the text tower alone.
CAUSAL: list[str] = list(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
WRAPPERS: list[str] = list(
    {**MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES, **MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES}
)

_ENCODER_DECODER = "It is an encoder and a decoder, and the text is the decoder's."
_NEEDS_IMAGE = "Its forward asks for an image."
_NEEDS_TIMM = "Its vision tower needs the package timm."
_NO_FORWARD = "It has no forward of its own; its thinker, a type of its own, has."
_ASSISTANT = "It drafts from the embeddings and keys of another model, not from tokens."
_TEXT_TO_MUSIC = "AutoModelForCausalLM gives its decoder the configuration of the whole, which fails."

# Types that no configuration makes usable here with tokens alone, and why.
UNBUILDABLE: dict[str, str] = {
    "blip": _NEEDS_IMAGE,
    "blip-2": _NEEDS_IMAGE,
    "diffusion_gemma": "It refines a canvas of tokens given a prompt, and continues no text.",
    "evolla": "AutoModelForImageTextToText does not recognise its configuration in transformers 5.19.",
    "fast_vlm": _NEEDS_TIMM,
    "florence2": _ENCODER_DECODER,
    "gemma3n": _NEEDS_TIMM,
    "gemma4_assistant": _ASSISTANT,
    "gemma4_unified_assistant": _ASSISTANT,
    "idefics": _NEEDS_IMAGE,
    "instructblip": _NEEDS_IMAGE,
    "instructblipvideo": _NEEDS_IMAGE,
    "kosmos-2": _NEEDS_IMAGE,
    "kyutai_speech_to_text": "Each position has a token of text and 32 of sound.",
    "musicgen": _TEXT_TO_MUSIC,
    "musicgen_melody": _TEXT_TO_MUSIC,
    "perception_lm": _NEEDS_TIMM,
    "pi0": "Its forward asks for the state of a robot.",
    "pix2struct": _ENCODER_DECODER,
    "pp_formulanet": _ENCODER_DECODER,
    "qwen2_5_omni": _NO_FORWARD,
    "qwen3_omni_moe": _NO_FORWARD,
    "t5gemma2": _ENCODER_DECODER,
    "udop": _ENCODER_DECODER,
    "vision-encoder-decoder": _ENCODER_DECODER,
    "voxtral_realtime": "Its forward asks for sound.",
}


def _named(value: Any, names: str) -> dict[str, Any]:
    return dict.fromkeys(names.split(), value)


# What a language model's configuration gets, of the names that it has.
_TEXT: dict[str, Any] = {
    **_named(VOCABULARY, "vocab_size decoder_vocab_size vocab_size_per_layer_input"),
    **_named(32, "hidden_size d_model n_embd emb_dim embed_dim lru_width"),
    **_named(20, "embedding_size input_embedding_size word_embed_proj_dim"),
    **_named(20, "alignment_intermediate_size projector_hidden_size projection_hidden_size"),
    **_named(28, "output_embedding_size"),
    **_named(48, "intermediate_size ffn_dim n_inner d_ff dff dim_ff d_inner ffn_hidden_size"),
    **_named(48, "encoder_ffn_dim decoder_ffn_dim feed_forward_size dense_intermediate_size"),
    **_named(48, "intermediate_size_mlp prefix_dense_intermediate_size"),
    **_named(24, "moe_intermediate_size expert_ffn_hidden_size"),
    **_named(40, "shared_expert_intermediate_size shared_intermediate_size"),
    **_named(40, "moe_shared_expert_intermediate_size"),
    **_named(16, "hidden_size_per_layer_input"),
    **_named(LAYERS, "num_hidden_layers n_layer n_layers num_layers layers num_blocks"),
    **_named(LAYERS, "decoder_layers num_decoder_layers"),
    **_named(2, "encoder_layers num_encoder_layers"),
    **_named(4, "num_attention_heads n_head n_heads num_heads attention_heads"),
    **_named(4, "encoder_attention_heads decoder_attention_heads swa_num_attention_heads"),
    **_named(4, "num_encoder_attention_heads num_decoder_attention_heads"),
    **_named(2, "num_key_value_heads num_kv_heads swa_num_key_value_heads"),
    **_named(8, "head_dim dim_head d_head attention_head_size kv_channels swa_head_dim d_kv"),
    **_named(64, "max_position_embeddings n_positions n_ctx max_seq_len context_length"),
    **_named(64, "max_target_positions max_source_positions model_max_length"),
    **_named(64, "original_max_position_embeddings"),
    **_named(4, "sliding_window sliding_window_size attention_window_size window_size local_attention"),
    **_named(4, "attention_chunk_size rotary_dim"),
    # mixtures of experts
    **_named(4, "num_experts n_routed_experts num_local_experts moe_num_experts"),
    **_named(2, "num_experts_per_tok num_experts_per_token moe_k moe_topk top_k_experts"),
    **_named(3, "n_shared_experts num_shared_experts moe_num_shared_experts"),
    **_named(1, "n_group num_expert_group topk_group first_k_dense_replace num_dense_layers"),
    # multi-head latent attention and its indexer
    **_named(12, "q_lora_rank o_lora_rank"),
    **_named(8, "kv_lora_rank qk_nope_head_dim v_head_dim index_head_dim"),
    **_named(4, "qk_rope_head_dim"),
    **_named(64, "index_topk"),
    **_named(2, "index_n_heads"),
    # recurrent layers
    **_named(8, "mamba_d_state state_size ssm_state_size mamba_d_head mamba_head_dim mamba_headdim"),
    **_named(8, "mamba_n_heads mamba_num_heads n_mamba_heads"),
    **_named(1, "mamba_n_groups n_groups mamba_ngroups"),
    **_named(4, "mamba_chunk_size chunk_size time_step_rank mamba_dt_rank"),
    **_named(2, "linear_num_key_heads linear_num_heads"),
    **_named(4, "linear_num_value_heads"),
    **_named(8, "linear_key_head_dim linear_value_head_dim linear_head_dim"),
    # tokens
    **_named(0, "pad_token_id"),
    **_named(1, "bos_token_id"),
    **_named(2, "eos_token_id decoder_start_token_id forced_eos_token_id"),
    "is_decoder": True,
}

# What the configuration of a vision or audio tower gets.
_TOWER: dict[str, Any] = {
    **_named(16, "hidden_size embed_dim d_model width hidden_dim mm_embed_dim output_proj_dims"),
    **_named(16, "patch_embed_hidden_size encoder_hidden_size vision_output_dim projector_input_dim"),
    **_named(16, "projector_output_dim output_channels downsample_hidden_size nemo_conv_channels"),
    **_named(16, "ext_pw_out_channel depthwise_separable_out_channel image_token_embed_dim num_filters"),
    **_named(20, "intermediate_size encoder_ffn_dim mlp_dim"),
    **_named(2, "num_hidden_layers encoder_layers depth num_layers layers num_blocks"),
    **_named(2, "num_attention_heads num_heads encoder_attention_heads heads num_key_value_heads"),
    **_named(8, "head_dim dim_head"),
    **_named(28, "image_size crop_size"),
    **_named(14, "patch_size"),
    **_named(32, "out_hidden_size projection_dim output_dim base_channels num_embeddings codebook_size"),
    **_named(32, "text_hidden_size mm_posemb_size vocab_size"),
}

# Lists with an entry per layer; the kinds of the default configuration alternate.
_PER_LAYER = ("layer_types", "mlp_layer_types", "layers_block_type", "indexer_types")

_LOCAL = {"layer_types": ["sliding_attention", "full_attention"] * 2}
_SLIDING = {"use_sliding_window": True, **_LOCAL}
_ROTARY = {"rope_type": "default", "rope_theta": 10_000.0}
# the parts of a head that turn with time, height and width
_MULTIMODAL_ROTARY = {"rope_parameters": {**_ROTARY, "mrope_section": [2, 1, 1]}}
# for mixtures without dense layers, whose experts have the name of an MLP's width
_EXPERT = {"intermediate_size": 24}
# the parts of a configuration that are language models
_TEXT_PARTS = ("text_config", "thinker_config", "talker_config")

# What differs from the regular case, also where the architecture is part of another.
_IRREGULAR: dict[str, dict[str, Any]] = {
    "aria_text": _EXPERT,
    "bamba": {"attn_layer_indices": [1, 3]},
    "blt": {
        "encoder_hash_byte_group_vocab": 50,
        "encoder_config": {"hidden_size_global": 32, "vocab_size": VOCABULARY},
        "decoder_config": {"hidden_size_global": 32, "vocab_size": VOCABULARY},
        "patcher_config": {"vocab_size": VOCABULARY},
        "global_config": {
            **{"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": LAYERS},
            **{"num_attention_heads": 4, "num_key_value_heads": 2},
        },
    },
    "chameleon": {"vocabulary_map": {"<image>": 250}},
    "cohere2_moe": _EXPERT,
    "cohere_compass_text": {
        **_LOCAL,
        "rope_parameters": {
            "sliding_attention": {**_ROTARY, "mrope_section": [1, 1, 2]},
            "full_attention": {**_ROTARY, "mrope_section": [1, 1, 2]},
        },
    },
    "cosmos3_edge_text": _MULTIMODAL_ROTARY,
    "dbrx": {
        # transformers 5.19 reads the base from the attention's part and clamps without a bound
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10_000.0, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": 24, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "dots1": _LOCAL,
    "emu3": {"vocabulary_map": {"<|extra_200|>": 250, "<image>": 251}},
    "ernie4_5_vl_moe_text": {
        "moe_intermediate_size": [24, 12],
        "rope_parameters": {**_ROTARY, "mrope_section": [1, 1, 2]},
    },
    "falcon_h1": {"mamba_d_ssm": 64},
    "flex_olmo": _EXPERT,
    "fun_asr_nano": {"adaptor_config": {"hidden_size": 32, "intermediate_size": 8}},
    "gemma3": {"vision_config": {"num_hidden_layers": LAYERS}},
    "gemma3n_text": {
        "num_kv_shared_layers": 2,
        "activation_sparsity_pattern": [0.9, 0.0, 0.9, 0.0],
        "laurel_rank": 12,
        "altup_num_inputs": 2,
    },
    "gemma4": {
        "text_config": {
            **{"hidden_size_per_layer_input": 0, "use_double_wide_mlp": False},
            "enable_moe_block": True,
        }
    },
    "gemma4_text": {"global_head_dim": 16, "num_kv_shared_layers": 2, "use_double_wide_mlp": True},
    "gemma4_unified_text": {"global_head_dim": 16},
    "glm4v_moe_text": {
        "rope_parameters": {**_MULTIMODAL_ROTARY["rope_parameters"], "partial_rotary_factor": 1.0}
    },
    "glm4v_text": _MULTIMODAL_ROTARY,
    "glm46v_text": _MULTIMODAL_ROTARY,
    "glm_ocr_text": _MULTIMODAL_ROTARY,
    "glm5_next_text": {"index_kpool": 2, "qk_rope_head_dim": 0, "head_dim": 0},
    "glm_moe_dsa": {"indexer_types": ["full", "shared"] * 2},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "gpt_oss": _EXPERT,
    "granite4_vision": {
        "text_config": {"model_type": "granite"},
        **{"spatial_target_layers": [0, 1, 2, 3], "deepstack_layer_map": [[-1, 0]]},
        "downsample_rate": "1/2",
    },
    "granitemoe": _EXPERT,
    "granitemoe_swa": _EXPERT,
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"] * 2, **_EXPERT},
    "granitemoeshared": _EXPERT,
    "hunyuan_v1_moe": _EXPERT,
    "hunyuan_vl_text": _MULTIMODAL_ROTARY,
    "jamba": {"attn_layer_period": 4, "attn_layer_offset": 1, "expert_layer_period": 2},
    "jetmoe": _EXPERT,
    "laguna": _LOCAL,
    "lfm2": {"layer_types": ["conv", "full_attention"] * 2, "block_auto_adjust_ff_dim": False},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "llama4_text": {"interleave_moe_layer_step": 2, "no_rope_layer_interval": 2, **_EXPERT},
    "longcat_flash": {"zero_expert_num": 2},
    "mamba2": {"num_heads": 8},
    "mellum": _LOCAL,
    "minimax": _EXPERT,
    "minimax_m2": _EXPERT,
    "minimax_m3_vl_text": {
        **_EXPERT,
        "layer_types": ["full_attention", "minimax_m3_sparse"] * 2,
        **{"index_block_size": 2, "index_topk_blocks": 2},
    },
    "ministral": _LOCAL,
    "mistral4": {"head_dim": 12},
    "mixtral": _EXPERT,
    "mpt": {"expansion_ratio": 2},
    "nemotron_h_omni": {"vision_config": {"video_temporal_patch_size": 2}},
    "olmoe": _EXPERT,
    "paddleocr_vl_text": _MULTIMODAL_ROTARY,
    "phimoe": _EXPERT,
    "qwen2": _SLIDING,
    "qwen2_5_vl_text": _MULTIMODAL_ROTARY,
    "qwen2_5_omni_text": _MULTIMODAL_ROTARY,
    # transformers 5.19 reads it though the configuration has none
    "qwen2_5_omni_thinker": {"vision_start_token_id": 260},
    "qwen3_omni_moe_thinker": {"vision_start_token_id": 260},
    "qwen2_vl_text": _MULTIMODAL_ROTARY,
    "qwen2_moe": {"mlp_only_layers": [0, 2], **_SLIDING},
    "qwen3": _SLIDING,
    "qwen3_moe": {"mlp_only_layers": [0, 2]},
    "qwen3_next": {"mlp_only_layers": [0, 1]},
    "qwen3_omni_moe_text": {"mlp_only_layers": [0, 2]},
    "qwen3_vl_moe_text": {"mlp_only_layers": [0, 2]},
    "qwen4_exp_text": {
        **{"indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 8},
        **{"indexer_budget": 4, "indexer_compress_ratio": 2, "hc_count": 2, "hc_lowrank": 12},
        **{"ple_layer_ids": [1], "ple_embed_dim": 16, "ngram_vocab_size_base": 50},
        **{"heads_per_ngram": 2, "make_ngram_vocab_size_divisible_by": 8, "split_ngram_parts": 2},
    },
    "recurrent_gemma": {"intermediate_size": 96},  # half of it is an MLP's width
    "reformer": {
        **{"attn_layers": ["local", "lsh"] * 2, "axial_pos_embds": False},
        **{"local_attn_chunk_length": 4, "lsh_attn_chunk_length": 4},
        **{"num_buckets": 2, "hash_seed": 0},
    },
    "roc_bert": {
        **{"pronunciation_vocab_size": 30, "pronunciation_embed_dim": 12},
        **{"shape_vocab_size": 30, "shape_embed_dim": 12},
    },
    "step3p5": {"share_expert_dim": 40},
    "vibevoice_acoustic_tokenizer_encoder": {"num_filters": 1, "depths": [1] * 7},
    "xlm": {"causal": True},
    "xlstm": {"ffn_proj_factor": 1.5, "ffn_round_up_to_multiple_of": 8},
    "xmod": {"languages": ["en_XX", "de_DE"], "default_language": "en_XX"},
    "zamba2": {"adapter_rank": 6},
    "zaya": {
        **{"num_experts_per_tok": 1, "router_hidden_size": 12},
        "layer_types": ["hybrid", "hybrid_sliding"] * 2,
    },
}


def _kinds(name: str, default: list[str] | None) -> list[str]:
    """Return the sorts of layers in a list with an entry per layer."""
    kinds = list(dict.fromkeys(default or []))
    if name == "mlp_layer_types" and set(kinds) <= {"dense", "sparse"}:
        return ["dense", "sparse"]
    return kinds


def _values(config_class: type[PretrainedConfig], table: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments for a class of configurations: of the table, of its parts, and irregular ones."""
    layers: int = table["num_hidden_layers"]
    default = config_class()
    names = set(config_class.__dataclass_fields__) | set(vars(default))
    values: dict[str, Any] = {name: value for name, value in table.items() if name in names}
    special = sorted(n for n in names if n.endswith(("_token_id", "_token_index")) and n not in table)
    values |= {name: ORDINARY_TOKENS + number for number, name in enumerate(special)}
    for name in _PER_LAYER:
        kinds = _kinds(name, getattr(default, name, None))
        if name in names and kinds:
            values[name] = [kinds[layer % len(kinds)] for layer in range(layers)]
    if "kv_lora_rank" in values:
        values |= {"num_key_value_heads": 4, "head_dim": values["qk_rope_head_dim"]}
    for name, declared in config_class.sub_configs.items():
        part = getattr(default, name, None)
        kind: Any = declared if part is None else type(part)
        if kind is not AutoConfig:
            values[name] = _values(kind, _TEXT if name in _TEXT_PARTS else _TOWER)
            if kind.model_type:
                values[name]["model_type"] = kind.model_type
    return _merge(values, _IRREGULAR.get(config_class.model_type, {}))


def _merge(values: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(values)
    for name, change in changes.items():
        nested = isinstance(change, Mapping) and isinstance(merged.get(name), dict)
        merged[name] = _merge(merged[name], change) if nested else change
    return merged


def tiny_config(model_type: str) -> PretrainedConfig:
    """Return a configuration of an architecture with four tiny layers.

    Raises:
        ValueError: The type is one of `UNBUILDABLE`.
    """
    if model_type in UNBUILDABLE:
        raise ValueError(f"{model_type}: {UNBUILDABLE[model_type]}")
    values = _values(CONFIG_MAPPING[model_type], _TEXT)
    config: PretrainedConfig = AutoConfig.for_model(model_type, **values)
    return config
