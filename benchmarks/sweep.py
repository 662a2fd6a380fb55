"""Prune every ONNX file of a folder and check the results independently of onnxprune's own verification.

    python benchmarks/sweep.py FOLDER [--ratio 0.5] [--round-to 1] [--match TEXT] [--output TABLE.json]

For every file: `onnxprune FILE --ratio R` through the command line, once with every group and once without the
renormalised groups (those an operator averages over). The second result must equal the original with every
`contracted` slice of the saved plan set to zero; both must load, run and keep the interface. The oracle here shares no
code with onnxprune.masking. The table is printed and written as JSON with the machine and the versions.
"""

from __future__ import annotations

import argparse
import json
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
from onnx import numpy_helper

TOLERANCE = {"float": 1e-4, "half": 2e-2}


def main() -> int:
    """Run the sweep; exit 1 where any file crashed, gave a wrong file, or failed without a reason."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--ratio", default="0.5")
    parser.add_argument("--round-to", default="1")
    parser.add_argument("--match", default="")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    files = [f for f in sorted(arguments.folder.glob("**/*.onnx")) if arguments.match in f.name]
    rows = []
    for file in files:
        rows.append(check(file, arguments.ratio, arguments.round_to))
        print(_line(rows[-1]), flush=True)
    summary = _summary(rows)
    print(json.dumps(summary))
    if arguments.output:
        arguments.output.write_text(json.dumps({"summary": summary, "rows": rows}, indent=1) + "\n")
    return 1 if summary["wrong"] else 0


def check(file: Path, ratio: str, round_to: str) -> dict[str, Any]:
    """One row of the table: what was removed, how exact, or why not."""
    options = ["--ratio", ratio, "--round-to", round_to, "--no-recover"]
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        start = time.perf_counter()
        row = _prune(file, work / "all", options)
        row["seconds"] = round(time.perf_counter() - start, 2)
        if row["status"] != "pruned":
            return row
        row.update(_compare(file, work / "all"))
        keep = [option for name in row.pop("renormalised") for option in ("--keep", name)]
        if keep:
            row["without_renormalised"] = _prune(file, work / "strict", options + keep)
            if row["without_renormalised"]["status"] == "pruned":
                row.update(_compare(file, work / "strict"))
                row["oracle"] = _oracle(file, work / "strict")
        else:
            row["oracle"] = _oracle(file, work / "all")
    return row


def _prune(file: Path, base: Path, options: list[str]) -> dict[str, Any]:
    out, report, plan = (base.with_suffix(s) for s in (".onnx", ".report.json", ".plan.json"))
    command = [sys.executable, "-m", "onnxprune", str(file), "-o", str(out), "--json", str(report)]
    done = subprocess.run(
        [*command, "--save-plan", str(plan), "-q", *options], capture_output=True, text=True, check=False
    )
    row: dict[str, Any] = {"file": file.name, "exit": done.returncode}
    if done.returncode != 0:
        crashed = done.returncode == 1 or "Traceback" in done.stderr
        last = done.stderr.strip().splitlines()[-1:] or [""]
        return {**row, "status": "crashed" if crashed else "refused", "reason": last[0]}
    data = json.loads(report.read_text())
    before, after = data["before"], data["after"]
    return {
        **row,
        "status": "pruned",
        "parameters_removed": round(1 - after["parameters"] / max(before["parameters"], 1), 4),
        "macs_removed": round(1 - after["macs"] / max(before["macs"], 1), 4),
        "own_exactness": data["exactness"]["max_rel"],
        "renormalised": [g["id"] for g in data["groups"] if g["renormalised"] and g["status"] != "frozen"],
    }


def _compare(file: Path, base: Path) -> dict[str, Any]:
    """The interface of the result against that of the original."""
    a, b = _session(onnx.load(file)), _session(onnx.load(base.with_suffix(".onnx")))
    ends = [
        [(v.name, v.type, v.shape) for v in s.get_inputs()] + [(v.name, v.type) for v in s.get_outputs()]
        for s in (a, b)
    ]
    return {"interface_kept": ends[0] == ends[1]}


def _oracle(file: Path, base: Path) -> dict[str, Any]:
    """Largest difference to the original with the contracted slices of the plan set to zero, over the output range."""
    plan = json.loads(base.with_suffix(".plan.json").read_text())
    masked = mask(onnx.load(file), plan)
    half = any(t.data_type in (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16) for t in masked.graph.initializer)
    reference, result = _session(masked), _session(onnx.load(base.with_suffix(".onnx")))
    for sizes in ((2, 64, 12), (1, 224, 16), (2, 320, 64)):
        feed = _feed(reference, sizes)
        try:
            expected = reference.run(None, feed)
        except Exception as error:  # noqa: BLE001 - the runtime's exceptions share no base class
            failure = str(error)[:200]
            continue
        worst = max(_difference(a, b) for a, b in zip(expected, result.run(None, feed), strict=True))
        return {"max_rel": worst, "exact": worst <= TOLERANCE["half" if half else "float"]}
    return {"max_rel": None, "exact": None, "reason": failure}


def mask(model: onnx.ModelProto, plan: dict[str, Any]) -> onnx.ModelProto:
    """Set every contracted slice that the plan does not keep to zero."""
    stored = {t.name: t for t in model.graph.initializer}
    for node in model.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.name == "value":
                stored[node.output[0]] = attribute.t
    for entry in plan["tensors"]:
        if entry["role"] == "contracted" and entry["name"] in stored:
            tensor = stored[entry["name"]]
            value = numpy_helper.to_array(tensor).copy()
            gone = np.setdiff1d(np.arange(entry["size"]), entry["kept"])
            value[(slice(None),) * entry["axis"] + (gone,)] = 0
            tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    return model


def _session(model: onnx.ModelProto) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _feed(session: Any, sizes: tuple[int, int, int]) -> dict[str, Any]:
    batch, space, other = sizes
    random = np.random.default_rng(0)
    feed = {}
    symbols: dict[str, int] = {}
    for value in session.get_inputs():
        rank = len(value.shape)
        sized = [batch if k == 0 else space if rank == 4 else other for k in range(rank)]
        shape = [
            d if isinstance(d, int) else symbols.setdefault(d or f"{value.name}{k}", sized[k])
            for k, d in enumerate(value.shape)
        ]
        kind = value.type[7:-1]
        if "float" in kind or kind == "double":
            array = random.standard_normal(shape)
        else:
            array = np.ones(shape) if "mask" in value.name else random.integers(0, 2, shape)
        feed[value.name] = array.astype({"float": "float32", "double": "float64"}.get(kind, kind))
    return feed


def _difference(a: Any, b: Any) -> float:
    if not isinstance(a, np.ndarray):
        return 0.0
    if a.shape != b.shape:
        return float("inf")
    if a.dtype.kind != "f":
        return float(np.mean(a != b)) if a.size else 0.0
    x, y = a.astype(np.float64), b.astype(np.float64)
    return float(np.abs(x - y).max() / (np.abs(x).max() + 1e-12)) if a.size else 0.0


def _line(row: dict[str, Any]) -> str:
    if row["status"] != "pruned":
        return f"{row['file']:45s} {row['status']} {row['reason'][:150]}"
    oracle = row.get("oracle", {})
    return (
        f"{row['file']:45s} parameters -{row['parameters_removed']:.3f} MACs -{row['macs_removed']:.3f} "
        f"own {row['own_exactness']:.1e} oracle {oracle.get('max_rel')} interface {row['interface_kept']}"
    )


def _summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    wrong = [
        r["file"]
        for r in rows
        if r["status"] == "crashed" or r.get("oracle", {}).get("exact") is False or r.get("interface_kept") is False
    ]
    removed = [r.get("parameters_removed", 0.0) for r in rows]
    return {
        "files": len(rows),
        "pruned": sum(r["status"] == "pruned" for r in rows),
        "refused": sum(r["status"] == "refused" for r in rows),
        "wrong": wrong,
        "mean_parameters_removed": round(float(np.mean(removed)), 4) if removed else None,
        "oracle_checked": sum(r.get("oracle", {}).get("exact") is not None for r in rows),
        "machine": platform.processor() or platform.machine(),
        "versions": {
            "onnx": onnx.__version__,
            "onnxruntime": onnxruntime.__version__,
            "python": platform.python_version(),
        },
    }


if __name__ == "__main__":
    sys.exit(main())
