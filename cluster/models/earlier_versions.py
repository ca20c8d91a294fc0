"""Which activations of earlier versions are still valid."""

from __future__ import annotations

from cluster.models.weights import Weights, available_config

READING = 2
"""Version of the rules by which a model's sites are found and read."""

_UNCHANGED = frozenset(
    """
    bloom falcon gemma gemma2 gemma3_text gpt2 gptj gpt_neox llama mistral olmo2 opt phi phi3 qwen2 qwen3
    smollm3
    """.split()  # noqa: SIM905
)
"""Types of models that earlier versions read correctly, and were tested on."""


def reading_params(weights: Weights) -> dict[str, int]:
    """Parameters of a stage by which activations of a wrongly read model are not reused.

    They depend on the model alone, not on caches: GGUF files were also converted in another way, and
    custom code was not tested.
    """
    if weights.source != "gguf" and available_config(weights).get("model_type") in _UNCHANGED:
        return {}
    return {"reading": READING}
