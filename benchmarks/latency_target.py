"""Whether `--target latency=X` gives what it says: each model pruned by the command line, then checked in a run apart.

    python benchmarks/latency_target.py MODEL [MODEL ...] [--target 0.6] [--check-budget 20]
        [--out benchmarks/results/latency_target.json] [-- --calibration PATH ...]

The check is `onnxprune benchmark ORIGINAL PRUNED` in a process of its own, on made-up inputs. Its share of the
original's latency is 1 over the median ratio of the pairs. Options after `--` go to the pruning command.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from onnxprune import __version__, processor, runtime

COMMAND = [sys.executable, "-c", "from onnxprune.cli import main; main()"]


def call(*arguments: str | Path) -> tuple[int, str]:
    """Exit code and standard error of one onnxprune command."""
    done = subprocess.run([*COMMAND, *map(str, arguments)], capture_output=True, text=True, check=False)
    return done.returncode, done.stderr.strip()


def check(model: Path, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """One model: what was asked for, what the tool measured, what the run apart measures."""
    pruned, report, again = folder / "pruned.onnx", folder / "report.json", folder / "again.json"
    start = time.perf_counter()
    code, said = call(
        model, "--target", f"latency={options.target}", "-o", pruned, "--json", report, "--force", *options.rest
    )
    row: dict[str, Any] = {
        "model": model.name,
        "target": options.target,
        "exit_code": code,
        "seconds": round(time.perf_counter() - start, 1),
    }
    if code:
        return row | {"error": said.splitlines()[-1] if said else ""}
    data = json.loads(report.read_text(encoding="utf-8"))
    threads = str(data["latency"]["threads"])
    code, said = call(
        "benchmark", model, pruned, "--threads", threads, "--budget", options.check_budget, "--json", again
    )
    if code:
        return row | {"error": said}
    found = json.loads(again.read_text(encoding="utf-8"))["comparisons"][0]
    share = 1.0 / found["speedup"]
    return row | {
        "goal": round(data["latency_target"]["goal"], 4),
        "reached": round(data["latency_target"]["reached"], 4),
        "attempts": len(data["latency_target"]["attempts"]),
        "whole_over_sum": [round(e["ratio"], 3) for e in data["latency_target"]["model"]["whole_over_sum"]],
        "checked_share": round(share, 4),
        "checked_interval": [round(1.0 / end, 4) for end in reversed(found["ci95"])],
        "off_by": round(share / data["latency_target"]["goal"] - 1.0, 4),
        "checked_p50_ms": [found["before_ms"]["p50"], found["after_ms"]["p50"]],
        "macs_kept": round(data["after"]["macs"] / data["before"]["macs"], 4),
        "warnings": found["warnings"],
    }


def main() -> None:
    """Run, print a line for each model, and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--target", default="0.6")
    parser.add_argument("--check-budget", default="20")
    parser.add_argument("--out", type=Path)
    where = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    options = parser.parse_args(sys.argv[1:where])
    options.rest = sys.argv[where + 1 :]
    rows = []
    for model in options.models:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(check(model, options, Path(folder)))
        print(json.dumps(rows[-1]), flush=True)
    result = {
        "what": "share of the original's latency after --target latency, checked in a run apart",
        "when": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": {"processor": processor.model(), "cores": os.cpu_count(), "load_average": os.getloadavg()},
        "versions": {"onnxprune": __version__, "onnxruntime": runtime.version()},
        "options": options.rest,
        "rows": rows,
    }
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
