"""A machine whose clock only runs of models move, quiet or loaded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from onnxprune.latency import measure


class Machine:
    """A clock that runs move forward: `cost(clock)` seconds per run, times the factor of the model."""

    def __init__(self, cost: Callable[[float], float]) -> None:
        self.now, self.cost, self.log = 0.0, cost, list[str]()

    def timer(self) -> float:
        return self.now

    def model(self, name: str, factor: float = 1.0) -> Callable[[], None]:
        def run() -> None:
            self.log.append(name)
            self.now += factor * self.cost(self.now)

        return run


def loaded_machine(seed: int, noise: float) -> Machine:
    """5 ms per run with noise, a slow drift, bursts of other work (70% slower for 0.15 s) and rare long stalls."""
    random = np.random.default_rng(seed)
    drift, burst_start, burst_end = 0.0, random.exponential(0.5), 0.0

    def cost(now: float) -> float:
        nonlocal drift, burst_start, burst_end
        if now > burst_start:
            burst_end = now + random.exponential(0.15)
            burst_start = burst_end + random.exponential(0.5)
        drift += random.normal(0.0, 0.003)
        stall = random.exponential(2.0) if random.random() < 0.02 else 0.0
        load = (1.7 if now < burst_end else 1.0) * (1.0 + stall)
        return float(0.005 * load * np.exp(drift + random.normal(0.0, noise)))

    return Machine(cost)


def interleave(machine: Machine, factor: float = 1.0, seed: int = 0, **changes: Any) -> tuple[Any, Any]:
    options: dict[str, Any] = {"budget_s": 4.0, "min_pairs": 20, **changes}
    runs = machine.model("A"), machine.model("B", factor)
    return measure.interleave(lambda again: runs, timer=machine.timer, seed=seed, **options)
