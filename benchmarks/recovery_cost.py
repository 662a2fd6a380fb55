"""Time and memory of the whole command by model and number of calibration inputs.

    python benchmarks/recovery_cost.py OUT.json [--models resnet50,resnet,mobilenet,unet] [--inputs 64,256,1024]
                                       [--threads 2] [--target macs=0.5]

resnet50: random weights, 224x224 images of 1/f noise; the others: models/ with their calibration images. Seconds by
stage as the report gives them; `cpu_seconds` of the command and its children, which does not depend on what else the
machine does; `peak_bytes`: anonymous memory of the process tree.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import processes
import scale

MODELS = Path(__file__).parents[1] / "models"


def noise(count: int, size: int) -> np.ndarray:
    """Images float32 (count, 3, size, size) with a 1/f spectrum and unit deviation."""
    random = np.random.default_rng(0)
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None])
    frequency[0, 0] = 1 / size
    images = np.fft.irfft2(np.fft.rfft2(random.normal(size=(count, 3, size, size))) / frequency, s=(size, size))
    return np.asarray(images / images.std((2, 3), keepdims=True), np.float32)


def prepared(name: str, count: int, folder: Path) -> tuple[Path, Path]:
    """The model, and a file of `count` calibration inputs for it."""
    data = folder / f"{name}_{count}.npz"
    if name == "resnet50":
        model = folder / "resnet50.onnx"
        if not model.exists():
            model.write_bytes(scale.build_resnet50().SerializeToString())
        np.savez(data, image=noise(count, 224))
        return model, data
    with np.load(MODELS / "glyphs_calibration.npz") as arrays:
        np.savez(data, **{n: np.resize(a, (count, *a.shape[1:])) for n, a in arrays.items()})
    return MODELS / f"{name}.onnx", data


def measure(model: Path, data: Path, count: int, arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """One run of the command."""
    report = folder / "report.json"
    command = [sys.executable, "-m", "onnxprune", str(model), "-o", str(folder / "out.onnx"), "--force"]
    command += ["--calibration", str(data), "--calibration-size", str(count), "--json", str(report)]
    command += ["--threads", str(arguments.threads), "--target", arguments.target]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    found = processes.run(command)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    stages = {k: round(v, 1) for k, v in json.loads(report.read_text())["seconds"].items()}
    load = round(os.getloadavg()[0], 1)
    return {
        "seconds": round(found.seconds, 1),
        "cpu_seconds": round(cpu, 1),
        "peak_bytes": found.anonymous,
        "load": load,
        "stages": stages,
    }


def main() -> None:
    """Write one row per model and number of inputs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--models", default="resnet,mobilenet,unet,resnet50")
    parser.add_argument("--inputs", default="64,256,1024")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--target", default="macs=0.5")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    result = {**scale.machine(), "options": {k: str(v) for k, v in vars(arguments).items()}, "rows": rows}
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        for name in arguments.models.split(","):
            for count in map(int, arguments.inputs.split(",")):
                model, data = prepared(name, count, folder)
                rows.append({"model": name, "inputs": count, **measure(model, data, count, arguments, folder)})
                print(json.dumps(rows[-1]), flush=True)
                arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
