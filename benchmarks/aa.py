"""How often the interval of a comparison holds 1 where a model is compared with itself, beside other work.

    python benchmarks/aa.py models/resnet.onnx --repeats 100 --load 2 --out benchmarks/results/aa.json

The other work is `--load` processes that compute for random times and sleep for random times in between.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import time
from datetime import datetime, timezone
from pathlib import Path

from onnxprune import __version__, processor, runtime
from onnxprune.latency import measure


def disturb(seed: int) -> None:
    """Bursts of work: both the bursts and the pauses last 0.15 s on average."""
    chance = random.Random(seed)
    while True:
        end = time.perf_counter() + chance.expovariate(1 / 0.15)
        while time.perf_counter() < end:
            sum(range(1000))
        time.sleep(chance.expovariate(1 / 0.15))


def repeat(model: Path, repeats: int, budget_s: float, threads: int) -> list[dict[str, object]]:
    """Short comparisons of a model with itself, each with sessions, inputs and a seed of its own."""
    session = runtime.session(model)
    feeds = runtime.synthetic_feed(runtime.input_specs(session), {})
    rows: list[dict[str, object]] = []
    for seed in range(repeats):
        (found,) = measure.compare_many(
            [model, model], feeds, threads=threads, budget_s=budget_s, seed=seed, self_test=False
        )
        rows.append(
            {
                "ratio": round(found.speedup, 4),
                "interval": [round(end, 4) for end in found.ci95],
                "holds_1": found.ci95[0] <= 1.0 <= found.ci95[1],
                "pairs": found.pairs,
            }
        )
        print(seed, rows[-1], flush=True)
    return rows


def main() -> None:
    """Run and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--repeats", type=int, default=100)
    parser.add_argument("--budget", type=float, default=1.5)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--load", type=int, default=2)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    others = [multiprocessing.Process(target=disturb, args=(k,), daemon=True) for k in range(options.load)]
    for other in others:
        other.start()
    try:
        rows = repeat(options.model, options.repeats, options.budget, options.threads)
    finally:
        for other in others:
            other.terminate()
    widths = sorted(float(row["interval"][1]) - float(row["interval"][0]) for row in rows)  # type: ignore[index]
    result = {
        "what": "intervals of a model against itself that hold 1",
        "when": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": {"processor": processor.model(), "cores": os.cpu_count(), "load_average": os.getloadavg()},
        "versions": {"onnxprune": __version__, "onnxruntime": runtime.version()},
        "model": options.model.name,
        "budget_s": options.budget,
        "processes_of_load": options.load,
        "repeats": len(rows),
        "hold_1": sum(bool(row["holds_1"]) for row in rows),
        "median_width": widths[len(widths) // 2],
        "rows": rows,
    }
    print(f"{result['hold_1']} of {result['repeats']} intervals hold 1; median width {result['median_width']:.3f}")
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
