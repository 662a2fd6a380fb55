"""How much accuracy pruning leaves in int8 models of every form that ONNX Runtime's quantizer writes.

    python benchmarks/quantized.py WORK OUT.json [--models vit_fused,lstm] [--share 0.5]

WORK holds the trained networks of architectures.py. Each is quantized in three ways: `dynamic` (MatMulInteger,
ConvInteger, DynamicQuantizeLSTM), `qoperator` (QLinearConv, QLinearMatMul ...) and `qdq` (QuantizeLinear,
DequantizeLinear), the last two from 256 calibration inputs, and pruned like `recovered` and `cut` there.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from architectures import Row, accuracy, inputs, pruned, work_of, write
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_dynamic, quantize_static

BATCH, ROWS = 32, 256


class Inputs(CalibrationDataReader):  # type: ignore[misc]
    """The first calibration inputs of a network, in batches."""

    def __init__(self, path: Path) -> None:
        """`path`: a .npz with one array."""
        with np.load(path) as data:
            ((name, rows),) = data.items()
        self.batches = iter([{name: rows[i : i + BATCH]} for i in range(0, ROWS, BATCH)])

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next batch, None at the end."""
        return next(self.batches, None)


def main() -> None:
    """Quantize, prune, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--models", default="text_encoder,vit_fused,efficientnet,regnet,lstm")
    parser.add_argument("--share", type=float, default=0.5)
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    rows: list[Row] = []
    for name in arguments.models.split(","):
        for form, path in quantized(arguments.work, name):
            rows += measured(path, name, form, arguments.share)
            write(arguments.output, rows)


def quantized(work: Path, name: str) -> Iterator[tuple[str, Path]]:
    """The model in every form."""
    source = work / f"{name}.tracing.onnx"
    paths = {form: work / f"{name}.{form}.int8" for form in ("dynamic", "qoperator", "qdq")}
    quantize_dynamic(source, paths["dynamic"])
    for form, kind in (("qoperator", QuantFormat.QOperator), ("qdq", QuantFormat.QDQ)):
        quantize_static(source, paths[form], Inputs(inputs(work, name)), quant_format=kind, per_channel=True)
    return iter(paths.items())


def measured(path: Path, name: str, form: str, share: float) -> list[Row]:
    """Accuracy of the quantized model, of the cut alone and of the result."""
    macs = work_of(path)
    about: Row = {"model": name, "exporter": form}
    rows: list[Row] = [{**about, "share": 1.0, "method": "dense", "macs": macs, "accuracy": accuracy(path, name)}]
    for method, options in (("recovered", ()), ("cut", ("--no-recover",))):
        rows.append({**about, "share": share, "method": method, **pruned(path, name, share, options, macs)})
        print(json.dumps(rows[-1]), flush=True)
    return rows


if __name__ == "__main__":
    main()
