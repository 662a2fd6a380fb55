"""Distillation: gradient steps on all weights of the pruned model at once, towards what the original gives.

No labels. The gradients come from `onnx-ad` (extra `gradients`). Loss: divergence of probabilities at a temperature,
squared error of all other outputs (before a last Sigmoid), both as a share of the error of always giving the mean.
Images change at every step (`augmentation`).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from onnxprune import runtime
from onnxprune.augmentation import augment, is_image
from onnxprune.records import Feed
from onnxprune.recover import sites
from onnxprune.recover.divergence import probes
from onnxprune.recover.gradients import Adam, Feature, Layer, Tests, Trainer
from onnxprune.recover.layers import Weights

log = logging.getLogger(__name__)
Array = npt.NDArray[Any]
Float = npt.NDArray[np.float64]
Read = Callable[[str], Array]
Teacher = Callable[[Feed], list[Array]]
EPOCHS = 20
RATE = 0.007
BATCH, LEAST_BATCH = 50, 8
LEAST_ITEMS = 8
STEPS, LEAST_STEPS = 300, 20
"""Few images are seen more often, in smaller batches, so that there are so many steps."""
LOOKS, LEAST_LOOK = 20, 5
"""How often the mean loss of the last steps is looked at, and of how many steps at least."""
WORSE, BACK_OFF = 2.0, 4.0
"""Where that is so many times above its best: back to that state, with smaller steps."""
LARGEST_CROP = 320
WORK_LIMIT = 3e12
"""Multiply-accumulates of all steps of the pruned model: fewer where they would be more."""


def distil(
    original: onnx.ModelProto,
    folder: str,
    weights: Weights,
    feeds: Sequence[Feed],
    judged: Sequence[Feed],
    *,
    macs_per_item: float,
    memory_bytes: int,
    seed: int = 0,
    threads: int = 1,
) -> tuple[float, float] | None:
    """Train the weights in place on `feeds`; loss on `judged` before and after, or None where there is too little data
    or time. Kept where it is better on `judged` (after < before), which decides nothing else."""
    found = probes(weights.proto)
    sizes = _sizes(weights.proto, [*feeds, *judged])
    pool, tests = _pool(feeds, sizes), _pool(judged, sizes)
    count, others = _count(pool), _count(tests)
    fixed = _fixed_batch(weights.proto)
    batch = fixed or min(count // 2, BATCH, max(LEAST_BATCH, count * EPOCHS // STEPS))
    least = STEPS if all(is_image(a) for a in pool.values()) else 0
    steps = min(max(least, EPOCHS * count // max(batch, 1)), int(WORK_LIMIT // max(1, 3 * batch * macs_per_item)))
    if others < (fixed or 1) or count < max(LEAST_ITEMS, batch) or steps < LEAST_STEPS:
        return None
    teacher = _teacher(original, [p.name for p in found], folder, threads)
    test = [_filled({n: a[i : i + batch] for n, a in tests.items()}, batch) for i in range(0, others, batch)]
    wanted = [teacher(f) for f in test]
    features = [Feature.of(p, w) for p, w in zip(found, zip(*wanted, strict=True), strict=True)]
    trainer = Trainer(weights, test[0], features, threads, _frozen(features, count / batch), memory_bytes=memory_bytes)
    counts = [min(batch, others - i) for i in range(0, others, batch)]
    return _train(trainer, weights, pool, list(zip(test, wanted, counts, strict=True)), teacher, batch, steps, seed)


def _frozen(features: Sequence[Feature], batches: float) -> set[str]:
    """Probabilities of more classes than the inputs have rows: what makes them would forget the classes not seen."""
    return {
        f.probe.name
        for f in features
        if f.probe.kind == "categorical"
        and f.shape[f.probe.axis] > batches * math.prod(f.shape) / f.shape[f.probe.axis]
    }


def _train(
    trainer: Trainer,
    weights: Weights,
    pool: Feed,
    tests: Tests,
    teacher: Teacher,
    batch: int,
    steps: int,
    seed: int,
) -> tuple[float, float]:
    """Make the steps, and store the weights where they are better then; held-out loss before and after."""
    random = np.random.default_rng(seed)
    adam = Adam(RATE * math.sqrt(batch / BATCH), steps)
    units = {layer.names[0]: _size(layer.weight) for layer in trainer.layers}
    units.update({layer.names[1]: _size(layer.bias) + 1e-3 for layer in trainer.layers if layer.bias is not None})
    start = trainer.held_loss(tests)
    best, state = math.inf, [(layer.weight, layer.bias) for layer in trainer.layers]
    losses: list[float] = []
    order = random.permutation(0)
    for done in range(1, steps + 1):
        if len(order) < batch:
            order = random.permutation(_count(pool))
        chosen, order = order[:batch], order[batch:]
        feed = augment({n: a[chosen] for n, a in pool.items()}, random)
        loss, gradients = trainer.step(feed, teacher(feed))
        losses.append(loss)
        if done % max(LEAST_LOOK, steps // LOOKS) == 0:
            found, losses = float(np.mean(losses)), []
            log.info("distillation %d/%d: loss %.5f", done, steps, found)
            if found < best:
                best, state = found, [(layer.weight, layer.bias) for layer in trainer.layers]
            elif not found < WORSE * best:
                adam = Adam(adam.rate / BACK_OFF, adam.steps, done)
                _restore(trainer, state)
                continue
        adam.count = done
        trainer.apply(adam, gradients, units)
    for layer in trainer.layers:
        _round(weights, layer)
    after = trainer.held_loss(tests)
    log.info("distillation: held-out loss %.5f -> %.5f", start, after)
    if after < start:
        for layer in trainer.layers:
            _store(weights, layer)
    return start, after


def _restore(trainer: Trainer, state: Sequence[tuple[Array, Array | None]]) -> None:
    for layer, (weight, bias) in zip(trainer.layers, state, strict=True):
        layer.weight, layer.bias = weight, bias


def _size(array: Array) -> float:
    return float(np.sqrt(np.mean(np.square(array, dtype=np.float64))))


def _store(weights: Weights, layer: Layer) -> None:
    node = weights.proto.graph.node[layer.site.node]
    stored = weights.constant(node.input[1])
    bias = np.zeros(layer.scale.size) if layer.bias is None else layer.bias.astype(np.float64)
    weights.write(
        layer.site,
        node,
        stored,
        sites.to_matrix(layer.site, layer.weight),
        bias.reshape(layer.scale.shape),
        layer.scale,
    )


def _round(weights: Weights, layer: Layer) -> None:
    """Bring the weight of an operator onto the grid of its quantization, if it has one."""
    site, stored = layer.site, weights.constant(weights.proto.graph.node[layer.site.node].input[1])
    found = weights.rounded(site, stored, sites.to_matrix(site, layer.weight), layer.scale)
    if found is not None:
        layer.weight = np.asarray(sites.from_matrix(site, found, stored), np.float32)


def _teacher(proto: onnx.ModelProto, names: Sequence[str], folder: str, threads: int) -> Teacher:
    """Runs the original up to the tensors `names`."""
    model = onnx.ModelProto()
    model.CopyFrom(proto)
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=n) for n in names)
    session = runtime.session(model.SerializeToString(), threads=threads, folder=folder)
    return lambda feed: list(session.run(list(names), feed))


def _fixed_batch(proto: onnx.ModelProto) -> int | None:
    stored = {t.name for t in proto.graph.initializer}
    for value in proto.graph.input:
        axes = value.type.tensor_type.shape.dim
        if value.name not in stored and len(axes) and axes[0].dim_value:
            return int(axes[0].dim_value)
    return None


def _sizes(proto: onnx.ModelProto, feeds: Sequence[Feed]) -> dict[str, list[int]]:
    """Sizes of an item by input that all feeds have in common; {} where the inputs have no common axis of items."""
    if any(a.ndim < 1 or len(a) != len(next(iter(f.values()))) for f in feeds for a in f.values()):
        return {}
    sizes = {}
    for name in feeds[0]:
        shapes = {f[name].shape[1:] for f in feeds}
        if len({len(s) for s in shapes}) > 1:
            return {}
        least = [min(axis) for axis in zip(*shapes, strict=True)]
        axes = next(v for v in proto.graph.input if v.name == name).type.tensor_type.shape.dim
        free = [len(axes) > k + 1 and not axes[k + 1].dim_value for k in range(len(least))]
        if len(least) == 3 and is_image(feeds[0][name]):
            least = [min(n, LARGEST_CROP) if f and k else n for k, (n, f) in enumerate(zip(least, free, strict=True))]
        sizes[name] = least
    return sizes


def _pool(feeds: Sequence[Feed], sizes: Mapping[str, Sequence[int]]) -> Feed:
    """All items of all feeds by input, cropped to `sizes`."""
    alone = len(sizes) == 1
    return {
        name: np.concatenate([crop for f in feeds for crop in _crops(f[name], sizes[name], alone)]) for name in sizes
    }


def _count(pool: Feed) -> int:
    return len(next(iter(pool.values()))) if pool else 0


def _crops(array: Array, sizes: Sequence[int], many: bool) -> list[Array]:
    """`array` (n, ...) cut to `sizes`: the first corner, or, of images and with `many`, a grid of crops."""
    if not many or not is_image(array):
        return [array[(slice(None), *(slice(0, n) for n in sizes))]]
    grid = [
        np.unique(np.linspace(0, full - n, -(-full // n)).astype(int))
        for full, n in zip(array.shape[2:], sizes[1:], strict=True)
    ]
    return [array[:, :, y : y + sizes[1], x : x + sizes[2]] for y in grid[0] for x in grid[1]]


def _filled(feed: Feed, batch: int) -> Feed:
    """The feed with its items repeated up to `batch`."""
    return {n: np.resize(a, (batch, *a.shape[1:])) if len(a) < batch else a for n, a in feed.items()}
