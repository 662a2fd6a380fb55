"""`onnxprune benchmark`: models timed against each other on inputs that all of them accept."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import onnx

from onnxprune import calibration, runtime, shapes, worker
from onnxprune.config import PROVIDERS, check_input_shapes
from onnxprune.errors import ModelError, UsageError
from onnxprune.latency import measure
from onnxprune.modelfile import ModelFile
from onnxprune.records import Feed, Latency

TYPICAL = shapes.Sizes(1, (224, 224), 64)
"""What a dynamic axis is measured at first; where the model does not run at it, the sizes of verification follow."""


def benchmark(
    models: Sequence[str | Path],
    *,
    input_shapes: Mapping[str, tuple[int, ...]] | None = None,
    calibration: Path | None = None,
    batch: int | None = None,
    provider: str = "cpu",
    threads: int = 0,
    budget_s: float = 10.0,
    seed: int = 0,
) -> list[Latency]:
    """Time every further model against the first, in a child process, on the same inputs. Writes nothing.

    The inputs are the first `batch` rows (default 1) of `calibration` (whatever `prune` takes), or made up: of
    `input_shapes` where given, dynamic first axes being `batch`. `threads` 0 means all physical cores; `budget_s` is
    the time for each comparison. Raises UsageError for options that do not fit, ModelError where a model cannot be
    loaded or run.
    """
    given = dict(input_shapes or {})
    _check(models, given, batch, provider=provider, threads=threads, budget_s=budget_s)
    opened = [ModelFile.load(model) for model in models]
    first = opened[0].proto
    if calibration is None:
        feeds, tried = [], _sizes(first, given, batch)
    else:
        feeds, tried = [_rows(first, _first_feed(calibration, first, given, batch), batch)], []
    arguments = {
        "models": [os.fspath(model) for model in models],
        "feeds": feeds,
        "tried": tried,
        "provider": provider,
        "threads": threads,
        "budget_s": budget_s,
        "seed": seed,
    }
    limit = 300.0 + len(models) * (120.0 + 4.0 * budget_s)
    result: list[Latency] = worker.call("onnxprune.comparison:compare", arguments, timeout_s=limit)
    return result


def compare(
    models: Sequence[str],
    *,
    feeds: Sequence[Feed],
    tried: Sequence[Mapping[str, Sequence[int]]],
    provider: str,
    threads: int,
    budget_s: float,
    seed: int,
) -> list[Latency]:
    """Time `models` on `feeds[0]`, or on made-up inputs of the first of the shapes `tried` they run at."""
    feed = feeds[0] if feeds else _working_feed(models[0], tried, seed)
    return measure.compare_many(models, feed, provider=provider, threads=threads, budget_s=budget_s, seed=seed)


def _check(
    models: Sequence[str | Path],
    shapes_given: Mapping[str, Sequence[int]],
    batch: int | None,
    *,
    provider: str,
    threads: int,
    budget_s: float,
) -> None:
    if len(models) < 2:
        raise UsageError(f"a comparison takes at least two models; {len(models)} given")
    if batch is not None and batch < 1:
        raise UsageError(f"--batch must be at least 1, got {batch}")
    if threads < 0:
        raise UsageError(f"--threads must be 0 (all cores) or more, got {threads}")
    if not budget_s > 0:
        raise UsageError(f"--budget must be a positive number of seconds, got {budget_s:g}")
    if provider not in PROVIDERS:
        raise UsageError(f"--provider must be one of {', '.join(PROVIDERS)}, got {provider!r}")
    check_input_shapes(shapes_given)


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
    raise ModelError(f"{model} runs at no input size tried: {failure}; give sizes with --input-shape NAME:1,3,224,224")


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
    sizes = (TYPICAL, *shapes.RUN_SIZES) if shapes.is_dynamic(proto, given) else (TYPICAL,)
    return [shapes.concrete_inputs(proto, given, s._replace(batch=batch or 1)) for s in sizes]


def _require_batch(proto: onnx.ModelProto, batch: int | None, given: Iterable[str]) -> None:
    """Raise UsageError where `batch` would change nothing."""
    free = [i for i in shapes.graph_inputs(proto) if i.name not in set(given) and _fixed_rows(i) is None]
    if batch is not None and not free:
        raise UsageError(f"--batch {batch}: the first axis of every input is fixed by the model or by --input-shape")


def _fixed_rows(value: onnx.ValueInfoProto) -> int | None:
    axes = value.type.tensor_type.shape.dim
    return int(axes[0].dim_value) if axes and axes[0].dim_value > 0 else None


def _first_feed(place: Path, proto: onnx.ModelProto, given: Mapping[str, tuple[int, ...]], batch: int | None) -> Feed:
    rows = max(batch or 1, calibration.fixed_rows(proto) or 1)
    return calibration.load(place, proto, limit=rows, given=given).feeds[0]


def _rows(proto: onnx.ModelProto, feed: Feed, batch: int | None) -> Feed:
    """As many leading rows of every array as the model, or `batch`, wants."""
    _require_batch(proto, batch, ())
    rows = {i.name: _fixed_rows(i) or batch or 1 for i in shapes.graph_inputs(proto) if i.type.tensor_type.shape.dim}
    for name, count in rows.items():
        if name in feed and feed[name].ndim and len(feed[name]) < count:
            raise UsageError(f"the calibration data has {len(feed[name])} rows for input {name!r}, {count} are needed")
    return {name: array[: rows[name]] if name in rows and array.ndim else array for name, array in feed.items()}
