"""What the processor is fast at."""

from __future__ import annotations

import platform
from functools import lru_cache
from pathlib import Path

CUDA_MULTIPLE = 8


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


@lru_cache(maxsize=1)
def model() -> str:
    """The name of the processor, as the system gives it; "unknown" where it does not."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    fields = (line.partition(":") for line in lines)
    named = next((value.strip() for key, _, value in fields if key.strip() == "model name"), "")
    return named or platform.processor() or platform.machine() or "unknown"
