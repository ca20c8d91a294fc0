"""Configurations of models: reading them, and whether they are of a causal language model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from storage.errors import UserError

REMOTE_CODE = "remote-code"

_CAUSAL_LM_SUFFIXES = ("ForCausalLM", "LMHeadModel")


def read_config(folder: str | Path, trust_remote_code: bool, commit: str | None = None) -> Any:
    """Load the configuration of a model in a folder, or on the hub at a commit.

    Raises UserError if it is unreadable, or of an architecture that transformers lacks.
    """
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, revision=commit, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{folder}: config.json cannot be read: {error}".splitlines()[0]) from error


def check_causal_lm(model: str, config: dict[str, Any], allowed: frozenset[str] = frozenset()) -> None:
    """Raise UserError unless a config.json is of a causal language model, or of a model of text and
    images that contains one, and its code may run."""
    model_type = config.get("model_type")
    architectures = config.get("architectures") or []
    has_code = "AutoModelForCausalLM" in (config.get("auto_map") or {})
    is_causal = bool(model_type and architectures and architectures[0].endswith(_CAUSAL_LM_SUFFIXES))
    if (has_code and REMOTE_CODE in allowed) or (is_causal and not has_code):
        return
    # Imported only when needed because it is slow.
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES,
    )

    if has_code and model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise UserError(
            f"model {model!r}: requires remote code, which is disabled; if you trust its author, "
            f"add `allow: [{REMOTE_CODE}]` to the model"
        )
    if is_causal:
        return
    mappings = [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES]
    if not config.get("is_encoder_decoder"):
        mappings.append(MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES)
    if not any(model_type in mapping for mapping in mappings):
        raise UserError(f"model {model!r}: is not a causal language model (model_type {model_type!r})")
    values = [value for mapping in mappings for value in mapping.values()]
    class_names = {name for value in values for name in ([value] if isinstance(value, str) else value)}
    if architectures and not class_names.intersection(architectures):
        name = architectures[0]
        raise UserError(f"model {model!r}: is not a causal language model (architecture {name})")
