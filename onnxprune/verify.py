"""Two separate proofs: exactness (the surgery is right) and quality (how far the result is from the original).

Models run in a child process, so that a crash of ONNX Runtime is an error message.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from onnxprune import runtime
from onnxprune.errors import ModelError, VerificationError
from onnxprune.records import Exactness, Feed, OutputQuality, Quality

TOLERANCE = 1e-4
"""Largest allowed difference over the largest absolute output, for float32 arithmetic."""
HALF_TOLERANCE = 2e-2
"""The same where the model computes in float16 or bfloat16, whose rounding alone is 1e-3 an operation."""
SQNR_CAP_DB = 120.0

Array = npt.NDArray[Any]
Outputs = dict[str, Array]


def check_file(path: Path) -> None:
    """The checker and strict shape inference of onnx on a finished file. Raises VerificationError with their words."""
    try:
        onnx.checker.check_model(str(path), full_check=False)
        skeleton = onnx.load(str(path), load_external_data=False)
        onnx.shape_inference.infer_shapes(skeleton, check_type=True, strict_mode=True, data_prop=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise VerificationError(f"the pruned model is not valid: {error}") from error


def difference_of(reference: Array, result: Array) -> tuple[float, float]:
    """Largest absolute difference, and the same over the largest absolute finite reference value.

    Infinite where shapes differ or one side alone is not finite. Outputs that are not numbers compare as equal or not.
    """
    if reference.shape != result.shape:
        return math.inf, math.inf
    if reference.dtype.kind not in "fiub" or not reference.size:
        return (0.0, 0.0) if np.array_equal(reference, result) else (math.inf, math.inf)
    a, b = reference.astype(np.float64), result.astype(np.float64)
    finite = np.isfinite(a)
    if not np.array_equal(finite, np.isfinite(b)):
        return math.inf, math.inf
    difference = float(np.abs(np.where(finite, a, 0) - np.where(finite, b, 0)).max())
    scale = float(np.abs(np.where(finite, a, 0)).max())
    return difference, difference / scale if scale > 0 else (0.0 if difference == 0 else math.inf)


def all_outputs(model: str, feeds: Sequence[Feed]) -> list[Outputs]:
    """Outputs of a model with the runtime's usual optimisations, for each feed. Run in a child process."""
    session = runtime.session(model)
    return [runtime.run(session, feed) for feed in feeds]


def compare_quality(original: str, pruned: str, feeds: Sequence[Feed], *, data: str) -> Quality:
    """How close the pruned model is to the original on `feeds`. Run in a child process."""
    reference, result = all_outputs(original, feeds), all_outputs(pruned, feeds)
    outputs = {}
    for name in reference[0]:
        a, b = ([outputs_[name] for outputs_ in side] for side in (reference, result))
        if a[0].dtype.kind == "f":
            outputs[name] = quality_of(a, b)
    samples = sum(len(next(iter(f.values()))) if next(iter(f.values())).ndim else 1 for f in feeds)
    return Quality(outputs, "calibration" if data == "calibration" else "synthetic", samples)


def quality_of(reference: Sequence[Array], result: Sequence[Array]) -> OutputQuality:
    """Quality of one output over batches of equal or different shapes."""
    a = np.concatenate([np.ravel(x) for x in reference]).astype(np.float64)
    b = np.concatenate([np.ravel(x) for x in result]).astype(np.float64)
    finite = np.isfinite(a) & np.isfinite(b)
    a, b = a[finite], b[finite]
    norms = float(np.linalg.norm(a)), float(np.linalg.norm(b))
    error = float(np.linalg.norm(a - b))
    relative = error / norms[0] if norms[0] > 0 else (0.0 if error == 0 else math.inf)
    cosine = float(a @ b) / (norms[0] * norms[1]) if all(norms) else float(norms[0] == norms[1])
    sqnr = SQNR_CAP_DB if relative == 0 else min(SQNR_CAP_DB, -20 * math.log10(relative)) if relative < math.inf else 0.0
    return OutputQuality(cosine, relative, sqnr, _agreement(reference, result))


def _agreement(reference: Sequence[Array], result: Sequence[Array]) -> float | None:
    shape = reference[0].shape
    axis = 1 if len(shape) == 4 else -1
    if len(shape) < 2 or shape[axis] < 2:
        return None
    same = [np.ravel(a.argmax(axis) == b.argmax(axis)) for a, b in zip(reference, result, strict=True)]
    return float(np.concatenate(same).mean())


def tolerance_for(element_types: Mapping[str, int]) -> float:
    """The tolerance for a model whose tensors have these data types."""
    half = {onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16}
    return HALF_TOLERANCE if half & set(element_types.values()) else TOLERANCE


def require_exact(exactness: Exactness, tolerance: float) -> None:
    """Raise VerificationError where the surgery is not exact."""
    if not exactness.passed:
        raise VerificationError(
            f"the pruned model differs from the masked original by {exactness.max_rel:.2e} of the output range "
            f"(allowed: {tolerance:.0e}); nothing was written. Please report this model; --keep excludes groups"
        )


def prove(
    original: str,
    masked: str,
    pruned: str,
    *,
    folder: str,
    sizes: Sequence[Mapping[str, Sequence[int]]],
    bounds: Mapping[str, int],
    feeds: Sequence[Feed],
    seed: int,
    tolerance: float,
) -> tuple[Exactness, Quality, Feed]:
    """Exactness on made-up inputs of two of `sizes`, quality on `feeds` or the same inputs. Run in a child process.

    `bounds`: for integer inputs, one more than the largest value. Returns a feed to measure latency with, too.
    """
    reference = runtime.session(Path(masked).read_bytes(), optimize=False, prepack=False, folder=folder)
    made, expected = _working_feeds(reference, sizes, bounds, seed)
    result = runtime.session(pruned, optimize=False, prepack=False)
    worst_abs = worst_rel = 0.0
    for feed, outputs in zip(made, expected, strict=True):
        found = _run_pruned(result, feed)
        for name, value in outputs.items():
            difference, relative = difference_of(value, found[name])
            worst_abs, worst_rel = max(worst_abs, difference), max(worst_rel, relative)
    exactness = Exactness(worst_abs, worst_rel, worst_rel <= tolerance, len(made))
    del reference, result
    chosen, data = (list(feeds), "calibration") if feeds else (made, "synthetic")
    return exactness, compare_quality(original, pruned, chosen, data=data), chosen[0]


def _run_pruned(session: Any, feed: Feed) -> Outputs:
    try:
        return runtime.run(session, feed)
    except ModelError as error:
        raise VerificationError(f"the pruned model does not run ({error}); nothing was written") from error


def _working_feeds(
    session: Any, sizes: Sequence[Mapping[str, Sequence[int]]], bounds: Mapping[str, int], seed: int
) -> tuple[list[Feed], list[Outputs]]:
    """Up to two made-up feeds that the original runs on, and its outputs. Raises ModelError where none does."""
    made: list[Feed] = []
    expected: list[Outputs] = []
    failure: ModelError | None = None
    for shapes in sizes:
        feed = runtime.synthetic_feed(runtime.input_specs(session), shapes, seed, high=bounds)
        try:
            expected.append(runtime.run(session, feed))
            made.append(feed)
        except ModelError as error:
            failure = error
        if len(made) == 2:
            break
    if not made:
        raise ModelError(f"the original model runs at no input size tried: {failure}; give sizes with --input-shape")
    return made, expected
