"""Parameters of activations that depend on the kind of device. Where the sweep file says what a model
runs on, they do not depend on the machine that plans."""

from __future__ import annotations

from cluster.runtime.devices import count_gpus, default_dtype
from jobs.config.models import Model

_CPU_TOKEN_BUDGET, _GPU_TOKEN_BUDGET = 1024, 16384


def runs_on_gpus(model: Model) -> bool:
    """Whether a model is read as on GPUs: if `gpus_per_shard` is set, as it says; else if the machine
    that plans has one."""
    if "gpus_per_shard" in model.model_fields_set:
        return model.gpus_per_shard > 0
    return count_gpus() > 0


def activation_dtype(model: Model) -> str:
    """The dtype of a model's weights and activations."""
    return default_dtype(runs_on_gpus(model)) if model.dtype == "auto" else model.dtype


def token_budget(model: Model) -> int:
    """The most tokens in a batch: on GPUs as many as keep a large one busy (`docs/gpu.md`), on CPUs as
    many as the caches hold. In bfloat16 some values depend on the batch."""
    return _GPU_TOKEN_BUDGET if runs_on_gpus(model) else _CPU_TOKEN_BUDGET
