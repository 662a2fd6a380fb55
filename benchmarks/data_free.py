"""What is left of the accuracy without any data: the cut alone, recovered on synthetic inputs, recovered on real ones.

    python benchmarks/data_free.py EVAL_FOLDER OUTPUT.json [--models resnet20,vgg,mobilenetv2] [--exports bn,ts]
                                   [--shares 0.5,0.75,0.25] [--with-data] [--options "--round-to 1"]

EVAL_FOLDER/peer holds the models, the images and score.py. A row is one `onnxprune MODEL --target macs=SHARE` without
data; its plan replayed with --no-recover is the cut alone; and with --with-data the same target on the unlabelled
calibration images. Accuracy is measured on the test split, agreement with the original on the calibration images; the
tool sees neither, except for the calibration images in the last column.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import accuracy
import numpy as np
import onnx

Row = dict[str, Any]


def main() -> None:
    """Run every combination and write the table after each row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--models", default="resnet20,vgg,mobilenetv2")
    parser.add_argument("--exports", default="bn,ts")
    parser.add_argument("--shares", default="0.5,0.75,0.25")
    parser.add_argument("--with-data", action="store_true")
    parser.add_argument("--options", default="--round-to 1")
    arguments = parser.parse_args()
    score = accuracy.load_score(arguments.folder / "peer" / "score.py")
    rows: list[Row] = []
    for share in arguments.shares.split(","):
        for export in arguments.exports.split(","):
            for name in arguments.models.split(","):
                path = arguments.folder / "peer" / "models" / f"{name}.{export}.onnx"
                row = _row(score, name, path, share, arguments.options.split(), arguments.with_data)
                rows.append({"model": name, "export": export, "share": float(share), **row})
                print(json.dumps(rows[-1]), flush=True)
                accuracy.write(arguments.output, arguments.options, rows)


def _row(score: Any, name: str, path: Path, share: str, options: list[str], with_data: bool) -> Row:
    with tempfile.TemporaryDirectory() as folder:
        plan, data = Path(folder) / "plan.json", Path(folder) / "calibration.npz"
        target = ["--target", f"macs={share}", *options]
        runs = {
            "data_free": [*target, "--save-plan", str(plan)],
            "cut": ["--plan", str(plan), "--no-recover"],
        }
        if with_data:
            feed = onnx.load(path).graph.input[0].name
            np.savez(data, **{feed: score.prep(score.load("calib")[0], name)})
            runs["with_data"] = [*target, "--calibration", str(data)]
        row: Row = {"dense": round(score.accuracy(name, str(path)), 4)}
        for kind, extra in runs.items():
            row[kind] = _run(score, name, path, Path(folder) / f"{kind}.onnx", extra)
        return row


def _run(score: Any, name: str, path: Path, output: Path, options: list[str]) -> Row:
    start = time.perf_counter()
    command = [sys.executable, "-m", "onnxprune", str(path), "-o", str(output), "-q", "--json", f"{output}.json"]
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
    if done.returncode:
        return {"exit": done.returncode, "error": done.stderr.strip()[-300:]}
    inputs = json.loads(Path(f"{output}.json").read_text(encoding="utf-8"))["inputs"]
    return {
        "accuracy": round(score.accuracy(name, str(output)), 4),
        "agreement": round(_agreement(score, name, path, output), 4),
        "macs": round(score.macs(str(output)) / score.macs(str(path)), 4),
        "seconds": round(time.perf_counter() - start, 1),
        "inputs": inputs["kind"] if inputs else None,
    }


def _agreement(score: Any, name: str, original: Path, pruned: Path) -> float:
    """Share of the calibration images with the same arg max."""
    sides = [[y.argmax(1) for _, y in score.outputs(name, str(p), "calib")] for p in (original, pruned)]
    return float(np.mean(np.concatenate(sides[0]) == np.concatenate(sides[1])))


if __name__ == "__main__":
    main()
