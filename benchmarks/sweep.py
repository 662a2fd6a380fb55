"""Prune every ONNX file of a folder and check the results independently of onnxprune's own verification.

    python benchmarks/sweep.py FOLDER [--ratio 0.5] [--round-to 1] [--match TEXT] [--with-weights]
        [--in-process] [--compact] [--output TABLE.json]

For every file: `onnxprune FILE --ratio R` through the command line, once with every group and once without the
renormalised groups (those an operator averages over). The second result must equal the original with every
`contracted` slice of the saved plan set to zero; both must load, run and keep the interface. The oracle here shares no
code with onnxprune.masking. Weights that ConstantOfShape makes cannot be zeroed in slices: a twin of such a model, with
random weights stored in their place, is checked too. The table is printed and written as JSON with the machine and the
versions.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
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
IN_PROCESS = "--in-process" in sys.argv


def main() -> int:
    """Run the sweep; exit 1 where any file crashed, gave a wrong file, or failed without a reason."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--ratio", default="0.5")
    parser.add_argument("--round-to", default="1")
    parser.add_argument("--match", default="")
    parser.add_argument("--with-weights", action="store_true", help="only files with a float weight of 2 elements")
    parser.add_argument("--in-process", action="store_true", help="no process for each file: for many tiny ones")
    parser.add_argument("--compact", action="store_true", help="a short table: refusals by reason")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    files = [f for f in sorted(arguments.folder.glob("**/*.onnx")) if arguments.match in f.name]
    files = [f for f in files if not arguments.with_weights or has_weights(onnx.load(f, load_external_data=False))]
    rows = []
    for file in files:
        rows.append(check(file, arguments.ratio, arguments.round_to))
        print(_line(rows[-1]), flush=True)
    summary = _summary(rows)
    print(json.dumps(summary))
    if arguments.output:
        text = (
            _compact(summary, rows) if arguments.compact else json.dumps({"summary": summary, "rows": rows}, indent=1)
        )
        arguments.output.write_text(text + "\n")
    return 1 if summary["wrong"] else 0


def check(file: Path, ratio: str, round_to: str) -> dict[str, Any]:
    """One row of the table: what was removed, how exact, or why not."""
    options = ["--ratio", ratio, "--round-to", round_to, "--no-recover"]
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        start = time.perf_counter()
        row = {"file": _title(file), **_prune(file, work / "all", options)}
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
        _check_twin(row, file, work, (ratio, round_to))
    return row


def _title(file: Path) -> str:
    return file.parent.name if file.name == "model.onnx" else file.name


def _check_twin(row: dict[str, Any], file: Path, work: Path, settings: tuple[str, str]) -> None:
    """Where ConstantOfShape makes weights: take the proof from a twin of the model that stores them."""
    twin = stored_twin(onnx.load(file))
    if twin is not None:
        path = work / "stored.onnx"
        path.write_bytes(twin.SerializeToString())
        found = check(path, *settings)
        row["oracle"] = found.get("oracle", {"max_rel": None, "exact": False, "reason": "the twin was not pruned"})
        row["stored_twin"] = {k: found[k] for k in ("status", "parameters_removed", "own_exactness") if k in found}


def stored_twin(model: onnx.ModelProto) -> onnx.ModelProto | None:
    """The model with random weights stored in place of what ConstantOfShape makes; None where it makes none."""
    known = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    made = [n for n in model.graph.node if n.op_type == "ConstantOfShape" and n.input[0] in known]
    random = np.random.default_rng(0)
    for node in made:
        shape = known[node.input[0]]
        scale = np.sqrt(2 / max(1, np.prod(shape[1:]))) if len(shape) > 1 else 0.5
        array = random.random(shape, np.float32) if len(shape) < 2 else random.standard_normal(shape, np.float32)
        model.graph.initializer.append(numpy_helper.from_array(array * np.float32(scale), node.output[0]))
        model.graph.node.remove(node)
    return model if made else None


