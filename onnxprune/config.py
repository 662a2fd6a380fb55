"""Every option of a pruning run: one field per flag of the command line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from onnxprune.errors import UsageError

RoundTo = int | Literal["auto"]


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

    def validate(self) -> None:
        """Raise UsageError for the first option that makes no sense."""
        from onnxprune import criteria

        if not 0 < self.ratio < 1:
            raise UsageError(f"--ratio must lie between 0 and 1, got {self.ratio}")
        if self.round_to != "auto" and self.round_to < 1:
            raise UsageError(f"--round-to must be 'auto' or at least 1, got {self.round_to}")
        if self.seed < 0:
            raise UsageError(f"--seed must not be negative, got {self.seed}")
        criteria.find(self.criterion)
        for name, path in (("--calibration", self.calibration), ("--plan", self.plan)):
            if path is not None and not path.exists():
                raise UsageError(f"{name}: {path} does not exist")
