"""Trains the networks of architectures_models.py and writes them; benchmarks/architectures.py starts it.

    python architectures_train.py WORK [--models vit_fused,lstm] [--seed 0]

Needs what models/requirements.txt lists, and onnxscript. Images: the glyphs of models/glyphs.py. Text: which package
of Python's own library a row of 48 tokens of source code is from; every fifth row of a file is for testing. Written are
WORK/NAME.pt (the weights), WORK/NAME.tracing.onnx and for some WORK/NAME.dynamo.onnx, and of the text
WORK/text_test.npz and WORK/text_calibration.npz.
"""

from __future__ import annotations

import argparse
import collections
import re
import sys
import sysconfig
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from architectures_models import BUILDERS, OF_TEXT, TEXT_CLASSES, TOKENS, WORDS
from torch import Tensor, nn
from torch.nn import functional

MODELS = Path(__file__).resolve().parent.parent / "models"
BATCH = 64
PRINTED = 200
"""Steps between two lines of the log."""
IMAGES = 50_000
DYNAMO = ("vit_fused", "vit_separate", "convnext", "lstm", "efficientnet")
CALIBRATION = 1024


@dataclass(frozen=True)
class Recipe:
    """How one network is trained: on how many items in all, with which largest rate."""

    items: int
    peak_rate: float = 3e-3
    bfloat16: bool = True


RECIPES = {
    "vit_fused": Recipe(250_000, 2e-3),
    "lstm": Recipe(90_000, bfloat16=False),
    "convnext": Recipe(90_000, 2e-3),
    "text_encoder": Recipe(90_000, 1e-3, bfloat16=False),
    "densenet": Recipe(90_000),
    "efficientnet": Recipe(90_000, bfloat16=False),
    "perceptron": Recipe(300_000, 1e-3),
    "regnet": Recipe(75_000),
    "groupnorm": Recipe(75_000),
    "mixer": Recipe(150_000, 2e-3),
    "keywords": Recipe(90_000),
    "gru": Recipe(90_000, bfloat16=False),
    "shufflenet": Recipe(90_000, bfloat16=False),
    "instancenorm": Recipe(75_000),
    "vit_separate": Recipe(200_000, 2e-3),
}
"""In the order of training."""


@dataclass(frozen=True)
class Data:
    """Training inputs (uint8 levels or int64 ids) and labels int64 [n]."""

    inputs: Tensor
    labels: Tensor


def glyphs(work: Path) -> Data:
    """The rendered training images, kept in the work folder."""
    sys.path.insert(0, str(MODELS))
    import train

    data = train.training_set(IMAGES, work / "glyphs_train.npz")
    return Data(torch.from_numpy(data.levels), torch.from_numpy(data.labels))


def text(work: Path) -> Data:
    """Rows of ids for training; those for testing and calibration are written to the work folder."""
    library = Path(sysconfig.get_paths()["stdlib"])
    packages = [
        p for p in sorted(library.iterdir()) if (p / "__init__.py").exists() and p.name not in ("test", "encodings")
    ]
    sources = {
        p: [f.read_text("utf-8", "replace") for f in sorted(p.rglob("*.py")) if "test" not in f.parts] for p in packages
    }
    largest = sorted(packages, key=lambda p: -sum(map(len, sources[p])))[:TEXT_CLASSES]
    words = {p: [re.findall(r"\w+|[^\w\s]", source) for source in sources[p]] for p in largest}
    counts = collections.Counter(word for p in largest for row in words[p] for word in row)
    ids = {word: n + 1 for n, (word, _) in enumerate(counts.most_common(WORDS - 1))}
    rows: dict[bool, list[tuple[list[int], int]]] = {True: [], False: []}
    for label, package in enumerate(largest):
        for file in words[package]:
            for n, start in enumerate(range(0, len(file) - TOKENS + 1, TOKENS)):
                rows[n % 5 == 4].append(([ids.get(word, 0) for word in file[start : start + TOKENS]], label))
    test, trained = (([np.array(part) for part in zip(*rows[kind], strict=True)]) for kind in (True, False))
    chance = np.random.default_rng(0)
    order = chance.permutation(len(test[1]))[:1600]
    np.savez(work / "text_test.npz", ids=test[0][order], labels=test[1][order])
    np.savez(work / "text_calibration.npz", ids=trained[0][chance.permutation(len(trained[0]))[:CALIBRATION]])
    return Data(torch.from_numpy(trained[0]), torch.from_numpy(trained[1]))


