"""From the cut to the file: proved exact, recovered, measured on inputs held out, written."""

from __future__ import annotations

import dataclasses
import logging
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from onnxprune import proving, recovery, verify, worker
from onnxprune.clock import Clock
from onnxprune.config import Config
from onnxprune.cut import Cut
from onnxprune.modelfile import write
from onnxprune.opened import Opened
from onnxprune.records import Feed, Plan, Proof

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """What is to be written to `output`: the cut `done` of `opened` by `plan`; `held`: inputs to measure on."""

    opened: Opened
    config: Config
    plan: Plan
    done: Cut
    output: Path
    held: Sequence[Feed]
    clock: Clock


def save(job: Job, source: recovery.Source | None) -> Proof:
    """Write the model, recovered from `source` where there is one. Where a proof fails nothing is written."""
    if source is None:
        return _save_cut(job)
    with tempfile.TemporaryDirectory(prefix="onnxprune-") as folder:
        proof = _proved(job, Path(folder) / "cut.onnx")
        return _save_recovered(job, proof, _recover(job, source))


def _proved(job: Job, path: Path) -> Proof:
    """Write the cut alone to `path` and prove it."""
    proofs: list[Proof] = []

    def check(written: Path) -> None:
        with job.clock("verify"):
            proofs.append(proving.prove(job.opened, job.config, job.plan, written, job.held))

    write(job.opened.model, job.done.proto, job.done.edits, path, check=check, force=job.config.force)
    return proofs[0]


def _save_cut(job: Job) -> Proof:
    start = time.perf_counter()
    proof = _proved(job, job.output)
    job.clock.seconds["save"] = time.perf_counter() - start - job.clock.seconds["verify"]
    return proof


def _recover(job: Job, source: recovery.Source) -> recovery.Recovered:
    with job.clock("recover"):
        recovered: recovery.Recovered = worker.call(
            "onnxprune.recovery:recover",
            {"source": source, "kept": job.plan.kept, "tuned": job.config.tune},
            timeout_s=recovery.LIMIT_S,
            threads=job.config.threads,
        )
    for note in recovered.notes:
        log.warning("%s", note)
    return recovered


def _save_recovered(job: Job, proof: Proof, recovered: recovery.Recovered) -> Proof:
    """Write the recovered model and measure the quality of what was written."""
    opened = job.opened
    final = recovery.install(job.done, recovered)
    original = (opened.original or opened).model.path
    proofs = [proof]

    def measure(path: Path) -> None:
        verify.check_file(path, opened.model.path)
        arguments = {"original": str(original), "pruned": str(path), "feeds": list(job.held), "data": "calibration"}
        quality = worker.call("onnxprune.verify:compare_quality", arguments, timeout_s=proving.VERIFY_LIMIT_S)
        proofs[0] = dataclasses.replace(proofs[0], quality=quality)

    with job.clock("save"):
        write(opened.model, final.proto, final.edits, job.output, check=measure, force=job.config.force)
    return proofs[0]
