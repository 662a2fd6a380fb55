"""Print the accuracy (or IoU) of an ONNX glyph model on the held-out test data.

Needs numpy and onnxruntime only. Usage: ``python models/evaluate.py MODEL.onnx [MODEL.onnx ...]``.

A model with a rank-2 output ``[batch, classes]`` is scored as a classifier (top-1 accuracy); one with a rank-4
output ``[batch, 1, 32, 32]`` is scored as a segmenter (IoU of the pixels whose logit is above zero).
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

TEST_FILE = Path(__file__).resolve().parent / "glyphs_test.npz"
INPUT_NAME = "image"
MAX_LEVEL = 15


@dataclass(frozen=True)
class TestData:
    """Held-out images: ``image`` float32 [n,3,32,32], ``labels`` int64 [n], ``masks`` bool [n,32,32]."""

    image: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    masks: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Score:
    """One result: the metric's name, its value in [0, 1] and the number of images it was measured on."""

    metric: str
    value: float
    count: int


def normalise(levels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Map grey levels 0..15 (uint8, any shape) to the network's input range, float32 ``(2 * level - 15) / 16``."""
    return ((levels.astype(np.float32) * 2 - MAX_LEVEL) / (MAX_LEVEL + 1)).astype(np.float32)


def load_test(path: Path = TEST_FILE) -> TestData:
    """Read a test file: ``image`` (uint8 levels 0..15 or float32 inputs), ``labels`` and ``masks``."""
    with np.load(path) as data:
        image = data[INPUT_NAME]
        if image.dtype == np.uint8:
            image = normalise(image)
        return TestData(image.astype(np.float32), data["labels"].astype(np.int64), data["masks"].astype(bool))


def predict(session: ort.InferenceSession, image: npt.NDArray[np.float32], batch: int = 100) -> npt.NDArray[np.float32]:
    """Run float32 ``image`` [n,3,32,32] through an onnxruntime session; returns its first output, float32 [n, ...]."""
    name = session.get_inputs()[0].name
    chunks = [session.run(None, {name: image[i : i + batch]})[0] for i in range(0, len(image), batch)]
    outputs: npt.NDArray[np.float32] = np.concatenate(chunks)
    return outputs


def iou(predicted: npt.NDArray[np.bool_], truth: npt.NDArray[np.bool_]) -> float:
    """Intersection over union of two bool arrays of one shape, over all pixels together (1.0 when both are empty)."""
    union = int(np.logical_or(predicted, truth).sum())
    return float(np.logical_and(predicted, truth).sum()) / union if union else 1.0


def score(output: npt.NDArray[np.float32], data: TestData) -> Score:
    """Score raw outputs: float32 [n,classes] against the labels, or float32 [n,1,32,32] against the masks."""
    if output.ndim == 2:
        return Score("accuracy", float((output.argmax(axis=1) == data.labels).mean()), len(output))
    if output.shape == (len(data.masks), 1, *data.masks.shape[1:]):
        return Score("iou", iou(output[:, 0] > 0, data.masks), len(output))
    raise ValueError(f"unexpected output shape {output.shape}: want [n, classes] or [n, 1, height, width]")


def evaluate(model: Path, data: TestData) -> Score:
    """Score one ONNX file on ``data`` with onnxruntime's CPU provider."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    return score(predict(session, data.image), data)


def main() -> int:
    """Command line: print ``PATH METRIC VALUE (n=COUNT)`` for each model; returns 2 when a file is missing."""
    parser = argparse.ArgumentParser(description="Score ONNX glyph models on the held-out test data.")
    parser.add_argument("models", nargs="+", type=Path, metavar="MODEL.onnx")
    parser.add_argument("--data", type=Path, default=TEST_FILE, help="test file (default: %(default)s)")
    args = parser.parse_args()
    missing = [str(path) for path in (args.data, *args.models) if not path.is_file()]
    if missing:
        print(f"error: no such file: {', '.join(missing)}", file=sys.stderr)
        return 2
    data = load_test(args.data)
    for path in args.models:
        result = evaluate(path, data)
        print(f"{path} {result.metric} {result.value:.4f} (n={result.count})")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
