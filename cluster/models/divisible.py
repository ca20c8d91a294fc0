"""Which architectures can be divided into shards, and which have a cache that is exact.

A shard runs the architecture's own code with some of its layers. That gives other values where a layer
uses its place among all layers, or state of earlier layers that is not in the hidden state. So only
architectures are divided whose shards equal the whole in tests/test_every_architecture.py.
"""

from __future__ import annotations

from typing import Any

from cluster.models.architecture import count_layers
from storage.errors import UserError

DIVISIBLE = frozenset(
    """
    afmoe apertus arcee aria aria_text axk1 axk2 aya_vision bart bert bert-generation big_bird
    bigbird_pegasus biogpt bitnet blenderbot blenderbot-small bloom camembert chameleon codegen
    cohere cohere2 cohere2_moe cohere2_vision cohere_compass cohere_compass_text cosmos3_edge
    cosmos3_omni ctrl cwm data2vec-text deepseek_ocr2 deepseek_v2 deepseek_v3 deepseek_v32
    deepseek_vl deepseek_vl_hybrid diffllama doge dots1 electra ernie ernie4_5 ernie4_5_moe
    exaone4 exaone4_5 exaone_moe falcon falcon_h1 falcon_mamba flex_olmo fun_asr_nano fuyu gemma
    gemma2 gemma3 gemma3_text gemma4 gemma4_text gemma4_unified gemma4_unified_text glm glm4
    glm46v glm4_moe glm4_moe_lite glm4v glm4v_moe glm_ocr glmasr glmga got_ocr2 gpt-sw3 gpt2
    gpt_bigcode gpt_neo gpt_neox gpt_neox_japanese gpt_oss gptj granite granite4_vision
    granite_speech granite_speech_plus granite_swa granitemoe granitemoe_swa granitemoehybrid
    granitemoeshared helium hunyuan_v1_dense hunyuan_v1_moe hunyuan_vl hy_v3 hyperclovax
    hyperclovax_vision_v2 idefics2 idefics3 internvl jais2 janus kimi_k25 kimi_linear laguna
    lfm2 lfm2_moe lfm2_vl lighton_ocr llama llama4 llama4_text llava llava_next llava_next_video
    llava_onevision mamba mamba2 marian mbart megatron-bert mellum mimo_v2_flash minicpm3
    minicpmv4_6 minicpmv4_7 minimax minimax_m2 minimax_m3_vl minimax_m3_vl_text ministral
    ministral3 mistral mistral3 mistral4 mixtral modernbert-decoder moshi mpt muse_glimmer mvp
    nanochat nemotron nemotron_h nemotron_h_omni olmo olmo2 olmo3 olmo_hybrid olmoe openai-gpt
    opt ovis2 paddleocr_vl paligemma pegasus persimmon phi phi3 phi4_multimodal phimoe plbart
    pp_chart2table qianfan_ocr qwen2 qwen2_5_omni_thinker qwen2_5_vl qwen2_audio qwen2_moe
    qwen2_vl qwen3 qwen3_5 qwen3_5_moe qwen3_5_moe_text qwen3_5_text qwen3_asr qwen3_moe
    qwen3_next qwen3_omni_moe_thinker qwen3_vl qwen3_vl_moe recurrent_gemma rembert roberta
    roberta-prelayernorm roc_bert roformer seed_oss smollm3 smolvlm solar_open stablelm
    starcoder2 trocr vaultgemma vibevoice_asr video_llama_3 video_llava vipllava voxtral whisper
    xglm xlm-roberta xlm-roberta-xl youtu
    """.split()  # noqa: SIM905
)
"""Model types, those of wrappers included."""

CACHEABLE = frozenset(
    """
    afmoe apertus arcee aria aria_text axk1 aya_vision bart bert bert-generation bigbird_pegasus
    biogpt bitnet blenderbot blenderbot-small bloom camembert chameleon codegen cohere cohere2
    cohere2_moe cohere2_vision cohere_compass cohere_compass_text cosmos3_edge cosmos3_omni ctrl
    cwm data2vec-text deepseek_ocr2 deepseek_v2 deepseek_v3 deepseek_vl deepseek_vl_hybrid
    diffllama doge dots1 electra ernie ernie4_5 ernie4_5_moe exaone4 exaone4_5 exaone_moe falcon
    flex_olmo fun_asr_nano fuyu gemma gemma2 gemma3 gemma3_text gemma3n_text gemma4 gemma4_text
    gemma4_unified gemma4_unified_text glm glm4 glm46v glm4_moe glm4_moe_lite glm4v glm4v_moe
    glm_moe_dsa glm_ocr glmasr glmga got_ocr2 gpt-sw3 gpt2 gpt_bigcode gpt_neo gpt_neox
    gpt_neox_japanese gpt_oss gptj granite granite4_vision granite_speech granite_speech_plus
    granite_swa granitemoe granitemoe_swa granitemoeshared helium hunyuan_v1_dense
    hunyuan_v1_moe hunyuan_vl hy_v3 hyperclovax hyperclovax_vision_v2 idefics2 idefics3 internvl
    jais2 janus kimi_k25 laguna lighton_ocr llama llama4 llama4_text llava llava_next
    llava_next_video llava_onevision marian mbart megatron-bert mellum mimo_v2_flash minicpm3
    minimax_m2 ministral ministral3 mistral mistral3 mistral4 mixtral modernbert-decoder mpt
    muse_glimmer mvp nanochat nemotron olmo olmo2 olmo3 olmoe opt ovis2 paddleocr_vl pegasus
    persimmon phi phi3 phi4_multimodal phimoe plbart pp_chart2table qianfan_ocr qwen2 qwen2_5_vl
    qwen2_moe qwen2_vl qwen3 qwen3_asr qwen3_moe qwen3_vl rembert roberta roberta-prelayernorm
    roc_bert roformer seed_oss smollm3 smolvlm solar_open stablelm starcoder2 trocr vaultgemma
    vibevoice_asr video_llama_3 video_llava vipllava voxtral whisper xglm xlm-roberta
    xlm-roberta-xl youtu zaya
    """.split()  # noqa: SIM905
)
"""Model types whose cache of keys and values gives the same logits as running all tokens at once, in
shards too."""

_STATE_BETWEEN_LAYERS = ("num_kv_shared_layers", "hidden_size_per_layer_input")
"""Settings by which layers use keys and values, or inputs, that are not in the hidden state."""


def find_division_problem(config: Any) -> str | None:
    """Why shards of a model might not give the same values as the whole; None if they do."""
    text_config = config.get_text_config()
    setting = next((name for name in _STATE_BETWEEN_LAYERS if getattr(text_config, name, None)), None)
    if setting is not None:
        return f", because of its {setting}"
    if config.model_type not in DIVISIBLE:
        return f": those of {config.model_type} are not known to equal the whole"
    return None


def check_divisible(config: Any) -> None:
    """Raise UserError unless shards of a model give the same values as the whole."""
    if problem := find_division_problem(config):
        raise UserError(f"cannot be divided into shards{problem}; set shards: 1")


def check_shards(config: Any, n_shards: int) -> None:
    """Raise UserError if a model cannot be divided, or has fewer layers than shards."""
    if n_shards == 1:
        return
    check_divisible(config)
    layers = count_layers(config)
    if n_shards > layers:
        raise UserError(f"has {layers} layers, too few for {n_shards} shards")
