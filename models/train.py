"""Train the example networks on rendered glyphs and export them to ONNX; seeded from end to end.

``python models/train.py`` rebuilds every ``NAME.onnx`` (about 25 minutes on one CPU core); name one or more networks
to rebuild only those. The data files come from ``python models/glyphs.py``.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

# isort: split
from evaluate import INPUT_NAME, MAX_LEVEL, evaluate, load_test
from glyphs import CLASSES, TRAIN_SEED, Glyphs, render
from networks import BUILDERS

BATCH = 128
OUTPUT_NAME = "logits"
HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Recipe:
    """How one network is trained and exported."""

    epochs: int
    peak_rate: float
    bfloat16: bool
    keep_batchnorm: bool
    opset: int


RECIPES = {
    "resnet": Recipe(9, 4e-3, bfloat16=True, keep_batchnorm=True, opset=17),
    "mobilenet": Recipe(6, 4e-3, bfloat16=False, keep_batchnorm=False, opset=17),
    "unet": Recipe(5, 4e-3, bfloat16=True, keep_batchnorm=False, opset=18),
}


def training_set(count: int, cache: Path | None) -> Glyphs:
    """Render the training images, or read them from ``cache`` (an .npz file, written when it is not there)."""
    if cache is not None and cache.is_file():
        with np.load(cache) as data:
            return Glyphs(data["levels"][:count], data["labels"][:count], data["masks"][:count])
    data_set = render(count, TRAIN_SEED)
    if cache is not None:
        np.savez(cache, levels=data_set.levels, labels=data_set.labels, masks=data_set.masks)
    return data_set


def augment(levels: Tensor, generator: torch.Generator) -> Tensor:
    """Permute the colour channels and invert channels at random; uint8 [n,3,32,32] to float32 network inputs."""
    order = torch.rand(len(levels), 3, generator=generator).argsort(1)
    shuffled = levels.gather(1, order[:, :, None, None].expand_as(levels)).float()
    sign = torch.randint(0, 2, (len(levels), 3, 1, 1), generator=generator).float() * 2 - 1
    return sign * (shuffled * 2 - MAX_LEVEL) / (MAX_LEVEL + 1)


def batches(data: Glyphs, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield one epoch of (float32 [n,3,32,32], int64 labels [n], float32 masks [n,1,32,32]) in random order."""
    levels, labels, masks = (torch.from_numpy(a) for a in (data.levels, data.labels, data.masks))
    order = torch.randperm(len(levels), generator=generator)
    for start in range(0, len(order) - BATCH + 1, BATCH):
        index = order[start : start + BATCH]
        yield augment(levels[index], generator), labels[index], masks[index, None].float()


def loss_of(output: Tensor, labels: Tensor, masks: Tensor) -> Tensor:
    """Cross-entropy for float32 [n,classes] logits; pixel cross-entropy plus soft IoU for [n,1,32,32] logits."""
    if output.ndim == 2:
        return functional.cross_entropy(output, labels, label_smoothing=0.05)
    chance = output.sigmoid()
    overlap = (chance * masks).sum()
    soft_iou = overlap / (chance.sum() + masks.sum() - overlap)
    return functional.binary_cross_entropy_with_logits(output, masks) + 0.5 * (1 - soft_iou)


def fit(name: str, model: nn.Module, data: Glyphs, recipe: Recipe, seed: int) -> None:
    """Train ``model`` in place with AdamW and a one-cycle learning rate."""
    generator = torch.Generator().manual_seed(seed)
    model.train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimiser = torch.optim.AdamW(model.parameters(), lr=recipe.peak_rate, weight_decay=0.05)
    steps = recipe.epochs * (len(data.labels) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, recipe.peak_rate, total_steps=max(steps, 1), pct_start=0.2
    )
    for epoch in range(recipe.epochs):
        started, total = time.monotonic(), 0.0
        for image, labels, masks in batches(data, generator):
            with torch.autocast("cpu", torch.bfloat16, enabled=recipe.bfloat16):
                output = model(image.to(memory_format=torch.channels_last))
            loss = loss_of(output.float(), labels, masks)
            optimiser.zero_grad()
            torch.autograd.backward(loss)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            total += loss.item()
        mean = total / max(len(data.labels) // BATCH, 1)
        print(f"{name} epoch {epoch + 1}/{recipe.epochs} loss {mean:.4f} {time.monotonic() - started:.0f}s", flush=True)


def export(model: nn.Module, path: Path, recipe: Recipe) -> None:
    """Write ``model`` in inference form with input ``image``, output ``logits`` and a dynamic ``batch`` axis."""
    model.eval().to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    example = torch.zeros(2, 3, 32, 32)
    mode = torch.onnx.TrainingMode.PRESERVE if recipe.keep_batchnorm else torch.onnx.TrainingMode.EVAL
    torch.onnx.export(
        model,
        (example,),
        path,
        dynamo=False,
        training=mode,
        do_constant_folding=not recipe.keep_batchnorm,
        opset_version=recipe.opset,
        input_names=[INPUT_NAME],
        output_names=[OUTPUT_NAME],
        dynamic_axes={INPUT_NAME: {0: "batch"}, OUTPUT_NAME: {0: "batch"}},
    )


def main() -> None:
    """Command line: train, export and score the named networks (all of them by default)."""
    parser = argparse.ArgumentParser(description="Train and export the example networks.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"networks to build, of {', '.join(RECIPES)}")
    parser.add_argument("--images", type=int, default=50_000, help="training images (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and batches (default: %(default)s)")
    parser.add_argument("--cache", type=Path, help="keep the rendered training images in this .npz file")
    parser.add_argument("--out", type=Path, default=HERE, help="folder of the .onnx files (default: %(default)s)")
    args = parser.parse_args()
    unknown = sorted(set(args.names) - set(RECIPES))
    if unknown:
        parser.error(f"unknown network: {', '.join(unknown)}")
    torch.set_num_threads(args.threads)
    data, test = training_set(args.images, args.cache), load_test()
    for name in args.names or RECIPES:
        torch.manual_seed(args.seed)
        model = BUILDERS[name](len(CLASSES))
        fit(name, model, data, RECIPES[name], args.seed)
        export(model, args.out / f"{name}.onnx", RECIPES[name])
        result = evaluate(args.out / f"{name}.onnx", test)
        print(f"{name} {result.metric} {result.value:.4f} (n={result.count})", flush=True)


if __name__ == "__main__":
    main()