def has_weights(model: onnx.ModelProto) -> bool:
    """Whether a float initializer or Constant of two elements or more is in the main graph, or ConstantOfShape."""
    floats = {getattr(onnx.TensorProto, kind) for kind in ("FLOAT", "FLOAT16", "BFLOAT16", "DOUBLE")}
    constants = [n for n in model.graph.node if n.op_type == "Constant"]
    tensors = [*model.graph.initializer, *(a.t for n in constants for a in n.attribute if a.name == "value")]
    listed = any(a.name == "value_floats" for n in constants for a in n.attribute)
    made = any(n.op_type == "ConstantOfShape" for n in model.graph.node)
    return listed or made or any(t.data_type in floats and np.prod(t.dims) >= 2 for t in tensors)


def _prune(file: Path, base: Path, options: list[str]) -> dict[str, Any]:
    out, report, plan = (base.with_suffix(s) for s in (".onnx", ".report.json", ".plan.json"))
    command = [str(file), "-o", str(out), "--json", str(report), "--save-plan", str(plan), "-q", *options]
    code, stderr = _run_here(command) if IN_PROCESS else _run(command)
    row: dict[str, Any] = {"exit": code}
    if code != 0:
        status = "crashed" if code not in (2, 3, 4, 5) or "Traceback" in stderr else "refused"
        status = "failed" if status == "refused" and code in (2, 5) else status
        errors = [line for line in stderr.strip().splitlines() if line.startswith("error: ")]
        return {**row, "status": status, "reason": "".join(errors[-1:] or [stderr[-300:]])}
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


def _run(arguments: list[str]) -> tuple[int, str]:
    command = [sys.executable, "-m", "onnxprune", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, done.stderr


def _run_here(arguments: list[str]) -> tuple[int, str]:
    from click.testing import CliRunner

    from onnxprune import cli

    result = CliRunner().invoke(cli.command, arguments)
    return result.exit_code, result.stderr


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
    """Largest difference over the range; what the reference cannot compute (NaN times zero) is not judged."""
    if not isinstance(a, np.ndarray):
        return 0.0
    if a.shape != b.shape:
        return float("inf")
    if a.dtype.kind != "f":
        return float(np.mean(a != b)) if a.size else 0.0
    known = np.isfinite(a)
    x, y = a[known].astype(np.float64), b[known].astype(np.float64)
    if not np.isfinite(y).all():
        return float("inf")
    return float(np.abs(x - y).max() / (np.abs(x).max() + 1e-12)) if x.size else 0.0


def _line(row: dict[str, Any]) -> str:
    if row["status"] != "pruned":
        return f"{row['file']:45s} {row['status']} {row['reason'][:150]}"
    oracle = row.get("oracle", {})
    return (
        f"{row['file']:45s} parameters -{row['parameters_removed']:.3f} MACs -{row['macs_removed']:.3f} "
        f"own {row['own_exactness']:.1e} oracle {oracle.get('max_rel')} interface {row['interface_kept']}"
    )


def _compact(summary: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """The table with one line for each file, and one for all files that are refused for one reason."""
    refused: dict[str, list[str]] = {}
    for row in rows:
        if row["status"] == "refused":
            reason = re.sub(r"'[^']*'", "...", row["reason"].removeprefix("error: "))
            refused.setdefault(reason, []).append(row["file"])
    lines = [json.dumps(row) for row in rows if row["status"] != "refused"]
    table = "[\n  " + ",\n  ".join(lines) + "\n ]"
    return f'{{"summary": {json.dumps(summary)},\n "rows": {table},\n "refused": {json.dumps(refused)}}}'


def _summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    wrong = [
        r["file"]
        for r in rows
        if r["status"] in ("crashed", "failed")
        or r.get("oracle", {}).get("exact") is False
        or r.get("interface_kept") is False
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
