"""What a model is worth on its task: metrics over the rows of labelled (or unlabelled) inputs, with their uncertainty.

A metric first makes a `Table` of a batch: arrays whose first axis is the row, all that its value needs. Tables of
batches are joined, and the value of a metric is a function of the joined table; so rows can be drawn again.

Intervals are 95%. Of a share of rows: Wilson's (E. B. Wilson, 1927). Of the difference of two shares on the same rows:
the adjusted Wald interval for paired proportions (D. G. Bonett and R. M. Price, 2012). Of everything else: the
percentile bootstrap over rows (B. Efron, 1979), of a difference with the same rows drawn for both.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxprune import usercode
from onnxprune.config import check_metric
from onnxprune.errors import UsageError
from onnxprune.records import Measured

Array = npt.NDArray[Any]
Outputs = Mapping[str, Array]
Table = dict[str, Array]
Score = Callable[[dict[str, Any], Any], Any]

LABELLED = ("accuracy", "precision", "recall", "f1")
"""Metrics that compare with labels; "agreement" and "cosine" compare with the outputs of the original."""
RESAMPLES = 1000
FEWEST_RESAMPLES = 100
RESAMPLED_ELEMENTS = 2e8
"""Elements drawn for one interval, about: of large tables there are fewer resamples."""
SLOWEST_S = 20.0
"""Time for the interval of a user's function; with a slower one there is no interval."""
Z95 = 1.959964


@dataclass(frozen=True)
class Batch:
    """One batch: the `outputs` of a model, those of the original, and its labels (first axis: rows) if there are any.

    `thresholds`: for outputs without a class axis, the value above which they say 1, by name (0 where absent).
    """

    outputs: Outputs
    original: Outputs
    rows: int
    labels: Array | None = None
    thresholds: Mapping[str, float] = field(default_factory=dict)


class Metric:
    """Base of all metrics: higher is better."""

    name: str
    share = False
    """Whether the value is a mean over rows of `hit` out of `of` places."""

    def observe(self, batch: Batch) -> Table:
        """What the value needs to know of one batch. Raises UsageError where outputs and labels do not fit."""
        raise NotImplementedError

    def value(self, table: Table) -> float:
        """The value over all rows of the table."""
        raise NotImplementedError

    def resamples(self, table: Table) -> int:
        """How often rows are drawn for an interval; 0 where they cannot be."""
        elements = sum(a.size for a in table.values())
        return int(np.clip(RESAMPLED_ELEMENTS / max(elements, 1), FEWEST_RESAMPLES, RESAMPLES))


class _Share(Metric):
    share = True

    def value(self, table: Table) -> float:
        return float(table["hit"].sum() / max(int(table["of"].sum()), 1))


class _Accuracy(_Share):
    name = "accuracy"

    def observe(self, batch: Batch) -> Table:
        truth, found = _truth_and_prediction(batch)
        return _hits(truth == found, truth >= 0)


class _Agreement(_Share):
    """The share of places where the class is that of the original, over the first output that has classes."""

    name = "agreement"

    def observe(self, batch: Batch) -> Table:
        name = next((n for n, a in batch.original.items() if has_classes(a)), None)
        if name is None:
            listed = ", ".join(f"{n} {a.shape}" for n, a in batch.original.items())
            raise UsageError(f"--metric agreement: no output has classes ({listed}); use --metric cosine")
        axis = _class_axis(batch.original[name])
        same = batch.outputs[name].argmax(axis) == batch.original[name].argmax(axis)
        return _hits(same, np.ones_like(same))


class _Cosine(Metric):
    """The mean over rows of the cosine between the outputs of the original and those of the model."""

    name = "cosine"

    def observe(self, batch: Batch) -> Table:
        names = [n for n, a in batch.original.items() if a.dtype.kind == "f"]
        if not names:
            raise UsageError("--metric cosine: the model has no float output")
        rows = batch.rows if all(_rows_of(batch.original[n]) == batch.rows for n in names) else 1
        return {"cosine": np.mean([_cosines(batch.original[n], batch.outputs[n], rows) for n in names], axis=0)}

    def value(self, table: Table) -> float:
        return float(table["cosine"].mean())


class _ByClass(Metric):
    """Precision, recall and F1: of class 1 where there are but the classes 0 and 1, else the mean over the classes
    that occur among labels or predictions; 0 where nothing was predicted, or nothing is there."""

    def __init__(self, name: str) -> None:
        self.name = name

    def observe(self, batch: Batch) -> Table:
        truth, found = _truth_and_prediction(batch)
        return {"label": truth, "prediction": found}

    def value(self, table: Table) -> float:
        counted = table["label"] >= 0
        truth, found = table["label"][counted], table["prediction"][counted]
        size = int(max(truth.max(initial=0), found.max(initial=0))) + 1
        hit = np.bincount(truth[truth == found], minlength=size).astype(np.float64)
        actual, predicted = np.bincount(truth, minlength=size), np.bincount(found, minlength=size)
        below = {"precision": predicted, "recall": actual, "f1": (actual + predicted) / 2}[self.name]
        values = np.divide(hit, below, out=np.zeros(size), where=below > 0)
        if size <= 2:
            return float(values[1]) if size == 2 else 0.0
        return float(values[(actual + predicted) > 0].mean())


