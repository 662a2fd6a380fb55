"""Every option of a pruning run: one field per flag of the command line."""

from __future__ import annotations

import importlib.util
import math
import numbers
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from onnxprune.errors import ModelError, OutputError, UsageError
from onnxprune.preparation import Preparation

RoundTo = int | Literal["auto"]
PROVIDERS = ("cpu", "cuda")
ALLOCATIONS = ("uniform", "global", "isomorphic", "sensitivity")
LATENCY_KINDS = ("latency", "milliseconds")
UNLABELLED = ("agreement", "cosine")
METRICS = ("accuracy", "precision", "recall", "f1", *UNLABELLED)
"""Metrics that have a name; the last two measure closeness to the original and need no labels."""
FALLS = dict.fromkeys(METRICS, 1.0) | {"cosine": 2.0}
"""What a metric of the original can fall by, at most."""
NOTHING_TO_SPLIT = (
    "--allocation says how a target is split, and there is none: give --target or --max-drop, or leave --allocation "
    "out (--ratio removes the same share of every group)"
)
MEASURED_CRITERIA = ("obs", "variance", "wanda", "pca", "apoz")


@dataclass(frozen=True)
class Config:
    """Options of one run. `validate` checks them all before any work starts.

    `ratio`: share of the indices removed from every group, in (0, 1), or 0 to remove `depth` residual blocks alone.
    `depth`: how many residual blocks to remove before. `input_shapes`: sizes of inputs by name.
    `round_to`: "auto" for widths the runtime is fast at, or a multiple kept counts are rounded up to.
    `calibration`: a .npz or .npy file, a folder of them or of images, or a function (`module:function` or
    `path/file.py:function`). `calibration_size`: rows of it used, at most. `mean` to `color`: of `Preparation`.
    `target`: "macs=0.5", "params=0.5", "size=10MB", "latency=0.6" or "latency=5ms" (a number up to 1 is the share kept)
    in place of `ratio`. `batch`, `run_threads` (0: all cores) and `budget_s`: what latency is measured with.
    `allocation`: how it is split over the groups, of `ALLOCATIONS`. `tune`: distil after the reconstruction
    (extra `gradients`). `threads` and `memory_bytes`: of recovery.
    `metric`: what is measured on rows held out ("accuracy", ..., "module:function"; see metric.py), with `labels` (a
    file, or of images a folder of folders) where it needs some; `evaluation`: inputs to measure it on, in place of rows
    held out of `calibration`.
    `max_drop`: how much it may fall: as much as that allows is removed, at most to `target` where there is one.
    `keep` / `only`: shell-style patterns over group, tensor and node names. `heads`: whether outer factors of products
    (attention heads, groups of channels) may go; `head_width`: cut the inner factor of a product alone. Without, one
    ratio for all cuts the outer one, and a split by measured damage both. `fuse`: take what lies between the linear
    operators and only scales or shifts into them, where ONNX Runtime does not.
    """

    output: Path | None = None
    ratio: float = 0.5
    depth: int = 0
    criterion: str | None = None
    calibration: Path | None = None
    input_shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    round_to: RoundTo = "auto"
    keep: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    heads: bool = True
    head_width: bool = False
    recover: bool = True
    fuse: bool = True
    calibration_size: int = 1024
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    scale: float | None = None
    layout: str = "auto"
    resize: tuple[int, int] | None = None
    color: str = "auto"
    target: str | None = None
    allocation: str = "sensitivity"
    tune: bool = False
    metric: str | None = None
    labels: Path | None = None
    evaluation: Path | None = None
    max_drop: float | None = None
    threads: int = 1
    memory_bytes: int = 1 << 30
    provider: Literal["cpu", "cuda"] = "cpu"
    benchmark: bool = False
    batch: int | None = None
    run_threads: int = 0
    budget_s: float = 10.0
    dry_run: bool = False
    plan: Path | None = None
    save_plan: Path | None = None
    seed: int = 0
    force: bool = False

    def __post_init__(self) -> None:
        """Take text where a path is meant, and one pattern for a tuple of one."""
        for name in ("output", "calibration", "plan", "save_plan", "labels", "evaluation"):
            value = getattr(self, name)
            if isinstance(value, str):
                object.__setattr__(self, name, Path(value))
        for name in ("mean", "std"):
            value = getattr(self, name)
            object.__setattr__(self, name, (value,) if isinstance(value, (int, float)) else tuple(value))
        for name in ("keep", "only"):
            value = getattr(self, name)
            object.__setattr__(self, name, (value,) if isinstance(value, str) else tuple(value))

    @property
    def preparation(self) -> Preparation:
        """How images become inputs."""
        return Preparation(self.mean, self.std, self.scale, self.layout, self.resize, self.color)

    @property
    def measure(self) -> str:
        """The importance criterion: the one asked for, else what inputs show if there are to be any, else the norm."""
        return self.criterion or ("obs" if self.calibration or self.needs_inputs else "l2")

    @property
    def needs_inputs(self) -> bool:
        """Whether inputs are fitted to or measured on; where there are no real ones, they are made up."""
        by_damage = self.target is not None and (self.allocation != "uniform" or self.aims_at_latency)
        measures = by_damage if self.criterion is None else self.criterion in MEASURED_CRITERIA
        return measures or self.recover

    @property
    def files_read(self) -> dict[str, Path | None]:
        """The files and folders beside the model that the run reads, by option."""
        return {
            "--calibration": self.calibration,
            "--plan": self.plan,
            "--labels": self.labels,
            "--evaluation": self.evaluation,
        }

    def output_for(self, model: Path) -> Path:
        """Where the pruned model goes: `output`, or MODEL_pruned.onnx beside the input."""
        if model.is_dir():
            raise ModelError(f"{model}: this is a folder, not a model file")
        return self.output or default_output(model)

    def validate(self, model: Path | None = None) -> None:
        """Raise UsageError for the first option that makes no sense, alone or with the input file `model`."""
        self._check_amount()
        self._check_target()
        self._check_idle()
        self._check_metric()
        self._check_numbers()
        self._check_choices()
        self._check_files(model)

    def _check_amount(self) -> None:
        if self.depth < 0:
            raise UsageError(f"--depth must not be negative, got {self.depth}")
        if self.depth and self.plan:
            raise UsageError("--plan says which residual blocks go: leave --depth out")
        if self.plan and (self.keep or self.only):
            raise UsageError("--plan says which groups are cut: leave --keep and --only out")
        if isinstance(self.ratio, bool) or not isinstance(self.ratio, (int, float)):
            raise UsageError(f"--ratio must be a number, got {self.ratio!r}")
        if not 0 < self.ratio < 1 and not (self.ratio == 0 and self.depth):
            alone = " (or be 0, with --depth)" if self.ratio == 0 else ""
            raise UsageError(f"--ratio must lie between 0 and 1{alone}, got {self.ratio}")

    def _check_target(self) -> None:
        if self.target is None:
            return
        kind, _ = parse_target(self.target)
        if self.ratio == 0:
            raise UsageError("--ratio 0 removes residual blocks alone: leave --target out")
        if kind in LATENCY_KINDS and self.plan:
            raise UsageError("--plan says which groups are cut: leave --target out")
        if kind not in LATENCY_KINDS and self.measure not in MEASURED_CRITERIA and self.allocation != "uniform":
            raise UsageError(
                f"--target needs one of {', '.join(MEASURED_CRITERIA)}, got --criterion {self.measure}; "
                "or give --allocation uniform, which needs no measure"
            )

    def _check_idle(self) -> None:
        """Options that what others say leaves without effect."""
        if self.tune and not self.recover:
            raise UsageError("--tune distils what was recovered, and --no-recover says not to: leave one of them out")
        if self.allocation != Config.allocation and self.target is None and self.max_drop is None:
            raise UsageError(NOTHING_TO_SPLIT)

    def _check_metric(self) -> None:
        if self.metric is not None:
            check_metric(self.metric)
        if self.metric is not None and self.calibration is None and self.evaluation is None:
            raise UsageError("--metric needs inputs to measure on: give --calibration or --evaluation")
        if self.labels is not None and self.metric is None:
            raise UsageError("--labels needs --metric: accuracy, precision, recall, f1 or module:function")
        if self.labels is not None and self.metric in UNLABELLED:
            raise UsageError(f"--metric {self.metric} compares with the original, not with labels: leave --labels out")
        if self.dry_run and (self.metric or self.evaluation or self.max_drop is not None):
            raise UsageError("a metric is measured on the pruned model, and --dry-run writes none: leave one out")
        if self.max_drop is not None:
            self._check_budget(self.max_drop)

    def _check_budget(self, max_drop: float) -> None:
        if not 0 <= max_drop < math.inf:
            raise UsageError(f"--max-drop must be a number of at least 0, got {max_drop}")
        check_max_drop(max_drop, self.metric)
        if self.plan is not None:
            raise UsageError("--plan says what is removed: leave --max-drop out")
        if self.ratio == 0:
            raise UsageError("--ratio 0 removes residual blocks alone: leave --max-drop out")
        if self.calibration is None:
            raise UsageError("--max-drop needs --calibration: every round is recovered with it")
        if self.measure not in MEASURED_CRITERIA:
            raise UsageError(f"--max-drop needs one of {', '.join(MEASURED_CRITERIA)}, got --criterion {self.measure}")

    @property
    def times_result(self) -> bool:
        """Whether the result must be shown to be faster before it is written."""
        return not self.dry_run and (self.benchmark or self.aims_at_latency)

    @property
    def aims_at_latency(self) -> bool:
        """Whether the target is a latency."""
        return self.target is not None and parse_target(self.target)[0] in LATENCY_KINDS

    def _check_numbers(self) -> None:
        if self.round_to != "auto":
            check_whole("--round-to", self.round_to)
        check_whole("--seed", self.seed)
        check_whole("--calibration-size", self.calibration_size)
        check_whole("--depth", self.depth)
        if self.calibration_size < 1 or self.memory_bytes < 1 << 20:
            raise UsageError("--calibration-size must be at least 1, --memory at least 1 MB")
        check_threads("--threads", self.threads, least=1)
        if self.round_to != "auto" and self.round_to < 1:
            raise UsageError(f"--round-to must be 'auto' or at least 1, got {self.round_to}")
        check_timing(self.batch, self.run_threads, self.budget_s)
        if self.seed < 0:
            raise UsageError(f"--seed must not be negative, got {self.seed}")

    def _check_choices(self) -> None:
        from onnxprune import criteria

        if self.allocation not in ALLOCATIONS:
            raise UsageError(f"--allocation must be one of {', '.join(ALLOCATIONS)}, got {self.allocation!r}")
        if self.provider not in PROVIDERS:
            raise UsageError(f"--provider must be one of {', '.join(PROVIDERS)}, got {self.provider!r}")
        if self.benchmark and self.dry_run:
            raise UsageError("--benchmark needs the pruned model, and --dry-run writes none: leave one of them out")
        if self.measure not in MEASURED_CRITERIA and self.measure not in criteria.names():
            known = ", ".join((*MEASURED_CRITERIA, *criteria.names()))
            raise UsageError(f"unknown criterion {self.measure!r}; known: {known}")
        if self.tune and importlib.util.find_spec("onnx_ad") is None:
            raise UsageError("--tune needs gradients: pip install 'onnxprune[gradients]'")

    def _check_files(self, model: Path | None) -> None:
        check_input_shapes(self.input_shapes)
        check_preparation(self.preparation, has_inputs=self.calibration is not None or self.evaluation is not None)
        check_inputs("--calibration", self.calibration)
        check_inputs("--evaluation", self.evaluation)
        for name, path in (("--plan", self.plan), ("--labels", self.labels)):
            if path is not None and not path.exists():
                raise UsageError(f"{name}: {path} does not exist")
        read = {"the input model": model, **self.files_read}
        output = self.output_for(model) if model else self.output
        check_paths(read, {"--output": output, "--save-plan": self.save_plan})
        check_report_path("--save-plan", self.save_plan, "{")


