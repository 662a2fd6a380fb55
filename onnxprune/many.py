"""Several models pruned in the same way; the failure of one does not stop the others."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from onnxprune import distribution
from onnxprune.config import Config
from onnxprune.distribution import Workers
from onnxprune.errors import UsageError
from onnxprune.folder import make_folder, unless_empty
from onnxprune.jobs import Job, Shipment, attempt, attempt_far, received, refused
from onnxprune.records import Pruned
from onnxprune.trials import cargo


def prune_many(
    models: Sequence[str | Path], config: Config | None = None, *, jobs: int = 1, workers: Workers | None = None
) -> tuple[Pruned, ...]:
    """Prune every one of `models` as `config` says, `jobs` at a time in processes of this machine; in their order.

    `config.output` is the folder for the results, which get the names of their models; it is made where it is not
    there. Without it MODEL_pruned.onnx beside each. `workers`: in place of `jobs`, where models are pruned. Raises an
    OnnxPruneError for options that fit no model, and where a cluster cannot be used; the error of a single model is in
    its record.
    """
    config, paths = config or Config(), [Path(model) for model in models]
    workers = workers or Workers(jobs)
    tasks = _check(paths, config, workers)
    with contextlib.nullcontext() if config.output is None else unless_empty(config.output):
        if config.output is not None and not config.dry_run:
            make_folder(config.output, if_file="several models need a folder, and this is a file; choose another")
        found = _here(tasks, config, workers) if workers.backend == "local" else _far(tasks, config, workers)
        by_model = {done.model: done for done in found}
    return tuple(by_model[str(path)] for path in paths)


def _here(tasks: Sequence[Job], config: Config, workers: Workers) -> Iterator[Pruned]:
    named, folders = [(str(job.model), job) for job in tasks], {job.written.parent for job in tasks}
    return distribution.each(attempt, config, named, workers, results=folders)


def _far(tasks: Sequence[Job], config: Config, workers: Workers) -> Iterator[Pruned]:
    """On a cluster; what comes back is put in its place as it comes."""
    travels = workers.files_travel
    unable = list(refused(tasks, config, travels=travels))
    yield from unable
    failed = {entry.model for entry in unable}
    able = {str(job.model): job for job in tasks if str(job.model) not in failed}
    packed, shipment = cargo.pack_options(config, travels=travels), Shipment(list(able.values()), travels=travels)
    for back in distribution.each(attempt_far, packed, shipment, workers):
        yield received(back, able[back.pruned.model], force=config.force)


def _check(models: Sequence[Path], config: Config, workers: Workers) -> list[Job]:
    """What is to be done. Raises UsageError for what cannot be done with several."""
    if not models:
        raise UsageError("no model is given")
    files = [model.resolve() for model in models]
    twice = [str(model) for model, file in zip(models, files, strict=True) if files.count(file) > 1]
    if twice:
        raise UsageError(f"{' and '.join(dict.fromkeys(twice))}: this model is given twice")
    if config.plan or config.save_plan:
        raise UsageError("--plan and --save-plan are for one model: prune the models one by one")
    dataclasses.replace(config, output=None).validate()
    workers.check()
    if (config.benchmark or config.aims_at_latency) and workers != Workers(1):
        raise UsageError(
            "latency is measured on this machine, with no work beside it: no --benchmark and no latency target, or "
            "--jobs 1 and no --backend"
        )
    tasks = [Job(model, config.output / model.name if config.output else None) for model in models]
    _check_outputs({job.model: job.written for job in tasks})
    return tasks


def _check_outputs(outputs: Mapping[Path, Path]) -> None:
    """Raise UsageError where the results of two models have one name, or one has the name of another model."""
    written: dict[Path, Path] = {}
    for model, output in outputs.items():
        other = written.setdefault(output.resolve(), model)
        if other != model:
            raise UsageError(f"{other} and {model} would both be written to {output}: prune them one by one")
    for model in outputs:
        other = written.get(model.resolve(), model)
        if other != model:
            raise UsageError(f"{other} would be written to {model}, which is to be pruned too: prune them one by one")