def fit(name: str, model: nn.Module, data: Data, seed: int) -> None:
    """Train in place with AdamW and a one-cycle learning rate."""
    from evaluate import MAX_LEVEL

    generator = torch.Generator().manual_seed(seed)
    recipe = RECIPES[name]
    optimiser = torch.optim.AdamW(model.parameters(), lr=recipe.peak_rate, weight_decay=0.05)
    steps = recipe.items // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, recipe.peak_rate, total_steps=steps, pct_start=0.2)
    model.train()
    started, total, order = time.monotonic(), 0.0, torch.empty(0, dtype=torch.int64)
    for step in range(1, steps + 1):
        order = order if len(order) >= BATCH else torch.randperm(len(data.labels), generator=generator)
        index, order = order[:BATCH], order[BATCH:]
        inputs = data.inputs[index]
        inputs = (inputs.float() * 2 - MAX_LEVEL) / (MAX_LEVEL + 1) if inputs.dtype == torch.uint8 else inputs
        with torch.autocast("cpu", torch.bfloat16, enabled=recipe.bfloat16):
            logits = model(inputs)
        loss = functional.cross_entropy(logits.float(), data.labels[index], label_smoothing=0.05)
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        total += loss.item()
        if step % PRINTED == 0:
            print(f"{name} {step}/{steps} loss {total / PRINTED:.3f} {time.monotonic() - started:.0f}s", flush=True)
            total = 0.0


def example(name: str) -> Tensor:
    """Two inputs of a network."""
    return torch.zeros(2, TOKENS, dtype=torch.int64) if name in OF_TEXT else torch.zeros(2, 3, 32, 32)


def export(name: str, model: nn.Module, path: Path, *, dynamo: bool) -> None:
    """Write the model in inference form with input `image` or `ids`, output `logits` and a dynamic batch axis."""
    feed = "ids" if name in OF_TEXT else "image"
    names = {"input_names": [feed], "output_names": ["logits"]}
    model.eval()
    if dynamo:
        shapes = ({0: torch.export.Dim("batch", min=1)},)
        torch.onnx.export(model, (example(name),), path, external_data=False, dynamic_shapes=shapes, **names)
    else:
        axes = {feed: {0: "batch"}, "logits": {0: "batch"}}
        torch.onnx.export(model, (example(name),), path, dynamo=False, opset_version=17, dynamic_axes=axes, **names)


def make(name: str, work: Path, seed: int) -> None:
    """Train and write one network, unless it is there."""
    file = work / f"{name}.pt"
    if not file.exists():
        data = text(work) if name in OF_TEXT else glyphs(work)
        sys.path.insert(0, str(MODELS))
        torch.manual_seed(seed)
        model = BUILDERS[name]()
        fit(name, model, data, seed)
        torch.save(model.state_dict(), file)
    for exporter in ("tracing", *(("dynamo",) if name in DYNAMO else ())):
        path = work / f"{name}.{exporter}.onnx"
        if not path.exists():
            model = BUILDERS[name]()
            model.load_state_dict(torch.load(file))
            export(name, model, path, dynamo=exporter == "dynamo")


def main() -> None:
    """Make the networks asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--models", default=",".join(RECIPES))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.work.mkdir(parents=True, exist_ok=True)
    for name in arguments.models.split(","):
        make(name, arguments.work, arguments.seed)


if __name__ == "__main__":
    main()