class _Function(Metric):
    """A user's function of (outputs: dict of arrays by name, all rows; labels or None), higher is better."""

    def __init__(self, name: str, function: Score) -> None:
        self.name, self._function = name, function

    def observe(self, batch: Batch) -> Table:
        table = {f"output:{name}": a for name, a in batch.outputs.items()}
        return table if batch.labels is None else {**table, "labels": batch.labels}

    def value(self, table: Table) -> float:
        outputs = {n.removeprefix("output:"): a for n, a in table.items() if n.startswith("output:")}
        try:
            with usercode.running(self.name.rpartition(":")[0]):
                found = self._function(outputs, table.get("labels"))
        except (Exception, SystemExit) as error:
            raise UsageError(f"--metric {self.name}: the function raised {usercode.words(error)}") from error
        try:
            value = float(found)
        except (TypeError, ValueError):
            value = math.nan
        if not math.isfinite(value):
            raise UsageError(f"--metric {self.name}: the function must return a finite number, and returned {found!r}")
        return value

    def resamples(self, table: Table) -> int:
        if len({_rows_of(a) for a in table.values()}) != 1:
            return 0
        start = time.perf_counter()
        self.value(table)
        affordable = int(SLOWEST_S / max(time.perf_counter() - start, 1e-9))
        return 0 if affordable < FEWEST_RESAMPLES else min(super().resamples(table), affordable)


# ---- Finding a metric ------------------------------------------------------------------------------------------------


def find(name: str) -> Metric:
    """The metric of that name; of "module:function" or "file.py:function" the user's. Raises UsageError."""
    if name == "accuracy":
        return _Accuracy()
    if name == "agreement":
        return _Agreement()
    if name == "cosine":
        return _Cosine()
    if name in LABELLED:
        return _ByClass(name)
    check_metric(name)
    return _Function(name, _load(name))


def fitting(outputs: Outputs) -> str:
    """The metric that needs no labels for a model with such outputs: "agreement" where one has classes, or "cosine"."""
    return "agreement" if any(has_classes(a) for a in outputs.values()) else "cosine"


@functools.cache
def _load(name: str) -> Score:
    module_name, _, function_name = name.rpartition(":")
    try:
        module = usercode.load(module_name)
    except (Exception, SystemExit) as error:
        raise UsageError(f"--metric {name}: {module_name} cannot be imported ({usercode.words(error)})") from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise UsageError(f"--metric {name}: {module_name} has no function {function_name!r}")
    return function  # type: ignore[no-any-return]


# ---- Predictions -----------------------------------------------------------------------------------------------------


def has_classes(output: Array) -> bool:
    """Whether an output is scores of classes: float (rows, classes), or probabilities over its class axis."""
    if output.dtype.kind != "f" or output.ndim < 2 or output.shape[_class_axis(output)] < 2:
        return False
    return output.ndim == 2 or bool(
        np.all(output >= 0) and np.allclose(output.sum(_class_axis(output), dtype=np.float64), 1, atol=1e-3)
    )


def _class_axis(output: Array) -> int:
    return 1 if output.ndim == 4 else -1


def _truth_and_prediction(batch: Batch) -> tuple[Array, Array]:
    """Labels and predictions, int64 arrays of one shape, by the first output that fits the labels."""
    if batch.labels is None:
        raise UsageError("the metric needs labels: give --labels, or an array `labels` in the file of inputs")
    for name, output in batch.outputs.items():
        found = prediction(output, batch.labels.shape, batch.thresholds.get(name, 0.0))
        if found is not None:
            classes = class_count(output.shape, output.dtype, batch.labels.shape)
            if classes is not None:
                check_range(batch.labels, classes, name)
            return batch.labels, found
    listed = ", ".join(f"{name} {a.dtype} {a.shape}" for name, a in batch.outputs.items())
    raise UsageError(
        f"labels of shape {batch.labels.shape} fit none of the outputs ({listed}): labels are class numbers, one for "
        "each place that the model gives scores for; other tasks need --metric module:function"
    )


def prediction(output: Array, shape: Sequence[int], threshold: float) -> Array | None:
    """Class numbers (int64) of the given shape that an output stands for, None where it cannot.

    Integers are class numbers; float scores have one axis more, whose largest entry counts; a float array without such
    an axis, or with one of size 1, says 1 above the threshold.
    """
    shape = tuple(shape)
    if output.shape == shape:
        return (output > threshold if output.dtype.kind == "f" else output).astype(np.int64)
    if output.dtype.kind != "f" or output.ndim != len(shape) + 1:
        return None
    for axis in (1, output.ndim - 1):
        if axis < output.ndim and output.shape[:axis] + output.shape[axis + 1 :] == shape:
            scores = np.moveaxis(output, axis, -1)
            found = scores[..., 0] > threshold if scores.shape[-1] == 1 else scores.argmax(-1)
            return np.asarray(found).astype(np.int64)
    return None


