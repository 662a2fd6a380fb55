"""The trained models of models/ at every ratio, and the PP-OCR models where they are installed."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from oracle import run, worst_difference, zeroed

from onnxprune import Config, NothingToPruneError, inspect, prune

MODELS = sorted((Path(__file__).parent.parent / "models").glob("*.onnx"))
CACHE = Path(os.environ.get("ONNXPRUNE_EVAL_CACHE", Path.home() / ".cache" / "onnxprune-eval")) / "models"
RATIOS = [k / 10 for k in range(1, 10)]


def test_there_are_models() -> None:
    assert len(MODELS) >= 3


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("path", MODELS, ids=lambda p: p.stem)
def test_every_ratio_is_exact_by_an_independent_oracle(path: Path, ratio: float, tmp_path: Path) -> None:
    output, plan = tmp_path / "out.onnx", tmp_path / "plan.json"
    report = prune(path, Config(output=output, ratio=ratio, round_to=1, save_plan=plan, recover=False))
    assert report.after is not None
    assert report.after.parameters < report.before.parameters
    pruned, original = onnx.load(output), onnx.load(path)
    masked = zeroed(original, json.loads(plan.read_text()))
    for batch in (1, 3):
        feed = {"image": np.random.default_rng(batch).standard_normal((batch, 3, 32, 32)).astype(np.float32)}
        assert worst_difference(run(masked, feed), run(pruned, feed)) < 1e-4


@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("path", MODELS, ids=lambda p: p.stem)
def test_default_rounding_stays_on_the_fast_path(path: Path, ratio: float, tmp_path: Path) -> None:
    """Whatever the ratio, no convolution gets a width that is not a multiple of 4 (nothing at all is an answer)."""
    try:
        report = prune(path, Config(output=tmp_path / "out.onnx", ratio=ratio, recover=False))
    except NothingToPruneError:
        assert ratio < 0.5
        return
    changed = [g for g in report.groups if g.status == "pruned"]
    assert changed
    assert all(g.kept % 4 == 0 for g in changed)


@pytest.mark.parametrize(
    ("name", "groups", "removed"), [("ppocr_det", 36, 0.7), ("ppocr_rec", 28, 0.5), ("ppocr_cls", 26, 0.5)]
)
def test_real_ocr_models(name: str, groups: int, removed: float, tmp_path: Path) -> None:
    path = CACHE / f"{name}.onnx"
    if not path.exists():
        pytest.skip(f"{path} is not there: the package rapidocr-onnxruntime holds it")
    assert sum(g.status != "frozen" for g in inspect(path).groups) >= groups
    report = prune(path, Config(output=tmp_path / "out.onnx", round_to=1, recover=False))
    assert report.after is not None
    assert report.exactness is not None
    assert 1 - report.after.parameters / report.before.parameters >= removed
    assert report.exactness.max_rel < 1e-4
    assert report.exactness.runs == 2
