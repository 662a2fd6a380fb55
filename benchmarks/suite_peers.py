"""A run of a peer of onnxprune, from the file to the pruned file; `suite.py` starts them in environments of their own.

python suite_peers.py torch-pruning MODEL.pt OUT.onnx --ratio 0.3    (torch, torch-pruning, onnx)
python suite_peers.py torch-pruning MODEL.pt OUT.onnx --torch-export  with the exporter that torch takes by default, not
                                                                     the older and faster one (onnxscript)
python suite_peers.py torch-pruning MODEL.pt --search 0.5            prints the ratio that leaves half of the MACs
python suite_peers.py onnxsim MODEL.onnx OUT.onnx --ratio 0.5        (onnxsim)
"""

from __future__ import annotations

import argparse
import copy
import sys
from pathlib import Path
from typing import Any

ROUND_TO = 16
LEAST, MOST, ITERATIONS = 0.1, 0.5, 5
"""Where the ratio is looked for, and how often halved: to one part in eighty."""


def torch_pruning(model_file: Path, output: Path | None, ratio: float, share: float | None, torch_export: bool) -> None:
    """L2 norm of the group, one ratio for all layers, widths in steps that are fast here; then an exporter."""
    import suite_models
    import torch

    sys.modules.setdefault("suite_models", suite_models)
    model = torch.load(model_file, weights_only=False)
    inputs = suite_models.example(model_file.stem)
    if share is not None:
        print(_search(model, inputs, share))
        return
    _cut(model, inputs, ratio)
    suite_models.export(model.eval(), inputs, output, torch_export=torch_export)


def _search(model: Any, inputs: Any, share: float) -> float:
    """The smallest ratio (bisected between LEAST and MOST) that leaves at most `share` of the multiply-accumulates."""
    target = share * _macs(model, inputs)
    low, high = LEAST, MOST
    for _ in range(ITERATIONS):
        middle = (low + high) / 2
        tried = copy.deepcopy(model)
        _cut(tried, inputs, middle)
        low, high = (low, middle) if _macs(tried, inputs) <= target else (middle, high)
    return high


def _cut(model: Any, inputs: Any, ratio: float) -> None:
    import torch_pruning
    from suite_models import Attention
    from torch import nn

    layers = list(model.modules())
    heads = {part: a.heads for a in layers if isinstance(a, Attention) for part in (a.query, a.key, a.value)}
    last = [layer for layer in layers if isinstance(layer, (nn.Linear, nn.Conv2d))][-1]
    torch_pruning.pruner.BasePruner(
        model,
        inputs,
        importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=ratio,
        ignored_layers=[last],
        num_heads=heads,
        round_to=ROUND_TO,
    ).step()


def _macs(model: Any, inputs: Any) -> int:
    """Multiply-accumulates of convolutions, linear layers and attention, counted in one run."""
    import torch
    from suite_models import Attention
    from torch import nn

    total = 0

    def count(layer: Any, given: Any, result: Any) -> None:
        nonlocal total
        if isinstance(layer, nn.ConvTranspose2d):
            total += given[0].numel() * layer.weight[0].numel()
        elif isinstance(layer, nn.Conv2d):
            total += result.numel() * layer.weight[0].numel()
        elif isinstance(layer, nn.Linear):
            total += result.numel() * layer.in_features
        elif isinstance(layer, Attention):
            tokens = given[0].shape[1]
            total += given[0].shape[0] * tokens * tokens * (layer.key.out_features + layer.value.out_features)

    kinds = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear, Attention)
    hooks = [layer.register_forward_hook(count) for layer in model.modules() if isinstance(layer, kinds)]
    with torch.no_grad():
        model(inputs)
    for hook in hooks:
        hook.remove()
    return total


def onnxsim(model_file: Path, output: Path, ratio: float) -> None:
    """Its structured pruning with its defaults; and of the attention heads it finds."""
    import onnx
    from onnxsim import pruning

    model = pruning.apply_structured_pruning(onnx.load(str(model_file)), sparsity=ratio)
    model = pruning.apply_attention_head_pruning(model, sparsity=ratio)
    onnx.save(model, str(output))


def main() -> None:
    """Run the peer named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peer", choices=["torch-pruning", "onnxsim"])
    parser.add_argument("model", type=Path)
    parser.add_argument("output", type=Path, nargs="?")
    parser.add_argument("--ratio", type=float, default=0.5)
    parser.add_argument("--search", type=float)
    parser.add_argument("--torch-export", action="store_true")
    arguments = parser.parse_args()
    if arguments.peer == "onnxsim":
        onnxsim(arguments.model, arguments.output, arguments.ratio)
    else:
        torch_pruning(arguments.model, arguments.output, arguments.ratio, arguments.search, arguments.torch_export)


if __name__ == "__main__":
    main()