def class_count(output: Sequence[int | None], dtype: np.dtype[Any], labels: Sequence[int]) -> int | None:
    """How many classes an output of this shape (None: not known) and type tells apart for labels of this shape, at
    most: None where it is not known or has no end, 0 where the output cannot fit such labels. See `prediction`."""

    def fits(sizes: Sequence[int | None]) -> bool:
        return len(sizes) == len(labels) and all(a in (None, b) for a, b in zip(sizes, labels, strict=True))

    if fits(output):
        return 2 if dtype.kind == "f" else None
    axes = {1, len(output) - 1} if dtype.kind == "f" and len(output) == len(labels) + 1 else set()
    found = [output[axis] for axis in axes if axis < len(output) and fits([*output[:axis], *output[axis + 1 :]])]
    return None if None in found else max((max(n, 2) for n in found if n is not None), default=0)


def check_range(labels: Array, classes: int, name: str) -> None:
    """Raise UsageError for labels at or above the number of classes that the output `name` tells apart."""
    counted = labels[labels >= 0]
    if counted.size and int(counted.max()) >= classes:
        raise UsageError(
            f"labels {int(counted.min())} to {int(counted.max())}, the output {name!r} has {classes} classes: labels "
            f"must be 0 to {classes - 1}, or below 0 where they do not count; are these the labels of this model?"
        )


def _hits(same: Array, counted: Array) -> Table:
    axes = tuple(range(1, same.ndim))
    return {"hit": (same & counted).sum(axes), "of": counted.sum(axes)}


def _cosines(reference: Array, result: Array, rows: int) -> Array:
    if reference.shape != result.shape:
        return np.zeros(rows)
    a, b = (x.reshape(rows, -1).astype(np.float64) for x in (reference, result))
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    same = (a == b).all(axis=1).astype(np.float64)
    found = np.divide((a * b).sum(1), norms, out=same, where=norms > 0)
    return np.where(np.isfinite(found), found, 0.0)


def _rows_of(array: Array) -> int:
    return len(array) if isinstance(array, np.ndarray) and array.ndim else -1


# ---- Values and their uncertainty ------------------------------------------------------------------------------------


def join(tables: Sequence[Table]) -> Table:
    """One table of those of all batches; arrays that do not fit together become an object array, one entry each."""
    return {name: _joined([t[name] for t in tables]) for name in tables[0]}


def _joined(arrays: Sequence[Array]) -> Array:
    if all(a.ndim and a.shape[1:] == arrays[0].shape[1:] for a in arrays):
        return np.concatenate(arrays)
    found = np.empty(len(arrays), dtype=np.object_)
    found[:] = list(arrays)
    return found


def measured(metric: Metric, table: Table, seed: int) -> Measured:
    """The value of a metric with its interval."""
    value = metric.value(table)
    if metric.share and (table["of"] == 1).all():
        return Measured(value, wilson(int(table["hit"].sum()), len(table["hit"])))
    return Measured(value, _percentiles(_drawn(metric, [table], seed)[0]))


def dropped(metric: Metric, before: Table, after: Table, seed: int) -> Measured:
    """How much the metric falls between two models on the same rows, with the interval of the difference."""
    value = metric.value(before) - metric.value(after)
    if metric.share and (before["of"] == 1).all():
        return Measured(value, paired(before["hit"], after["hit"]))
    first, second = _drawn(metric, [before, after], seed)
    return Measured(value, _percentiles(first - second))


def wilson(hits: int, count: int) -> tuple[float, float]:
    """The interval of a share of `count` independent rows."""
    share, z = hits / count, Z95
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return max(0.0, middle - half), min(1.0, middle + half)


def paired(before: Array, after: Array) -> tuple[float, float]:
    """The interval of mean(before) - mean(after) of two rows of zeros and ones."""
    count = len(before) + 2
    lost, won = ((int(x.sum()) + 1) / count for x in ((before > after), (after > before)))
    half = Z95 * math.sqrt((lost + won - (lost - won) ** 2) / count)
    return max(-1.0, lost - won - half), min(1.0, lost - won + half)


def _drawn(metric: Metric, tables: Sequence[Table], seed: int) -> list[npt.NDArray[np.float64]]:
    """Values of each table for rows drawn again and again; empty where rows cannot be drawn."""
    rows = len(next(iter(tables[0].values())))
    count = min(metric.resamples(t) for t in tables) if rows > 1 else 0
    random = np.random.default_rng(seed)
    found: list[list[float]] = [[] for _ in tables]
    with usercode.unheard():
        for _ in range(count):
            chosen = random.integers(0, rows, rows)
            for table, values in zip(tables, found, strict=True):
                values.append(metric.value({name: a[chosen] for name, a in table.items()}))
    return [np.asarray(values, dtype=np.float64) for values in found]


def _percentiles(values: npt.NDArray[np.float64]) -> tuple[float, float] | None:
    if not values.size:
        return None
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)
