"""A sample of the coverage sweep: the command line on whole files, judged by the oracle of benchmarks/sweep.py."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent
ZOO = Path(os.environ.get("ONNXPRUNE_ZOO", ROOT.parent / "shared" / "eval" / "zoo" / "models"))
SAMPLE = (
    "bigru.ts",
    "focus_space2depth.ts",
    "hf_falcon_mqa.dynamo",
    "hf_mixtral_moe.ts",
    "hf_vit.dynamo",
    "onnxzoo_asis_bvlc_alexnet",
    "qqdq_mobilenetv2",
    "tv_densenet_s.ts",
)


@pytest.fixture(scope="module")
def sweep() -> ModuleType:
    spec = importlib.util.spec_from_file_location("sweep", ROOT / "benchmarks" / "sweep.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", sorted((ROOT / "models").glob("*.onnx")), ids=lambda p: p.stem)
def test_the_models_of_the_repository(sweep: ModuleType, path: Path) -> None:
    _require_exact(sweep.check(path, "0.5", "1"))


@pytest.mark.parametrize("name", SAMPLE)
def test_a_sample_of_the_zoo(sweep: ModuleType, name: str) -> None:
    path = ZOO / f"{name}.onnx"
    if not path.exists():
        pytest.skip(f"{path} is not there; ONNXPRUNE_ZOO names the folder of the evaluation models")
    _require_exact(sweep.check(path, "0.5", "1"))


def _require_exact(row: dict[str, object]) -> None:
    assert row["status"] == "pruned", row
    assert row["interface_kept"]
    assert row["oracle"]["exact"]  # type: ignore[index]
