"""`onnxprune search`: the trials that are not finished yet, then the latency of every model, then the front."""

from __future__ import annotations

import dataclasses
import logging
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from onnxprune import distribution, processor, runtime
from onnxprune.api import inspect, prune
from onnxprune.comparison import benchmark, leading_rows
from onnxprune.config import Config
from onnxprune.distribution import Workers
from onnxprune.errors import NothingToPruneError, OnnxPruneError, WorkerError
from onnxprune.folder import unless_empty
from onnxprune.modelfile import skeleton
from onnxprune.records import SearchReport, Trial, TrialResult
from onnxprune.trials import cargo, space, work
from onnxprune.trials.front import front
from onnxprune.trials.store import Store

log = logging.getLogger(__name__)

FINAL = (0, 4)
"""Exit codes of trials that would end the same way again: they are remembered."""


def search(
    model: str | Path,
    config: Config | None = None,
    *,
    ratios: Sequence[float] = (),
    targets: Sequence[str] = (),
    criteria: Sequence[str] = ("obs",),
    folder: str | Path | None = None,
    workers: Workers | None = None,
    timed: bool = True,
) -> SearchReport:
    """Prune `model` with every one of `ratios` and `targets` and every criterion, and find what no other result beats.

    `config`: the options of all trials, with `calibration`; what is compared is its metric on rows held out, else the
    closeness to the original. `folder` (default MODEL_search beside the model) keeps a JSON file and a plan of every
    finished trial; trials that are finished there are not made again. `workers`: where trials run. Latency is
    measured afterwards, one model at a time on this machine, where it is to be `timed`.

    Raises an OnnxPruneError where options do not fit, or no trial gives a model; finished trials are kept.
    """
    path, config, workers = Path(model), config or Config(), workers or Workers()
    wanted = space.trials(ratios, targets, criteria)
    workers.check()
    space.check(config, wanted, path)
    before = inspect(path, config.input_shapes).before
    rows = leading_rows(skeleton(path), config.batch)
    place = Path(folder) if folder else config.output_for(path).with_name(f"{path.stem}_search")
    with unless_empty(place):
        store = Store(place)
        results, reused = _results(path, config, wanted, store, workers)
    if all(result.after is None for result in results.values()):
        raise _none(list(results.values()))
    results = {trial: _as_asked(result, config, rows) for trial, result in results.items()}
    if timed:
        results = {trial: _timed(path, config, result, store) for trial, result in results.items()}
    ordered = tuple(results[trial] for trial in wanted)
    return SearchReport(
        model=str(path),
        folder=str(store.folder),
        seed=config.seed,
        options=dataclasses.asdict(config),
        before=before,
        results=ordered,
        front=front(ordered),
        reused=reused,
    )


def _results(
    model: Path, config: Config, wanted: Sequence[Trial], store: Store, workers: Workers
) -> tuple[dict[Trial, TrialResult], int]:
    """The results by trial, and how many were there already."""
    keys = cargo.Keys(model, config)
    named = {trial: keys.key(trial) for trial in wanted}
    found = {trial: result for trial, key in named.items() if (result := store.read(trial, key)) is not None}
    reused = len(found)
    tasks = [(space.label(trial), work.Task(trial, named[trial])) for trial in wanted if trial not in found]
    packed = cargo.pack(model, config, travels=workers.files_travel)
    for done in distribution.each(work.attempt, packed, tasks, workers):
        result = done.result
        if result.exit_code in FINAL:
            result = store.write(result, done.plan)
        else:
            log.warning("%s: %s", space.label(result.trial), result.error)
        found[result.trial] = result
        log.info("%d of %d: %s", len(found), len(wanted), _words(result))
    return found, reused


def _words(result: TrialResult) -> str:
    said = f"{result.metric} {result.quality.value:.4f}" if result.quality else result.error
    return f"{space.label(result.trial)}: {said}"


def _timed(model: Path, config: Config, result: TrialResult, store: Store) -> TrialResult:
    """The result with the latency of its model, measured now where it has none.

    The model is cut again by the plan: its weights may differ, which takes no time, its widths are the same.
    """
    if result.plan is None or result.latency is not None:
        return result
    log.info("latency of %s ...", space.label(result.trial))
    with tempfile.TemporaryDirectory(prefix="onnxprune-search-") as name:
        output = Path(name) / "pruned.onnx"
        try:
            with distribution.warnings_aside():  # they are of the cut alone, which nobody keeps
                prune(model, _replay(config, store.folder / result.plan, output))
            found = benchmark(
                [model, output],
                input_shapes=config.input_shapes,
                calibration=config.calibration,
                preparation=config.preparation if config.calibration else None,
                batch=config.batch,
                provider=config.provider,
                threads=config.run_threads,
                budget_s=config.budget_s,
                seed=config.seed,
            )[0]
        except OnnxPruneError as error:
            log.warning("%s: no latency: %s", space.label(result.trial), error)
            return result
    return store.write(dataclasses.replace(result, latency=found))


def _replay(config: Config, plan: Path, output: Path) -> Config:
    """The options that cut a model by a plan, and do no more."""
    none = Config()
    unused = ("metric", "labels", "evaluation", "depth", "keep", "only", "tune", "allocation")
    plain = {name: getattr(none, name) for name in unused}
    return dataclasses.replace(config, **plain, plan=plan, output=output, recover=False, criterion="l2")


def _as_asked(result: TrialResult, config: Config, rows: Mapping[str, int]) -> TrialResult:
    """The result without a latency that was measured elsewhere, or otherwise than is asked for now.

    `rows`: what every input is to be fed. The other axes follow from the inputs and `config.input_shapes`, which are
    part of the key of the result.
    """
    found = result.latency
    if found is None:
        return result
    measured = (found.processor, found.runtime, found.provider, found.threads)
    asked = (processor.model(), runtime.version(), config.provider, config.run_threads or runtime.physical_cores())
    fed = all(found.inputs.get(name, ())[:1] == (count,) for name, count in rows.items())
    return result if fed and measured == asked else dataclasses.replace(result, latency=None)


def _none(results: Sequence[TrialResult]) -> OnnxPruneError:
    """The error of a search in which no trial gives a model."""
    said = "; ".join(dict.fromkeys(f"{space.label(r.trial)}: {r.error}" for r in results))
    kind = NothingToPruneError if all(r.exit_code in FINAL for r in results) else WorkerError
    return kind(f"no trial gives a model: {said}")
