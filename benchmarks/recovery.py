"""What each step of recovery adds, on the models of the evaluation folder (peer/), by share of the MACs kept.

    python benchmarks/recovery.py EVAL_FOLDER OUT.json [--models resnet20,vgg] [--exports ts] [--shares 0.5,0.25]
                                  [--steps cut,obs]

Calibration: the images of calib.npz without labels. Accuracy: the 5,000 test images. Rows: `cut` (weight norm,
uniform), `statistics` (mean and deviation of every channel), `reconstruction`, `obs` (uniform widths), `allocation`,
`distilled`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import accuracy
import numpy as np
import onnxruntime

from onnxprune import (
    allocate,
    analysis,
    choosing,
    cost,
    cut,
    modelfile,
    planning,
    processor,
    recovery,
    score,
    select,
    shapes,
)
from onnxprune.records import Feed, Plan

STEPS = ("cut", "statistics", "reconstruction", "obs", "allocation", "distilled")


@dataclasses.dataclass
class Bench:
    """One export of one model of the evaluation folder, opened, and the inputs to calibrate on."""

    scorer: Any
    path: Path
    task: str
    feeds: list[Feed]

    def __post_init__(self) -> None:
        self.model = modelfile.ModelFile.load(self.path)
        self.shapes = shapes.infer(self.model.proto)
        self.analysis = analysis.analyse(self.model.proto, self.shapes)
        able = [g for g in self.analysis.groups if g.refusal is None]
        self.groups = allocate.choose_factors(self.analysis, able)
        self.source = recovery.Source(str(self.path), {}, self.feeds, 0, 1, 2 << 30)

    def share(self, plan: Plan) -> float:
        """The share of the MACs that a plan keeps."""
        kept = {g.dim: len(plan.kept[g.id]) for g in self.groups if g.id in plan.kept}
        return cost.macs(self.analysis, kept) / cost.macs(self.analysis)

    def by_norm(self, share: float) -> Plan:
        """The uniform plan by weight norm that keeps at most `share` of the MACs."""
        scores = score.score(self.analysis, self.groups, planning.reader(self.model), criterion="l2", seed=0)

        def at(ratio: float) -> Plan:
            counts = allocate.uniform(
                self.analysis, self.groups, ratio=ratio, round_to=1, widths=processor.table("cpu")
            )
            return select.select(scores, counts)

        low, high = 0.0, 0.99
        for _ in range(16):
            middle = (low + high) / 2
            low, high = (low, middle) if self.share(at(middle)) <= share else (middle, high)
        return at(high)

    def by_damage(self, share: float, allocation: str) -> Plan:
        """The plan by damage (obs) that keeps at most `share` of the MACs."""
        steps = {g.id: 1 for g in self.groups}
        wanted = choosing.Wanted([g.id for g in self.groups], allocation, ("macs", share), 0.5, steps, "obs")
        return Plan(dict(choosing.choose(self.source, wanted).kept))

    def accuracy(self, plan: Plan, recovered: recovery.Recovered | None) -> float:
        """Accuracy of the model cut by a plan, with the recovered weights where there are any."""
        done = cut.cut(self.model.proto, self.analysis, self.shapes, plan.kept)
        done = recovery.install(done, recovered) if recovered else done
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "out.onnx"
            modelfile.write(self.model, done.proto, done.edits, out)
            return float(self.scorer.accuracy(self.task, str(out)))

    def row(self, step: str, share: float) -> dict[str, object]:
        """What one step gives at one share of the MACs."""
        start = time.perf_counter()
        allocation = {"obs": "uniform", "allocation": "sensitivity", "distilled": "sensitivity"}.get(step)
        plan = self.by_damage(share, allocation) if allocation else self.by_norm(share)
        recovered = None
        if step != "cut":
            recovered = recovery.recover(self.source, plan.kept, tuned=step == "distilled", fits=step != "statistics")
        seconds = round(time.perf_counter() - start, 1)
        return {
            "step": step,
            "macs": round(self.share(plan), 4),
            "accuracy": self.accuracy(plan, recovered),
            "seconds": seconds,
        }


def main() -> None:
    """Write one row per model, export, share and step."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--models", default="resnet20,vgg,mobilenetv2")
    parser.add_argument("--exports", default="ts")
    parser.add_argument("--shares", default="0.5,0.25")
    parser.add_argument("--steps", default=",".join(STEPS))
    arguments = parser.parse_args()
    scorer = accuracy.load_score(arguments.folder / "peer" / "score.py")
    versions = {"onnxruntime": onnxruntime.__version__, "numpy": np.__version__, "machine": platform.machine()}
    rows: list[dict[str, object]] = []
    result = {"versions": versions, "options": {k: str(v) for k, v in vars(arguments).items()}, "rows": rows}
    for task in arguments.models.split(","):
        images = scorer.prep(np.load(arguments.folder / "peer" / "data" / "calib.npz")["images"], task)
        feeds = [{"input": images[i : i + 50]} for i in range(0, len(images), 50)]
        for export in arguments.exports.split(","):
            bench = Bench(scorer, arguments.folder / "peer" / "models" / f"{task}.{export}.onnx", task, feeds)
            for share in map(float, arguments.shares.split(",")):
                for step in arguments.steps.split(","):
                    row = {"model": task, "export": export, "share": share, **bench.row(step, share)}
                    print(json.dumps(row), flush=True)
                    rows.append(row)
                    arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