def default_output(model: Path) -> Path:
    """Where the pruned model goes if nothing else is said: MODEL_pruned.onnx beside the input."""
    return model.with_name(f"{model.stem}_pruned.onnx")


def parse_target(text: str) -> tuple[str, float]:
    """What a target as written means: ("macs" | "params" | "latency", share of the original that is kept), ("bytes",
    share, or bytes above 1), or ("milliseconds", latency).
    """
    kind, _, amount = text.partition("=")
    match = re.fullmatch(r"([0-9.]+)\s*([A-Za-z]*)", amount.strip())
    number, unit = (_number(match[1]), match[2]) if match else (0.0, "?")
    if not unit and (0 < number < 1 or (number == 1 and kind != "latency")) and kind in _SHARED:
        return _SHARED[kind], number
    size = number * _BYTES.get(unit.lower(), 0)
    if kind == "size" and size > 1:
        return "bytes", size
    if kind == "latency" and unit in _SECONDS and number > 0:
        return "milliseconds", number * _SECONDS[unit]
    raise UsageError(
        f"--target {text!r}: write macs=0.5, params=0.5 or size=0.5 (the share kept, up to 1), size=10MB (bytes: a "
        "bare number or with B, kB, MB, GB of 1000, or KiB, MiB, GiB of 1024), latency=0.6 (the share kept, below 1) "
        "or latency=5ms (s, ms, us)"
    )


