"""Every option of a pruning run: one field per flag of the command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from onnxprune.errors import OutputError, UsageError

RoundTo = int | Literal["auto"]
PROVIDERS = ("cpu", "cuda")


@dataclass(frozen=True)
class Config:
    """Options of one run. `validate` checks them all before any work starts.

    `ratio`: share of the indices removed from every group, in (0, 1). `input_shapes`: sizes of inputs by name.
    `round_to`: "auto" for widths the runtime is fast at, or a multiple kept counts are rounded up to.
    `keep` / `only`: shell-style patterns over group, tensor and node names.
    """

    output: Path | None = None
    ratio: float = 0.5
    criterion: str = "l2"
    calibration: Path | None = None
    input_shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    round_to: RoundTo = "auto"
    keep: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    recover: bool = True
    provider: Literal["cpu", "cuda"] = "cpu"
    benchmark: bool = False
    dry_run: bool = False
    plan: Path | None = None
    save_plan: Path | None = None
    seed: int = 0
    force: bool = False

    def output_for(self, model: Path) -> Path:
        """Where the pruned model goes: `output`, or MODEL_pruned.onnx beside the input."""
        return self.output or model.with_name(f"{model.stem}_pruned.onnx")

    def validate(self, model: Path | None = None) -> None:
        """Raise UsageError for the first option that makes no sense, alone or with the input file `model`."""
        from onnxprune import criteria

        if not 0 < self.ratio < 1:
            raise UsageError(f"--ratio must lie between 0 and 1, got {self.ratio}")
        if self.round_to != "auto" and self.round_to < 1:
            raise UsageError(f"--round-to must be 'auto' or at least 1, got {self.round_to}")
        if self.seed < 0:
            raise UsageError(f"--seed must not be negative, got {self.seed}")
        if self.provider not in PROVIDERS:
            raise UsageError(f"--provider must be one of {', '.join(PROVIDERS)}, got {self.provider!r}")
        if self.benchmark and self.dry_run:
            raise UsageError("--benchmark needs the pruned model, and --dry-run writes none: leave one of them out")
        criteria.find(self.criterion)
        check_input_shapes(self.input_shapes)
        read = {"the input model": model, "--calibration": self.calibration, "--plan": self.plan}
        for name in ("--calibration", "--plan"):
            path = read[name]
            if path is not None and not path.exists():
                raise UsageError(f"{name}: {path} does not exist")
        output = self.output_for(model) if model else self.output
        check_paths(read, {"--output": output, "--save-plan": self.save_plan})
        check_report_path("--save-plan", self.save_plan, "{")


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
    if not path.parent.is_dir():
        raise OutputError(f"{name}: the folder {path.parent} does not exist; create it first")
    if path.is_file():
        with path.open("rb") as file:
            if file.read(len(start)) not in (b"", start.encode()):
                raise OutputError(f"{name}: {path} exists and is no such report; it is not replaced")
