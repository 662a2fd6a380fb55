"""Which trials a search makes: every amount with every criterion."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from onnxprune.config import Config, parse_target
from onnxprune.errors import UsageError
from onnxprune.records import Trial

SIZES = ("macs", "params", "bytes")
"""Targets that need no measurement of time, which trials side by side would disturb."""
RATIO = "ratio="
DECIDED = ("output", "ratio", "target", "criterion", "max_drop", "plan", "save_plan", "benchmark", "dry_run", "force")
"""Fields of a configuration that a search sets itself."""


def trials(ratios: Sequence[float], targets: Sequence[str], criteria: Sequence[str]) -> tuple[Trial, ...]:
    """Every ratio, then every target, each with every criterion; none twice. Raises UsageError where there is none."""
    amounts = [*(f"{RATIO}{ratio:.12g}" for ratio in ratios), *targets]
    if not amounts or not criteria:
        raise UsageError("a search needs amounts and criteria: --ratios 0.2,0.4 or --targets macs=0.5,0.7, --criteria")
    return tuple(dict.fromkeys(Trial(amount, name) for amount in amounts for name in criteria))


def check(config: Config, wanted: Sequence[Trial], model: Path) -> None:
    """Raise UsageError for the first trial that makes no sense, before any of them starts."""
    default = Config()
    given = [name for name in DECIDED if getattr(config, name) != getattr(default, name)]
    if given:
        raise UsageError(f"a search decides {', '.join(given)} itself: leave it out of the configuration")
    if config.calibration is None:
        raise UsageError("a search needs --calibration: trials are recovered with it and compared on rows held out")
    for trial in wanted:
        target = of(config, trial).target
        if target is not None and parse_target(target)[0] not in SIZES:
            raise UsageError(
                f"--targets {target}: a search takes macs, params and size; latency is measured of every result"
            )
        try:
            of(config, trial).validate(model)
        except UsageError as error:
            raise type(error)(f"trial {label(trial)!r}: {error}") from error


def of(config: Config, trial: Trial) -> Config:
    """The options of one trial."""
    if trial.amount.startswith(RATIO):
        ratio = float(trial.amount[len(RATIO) :])
        # There is no target whose split it would say.
        return dataclasses.replace(config, ratio=ratio, allocation=Config.allocation, criterion=trial.criterion)
    return dataclasses.replace(config, target=trial.amount, criterion=trial.criterion)


def label(trial: Trial) -> str:
    """A trial in words: "ratio=0.3 obs"."""
    return f"{trial.amount} {trial.criterion}"


def slug(trial: Trial) -> str:
    """A trial as part of a file name: "ratio-0.3-obs"."""
    return label(trial).replace(" ", "-").replace("=", "-")


def parse_ratios(text: str) -> tuple[float, ...]:
    """Ratios with commas between them. Raises UsageError for what is no number."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"--ratios {text!r}: write numbers such as 0.1,0.2,0.4") from None


def parse_targets(text: str) -> tuple[str, ...]:
    """Targets with commas between them; an amount without a kind is of the one before: "macs=0.3,0.5,size=1MB"."""
    found: list[str] = []
    kind = ""
    for part in text.split(","):
        name, equals, value = part.strip().rpartition("=")
        kind = name if equals else kind
        if not kind:
            raise UsageError(f"--targets {text!r}: write what is kept and how much, such as macs=0.3,0.5,size=1MB")
        found.append(f"{kind}={value}")
        parse_target(found[-1])
    return tuple(found)
