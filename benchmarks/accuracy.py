"""Accuracy of the whole command on models with labelled test data, calibration inputs without labels.

    python benchmarks/accuracy.py EVAL_FOLDER OUTPUT.json [--models resnet20,vgg,mobilenetv2] [--exports ts,bn,dynamo]
                                  [--shares 0.5,0.25] [--options "--round-to 1"]

EVAL_FOLDER/peer holds the models, the images and score.py. One `onnxprune MODEL --target macs=SHARE --calibration ...`
per row; accuracy is measured by score.py on the test split, which the tool never sees.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

from onnxprune import usercode


def main() -> None:
    """Run every combination and write the table after each row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--models", default="resnet20,vgg,mobilenetv2")
    parser.add_argument("--exports", default="ts,bn,dynamo")
    parser.add_argument("--shares", default="0.5,0.25")
    parser.add_argument("--options", default="--round-to 1")
    arguments = parser.parse_args()
    score = load_score(arguments.folder / "peer" / "score.py")
    rows: list[dict[str, Any]] = []
    for export in arguments.exports.split(","):
        for name in arguments.models.split(","):
            for share in arguments.shares.split(","):
                path = arguments.folder / "peer" / "models" / f"{name}.{export}.onnx"
                rows.append(_run(score, name, path, share, arguments.options.split()))
                print(json.dumps(rows[-1]), flush=True)
                write(arguments.output, arguments.options, rows)


def load_score(path: Path) -> Any:
    """The module score.py of the evaluation data."""
    if not path.exists():
        raise SystemExit(f"{path} is not there")
    return usercode.load(str(path))


def _run(score: Any, name: str, path: Path, share: str, options: list[str]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        data, output = Path(folder) / "calibration.npz", Path(folder) / "pruned.onnx"
        images, _, _ = score.load("calib")
        feed = onnx.load(path).graph.input[0].name
        np.savez(data, **{feed: score.prep(images, name)})
        command = [sys.executable, "-m", "onnxprune", str(path), "-o", str(output), "--target", f"macs={share}"]
        start = time.perf_counter()
        done = subprocess.run(
            [*command, "--calibration", str(data), "-q", *options], capture_output=True, text=True, check=False
        )
        row = {"model": name, "export": path.name.split(".")[1], "share": float(share), "exit": done.returncode}
        if done.returncode:
            return {**row, "error": done.stderr.strip()[-300:]}
        return {
            **row,
            "seconds": round(time.perf_counter() - start, 1),
            "dense": round(score.accuracy(name, str(path)), 4),
            "accuracy": round(score.accuracy(name, str(output)), 4),
            "macs": round(score.macs(str(output)) / score.macs(str(path)), 4),
        }


def write(path: Path, options: str, rows: list[dict[str, Any]]) -> None:
    """The rows so far, with the machine and the versions."""
    machine = {"machine": platform.machine(), "cores": os.cpu_count()}
    versions = {"onnx": onnx.__version__, "onnxruntime": onnxruntime.__version__, "numpy": np.__version__}
    path.write_text(json.dumps({"options": options, **machine, "versions": versions, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
