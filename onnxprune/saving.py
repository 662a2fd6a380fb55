"""From the cut to the file: proved exact, recovered, measured on inputs held out, written."""

from __future__ import annotations

import dataclasses
import logging
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from onnxprune import pacing, proving, recovery, verify, worker
from onnxprune.clock import Clock
from onnxprune.comparison import Conditions
from onnxprune.config import Config
from onnxprune.cut import Cut
from onnxprune.errors import ModelError, WorkerError
from onnxprune.fusing import UNFUSED, fused
from onnxprune.gathering import Gathered
from onnxprune.modelfile import write
from onnxprune.opened import Opened
from onnxprune.planning import Decision
from onnxprune.records import Distillation, Latency, LayerQuality, MetricResult, Proof, Quality

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """What is to be written to `output`: the cut `done` of `opened` by the plan of `decision`."""

    opened: Opened
    config: Config
    decision: Decision
    done: Cut
    output: Path
    gathered: Gathered
    clock: Clock
    timed: Conditions

    @property
    def data(self) -> Literal["calibration", "synthetic"]:
        """What the inputs are."""
        return self.gathered.inputs.kind if self.gathered.inputs else "calibration"

    @property
    def original(self) -> str:
        """The path of the model as it was given, residual blocks included."""
        return str((self.opened.original or self.opened).model.path)


def save(job: Job, source: recovery.Source | None) -> Proof:
    """Write the model, recovered from `source` where there is one.

    Where a proof fails, or the result is measured and not faster, nothing is written. Where synthetic inputs, which
    nobody asked for, do not serve to recover, or the recovered model is worse than the cut on inputs held out, the cut
    is written and the proof says so.
    """
    if source is None:
        return _save_cut(job)
    with tempfile.TemporaryDirectory(prefix="onnxprune-") as folder:
        path = Path(folder) / "cut.onnx"
        proofs: list[Proof] = []
        write(job.opened.model, job.done.proto, job.done.edits, path, check=lambda p: proofs.append(_proved(job, p)))
        try:
            recovered = job.decision.recovered or _recover(job, source)
        except (ModelError, WorkerError) as error:
            if job.data == "calibration":
                raise
            note = f"nothing was recovered, this is the cut alone ({str(error).splitlines()[0]})"
            log.warning("%s", note)
            return dataclasses.replace(_save_cut(job), note=note)
        try:
            return _save_recovered(job, proofs[0], path, recovered)
        except _WorseError as worse:
            log.warning("%s", worse)
            return dataclasses.replace(_save_cut(job), note=str(worse))


class _WorseError(Exception):
    """The recovered model errs more than the cut alone on inputs held out; the message has both figures."""


def _require_better(cut: Quality, final: Quality) -> None:
    """Both on the same samples."""
    if cut.samples != final.samples:
        raise ValueError(f"the cut was measured on {cut.samples} samples, the result on {final.samples}")
    before, after = (sum(o.relative_error for o in q.outputs.values()) / max(1, len(q.outputs)) for q in (cut, final))
    if not after <= before:
        raise _WorseError(
            f"the refitted weights err more than the cut alone on the {final.samples} samples held out (relative error "
            f"{after:.4g} against {before:.4g}), so this is the cut alone; more, or more typical, --calibration inputs "
            "help"
        )


def _proved(job: Job, path: Path) -> Proof:
    with job.clock("verify"):
        proof = proving.prove(job.opened, job.config, job.decision.plan, path, job.gathered.held)
    if not job.gathered.held:
        return proof
    return dataclasses.replace(proof, quality=dataclasses.replace(proof.quality, data=job.data))


def _latency(job: Job, path: Path) -> Latency | None:
    """The latency of the finished model, where it was asked for; NotFasterError where it is not the better one."""
    if not job.config.times_result:
        return None
    with job.clock("benchmark"):
        return pacing.timed_result(Path(job.original), path, job.timed, force=job.config.force)


def _save_cut(job: Job) -> Proof:
    done, nodes = fused(job.opened, job.config, job.done)
    if nodes:
        try:
            return dataclasses.replace(_write_cut(job, done), fused=nodes)
        except UNFUSED as error:
            note = _unfused(error)
            return dataclasses.replace(_write_cut(job, job.done), note=note)
    return _write_cut(job, job.done)


