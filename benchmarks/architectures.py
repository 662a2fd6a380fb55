"""How much accuracy pruning leaves in small trained networks of many kinds, cut alone and recovered.

    python benchmarks/architectures.py WORK OUT.json --torch TORCH_PYTHON [--models vit_fused,lstm] [--shares 0.5]
                                       [--methods recovered,width,cut,cut_l2,peer] [--exporters tracing,dynamo]

TORCH_PYTHON has what models/requirements.txt lists, onnxscript and torch-pruning; it trains what WORK lacks, about an
hour on one core (architectures_train.py), and runs the peer (architectures_peer.py). Accuracy is that of 1,600 test
items, by ONNX Runtime; calibration is by 1,024 others without labels. Rows that OUT has are kept, but those asked for.

    dense       the original
    recovered   `onnxprune MODEL --target macs=SHARE --round-to 1 --calibration ...`
    width       the same with --head-width: of groups of channels those within, of heads their width
    cut         the same with --no-recover: channels chosen on the inputs, weights sliced
    cut_l2      the same with --no-recover --criterion l2
    peer        Torch-Pruning, L2 norm of the group, global, at the same work; peer_bn: and BatchNormalization estimated
                anew on the calibration inputs
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import processes

import onnxprune
from onnxprune import runtime

HERE = Path(__file__).resolve().parent
IMAGES = HERE.parent / "models"
OPTIONS = {
    "recovered": (),
    "width": ("--head-width",),
    "cut": ("--no-recover",),
    "cut_l2": ("--no-recover", "--criterion", "l2", "--allocation", "uniform"),
}
OF_TEXT = ("text_encoder", "lstm", "gru")
METHODS = (*OPTIONS, "peer")
Row = dict[str, Any]


def main() -> None:
    """Train what is missing, measure what is asked for, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--torch", type=Path)
    parser.add_argument("--models")
    parser.add_argument("--shares", default="0.75,0.5,0.25")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--exporters", default="tracing,dynamo")
    arguments = parser.parse_args()
    work: Path = arguments.work
    if arguments.torch is not None:
        wanted = ["--models", arguments.models] if arguments.models else []
        run([str(arguments.torch), str(HERE / "architectures_train.py"), str(work), *wanted])
    rows = stored(arguments.output)
    for path in sorted(work.glob("*.onnx"), key=lambda p: p.stat().st_mtime):
        name, exporter = path.name.split(".")[:2]
        if exporter not in arguments.exporters.split(",") or name not in (arguments.models or name).split(","):
            continue
        for row in measured(path, name, exporter, arguments):
            rows = [r for r in rows if key(r) != key(row)] + [row]
            print(json.dumps(row), flush=True)
            write(arguments.output, rows)
    print(table(rows))


def key(row: Row) -> tuple[Any, ...]:
    """What a row is the result of."""
    return tuple(row.get(k) for k in ("model", "exporter", "share", "method"))


def measured(path: Path, name: str, exporter: str, arguments: argparse.Namespace) -> list[Row]:
    """The rows of one file."""
    about = {"model": name, "exporter": exporter}
    macs = work_of(path)
    rows: list[Row] = [{**about, "share": 1.0, "method": "dense", "macs": macs, "accuracy": accuracy(path, name)}]
    for share in map(float, arguments.shares.split(",")):
        for method in arguments.methods.split(","):
            row = {**about, "share": share, "method": method}
            if method in OPTIONS:
                rows.append({**row, **pruned(path, name, share, OPTIONS[method], macs)})
            elif exporter == "tracing" and arguments.torch is not None:
                rows += [{**row, **found} for found in peer(arguments.torch, path, name, share, macs)]
    return rows


# ---- One result ------------------------------------------------------------------------------------------------------


def pruned(path: Path, name: str, share: float, options: tuple[str, ...], macs: int) -> Row:
    """What the command makes of a model."""
    output, report = path.with_suffix(".pruned"), path.with_suffix(".json")
    command = [sys.executable, "-m", "onnxprune", str(path), "-o", str(output), "--force", "-q", "--json", str(report)]
    aim = ["--target", f"macs={share}", "--round-to", "1", "--calibration", str(inputs(path.parent, name))]
    try:
        done = processes.run([*command, *aim, *options], environment())
    except RuntimeError as error:
        return {"error": str(error)[-300:]}
    told = json.loads(report.read_text())
    groups = [g["status"] for g in told["groups"]]
    return {
        "accuracy": accuracy(output, name),
        "macs": round(work_of(output) / macs, 4),
        "seconds": round(done.seconds, 1),
        "anonymous_bytes": done.anonymous,
        "groups": {status: groups.count(status) for status in sorted(set(groups))},
        "refitted": len(told["layers"] or ()),
        "notes": told["notes"],
    }


