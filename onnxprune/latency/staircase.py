"""The widths that this machine is fast at: small chains of one kind of layer, timed at widths side by side.

Where a runtime computes channels in blocks, latency is a staircase over the width: 36, 40, 44 and 48 channels cost the
same where blocks hold 16. For a step s the multiples of s are compared with the widths s / 2 below them. Of the saving
that the smaller work promises, a smooth processor gives 1, a staircase of s gives 0, and one that leaves its fast path
between the multiples of s gives less than 0. Where it is less than `FREE`, the channels up to the next multiple are
free. The largest such step is taken.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from onnxprune import processor, runtime
from onnxprune.latency.measure import rounds
from onnxprune.records import FloatArray, Staircases

KINDS = ("convolution", "pointwise", "depthwise", "grouped", "product")
STEPS = (8, 16, 32)
FREE = 0.4
"""Share of the promised saving below which the channels of a step count as free."""
NOISE = 0.08
"""Latencies of the odd rounds that differ by more than this share from those of the even ones tell nothing."""
_TOPS = {8: (24, 32, 40, 48), 16: (32, 48, 64), 32: (64, 96)}
_LAYERS = 4
_SECONDS = 0.8
_WARM_UPS = 2
_ROUNDS = (16, 200)
_IMAGE = {"convolution": 14, "pointwise": 28, "depthwise": 28, "grouped": 14}
_ROWS = 128
_QUARTILE = 0.25


def measure(provider: str, threads: int, *, timer: Callable[[], float] = time.perf_counter) -> Staircases:
    """Time every kind of layer at every width, in about `_SECONDS` each. Run in a child process."""
    return judge({kind: _timed(kind, provider, threads, timer) for kind in KINDS}, provider)


def judge(measured: Mapping[str, FloatArray], provider: str) -> Staircases:
    """The steps that seconds (rounds, widths) by kind show; never one that leaves the fast path."""
    known, least = asdict(processor.table(provider)), asdict(processor.least(provider))
    unclear = tuple(kind for kind, seconds in measured.items() if noise_of(seconds) > NOISE)
    times = {kind: dict(zip(widths_to_measure(), _typical(s) * 1e3, strict=True)) for kind, s in measured.items()}
    steps = {
        kind: known[kind] if kind in unclear else max(step_of(found, power_of(kind)), least[kind])
        for kind, found in times.items()
    }
    widths = replace(processor.table(provider), **steps, measured=len(unclear) < len(steps))
    return Staircases(widths, {kind: {w: float(t) for w, t in found.items()} for kind, found in times.items()}, unclear)


def _typical(seconds: FloatArray) -> FloatArray:
    """The lower quartile of the rounds: what a run takes where little else happens."""
    return np.asarray(np.quantile(seconds, _QUARTILE, axis=0))


def noise_of(seconds: FloatArray) -> float:
    """How far the odd rounds are from the even ones: the median over the widths, as a share."""
    return float(np.median(np.abs(_typical(seconds[::2]) / _typical(seconds[1::2]) - 1.0)))


def power_of(kind: str) -> int:
    """How the work of a layer grows with its width, in and out alike."""
    return 1 if kind == "depthwise" else 2


def step_of(times: Mapping[int, float], power: int) -> int:
    """The largest step whose channels are free, LEAST_MULTIPLE where none is."""
    return max((step for step in STEPS if saving(times, step, power) < FREE), default=processor.LEAST_MULTIPLE)


def saving(times: Mapping[int, float], step: int, power: int) -> float:
    """What half a step less saves, as a share of what the work promises; the median over several widths.

    Of two widths the larger: their mean would let other work that slowed one of them look like a step.
    """
    shares = [(1.0 - times[low] / times[top]) / (1.0 - (low / top) ** power) for low, top in _pairs(step)]
    return float(np.median(shares) if len(shares) > 2 else max(shares))


def _pairs(step: int) -> list[tuple[int, int]]:
    return [(top - step // 2, top) for top in _TOPS[step]]


def widths_to_measure() -> list[int]:
    """Every width that `saving` asks for."""
    return sorted({width for step in STEPS for pair in _pairs(step) for width in pair})


def _timed(kind: str, provider: str, threads: int, timer: Callable[[], float]) -> FloatArray:
    """Seconds (rounds, widths)."""
    runs = [_runner(kind, width, provider, threads) for width in widths_to_measure()]
    return rounds(runs, warm_ups=_WARM_UPS, budget_s=_SECONDS, bounds=_ROUNDS, timer=timer)


def _runner(kind: str, width: int, provider: str, threads: int) -> Callable[[], object]:
    model = chain(kind, width)
    session = runtime.session(model.SerializeToString(), provider=provider, threads=threads)
    shape = [axis.dim_value for axis in model.graph.input[0].type.tensor_type.shape.dim]
    feed = {"x": np.random.default_rng(1).standard_normal(shape).astype(np.float32)}
    return lambda: session.run(None, feed)


def chain(kind: str, width: int) -> onnx.ModelProto:
    """`_LAYERS` layers of one kind, all of `width` channels (of `width` in each of two groups, where grouped)."""
    channels = 2 * width if kind == "grouped" else width
    groups = {"depthwise": width, "grouped": 2}.get(kind, 1)
    kernel = () if kind == "product" else (1, 1) if kind == "pointwise" else (3, 3)
    random = np.random.default_rng(0)
    nodes, stored = [], []
    for k in range(_LAYERS):
        shape = (channels, channels // groups, *kernel)
        weight = random.standard_normal(shape).astype(np.float32) / np.float32(np.sqrt(np.prod(shape[1:])))
        stored.append(numpy_helper.from_array(weight, f"w{k}"))
        names = ["x" if k == 0 else f"y{k - 1}", f"w{k}"], [f"y{k}"]
        if kernel:
            pads = [size // 2 for size in kernel] * 2
            nodes.append(helper.make_node("Conv", *names, group=groups, pads=pads, kernel_shape=list(kernel)))
        else:
            nodes.append(helper.make_node("MatMul", *names))
    size = [1, channels, _IMAGE[kind], _IMAGE[kind]] if kernel else [_ROWS, channels]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, size)
    y = helper.make_tensor_value_info(f"y{_LAYERS - 1}", TensorProto.FLOAT, size)
    graph = helper.make_graph(nodes, "chain", [x], [y], stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
