"""Several models pruned in the same way; the failure of one does not stop the others."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path

from onnxprune import distribution
from onnxprune.api import prune
from onnxprune.config import Config, default_output, parse_target
from onnxprune.distribution import Workers
from onnxprune.errors import OnnxPruneError, UsageError
from onnxprune.folder import make_folder, unless_empty
from onnxprune.records import Pruned

log = logging.getLogger(__name__)


def prune_many(models: Sequence[str | Path], config: Config | None = None, *, jobs: int = 1) -> tuple[Pruned, ...]:
    """Prune every one of `models` as `config` says, `jobs` at a time in processes of this machine; in their order.

    `config.output` is the folder for the results, which get the names of their models; it is made where it is not
    there. Without it MODEL_pruned.onnx beside each. Raises an OnnxPruneError for options that fit no model; the error
    of a single model is in its record.
    """
    config, paths = config or Config(), [Path(model) for model in models]
    outputs = _check(paths, config, jobs)
    tasks = [(str(path), (path, output)) for path, output in zip(paths, outputs, strict=True)]
    results = {(output or path).parent for path, output in zip(paths, outputs, strict=True)}
    with contextlib.nullcontext() if config.output is None else unless_empty(config.output):
        if config.output is not None and not config.dry_run:
            make_folder(config.output, if_file="several models need a folder, and this is a file; choose another")
        found = {done.model: done for done in distribution.each(attempt, config, tasks, Workers(jobs), results=results)}
    return tuple(found[str(path)] for path in paths)


def attempt(config: Config, task: tuple[Path, Path | None]) -> Pruned:
    """Prune one model; an error is part of the record."""
    model, output = task
    try:
        return Pruned(str(model), prune(model, dataclasses.replace(config, output=output)))
    except OnnxPruneError as error:
        return Pruned(str(model), None, str(error), error.exit_code)
    except Exception as error:  # noqa: BLE001 - the other models are still to be pruned
        log.debug("%s", traceback.format_exc())
        return Pruned(str(model), None, f"internal error: {type(error).__name__}: {error}", 1)


def _check(models: Sequence[Path], config: Config, jobs: int) -> list[Path | None]:
    """The output of every model, None for the default. Raises UsageError for what cannot be done with several."""
    if not models:
        raise UsageError("no model is given")
    files = [model.resolve() for model in models]
    twice = [str(model) for model, file in zip(models, files, strict=True) if files.count(file) > 1]
    if twice:
        raise UsageError(f"{' and '.join(dict.fromkeys(twice))}: this model is given twice")
    if config.plan or config.save_plan:
        raise UsageError("--plan and --save-plan are for one model: prune the models one by one")
    dataclasses.replace(config, output=None).validate()
    timed = config.benchmark or (config.target and parse_target(config.target)[0] in ("latency", "milliseconds"))
    if timed and jobs > 1:
        raise UsageError(
            "latency beside other work measures that work too: no --benchmark and no latency target, or --jobs 1"
        )
    outputs = [config.output / model.name if config.output else None for model in models]
    _check_outputs({m: output or default_output(m) for m, output in zip(models, outputs, strict=True)})
    return outputs


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
