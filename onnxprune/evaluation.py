"""Measuring on the task: inputs and labels that nothing is fitted to, and the metric of models on them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx

from onnxprune import calibration, labelling, metric, verify
from onnxprune.calibration.arrays import why
from onnxprune.config import Config
from onnxprune.errors import UsageError
from onnxprune.metric import LABELLED, Batch, Metric, Outputs, Table
from onnxprune.records import Feed, IndexArray, MetricResult
from onnxprune.wording import plural

Array = npt.NDArray[Any]

LABELS = "labels"
"""The array of a .npz file that holds the labels, if the model has no input of that name."""
CARRIED = "\0labels"
"""Where labels travel with the inputs of their rows."""
FEWEST_BATCHES = 4
PIECES = 8
"""Batches made of calibration data that comes in too few."""
SHAPING = {"Identity", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Transpose", "Cast"}
PROBABILITIES = {"Sigmoid", "HardSigmoid", "Softmax"}


@dataclass(frozen=True)
class Evaluation:
    """What a metric is measured on. `metric`: its name, None for the one that fits outputs without labels; `labels`:
    arrays by batch; `thresholds`: see `metric.Batch`."""

    metric: str | None
    data: Literal["calibration", "evaluation"]
    feeds: Sequence[Feed]
    labels: Sequence[Array] | None
    thresholds: dict[str, float]
    seed: int


# ---- Labels ----------------------------------------------------------------------------------------------------------


def labelled(found: calibration.Loaded, config: Config) -> list[Feed]:
    """The feeds with the labels of their rows beside them: those of --labels, in the order of the rows, or of the data.

    Raises UsageError where the metric needs labels and there are none, or they do not fit the rows.
    """
    counts = [_rows(feed) for feed in found.feeds]
    labels: list[Array] | None = None
    if config.labels is not None:
        labels = _given(config.labels, found)
    elif all(extra is not None for extra in found.extras):
        labels = [np.asarray(extra) for extra in found.extras]
        for own, count in zip(labels, counts, strict=True):
            if own.ndim == 0 or len(own) != count:
                raise UsageError(
                    f"the array {LABELS!r} has the shape {own.shape}, and the inputs beside it {plural(count, 'row')}"
                )
    if config.metric in LABELLED and labels is None:
        raise UsageError(
            f"--metric {config.metric} needs labels, and {config.evaluation or config.calibration} holds no array "
            f"{LABELS!r}: give --labels FILE"
        )
    if labels is None:
        return found.feeds
    if config.metric in LABELLED:
        labels = [class_numbers(own) for own in labels]
    return [{**feed, CARRIED: own} for feed, own in zip(found.feeds, labels, strict=True)]


def _given(path: Path, found: calibration.Loaded) -> list[Array]:
    """The labels at `path` by feed: of images by their names, else by the number of the row."""
    by_name = labelling.is_of_names(path)
    if by_name and found.files is not None:
        return [labelling.classes(path, files) for files in found.files]
    if by_name:
        raise UsageError(f"--labels {path}: a table of names or a folder is for images; give a .npy or .npz file")
    if found.numbers is None:
        raise UsageError(
            f"--labels {path}: images have names in place of an order of rows; give a .csv table of names and class "
            "numbers, or the folder itself where the folders in it are the classes"
        )
    return _divided(read_labels(path), found, found.numbers, path)


def _divided(every: Array, found: calibration.Loaded, numbers: Sequence[IndexArray], path: Path) -> list[Array]:
    rows = sum(map(len, numbers)) if found.total is None else found.total
    if len(every) < rows or (found.total is not None and len(every) != rows):
        raise UsageError(f"--labels {path}: {plural(len(every), 'label')} for {plural(rows, 'row')} of inputs")
    return [every[own] for own in numbers]


def read_labels(path: Path) -> Array:
    """The array of a .npy file, or of a .npz file with one array or one called `labels`."""
    try:
        found = np.load(path, allow_pickle=False)
        if isinstance(found, np.lib.npyio.NpzFile):
            with found:
                name = LABELS if LABELS in found.files else found.files[0] if len(found.files) == 1 else None
                if name is None:
                    names = ", ".join(found.files)
                    raise UsageError(f"--labels {path}: give one array, or one called {LABELS!r}; the file has {names}")
                found = found[name]
    except (OSError, ValueError, EOFError) as error:
        raise UsageError(f"--labels {path}: not a .npy or .npz file of arrays ({why(error)})") from error
    array = np.asarray(found)
    if array.ndim == 0:
        raise UsageError(f"--labels {path}: a single number; an array with one entry (or one array) per row is needed")
    return array


def class_numbers(labels: Array) -> Array:
    """Labels as int64 class numbers; of a column (rows, 1) its entries. Raises UsageError where they are none."""
    if labels.dtype.kind not in "iubf" or not np.array_equal(labels, np.trunc(labels.astype(np.float64))):
        kind, first = calibration.dtype_words(labels.dtype), labels.reshape(-1)[:1].tolist()
        raise UsageError(f"the labels must be class numbers, and they are {kind} such as {', '.join(map(repr, first))}")
    flat = labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels
    return flat.astype(np.int64)


def _is_one_hot(labels: Array) -> bool:
    """Whether every row of several entries holds a 1 and else 0."""
    columns = labels.ndim == 2 and labels.shape[1] > 1
    return bool(columns and np.isin(labels, (0, 1)).all() and (labels.sum(axis=1) == 1).all())


def check_labels(proto: onnx.ModelProto, config: Config, feeds: Sequence[Feed]) -> None:
    """Raise UsageError where class numbers that feeds carry cannot be right: none counts, or there are more classes
    than any output that may fit them tells apart, as far as the shapes in the file say."""
    carried: list[Array] = [feed[CARRIED] for feed in feeds if CARRIED in feed]
    if config.metric not in LABELLED or not carried:
        return
    total = sum(own.size for own in carried)
    if not any((own >= 0).any() for own in carried):
        raise UsageError(
            f"--metric {config.metric}: no label counts: all {total} are below 0; give class numbers from 0 on"
        )
    if sum(map(len, carried)) > 1 and all(map(_is_one_hot, carried)):
        raise UsageError(
            f"--metric {config.metric}: the labels hold a single 1 in each of the {sum(map(len, carried))} rows of "
            f"{carried[0].shape[1]}: give class numbers, which are labels.argmax(axis=1)"
        )
    for own in carried:
        known = {o.name: _classes(o.type.tensor_type, own.shape) for o in proto.graph.output}
        most = max((n for n in known.values() if n is not None), default=0)
        if None not in known.values() and most:
            every = np.concatenate([c.reshape(-1) for c in carried if c.ndim == own.ndim])
            metric.check_range(every, most, next(name for name, n in known.items() if n == most))


def _classes(kind: onnx.TypeProto.Tensor, labels: Sequence[int]) -> int | None:
    """The classes of an output for labels of this shape, by the shape in the file; see `metric.class_count`."""
    if not kind.HasField("shape"):
        return None
    sizes = [d.dim_value if d.HasField("dim_value") and d.dim_value > 0 else None for d in kind.shape.dim]
    dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type))
    return metric.class_count([None, *sizes[1:]], dtype, labels)


def counted_labels(wanted: Evaluation) -> int | None:
    """How many labels count, that is are not below 0; None where the metric is not of class numbers."""
    if wanted.metric not in LABELLED or wanted.labels is None:
        return None
    return sum(int((own >= 0).sum()) for own in wanted.labels)


def enough(batches: Sequence[Feed], fixed: int | None) -> list[Feed]:
    """The same rows in batches enough that some can be held out. Raises UsageError where there are too few rows."""
    if len(batches) >= FEWEST_BATCHES:
        return list(batches)
    rows = sum(_rows(feed) for feed in batches)
    size = max(1, rows // PIECES)
    pieces = [piece for feed in batches for piece in (_sliced(feed, size) if fixed is None else [feed])]
    if len(pieces) < FEWEST_BATCHES:
        raise UsageError(
            f"the metric needs rows that nothing is fitted to, and {rows} rows of calibration data in {len(pieces)} "
            f"batches are too few to hold some out (at least {FEWEST_BATCHES} batches): give more rows, or --evaluation"
        )
    return pieces


def _sliced(feed: Feed, size: int) -> list[Feed]:
    if len({len(a) if a.ndim else -1 for a in feed.values()}) != 1:
        return [feed]
    starts = range(0, _rows(feed), size)
    return [{name: array[first : first + size] for name, array in feed.items()} for first in starts]


def _rows(feed: Feed) -> int:
    """The size of the common first axis of the inputs; 1 where there is none."""
    counts = {len(a) if a.ndim else -1 for name, a in feed.items() if name != CARRIED}
    return max(counts.pop(), 1) if len(counts) == 1 else 1


def bare(feeds: Sequence[Feed]) -> list[Feed]:
    """The feeds without their labels."""
    return [{name: array for name, array in feed.items() if name != CARRIED} for feed in feeds]


def of_feeds(
    proto: onnx.ModelProto, config: Config, data: Literal["calibration", "evaluation"], feeds: Sequence[Feed]
) -> Evaluation:
    """The evaluation on these feeds, which carry their labels. Raises UsageError for labels that cannot be right."""
    check_labels(proto, config, feeds)
    labels = [feed[CARRIED] for feed in feeds] if all(CARRIED in feed for feed in feeds) else None
    return Evaluation(config.metric, data, bare(feeds), labels, thresholds(proto), config.seed)


def thresholds(proto: onnx.ModelProto) -> dict[str, float]:
    """0.5 for every output that a Sigmoid or Softmax makes probabilities, by name."""
    producers = {o: n for n in proto.graph.node for o in n.output}
    found = {}
    for output in proto.graph.output:
        node = producers.get(output.name)
        while node is not None and node.op_type in SHAPING:
            node = producers.get(node.input[0])
        if node is not None and node.op_type in PROBABILITIES:
            found[output.name] = 0.5
    return found


# ---- Measuring -------------------------------------------------------------------------------------------------------


def tables(wanted: Evaluation, original: Iterable[Outputs], *models: Iterable[Outputs]) -> tuple[Metric, list[Table]]:
    """The metric, and its tables for the original and the other models, from their outputs batch by batch."""
    chosen: Metric | None = None
    found: list[list[Table]] = [[] for _ in (original, *models)]
    for number, (feed, first, *others) in enumerate(zip(wanted.feeds, original, *models, strict=True)):
        chosen = chosen or metric.find(wanted.metric or metric.fitting(first))
        labels = wanted.labels[number] if wanted.labels is not None else None
        for outputs, own in zip((first, *others), found, strict=True):
            own.append(chosen.observe(Batch(outputs, first, _rows(feed), labels, wanted.thresholds)))
    if chosen is None:
        raise UsageError("no rows to measure the metric on")
    return chosen, [metric.join(own) for own in found]


def rows_of(wanted: Evaluation) -> int:
    """How many rows the metric is measured on."""
    return sum(_rows(feed) for feed in wanted.feeds)


def measure(original: str, cut: str | None, final: str, wanted: Evaluation) -> MetricResult:
    """The metric of the model files, run side by side. Run in a child process."""
    paths = [p for p in (cut, final) if p is not None]
    wide = verify.needs_widening(original, wanted.feeds)
    first, *others = (verify.each_output(p, wanted.feeds, wide=wide) for p in (original, *paths))
    chosen, found = tables(wanted, first, *others)
    values = [metric.measured(chosen, table, wanted.seed) for table in found]
    drop = metric.dropped(chosen, found[0], found[-1], wanted.seed)
    between = values[1] if cut is not None else None
    rows, labels = rows_of(wanted), counted_labels(wanted)
    return MetricResult(chosen.name, wanted.data, rows, values[0], between, values[-1], drop, labels)