THREADS_PER_CORE = 16
"""Threads for one processor, at most."""
_SHARED = {"macs": "macs", "params": "params", "size": "bytes", "latency": "latency"}
_BYTES = {
    "": 1, "b": 1, "kb": 1000, "mb": 1000**2, "gb": 1000**3, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30,
}  # fmt: skip
"""Bytes by unit, in small letters."""
_SECONDS = {"s": 1e3, "ms": 1.0, "us": 1e-3}


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0


def check_inputs(option: str, place: Path | None) -> None:
    """Raise UsageError where there is no such file or folder, and it is not written like a function."""
    from onnxprune.calibration import exists

    if place is not None and not exists(place):
        raise UsageError(f"{option}: {place} does not exist")


def check_preparation(prepared: Preparation, *, has_inputs: bool) -> None:
    """Raise UsageError for options of images that make no sense, or that have no images to be applied to."""
    prepared.check()
    if not has_inputs and prepared != Preparation():
        raise UsageError("--mean, --std, --scale, --layout, --resize and --color need images: give --calibration")


def check_metric(name: str) -> None:
    """Raise UsageError for what is no name of a metric; loads nothing."""
    module, _, function = name.rpartition(":")
    if name not in METRICS and not (module and function.isidentifier()):
        raise UsageError(f"--metric {name!r}: write {', '.join(METRICS)}, module:function or file.py:function")


