"""What the processor is fast at."""

from __future__ import annotations

import platform
from functools import lru_cache
from pathlib import Path

from onnxprune.records import FastWidths

CUDA_MULTIPLE = 8
PRODUCT_MULTIPLE = 8
"""Widths of matrix products are rounded to whole vectors of 8 floats."""
LEAST_MULTIPLE = 4
"""ONNX Runtime's blocked convolutions need channel counts that are multiples of this."""


@lru_cache(maxsize=1)
def _has_avx512() -> bool:
    try:
        return "avx512f" in Path("/proc/cpuinfo").read_text(encoding="ascii", errors="ignore")
    except OSError:
        return False


def convolution_block(provider: str) -> int:
    """Channels that one block of a convolution holds: widths within a block cost the same.

    CPU: 16 with AVX-512, else 8 (ONNX Runtime's NCHWc layout). CUDA: 8.
    """
    if provider == "cuda":
        return CUDA_MULTIPLE
    return 16 if _has_avx512() else 8


def table(provider: str) -> FastWidths:
    """The widths that processors of this kind are known to be fast at."""
    block = convolution_block(provider)
    return FastWidths(block, block, block, block, PRODUCT_MULTIPLE)


def least(provider: str) -> FastWidths:
    """The smallest steps that stay on the fast path, whatever a measurement says: grouped convolutions are blocked
    only where each group holds whole blocks.
    """
    least = LEAST_MULTIPLE
    return FastWidths(least, least, least, convolution_block(provider), least)


@lru_cache(maxsize=2)
def model(provider: str = "cpu") -> str:
    """The name of the processor that `provider` runs on, as the system gives it; "unknown" where it does not."""
    if provider == "cuda":
        files = sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
        return _field(files[0], "Model") if files else "unknown"
    named = _field(Path("/proc/cpuinfo"), "model name")
    return named or platform.processor() or platform.machine() or "unknown"


def _field(path: Path, name: str) -> str:
    """The value of the first line "name: value" of a text file; "" where there is none."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    fields = (line.partition(":") for line in lines)
    return next((value.strip() for key, _, value in fields if key.strip() == name), "")
