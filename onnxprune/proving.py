"""Proofs of the surgery: what is checked before a model is written; the models run in a child process."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path

import onnx

from onnxprune import analysis, calibration, masking, shapes, verify, worker
from onnxprune import plan as plans
from onnxprune.branches import settled_numbers
from onnxprune.config import Config
from onnxprune.errors import ModelError, VerificationError
from onnxprune.modelfile import skeleton
from onnxprune.opened import Opened
from onnxprune.records import Exactness, Feed, Plan, Proof

VERIFY_LIMIT_S = 1800.0
"""Time limit of the child processes that run the models."""


def prove(opened: Opened, config: Config, plan: Plan, path: Path, feeds: Sequence[Feed]) -> Proof:
    """That the model in `path` is exactly the masked original; and how close it is to the original on `feeds`."""
    masked = masking.masked_model(
        opened.model.proto, opened.analysis, plans.masks(opened.analysis, plan.kept), opened.shapes.element_types
    )
    tolerance = verify.tolerance_for(opened.model.path)
    with tempfile.TemporaryDirectory(prefix="onnxprune-") as folder:
        reference = Path(folder) / "masked.onnx"
        reference.write_bytes(masked.SerializeToString())
        uncut = Path(folder) / "uncut.onnx" if opened.original else None
        if uncut:
            uncut.write_bytes(opened.model.proto.SerializeToString())
        proving = worker.calling(
            "onnxprune.verify:prove",
            {
                "original": str(opened.model.path),
                "masked": str(reference),
                "pruned": str(path),
                "uncut": str(uncut) if uncut else None,
                "folder": str(opened.model.base_dir),
                "sizes": run_shapes(opened, config),
                "bounds": calibration.index_bounds(opened.model.graph, opened.shapes),
                "feeds": list(feeds),
                "seed": config.seed,
                "tolerance": tolerance,
                "settled": settled_numbers(opened.model.proto, opened.shapes.taken),
            },
            timeout_s=VERIFY_LIMIT_S,
        )
        with proving as result:
            verify.check_file(path, opened.model.path)
            _check_arithmetic(path, config)
            proof: Proof = result()
    verify.require_exact(proof.exactness, tolerance)
    # Where no channel went, there is no cut to be wrong.
    cut = proof.exactness if plan.kept else dataclasses.replace(proof.exactness, shown=True)
    whole = cut if opened.exactness is None else verify.worst_of(opened.exactness, cut)
    return dataclasses.replace(proof, exactness=whole)


def _check_arithmetic(path: Path, config: Config) -> None:
    """Every linear operator of the written model must have weights that fit its operands."""
    pruned = skeleton(path, lean=True)
    try:
        analysis.analyse(pruned, shapes.infer(pruned, config.input_shapes, path.parent))
    except ModelError as error:
        raise VerificationError(f"the pruned model is not consistent: {error}; nothing was written") from error


def run_shapes(opened: Opened, config: Config) -> list[dict[str, tuple[int, ...]]]:
    """Input shapes that the model is run at, in this order; last those at which its shapes are known to fit."""
    proto = opened.model.proto
    given = config.input_shapes
    if shapes.is_dynamic(proto, given):
        found = [shapes.concrete_inputs(proto, given, sizes) for sizes in shapes.RUN_SIZES]
        return [*found, dict(opened.shapes.inputs)]
    together, alone = shapes.variations(proto, given)
    varied = [*together, *(v for choices in alone for v in choices)]
    return [dict(opened.shapes.inputs), *(shapes.concrete_inputs(proto, v, shapes.RUN_SIZES[0]) for v in varied)]


def prove_removal(opened: Opened, config: Config, silenced: onnx.ModelProto, left: onnx.ModelProto) -> Exactness:
    """That the model `left` after blocks were removed equals the original with their branches `silenced`."""
    with tempfile.TemporaryDirectory(prefix="onnxprune-") as folder:
        reference, result = Path(folder) / "silenced.onnx", Path(folder) / "left.onnx"
        reference.write_bytes(silenced.SerializeToString())
        result.write_bytes(left.SerializeToString())
        exactness = _compared(opened, config, reference, result, opened.model.base_dir)
    verify.require_equal(exactness, verify.tolerance_for(opened.model.path))
    return exactness


def prove_fusion(opened: Opened, config: Config, plain: Path, fused: Path) -> None:
    """That the model in `fused` equals the one in `plain`, of which it was made. Raises VerificationError."""
    exactness = _compared(opened, config, plain, fused, None)
    tolerance = verify.tolerance_for(opened.model.path)
    if not exactness.passed:
        raise VerificationError(
            f"the fused model differs from what it was made of by {exactness.max_rel:.2g} of the output range "
            f"(tolerance {tolerance:.2g})"
        )


def _compared(opened: Opened, config: Config, reference: Path, result: Path, folder: Path | None) -> Exactness:
    """How far the model in `result` is from the one in `reference`; `folder`: of their external data, by default
    each one's own."""
    found: Exactness = worker.call(
        "onnxprune.verify:prove_equal",
        {
            "reference": str(reference),
            "result": str(result),
            "original": str(opened.model.path),
            "folder": None if folder is None else str(folder),
            "sizes": run_shapes(opened, config),
            "bounds": calibration.index_bounds(opened.model.graph, opened.shapes),
            "seed": config.seed,
            "tolerance": verify.tolerance_for(opened.model.path),
        },
        timeout_s=VERIFY_LIMIT_S,
    )
    return found
