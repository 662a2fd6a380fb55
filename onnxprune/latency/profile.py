"""Where the time goes: latency of every node that runs, from ONNX Runtime's own profile.

All models are profiled side by side, in rounds, so that what else the machine does falls on all of them alike. Fused
nodes are one: a Conv with its BatchNormalization and Relu has the name of the Conv, or of a tensor it writes.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from onnxprune import runtime
from onnxprune.latency.measure import rounds, runner
from onnxprune.records import FloatArray, KernelTime, Profile

Array = npt.NDArray[np.generic]

_QUARTILE = 0.25
_WARM_UPS = 3
_ROUNDS = (8, 60)
_SUFFIX = "_kernel_time"
_BODIES = ("If", "Loop", "Scan")


def profile_many(
    models: Sequence[str],
    feeds: Mapping[str, Array],
    *,
    provider: str = "cpu",
    threads: int = 0,
    budget_s: float = 5.0,
    timer: Callable[[], float] = time.perf_counter,
) -> list[Profile]:
    """The profile of every model on the same inputs. Run in a child process.

    Latencies of nodes are lower quartiles over at least 8 rounds, for up to `budget_s` seconds. That of the whole is
    their sum, times the median of what a whole run took over the sum of its nodes: other work that interrupts a run
    lengthens both. On a GPU nodes only start work, so `kernels` is empty there, and the whole is a lower quartile.
    """
    with tempfile.TemporaryDirectory(prefix="onnxprune-") as folder:
        sessions = [
            runtime.session(model, provider=provider, threads=threads, profile=str(Path(folder) / f"{k}"))
            for k, model in enumerate(models)
        ]
        runs = [runner(session, feeds, provider) for session in sessions]
        seconds = rounds(runs, warm_ups=_WARM_UPS, budget_s=budget_s, bounds=_ROUNDS, timer=timer)
        files = [Path(session.end_profiling()) for session in sessions]
        return [read(file, seconds[:, k], timed=provider == "cpu") for k, file in enumerate(files)]


def read(path: Path, seconds: FloatArray, *, timed: bool = True) -> Profile:
    """The profile in a file of runs of which the last took `seconds`; the nodes in the order they ran."""
    if not timed:
        return Profile(float(np.quantile(seconds, _QUARTILE)) * 1e3, ())
    found = _events(path)
    # One run more checks the inputs, before the runner warms up.
    runs = len(seconds) + _WARM_UPS + 1
    rows = {key: _per_run(ms, runs)[-len(seconds) :] for key, ms in found.items()}
    kernels = tuple(KernelTime(name, op, float(np.quantile(ms, _QUARTILE))) for (name, op), ms in rows.items())
    sums = np.sum(list(rows.values()), axis=0) if rows else np.ones(len(seconds))
    ratio = float(np.median(seconds * 1e3 / np.maximum(sums, 1e-9)))
    return Profile(ratio * sum(kernel.ms for kernel in kernels), kernels)


def _events(path: Path) -> dict[tuple[str, str], list[float]]:
    """Milliseconds of every run of every node, by (name, operator).

    Time inside the bodies of control flow counts for the nodes there, not again for the node that holds them.
    """
    found: dict[tuple[str, str], list[float]] = {}
    for event in json.loads(path.read_text(encoding="utf-8", errors="replace")):
        name, op = str(event.get("name", "")), str(event.get("args", {}).get("op_name", ""))
        if event.get("cat") == "Node" and name.endswith(_SUFFIX) and op not in _BODIES:
            found.setdefault((name[: -len(_SUFFIX)], op), []).append(float(event["dur"]) / 1e3)
    return found


def _per_run(ms: Sequence[float], runs: int) -> FloatArray:
    """Milliseconds by run; the mean everywhere where runs do not all have as many events."""
    found = np.asarray(ms)
    if found.size % runs:
        return np.full(runs, found.sum() / runs)
    return np.asarray(found.reshape(runs, -1).sum(axis=1))


def not_faster(before: Profile, after: Profile, *, least: float = 0.03) -> list[tuple[str, float, float]]:
    """(name, ms before, ms after) of the nodes that gained less than the share `least`, the largest losses first."""
    known: dict[str, float] = {}
    for kernel in before.kernels:
        known[kernel.name] = known.get(kernel.name, 0.0) + kernel.ms
    now: dict[str, float] = {}
    for kernel in after.kernels:
        now[kernel.name] = now.get(kernel.name, 0.0) + kernel.ms
    slow = [(name, known.get(name, 0.0), ms) for name, ms in now.items() if ms > (1.0 - least) * known.get(name, 0.0)]
    return sorted(slow, key=lambda row: (row[1] - row[2], -row[2]))
