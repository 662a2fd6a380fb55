"""`onnxprune benchmark`: models timed against each other on inputs that all of them accept."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx

from onnxprune import calibration, runtime, shapes, worker
from onnxprune.config import PROVIDERS, check_input_shapes, check_preparation, check_timing
from onnxprune.errors import ModelError, UsageError, runs_nowhere
from onnxprune.latency import measure
from onnxprune.latency import profile as profiling
from onnxprune.modelfile import ModelFile, skeleton
from onnxprune.preparation import Preparation
from onnxprune.records import Feed, Latency, Profile
from onnxprune.wording import plural

PROFILE_LIMIT_S = 900.0
"""Time limit of the child process that profiles."""


def benchmark(
    models: Sequence[str | Path],
    *,
    input_shapes: Mapping[str, tuple[int, ...]] | None = None,
    calibration: Path | None = None,
    preparation: Preparation | None = None,
    batch: int | None = None,
    provider: str = "cpu",
    threads: int = 0,
    budget_s: float = 10.0,
    seed: int = 0,
) -> list[Latency]:
    """Time every further model against the first, in a child process, on the same inputs. Writes nothing.

    The inputs are the first `batch` rows (default 1) of `calibration` (whatever `prune` takes; `preparation`: how
    images become inputs), or made up: of `input_shapes` where given, dynamic first axes being `batch`. `threads` 0
    means all physical cores; `budget_s` is the time for each comparison. Raises UsageError for options that do not fit,
    ModelError where a model cannot be loaded or run.
    """
    conditions = Conditions(dict(input_shapes or {}), batch, provider, threads, budget_s, seed)
    _check(models, conditions)
    prepared = preparation or Preparation()
    check_preparation(prepared, has_inputs=calibration is not None)
    opened = [ModelFile.load(model) for model in models]
    proto = opened[0].proto
    sample = _first_feed(calibration, prepared, proto, conditions) if calibration is not None else None
    return compare_files(models, dataclasses.replace(conditions, sample=sample))


@dataclass(frozen=True)
class Conditions:
    """What models are timed on and with; `benchmark` says what the fields are. `sample`: inputs to take rows of."""

    input_shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    batch: int | None = None
    provider: str = "cpu"
    threads: int = 0
    budget_s: float = 10.0
    seed: int = 0
    sample: Feed | None = None


def compare_files(models: Sequence[str | Path], conditions: Conditions, *, self_test: bool = True) -> list[Latency]:
    """Time every further model against the first, in a child process."""
    limit = 300.0 + len(models) * (120.0 + 4.0 * conditions.budget_s)
    arguments = {**_arguments(models, conditions), "self_test": self_test}
    result: list[Latency] = worker.call("onnxprune.comparison:compare", arguments, timeout_s=limit)
    return result


def profile_files(models: Sequence[str | Path], conditions: Conditions) -> list[Profile]:
    """Where the time of every model goes, on the same inputs, in a child process."""
    arguments = _arguments(models, conditions)
    result: list[Profile] = worker.call("onnxprune.comparison:profile", arguments, timeout_s=PROFILE_LIMIT_S)
    return result


def _arguments(models: Sequence[str | Path], conditions: Conditions) -> dict[str, Any]:
    proto = skeleton(Path(models[0]))
    if conditions.sample is None:
        tried = _sizes(proto, conditions.input_shapes, conditions.batch)
    else:
        tried = []
        conditions = dataclasses.replace(conditions, sample=_rows(proto, conditions.sample, conditions.batch))
    return {"models": [os.fspath(model) for model in models], "conditions": conditions, "tried": tried}


def compare(
    models: Sequence[str], conditions: Conditions, *, tried: Sequence[Mapping[str, Sequence[int]]], self_test: bool
) -> list[Latency]:
    """Time `models` on the sample, or on made-up inputs of the first of the shapes `tried` they run at."""
    return measure.compare_many(
        models,
        _feed(models, conditions, tried),
        provider=conditions.provider,
        threads=conditions.threads,
        budget_s=conditions.budget_s,
        seed=conditions.seed,
        self_test=self_test,
    )


def profile(
    models: Sequence[str], conditions: Conditions, *, tried: Sequence[Mapping[str, Sequence[int]]]
) -> list[Profile]:
    """Profile `models` on the inputs that `compare` takes."""
    feed = _feed(models, conditions, tried)
    return profiling.profile_many(models, feed, provider=conditions.provider, threads=conditions.threads)


def _feed(models: Sequence[str], conditions: Conditions, tried: Sequence[Mapping[str, Sequence[int]]]) -> Feed:
    return conditions.sample or _working_feed(models[0], tried, conditions.seed)


def _check(models: Sequence[str | Path], conditions: Conditions) -> None:
    if len(models) < 2:
        raise UsageError(f"a comparison takes at least two models; {len(models)} given")
    check_timing(conditions.batch, conditions.threads, conditions.budget_s)
    if conditions.provider not in PROVIDERS:
        raise UsageError(f"--provider must be one of {', '.join(PROVIDERS)}, got {conditions.provider!r}")
    check_input_shapes(conditions.input_shapes)


def _working_feed(model: str, tried: Sequence[Mapping[str, Sequence[int]]], seed: int) -> Feed:
    session = runtime.session(model)
    specs = runtime.input_specs(session)
    failure: ModelError | None = None
    for candidate in tried:
        feed = runtime.synthetic_feed(specs, candidate, seed)
        try:
            runtime.run(session, feed)
        except ModelError as error:
            failure = error
        else:
            return feed
    raise runs_nowhere(model, failure)


def _sizes(
    proto: onnx.ModelProto, given: Mapping[str, tuple[int, ...]], batch: int | None
) -> list[dict[str, shapes.Shape]]:
    """Input shapes to try, in this order."""
    known = [i.name for i in shapes.graph_inputs(proto)]
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise UsageError(
            f"--input-shape names {', '.join(unknown)}, but the inputs of the model are {', '.join(known)}"
        )
    _require_batch(proto, batch, given)
    return list(shapes.typical_inputs(proto, given, [batch or 1]))


def _require_batch(proto: onnx.ModelProto, batch: int | None, given: Iterable[str]) -> None:
    """Raise UsageError where `batch` would change nothing."""
    free = [i for i in shapes.graph_inputs(proto) if i.name not in set(given) and _fixed_rows(i) is None]
    if batch is not None and not free:
        raise UsageError(f"--batch {batch}: the first axis of every input is fixed by the model or by --input-shape")


def _fixed_rows(value: onnx.ValueInfoProto) -> int | None:
    axes = value.type.tensor_type.shape.dim
    return int(axes[0].dim_value) if axes and axes[0].dim_value > 0 else None


def _first_feed(place: Path, prepared: Preparation, proto: onnx.ModelProto, conditions: Conditions) -> Feed:
    rows = max(conditions.batch or 1, calibration.fixed_rows(proto) or 1)
    found = calibration.load(place, proto, limit=rows, preparation=prepared, given=conditions.input_shapes)
    return found.feeds[0]


def leading_rows(proto: onnx.ModelProto, batch: int | None) -> dict[str, int]:
    """How many rows of a sample every input with axes is fed: what the model fixes, else `batch` (default 1).

    Raises UsageError where `batch` would change nothing.
    """
    _require_batch(proto, batch, ())
    return {i.name: _fixed_rows(i) or batch or 1 for i in shapes.graph_inputs(proto) if i.type.tensor_type.shape.dim}


def _rows(proto: onnx.ModelProto, feed: Feed, batch: int | None) -> Feed:
    """As many leading rows of every array as the model, or `batch`, wants."""
    rows = leading_rows(proto, batch)
    for name, count in rows.items():
        if name in feed and feed[name].ndim and len(feed[name]) < count:
            raise UsageError(
                f"the calibration data has {plural(len(feed[name]), 'row')} for input {name!r}, {count} are needed"
            )
    return {name: array[: rows[name]] if name in rows and array.ndim else array for name, array in feed.items()}