def _unfused(error: Exception) -> str:
    note = f"nothing was fused, as the model does not stand it: {str(error).splitlines()[0].split('; ')[0]}"
    log.warning("%s", note)
    return note


def _write_cut(job: Job, done: Cut) -> Proof:
    proofs: list[Proof] = []

    def check(path: Path) -> None:
        proof = _proved(job, path)
        latency = _latency(job, path)
        proofs.append(dataclasses.replace(proof, metric=_metric(job, None, path), latency=latency))

    start = time.perf_counter()
    spent = job.clock.seconds.get("verify", 0.0) + job.clock.seconds.get("benchmark", 0.0)
    write(job.opened.model, done.proto, done.edits, job.output, check=check, force=job.config.force)
    elsewhere = job.clock.seconds["verify"] + job.clock.seconds.get("benchmark", 0.0) - spent
    job.clock.seconds["save"] = time.perf_counter() - start - elsewhere
    return proofs[0]


def _recover(job: Job, source: recovery.Source) -> recovery.Recovered:
    with job.clock("recover"):
        found: recovery.Recovered = worker.call(
            "onnxprune.recovery:recover",
            {"source": source, "kept": job.decision.plan.kept, "tuned": job.config.tune},
            timeout_s=recovery.LIMIT_S if job.data == "calibration" else recovery.QUICK_LIMIT_S,
            threads=job.config.threads,
        )
    return found


def _save_recovered(job: Job, proof: Proof, cut: Path, recovered: recovery.Recovered) -> Proof:
    """Write the recovered model, and measure what was written beside the cut alone, whose proof is given."""
    for note in recovered.notes:
        log.warning("%s", note)
    plain = recovery.install(job.done, recovered)
    distilled = Distillation(*recovered.distilled) if recovered.distilled else None
    layers = tuple(LayerQuality(layer.node, layer.before, layer.after) for layer in recovered.layers)
    notes = list(recovered.notes)
    done, nodes = fused(job.opened, job.config, plain)
    found = None
    if nodes:
        path = cut.with_name("recovered.onnx")
        write(job.opened.model, plain.proto, plain.edits, path)
        try:
            found = _write_recovered(job, proof, cut, done, path)
        except UNFUSED as error:
            notes.append(_unfused(error))
            nodes = 0
    found = found or _write_recovered(job, proof, cut, plain)
    return dataclasses.replace(found, layers=layers, note="; ".join(notes), distillation=distilled, fused=nodes)


def _write_recovered(job: Job, proof: Proof, cut: Path, done: Cut, plain: Path | None = None) -> Proof:
    """Write the recovered model `done`; `plain`: the file of what it was fused from, which it must equal."""
    proofs: list[Proof] = []

    def check(path: Path) -> None:
        verify.check_file(path, job.opened.model.path)
        if plain is not None:
            proving.prove_fusion(job.opened, job.config, plain, path)
        feeds = list(job.gathered.held)
        arguments = {"original": job.original, "pruned": str(path), "feeds": feeds, "data": job.data}
        quality = worker.call("onnxprune.verify:compare_quality", arguments, timeout_s=proving.VERIFY_LIMIT_S)
        if job.config.max_drop is None:
            _require_better(proof.quality, quality)
        latency = _latency(job, path)
        proofs.append(Proof(proof.exactness, quality, proof.quality, metric=_metric(job, cut, path), latency=latency))

    with job.clock("save"):
        write(job.opened.model, done.proto, done.edits, job.output, check=check, force=job.config.force)
    return proofs[0]


def _metric(job: Job, cut: Path | None, final: Path) -> MetricResult | None:
    """The metric of the original, the cut alone and the result, if one is measured."""
    wanted = job.gathered.evaluation
    if wanted is None:
        return None
    arguments = {"original": job.original, "cut": str(cut) if cut else None, "final": str(final), "wanted": wanted}
    log.info("evaluate ...")
    found: MetricResult = worker.call("onnxprune.evaluation:measure", arguments, timeout_s=recovery.LIMIT_S)
    return found
