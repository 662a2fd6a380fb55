"""The inputs of a run: the user's, or made up where there are none; split into those fitted to and those held out."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from onnxprune import calibration, cost, dims, evaluation, recovery, worker
from onnxprune.config import MEASURED_CRITERIA, Config
from onnxprune.errors import OnnxPruneError, UsageError
from onnxprune.evaluation import Evaluation
from onnxprune.opened import Opened
from onnxprune.records import Feed, Inputs
from onnxprune.shapes import graph_inputs, node_attributes
from onnxprune.synthetic import Joined, Made, is_joined

log = logging.getLogger(__name__)

SYNTHETIC_ROWS, LEAST_ROWS = 256, 16
SYNTHETIC_WORK = 1.25e11
"""Rows of synthetic inputs: as many as take so many multiply-accumulates in one run, between these bounds."""
BREEDING_VALUES, BREEDING_WORK = 4e8, 1e12
"""Values of images, and multiply-accumulates, spent on breeding better ones."""
ENLARGED_WORK = 3e11
"""Few images are joined by others as far as so many multiply-accumulates in one run go."""
JUDGED_ROWS, JUDGING_WORK = 32, 3e10
"""Rows of the calibration data whose range of values is looked at, as far as so many multiply-accumulates go."""
REMOVAL_WORK = 1e11
"""Beyond so many multiply-accumulates channels are chosen by wanda, which is quick, on synthetic inputs."""
LARGEST_MODEL = 1 << 30
SYNTHETIC_LIMIT_S = 600.0
"""Bytes of the largest model recovered on synthetic inputs; the time limit of the process that makes those."""


EVERY, BUDGET_EVERY = 10, 4
"""One batch in so many of the calibration data is held out; more of them where they decide how much is removed."""
MOST_ROWS = 1 << 40
STEPPING = ("LSTM", "GRU", "RNN", "DynamicQuantizeLSTM", "Scan")
"""Operators that go through the first axis of an input step by step."""


@dataclass(frozen=True)
class Gathered:
    """Batches to fit to, those to measure closeness on, and what a metric is measured on, if any.

    `inputs` says what the batches are, None where there are none; `lack`: why there are none although they were wanted.
    `joined`: what joins the batches to fit to where those are few.
    """

    fitting: Sequence[Feed] = ()
    held: Sequence[Feed] = ()
    inputs: Inputs | None = None
    evaluation: Evaluation | None = None
    lack: str | None = None
    joined: Joined = field(default_factory=Joined)

    @property
    def real(self) -> Sequence[Feed]:
        """The batches to fit to where they are calibration data, none where they are made up."""
        return self.fitting if self.inputs is not None and self.inputs.kind == "calibration" else ()


def gather(opened: Opened, config: Config) -> Gathered:
    """Batches that the model takes: the calibration data, or synthetic inputs where a run without it needs some; and
    the evaluation data.

    Raises UsageError where the data does not fit, where no inputs can be made and the options need them, and where a
    metric is asked for and too few rows are there to hold some out.
    """
    measured = _evaluation(opened, config, config.evaluation) if config.evaluation else None
    found = _calibration(opened, config, config.calibration) if config.calibration else _without_data(opened, config)
    return found if measured is None else dataclasses.replace(found, evaluation=measured)


def _evaluation(opened: Opened, config: Config, place: Path) -> Evaluation:
    proto = opened.model.proto
    loaded = _load(opened, config, place, MOST_ROWS, config.memory_bytes, "--evaluation")
    rows = calibration.batches(evaluation.labelled(loaded, config), calibration.fixed_rows(proto), MOST_ROWS)
    if not loaded.whole:
        log.warning("--evaluation: only %d rows fit into --memory; the rest is left out", calibration.rows_of(rows))
    return evaluation.of_feeds(proto, config, "evaluation", rows)


def _without_data(opened: Opened, config: Config) -> Gathered:
    """Synthetic inputs where the run needs some."""
    if not config.needs_inputs:
        return Gathered()
    found = _synthetic(opened, config)
    if found.lack is not None:
        log.info("%s", found.lack)
    by_damage = config.target is not None and config.allocation != "uniform"
    for option, given in (("--target", by_damage), ("--criterion", config.criterion in MEASURED_CRITERIA)):
        if given and found.lack is not None:
            raise UsageError(f"{option} needs inputs to measure on, and {found.lack}; give --calibration")
    return found


def settled(opened: Opened, config: Config, gathered: Gathered) -> Config:
    """The options with the criterion that the inputs allow; a quick one for large models that come without data."""
    default = "obs" if gathered.fitting else "l2"
    if gathered.inputs is not None and gathered.inputs.kind == "synthetic" and _removal_work(opened) > REMOVAL_WORK:
        default = "wanda"
    return dataclasses.replace(config, criterion=config.criterion or default)


def _removal_work(opened: Opened) -> float:
    """About the multiply-accumulates of the criterion obs: the third power of the inputs of every layer."""
    total = 0.0
    for axes in opened.analysis.weights.values():
        sizes = [cost.product((d,), {}) for d in axes]
        if len(sizes) > 1:
            total += float(max(sizes) if len(sizes) == 2 else math.prod(sizes[1:])) ** 3
    return total


def _calibration(opened: Opened, config: Config, place: Path) -> Gathered:
    proto, fixed = opened.model.proto, calibration.fixed_rows(opened.model.proto)
    found = _load(opened, config, place, config.calibration_size, config.memory_bytes)
    measured = config.evaluation is None and (config.metric is not None or config.max_drop is not None)
    feeds = evaluation.labelled(found, config) if measured else found.feeds
    evaluation.check_labels(proto, config, feeds)
    if not steps_first(opened):
        feeds = calibration.mixed(feeds, fixed, config.seed)
    batches = calibration.batches(feeds, fixed, config.calibration_size)
    if measured:
        batches = evaluation.enough(batches, fixed)
    fitting, held = recovery.split(batches, BUDGET_EVERY if measured and config.max_drop is not None else EVERY)
    own = evaluation.of_feeds(proto, config, "calibration", held) if measured else None
    batches, fitting, held = evaluation.bare(batches), evaluation.bare(fitting), evaluation.bare(held)
    calibration.check_variety(batches, f"--calibration {place}")
    remarks = [*calibration.remarks(batches), *_judged(opened, fitting, fixed)]
    for remark in remarks:
        log.warning("%s", remark)
    inputs = _inputs("calibration", found.words, batches, held)
    joined = _joined(opened, config, fitting)
    if joined.feeds:
        made = f"{calibration.rows_of(joined.feeds)} {'images bred from' if joined.bred else 'changed copies of'} them"
        inputs = dataclasses.replace(inputs, words=f"{inputs.words} (joined by {made})")
    return Gathered(fitting, held, dataclasses.replace(inputs, remarks=tuple(remarks)), own, joined=joined)


def _judged(opened: Opened, feeds: Sequence[Feed], fixed: int | None) -> list[str]:
    """What the model says is wrong about the calibration data."""
    affordable = JUDGING_WORK / max(1.0, _macs_of_a_row(opened))
    rows = max(1, int(min(JUDGED_ROWS, affordable)))
    arguments = {"model": str(opened.model.path), "feeds": calibration.some(feeds, fixed, rows)}
    found: list[str] = worker.call(
        "onnxprune.synthetic:judge", {**arguments, "probed": affordable >= 1}, timeout_s=SYNTHETIC_LIMIT_S
    )
    return found


def _joined(opened: Opened, config: Config, feeds: Sequence[Feed]) -> Joined:
    """More images made from few; none where there are enough, or where that fails."""
    if not config.recover or steps_first(opened) or not is_joined(feeds):
        return Joined()
    rows = max(calibration.rows_of(feeds), 1)
    work = ENLARGED_WORK / max(1.0, _macs_of_a_value(opened) * max(a[:1].size for a in feeds[0].values()))
    room = config.memory_bytes / 4 * rows / max(sum(a.nbytes for feed in feeds for a in feed.values()), 1)
    items = int(min(work, room))
    if items < 2 * rows:
        return Joined()
    arguments = {"model": str(opened.model.path), "feeds": list(feeds), "items": items, "seed": config.seed}
    try:
        found: Joined = worker.call(
            "onnxprune.synthetic:join",
            {**arguments, "values": _breeding_values(opened)},
            timeout_s=SYNTHETIC_LIMIT_S,
            threads=config.threads,
        )
    except OnnxPruneError as error:
        log.warning("the few images are joined by no others: %s", str(error).splitlines()[0])
        return Joined()
    return found


def _breeding_values(opened: Opened) -> float:
    """Values of images that may be looked at to breed better ones."""
    return min(BREEDING_VALUES, BREEDING_WORK / max(_macs_of_a_value(opened), 1e-9))


def steps_first(opened: Opened) -> bool:
    """Whether the first axis of an input of any length counts the steps of a sequence that a recurrent operator or a
    Scan goes through: then rows stay in their order."""
    graph, tensors = opened.model.proto.graph, opened.analysis.tensors
    if calibration.fixed_rows(opened.model.proto) is not None:
        return False
    firsts = {a for i in graph.input for d in tensors.get(i.name, ())[:1] for a in dims.atoms(d)}
    stepped = [
        name
        for node in graph.node
        if node.op_type in STEPPING and not node_attributes(node).get("layout", 0)
        for name in (node.input if node.op_type == "Scan" else node.input[:1])
    ]
    return any(a in firsts for name in stepped for d in tensors.get(name, ())[:1] for a in dims.atoms(d))


def _load(
    opened: Opened, config: Config, place: Path, limit: int, memory_bytes: int, option: str = "--calibration"
) -> calibration.Loaded:
    found = calibration.load(
        place,
        opened.model.proto,
        limit=limit,
        memory_bytes=memory_bytes,
        preparation=config.preparation,
        given=config.input_shapes,
        seed=config.seed,
        extra=evaluation.LABELS,
        spread=not steps_first(opened),
        option=option,
    )
    calibration.check_rows(found.feeds, _first_axes(opened), f"{option} {place}")
    calibration.check_indices(found.feeds, calibration.index_limits(opened.model.graph, opened.shapes), option)
    return found


def _first_axes(opened: Opened) -> dict[str, dims.Dim]:
    """The first axis of every input whose size is free; those that the model makes equal are one."""
    tensors, free = opened.analysis.tensors, opened.shapes.dynamic_axes
    names = [value.name for value in graph_inputs(opened.model.proto)]
    return {n: dims.resolve(tensors[n][0]) for n in names if tensors.get(n) and any(free.get(n, ())[:1])}


def _inputs(
    kind: Literal["calibration", "synthetic"], words: str, batches: Sequence[Feed], held: Sequence[Feed]
) -> Inputs:
    return Inputs(
        kind=kind,
        words=words,
        rows=calibration.rows_of(batches),
        held_out=calibration.rows_of(held) if len(held) < len(batches) else 0,
        ranges=calibration.ranges(batches),
    )


# ---- Without data ----------------------------------------------------------------------------------------------------


def _synthetic(opened: Opened, config: Config) -> Gathered:
    """Synthetic inputs, as many as keep the time moderate; none for models too large, or that do not run."""
    if opened.model.bytes > LARGEST_MODEL:
        size = f"{opened.model.bytes / 1e9:.1f} GB"
        return Gathered(
            lack=f"a model of {size} is not recovered on synthetic inputs (beyond {LARGEST_MODEL / 1e9:g} GB)"
        )
    rows = int(min(config.calibration_size, SYNTHETIC_ROWS, SYNTHETIC_WORK / max(1.0, _macs_of_a_row(opened))))
    if rows < 1:
        return Gathered(lack="a single run of the model takes too long to recover it on synthetic inputs")
    arguments = {
        "model": str(opened.model.path),
        "given": config.input_shapes,
        "rows": max(rows, LEAST_ROWS),
        "bounds": calibration.index_bounds(opened.model.graph, opened.shapes),
        "seed": config.seed,
        "values": _breeding_values(opened),
    }
    try:
        made: Made = worker.call("onnxprune.synthetic:make", arguments, timeout_s=SYNTHETIC_LIMIT_S)
    except OnnxPruneError as error:
        return Gathered(lack=f"no synthetic inputs can be made ({str(error).splitlines()[0]})")
    fitting, held = recovery.split(made.feeds)
    inputs = _inputs("synthetic", "made up, no real data", made.feeds, held)
    return Gathered(fitting, held, dataclasses.replace(inputs, guesses=tuple(made.guesses)))


def _macs_of_a_row(opened: Opened) -> float:
    """Multiply-accumulates of one row at the representative sizes."""
    rows = max((shape[0] for shape in opened.shapes.inputs.values() if shape), default=1)
    return cost.macs(opened.analysis) / max(1, rows)


def _macs_of_a_value(opened: Opened) -> float:
    """Multiply-accumulates for every value of the largest input."""
    return cost.macs(opened.analysis) / max((math.prod(shape) for shape in opened.shapes.inputs.values()), default=1)
