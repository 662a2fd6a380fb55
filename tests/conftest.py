"""Settings shared by all tests, and the import path of `oracle`."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import hypothesis

# Several BLAS threads on few busy cores wait for each other most of the time.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

# Widths measured on this machine must not decide what the tests see.
os.environ["ONNXPRUNE_CACHE"] = os.path.join(tempfile.gettempdir(), f"onnxprune-no-cache-{os.getpid()}")

sys.path.insert(0, str(Path(__file__).parent))

hypothesis.settings.register_profile(
    "onnxprune",
    derandomize=True,
    deadline=None,
    database=None,
    max_examples=150,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("onnxprune")
