"""What this machine's processor can do."""

from __future__ import annotations

from pathlib import Path

_BFLOAT16_FLAGS = {"avx512_bf16", "amx_bf16"}


def native_dtype() -> str:
    """The dtype that is fast here: bfloat16 with a GPU or on a CPU that computes in it, else float32."""
    if visible_gpus():
        return "bfloat16"
    information = Path("/proc/cpuinfo")
    flags = information.read_text().split() if information.is_file() else []
    return "bfloat16" if _BFLOAT16_FLAGS.intersection(flags) else "float32"


def visible_gpus() -> int:
    """GPUs of this machine."""
    return len(list(Path("/proc/driver/nvidia/gpus").glob("*")))