def peer(python: Path, path: Path, name: str, share: float, macs: int) -> list[Row]:
    """What the peer makes of the same network, as it is and with its normalisation estimated anew."""
    output = path.with_suffix(".peer")
    command = [str(python), str(HERE / "architectures_peer.py"), str(path.parent), name, str(output), str(share)]
    try:
        run([*command, str(inputs(path.parent, name))])
    except RuntimeError as error:
        last = re.findall(r"^\w*(?:Error|Exception)\b.*", str(error), re.M)
        return [{"error": (last[-1] if last else str(error))[-200:]}]
    rows: list[Row] = []
    for method, file in (("peer", output), ("peer_bn", output.with_suffix(".bn"))):
        if file.exists():
            share_kept = round(work_of(file) / macs, 4)
            rows.append({"method": method, "accuracy": accuracy(file, name), "macs": share_kept})
            file.unlink()
    return rows


def inputs(work: Path, name: str) -> Path:
    """The calibration inputs of a network."""
    return work / "text_calibration.npz" if name in OF_TEXT else IMAGES / "glyphs_calibration.npz"


def accuracy(path: Path, name: str) -> float:
    """Share of the test items whose class is right."""
    session = runtime.session(path)
    given, labels = test_items(path.parent, name)
    feed = session.get_inputs()[0].name
    found = [session.run(None, {feed: given[i : i + 100]})[0].argmax(1) for i in range(0, len(given), 100)]
    return round(float((np.concatenate(found) == labels).mean()), 4)


def test_items(work: Path, name: str) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Inputs and labels."""
    if name in OF_TEXT:
        with np.load(work / "text_test.npz") as data:
            return data["ids"], data["labels"]
    with np.load(IMAGES / "glyphs_test.npz") as data:
        return (data["image"].astype(np.float32) * 2 - 15) / 16, data["labels"]


def work_of(path: Path) -> int:
    """Multiply-accumulates of one item, counted alike for all."""
    feed = onnx.load(path, load_external_data=False).graph.input[0]
    shape = (1, *(d.dim_value for d in feed.type.tensor_type.shape.dim[1:]))
    return int(onnxprune.inspect(path, {feed.name: shape}).before.macs or 0)


def run(words: list[str]) -> str:
    """What a command prints."""
    return processes.run(words, environment()).printed


def environment() -> dict[str, str]:
    """That of this process, with this checkout on the import path."""
    path = os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    return {**os.environ, "PYTHONPATH": path, "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}


# ---- The file and the table ------------------------------------------------------------------------------------------


def stored(path: Path) -> list[Row]:
    """The rows of a file that may be there."""
    return list(json.loads(path.read_text())["rows"]) if path.exists() else []


def write(path: Path, rows: list[Row]) -> None:
    """One row a line, with the machine and the versions."""
    versions = {"onnx": onnx.__version__, "onnxruntime": onnxruntime.__version__, "numpy": np.__version__}
    about = {"machine": platform.machine(), "cores": os.cpu_count(), "versions": versions}
    lines = ",\n".join("  " + json.dumps(row) for row in sorted(rows, key=lambda r: tuple(map(str, key(r)))))
    path.write_text(json.dumps(about, indent=1)[:-2] + f',\n "rows": [\n{lines}\n ]\n}}\n')


def table(rows: list[Row]) -> str:
    """Accuracy by model, share and method."""
    methods = ("recovered", "width", "cut", "cut_l2", "peer", "peer_bn")
    lines = [" | ".join(("model", "dense", "MACs", *methods))]
    found = {key(r): r for r in rows}
    for name, exporter, share in sorted({key(r)[:3] for r in rows if r["method"] != "dense"}, key=str):
        dense = found.get((name, exporter, 1.0, "dense"), {}).get("accuracy")
        cells = [found.get((name, exporter, share, method), {}).get("accuracy", "-") for method in methods]
        lines.append(" | ".join(map(str, (f"{name}.{exporter}", dense, share, *cells))))
    return "\n".join(lines)


if __name__ == "__main__":
    main()
