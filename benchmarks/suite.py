"""The whole tool against its peers on models of real size: time, memory, MACs removed and speed gained, half removed.

    python benchmarks/suite.py WORK --torch TORCH_PYTHON --onnxsim ONNXSIM_PYTHON --prepare     once: models, ratios
    python benchmarks/suite.py WORK --torch TORCH_PYTHON --onnxsim ONNXSIM_PYTHON --output benchmarks/results/suite.json
    python benchmarks/suite.py WORK --models resnet50,unet --only speed --provider cuda

TORCH_PYTHON has torch, torch-pruning, onnx, onnxscript and numpy; ONNXSIM_PYTHON has onnxsim; a peer without its
interpreter is left out. WORK holds models and results and is made where it is missing. Besides the generated models
there are those of this repository and, where they are found in ~/.cache/onnxprune-eval/models, those of PP-OCR.

Every tool removes half of the multiply-accumulates without data, by the L2 norm, one ratio for all layers; its time is
the median of three runs from the shell to the file (onnxprune: verified). Torch-Pruning loads, prunes and exports, its
ratio found beforehand, by the tracing exporter and, timed alone, by the slower one that torch takes by default; onnxsim
removes what its recognisers find, at a sparsity bisected beforehand as far as it goes.
Speed is measured by `onnxprune benchmark`, each result against its original. Memory is sampled over the process tree.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import processes

import onnxprune
from onnxprune import processor

HERE = Path(__file__).resolve().parent
PP_OCR = Path("~/.cache/onnxprune-eval/models").expanduser()
MADE = ("resnet50", "mobilenetv2", "vit", "bert", "unet")
TRANSFORMERS = ("vit", "bert")
SHAPES: dict[str, dict[str, tuple[int, ...]]] = {
    "ppocr_det": {"x": (1, 3, 640, 640)},
    "ppocr_rec": {"x": (1, 3, 48, 320)},
    "ppocr_cls": {"x": (1, 3, 48, 192)},
}
"""What models with dynamic axes are timed at."""
TOOLS = ("onnxprune", "torch-pruning", "onnxsim")
TORCH_EXPORT = "tp, torch.export"
"""Torch-Pruning with the exporter that torch takes by default: the same model, so that only its time is measured."""
SHARE = 0.5
REPEATS = 3
LONG_S = 40.0
"""Runs that take longer than this are not repeated."""
BUDGET_S = 5.0
"""Seconds of each comparison."""
LEAST_RATIO = {"convolutional": 0.85, "transformer": 0.75}
"""Measured speed-up over the ratio of multiply-accumulates: what is aimed at."""

Row = dict[str, Any]


# ---- What is measured ------------------------------------------------------------------------------------------------


def models(work: Path, wanted: str | None) -> dict[str, Path]:
    """The files by name; those asked for, or all there are."""
    found = {name: work / f"{name}.onnx" for name in MADE}
    found |= {f"repository_{p.stem}": p for p in sorted((HERE.parent / "models").glob("*.onnx"))}
    found |= {p.stem: p for p in sorted(PP_OCR.glob("ppocr_*.onnx")) if p.stem in SHAPES}
    names = wanted.split(",") if wanted else list(found)
    unknown = [name for name in names if name not in found]
    if unknown:
        raise SystemExit(f"no such model: {', '.join(unknown)}; there are {', '.join(found)}")
    return {name: found[name] for name in names if found[name].exists()}


def command(tool: str, model: Path, output: Path, settings: argparse.Namespace, ratio: float) -> list[str]:
    """The command line of one tool for one model."""
    if tool == "onnxprune":
        options = ["--target", f"macs={SHARE}", "--allocation", "uniform", "--no-recover", "--force", "-o", str(output)]
        return [sys.executable, "-m", "onnxprune", str(model), *options]
    peer, python, source = tool, settings.onnxsim, model
    options = ["--ratio", str(ratio)]
    if tool in ("torch-pruning", TORCH_EXPORT):
        peer, python, source = "torch-pruning", settings.torch, model.with_suffix(".pt")
        options += ["--torch-export"] if tool == TORCH_EXPORT else []
    return [str(python), str(HERE / "suite_peers.py"), peer, str(source), str(output), *options]


def environment() -> dict[str, str]:
    """That of this process, with this checkout on the import path."""
    path = os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    return {**os.environ, "PYTHONPATH": path, "PYTHONWARNINGS": "ignore"}


def usable(tool: str, name: str, settings: argparse.Namespace) -> bool:
    """Whether the tool is there and takes the model."""
    if tool == "torch-pruning":
        return settings.torch is not None and name in MADE
    return tool == "onnxprune" or settings.onnxsim is not None


def macs(path: Path) -> int:
    """Multiply-accumulates of any model, counted alike for all tools."""
    found = onnxprune.inspect(path, SHAPES.get(path.stem.split(".")[0], {})).before.macs
    return int(found or 0)


def bisected(price: Callable[[float], float], share: float, low: float, high: float, steps: int) -> float:
    """The smallest ratio whose price is at most `share` as far as `steps` halvings tell, or `high`."""
    for _ in range(steps):
        middle = (low + high) / 2
        low, high = (low, middle) if price(middle) <= share else (middle, high)
    return high


# ---- Preparation -----------------------------------------------------------------------------------------------------


def make(settings: argparse.Namespace) -> None:
    """Make the models asked for that are missing, where there is a torch."""
    wanted = [n for n in (settings.models.split(",") if settings.models else MADE) if n in MADE]
    if settings.torch is not None and wanted:
        run([str(settings.torch), str(HERE / "suite_models.py"), str(settings.work), "--models", ",".join(wanted)])


def find_ratios(work: Path, files: Mapping[str, Path], settings: argparse.Namespace) -> dict[str, dict[str, float]]:
    """The ratios of the peers; those that are not known yet are looked for."""
    store = work / "ratios.json"
    ratios: dict[str, dict[str, float]] = json.loads(store.read_text()) if store.exists() else {}
    for name, path in files.items():
        for tool in TOOLS[1:]:
            if usable(tool, name, settings) and name not in ratios.setdefault(tool, {}):
                say(f"{name}: ratio of {tool} ...")
                ratios[tool][name] = ratio_of(tool, path, work, settings)
                store.write_text(json.dumps(ratios, indent=1) + "\n")
    return ratios


def ratio_of(tool: str, model: Path, work: Path, settings: argparse.Namespace) -> float:
    """The ratio at which a peer removes half of the multiply-accumulates, or 0.5 where it never does (or fails)."""
    if tool == "torch-pruning":
        search = [str(settings.torch), str(HERE / "suite_peers.py"), tool, str(model.with_suffix(".pt"))]
        return float(run([*search, "--search", str(SHARE)]).splitlines()[-1])
    whole, output = macs(model), work / f"{model.stem}.search.onnx"

    def price(ratio: float) -> float:
        run(command(tool, model, output, settings, ratio))
        return macs(output) / whole

    try:
        return bisected(price, SHARE, 0.1, 0.9, 4) if price(0.9) <= SHARE else 0.5
    except (RuntimeError, onnxprune.OnnxPruneError) as error:
        say(f"  {error}")
        return 0.5
    finally:
        output.unlink(missing_ok=True)


def run(words: list[str]) -> str:
    """What a command prints."""
    return processes.run(words, environment()).printed


# ---- Measuring -------------------------------------------------------------------------------------------------------


def timed(tool: str, model: Path, output: Path, settings: argparse.Namespace, ratio: float) -> Row:
    """Seconds of up to three runs and the peaks of memory; or the end of the message where the tool fails."""
    runs: list[processes.Run] = []
    try:
        while len(runs) < REPEATS and (not runs or runs[0].seconds < LONG_S):
            runs.append(processes.run(command(tool, model, output, settings, ratio), environment()))
    except RuntimeError as error:
        return {"error": str(error)[-400:]}
    return {
        "seconds": round(statistics.median(r.seconds for r in runs), 3),
        "runs": [round(r.seconds, 3) for r in runs],
        "resident_bytes": max(r.resident for r in runs),
        "anonymous_bytes": max(r.anonymous for r in runs),
        "file_bytes": output.stat().st_size,
    }


def runtime_memory(model: Path) -> int:
    """Resident bytes at the peak of a process that does nothing but run the model once in ONNX Runtime."""
    program = (
        "import sys, json; from onnxprune import runtime; s = runtime.session(sys.argv[1]); "
        "shapes = {k: tuple(v) for k, v in json.loads(sys.argv[2]).items()}; "
        "runtime.run(s, runtime.synthetic_feed(runtime.input_specs(s), shapes))"
    )
    shapes = json.dumps(SHAPES.get(model.stem, {}))
    return processes.run([sys.executable, "-c", program, str(model), shapes], environment()).resident


def speed(model: Path, output: Path, settings: argparse.Namespace) -> Row:
    """The speed-up over the original with its interval."""
    found = onnxprune.benchmark(
        [model, output],
        input_shapes=SHAPES.get(model.stem, {}),
        provider=settings.provider,
        threads=settings.threads,
        budget_s=settings.budget,
    )[0]
    return {
        "speedup": round(found.speedup, 3),
        "ci95": [round(end, 3) for end in found.ci95],
        "noise_floor": [round(end, 3) for end in found.noise_floor],
        "significant": found.significant,
        "before_ms": round(found.before.p50, 4),
        "after_ms": round(found.after.p50, 4),
        "pairs": found.pairs,
        "warnings": list(found.warnings),
    }


def measure(name: str, model: Path, work: Path, settings: argparse.Namespace, ratios: dict[str, Any]) -> Row:
    """Every tool on one model."""
    whole = macs(model)
    row: Row = {"model": name, "kind": kind(name), "bytes": model.stat().st_size, "macs": whole, "tools": {}}
    if settings.only != "speed":
        row["runtime_resident_bytes"] = runtime_memory(model)
    for tool in TOOLS:
        if not usable(tool, name, settings):
            continue
        say(f"{name}: {tool} ...")
        ratio = ratios.get(tool, {}).get(name, SHARE)
        output = work / f"{name}.{tool}.onnx"
        result: Row = {} if tool == "onnxprune" else {"ratio": ratio}
        row["tools"][tool] = result
        if settings.only != "speed" or not output.exists():
            result |= timed(tool, model, output, settings, ratio)
        if "error" in result:
            continue
        result["macs_ratio"] = round(whole / max(1, macs(output)), 4)
        if settings.only != "time":
            try:
                result |= speed(model, output, settings)
                result["gain"] = round(result["speedup"] / result["macs_ratio"], 3)
            except onnxprune.OnnxPruneError as error:
                result["error"] = str(error)
    if settings.only != "speed" and usable("torch-pruning", name, settings):
        say(f"{name}: {TORCH_EXPORT} ...")
        ratio = ratios.get("torch-pruning", {}).get(name, SHARE)
        row["tools"][TORCH_EXPORT] = timed(TORCH_EXPORT, model, work / f"{name}.torch-export.onnx", settings, ratio)
    return row


def kind(name: str) -> str:
    """Which aim the model is held to."""
    return "transformer" if name in TRANSFORMERS else "convolutional"


# ---- Reporting -------------------------------------------------------------------------------------------------------


def verdicts(rows: list[Row]) -> list[str]:
    """What falls short of the aims, in words."""
    found = []
    for row in rows:
        ours, peer = (row["tools"].get(tool, {}) for tool in TOOLS[:2])
        if "gain" in ours and ours["gain"] < LEAST_RATIO[row["kind"]]:
            found.append(
                f"{row['model']}: speed-up over MACs ratio {ours['gain']}, aimed at {LEAST_RATIO[row['kind']]}"
            )
        if "ci95" in ours and ours["ci95"][1] < 1:
            found.append(f"{row['model']}: slower than the original, {ours['speedup']}x")
        if "seconds" in ours and "seconds" in peer and peer["seconds"] < 3 * ours["seconds"]:
            found.append(
                f"{row['model']}: {peer['seconds'] / ours['seconds']:.1f}x faster than torch-pruning, aimed at 3"
            )
        model = row["bytes"] + row.get("runtime_resident_bytes", 0)
        if "resident_bytes" in ours and ours["resident_bytes"] > 2 * model:
            found.append(
                f"{row['model']}: {ours['resident_bytes'] / model:.1f} times the memory of the model, aimed at 2"
            )
    return found


HEAD = (
    f"{'model':<22}{'tool':<17}{'seconds':>8}{'MB peak':>9}{'x file':>7}{'MACs':>7}{'speed':>7}  {'95%':<15}{'gain':>5}"
)


def table(rows: list[Row]) -> str:
    """One line for each model and tool: MACs and speed as ratios to the original."""
    lines = [HEAD, "-" * len(HEAD)]
    for row in rows:
        for tool, found in row["tools"].items():
            lines.append(_line(row, tool, found))
    return "\n".join(lines)


def _line(row: Row, tool: str, found: Row) -> str:
    start = f"{row['model']:<22}{tool:<17}"
    if "error" in found:
        return f"{start}failed: {found['error'].splitlines()[-1][:70]}"
    peak = found.get("resident_bytes")
    times, interval = f"{peak / row['bytes']:.1f}" if peak else "", found.get("ci95")
    return (
        f"{start}{_number(found.get('seconds'), 1)}{_number(peak and peak / 1e6, 0, 9)}{times:>7}"
        f"{_number(found.get('macs_ratio'), 2, 7)}{_number(found.get('speedup'), 2, 7)}  "
        f"{f'{interval[0]:.2f} to {interval[1]:.2f}' if interval else '':<15}{_number(found.get('gain'), 2, 5)}"
    )


def _number(value: float | None, digits: int, width: int = 8) -> str:
    return f"{'' if value is None else format(value, f'.{digits}f'):>{width}}"


def machine(settings: argparse.Namespace) -> Row:
    """Where and with what the figures were taken."""
    versions = {"onnxprune": onnxprune.__version__, "onnx": onnx.__version__, "onnxruntime": onnxruntime.__version__}
    for tool, python, packages in (
        ("torch-pruning", settings.torch, ("torch", "torch-pruning", "onnx")),
        ("onnxsim", settings.onnxsim, ("onnxsim", "onnx")),
    ):
        if python is not None:
            program = f"from importlib.metadata import version; print(*[p + ' ' + version(p) for p in {packages}])"
            versions[f"environment of {tool}"] = run([str(python), "-c", program]).strip()
    return {
        "processor": processor.model(),
        "cores": os.cpu_count(),
        "load": [round(x, 2) for x in os.getloadavg()],
        "device": processor.model(settings.provider),
        "python": platform.python_version(),
        "system": platform.platform(),
        "versions": versions,
    }


def say(text: str) -> None:
    """Progress."""
    print(text, file=sys.stderr, flush=True)


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--torch", type=Path, help="a Python with torch and torch-pruning")
    parser.add_argument("--onnxsim", type=Path, help="a Python with onnxsim")
    parser.add_argument("--models", help="names, separated by commas; default all")
    parser.add_argument("--only", choices=["time", "speed"])
    parser.add_argument("--prepare", action="store_true", help="make models and find ratios, measure nothing")
    parser.add_argument("--provider", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--budget", type=float, default=BUDGET_S, help="seconds of each comparison")
    parser.add_argument("--output", type=Path, help="where the record goes, as JSON")
    return parser.parse_args()


def main() -> None:
    """Prepare, measure, print, record."""
    settings = options()
    settings.work.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    make(settings)
    files = models(settings.work, settings.models)
    ratios = find_ratios(settings.work, files, settings)
    say(f"prepared in {time.perf_counter() - start:.0f} s")
    if settings.prepare:
        return
    start = time.perf_counter()
    rows = [measure(name, path, settings.work, settings, ratios) for name, path in files.items()]
    print(table(rows))
    short = verdicts(rows)
    print("\n".join(short) or "every aim is met")
    record = {
        "command": " ".join(["python", *sys.argv]),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": machine(settings),
        "threads": settings.threads,
        "seconds": round(time.perf_counter() - start, 1),
        "rows": rows,
        "short_of_aims": short,
    }
    if settings.output:
        settings.output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
