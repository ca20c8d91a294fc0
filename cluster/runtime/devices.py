"""Devices of this machine."""

from __future__ import annotations

from pathlib import Path

_BFLOAT16_FLAGS = {"avx512_bf16", "amx_bf16"}


def default_dtype(on_gpus: bool) -> str:
    """Fastest dtype: bfloat16 on GPUs and where this machine's CPU has native support, else float32."""
    if on_gpus:
        return "bfloat16"
    path = Path("/proc/cpuinfo")
    flags = path.read_text().split() if path.is_file() else []
    return "bfloat16" if _BFLOAT16_FLAGS.intersection(flags) else "float32"


def count_gpus() -> int:
    """Number of NVIDIA GPUs of this machine."""
    return len(list(Path("/proc/driver/nvidia/gpus").glob("*")))
