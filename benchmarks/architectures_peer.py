"""Torch-Pruning on one of the trained networks; benchmarks/architectures.py starts it.

    python architectures_peer.py WORK NAME OUT SHARE CALIBRATION.npz

Writes OUT, and OUT with the ending .bn where the network has BatchNormalization, estimated anew on the inputs. The
ratio that leaves SHARE of the work is bisected. Heads keep their number, and lose width, which is its default.
"""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import architectures_models as models
import architectures_train as train
import numpy as np
import torch
import torch_pruning
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

HALVINGS = 10
BATCH = 128


def cut(model: nn.Module, inputs: Tensor, ratio: float) -> None:
    """Remove the channels of the least L2 norm of all."""
    heads: dict[nn.Module, int] = {}
    for layer in model.modules():
        if isinstance(layer, models.FusedAttention):
            heads[layer.qkv] = layer.heads
        if isinstance(layer, models.SeparateAttention):
            heads |= dict.fromkeys((layer.query, layer.key, layer.value), layer.heads)
    last = [layer for layer in model.modules() if isinstance(layer, nn.Linear)][-1]
    torch_pruning.pruner.BasePruner(
        model,
        inputs,
        importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=ratio,
        global_pruning=True,
        ignored_layers=[last],
        num_heads=heads,
    ).step()
    for layer in model.modules():
        if isinstance(layer, (nn.GroupNorm, nn.InstanceNorm2d)):
            model(inputs)


def work(model: nn.Module, inputs: Tensor) -> int:
    """Operations of one run."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(inputs)
    return int(counter.get_total_flops())


def fitting(model: nn.Module, inputs: Tensor, share: float) -> nn.Module:
    """The network cut by the smallest ratio that leaves at most `share` of the work."""
    target, low, high = share * work(model, inputs), 0.0, 1.0
    best: nn.Module | None = None
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        tried = copy.deepcopy(model)
        cut(tried, inputs, middle)
        if work(tried, inputs) <= target:
            high, best = middle, tried
        else:
            low = middle
    if best is None:
        raise RuntimeError("the share of the work is out of reach")
    return best


def estimate(model: nn.Module, inputs: Tensor) -> bool:
    """Mean and variance of every BatchNormalization anew, in training mode; whether there is one."""
    layers: list[Any] = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None
    model.train()
    with torch.no_grad():
        for part in inputs.split(BATCH):
            model(part)
    model.eval()
    return bool(layers)


def main() -> None:
    """Prune, export, estimate, export."""
    folder, name, output, share, calibration = sys.argv[1:]
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = models.BUILDERS[name]()
    model.load_state_dict(torch.load(Path(folder) / f"{name}.pt"))
    pruned = fitting(model.eval(), train.example(name), float(share))
    train.export(name, pruned, Path(output), dynamo=False)
    with np.load(calibration) as data:
        inputs = torch.from_numpy(data[data.files[0]])
    if estimate(pruned, inputs):
        train.export(name, pruned, Path(output).with_suffix(".bn"), dynamo=False)


if __name__ == "__main__":
    main()