def check_max_drop(max_drop: float, metric: str | None) -> None:
    """Raise UsageError for a budget that no model can go beyond; the range of a user's function is not known.

    `metric`: None for the agreement or the cosine, whichever fits the outputs.
    """
    names = UNLABELLED if metric is None else (metric,)
    if max_drop > max(FALLS.get(name, math.inf) for name in names):
        falls = " and ".join(f"{name} can fall by {FALLS[name]:g}" for name in names)
        raise UsageError(f"--max-drop {max_drop:g}: {falls} at most; give a share such as 0.01, not per cent")


def check_timing(batch: int | None, threads: int, budget_s: float) -> None:
    """Raise UsageError for conditions of a measurement that make no sense."""
    if batch is not None and batch < 1:
        raise UsageError(f"--batch must be at least 1, got {batch}")
    check_threads("the threads of a model", threads, least=0)
    if not budget_s > 0:
        raise UsageError(f"--budget must be a positive number of seconds, got {budget_s:g}")


def check_threads(name: str, threads: int, *, least: int) -> None:
    """Raise UsageError for fewer threads than `least`, or so many that the machine does nothing but switch them."""
    check_whole(name, threads)
    cores = os.cpu_count() or 1
    if threads < least:
        zero = "0 (all cores) or more" if least == 0 else f"at least {least}"
        raise UsageError(f"{name} must be {zero}, got {threads}")
    if threads > cores * THREADS_PER_CORE:
        raise UsageError(
            f"{name} must be at most {cores * THREADS_PER_CORE}, {THREADS_PER_CORE} for each of the {cores} processors "
            f"of this machine, got {threads}"
        )


def check_whole(name: str, number: object) -> None:
    """Raise UsageError for what is no whole number; a flag counts as none."""
    if isinstance(number, bool) or not isinstance(number, numbers.Integral):
        raise UsageError(f"{name} must be a whole number, got {number!r}")


def check_input_shapes(shapes: Mapping[str, Sequence[int]]) -> None:
    """Raise UsageError for an axis below 1."""
    for name, shape in shapes.items():
        if any(size < 1 for size in shape):
            sizes = ",".join(map(str, shape))
            raise UsageError(f"--input-shape {name}:{sizes}: every axis must be at least 1")


def check_paths(read: Mapping[str, Path | None], written: Mapping[str, Path | None]) -> None:
    """Raise UsageError where a file to write is one that is read, or two of them are one file. None: not given."""
    taken = {path.resolve(): name for name, path in read.items() if path is not None}
    for name, path in written.items():
        if path is None:
            continue
        other = taken.setdefault(path.resolve(), name)
        if other != name:
            raise UsageError(f"{name} and {other} are the same file, {path}; choose another name")


def check_report_path(name: str, path: Path | None, start: str) -> None:
    """Raise OutputError where no report can be written to `path`, before any work is done.

    An existing file is replaced only where it begins with `start`, as such reports do: a slip of the hand must not
    cost a model or its data file.
    """
    if path is None:
        return
    if path.is_dir():
        raise OutputError(f"{name}: {path} is a folder; give a file name")
    if path.parent.is_dir() and not os.access(path.parent, os.W_OK | os.X_OK):
        raise OutputError(f"{name}: no permission to write to the folder {path.parent}; choose another")
    if not path.parent.is_dir():
        raise OutputError(f"{name}: the folder {path.parent} does not exist; create it first")
    if path.is_file():
        with path.open("rb") as file:
            if file.read(len(start)) not in (b"", start.encode()):
                raise OutputError(f"{name}: {path} exists and is no such report; it is not replaced")
