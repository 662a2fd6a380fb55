"""The models of the suite at real sizes, with random weights: a file for PyTorch and one for ONNX each.

    python benchmarks/suite_models.py WORK [--models resnet50,vit]

Needs torch, onnx and nothing else. The weights come from a fixed seed. Models with BatchNormalization see a few batches
in training mode first, so that their statistics are those of their activations. Written are WORK/NAME.pt (the whole
module) and WORK/NAME.onnx.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

SEED = 0
OPSET = 17


def norm_relu(channels: int) -> list[nn.Module]:
    """BatchNorm and ReLU."""
    return [nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]


# ---- ResNet-50 -------------------------------------------------------------------------------------------------------


class Bottleneck(nn.Module):
    """He et al. 2015, with the stride in the 3x3 convolution."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = 4 * width
        self.body = nn.Sequential(
            nn.Conv2d(inputs, width, 1, bias=False),
            *norm_relu(width),
            nn.Conv2d(width, width, 3, stride, 1, bias=False),
            *norm_relu(width),
            nn.Conv2d(width, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.skip: nn.Module = nn.Identity()
        if stride > 1 or inputs != outputs:
            self.skip = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, h, w)."""
        return functional.relu(self.body(x) + self.skip(x))


def resnet50() -> nn.Module:
    """25.6 M parameters, 4.1 G multiply-accumulates at 224."""
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), *norm_relu(64), nn.MaxPool2d(3, 2, 1)]
    inputs = 64
    for stage, (width, blocks) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3))):
        for block in range(blocks):
            layers.append(Bottleneck(inputs, width, 2 if stage and not block else 1))
            inputs = 4 * width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2048, 1000))


# ---- MobileNetV2 -----------------------------------------------------------------------------------------------------


class InvertedResidual(nn.Module):
    """Sandler et al. 2018."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        expand = [nn.Conv2d(inputs, hidden, 1, bias=False), nn.BatchNorm2d(hidden), nn.ReLU6(inplace=True)]
        self.body = nn.Sequential(
            *(expand if expansion > 1 else []),
            nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU6(inplace=True),
            nn.Conv2d(hidden, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, h, w)."""
        y: Tensor = self.body(x)
        return x + y if self.residual else y


def mobilenetv2() -> nn.Module:
    """3.5 M parameters, 0.3 G multiply-accumulates at 224."""
    layers: list[nn.Module] = [nn.Conv2d(3, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU6(inplace=True)]
    inputs = 32
    table = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
    for expansion, outputs, blocks, stride in table:
        for block in range(blocks):
            layers.append(InvertedResidual(inputs, outputs, 1 if block else stride, expansion))
            inputs = outputs
    layers += [nn.Conv2d(320, 1280, 1, bias=False), nn.BatchNorm2d(1280), nn.ReLU6(inplace=True)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1280, 1000))


# ---- Transformers ----------------------------------------------------------------------------------------------------


class Attention(nn.Module):
    """Self-attention with separate projections; the width of a head follows the weights."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.output = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, tokens, width)."""
        batch, tokens = x.shape[:2]
        q, k, v = (
            part(x).view(batch, tokens, self.heads, part.out_features // self.heads).transpose(1, 2)
            for part in (self.query, self.key, self.value)
        )
        weights = torch.softmax(q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5, dim=-1)
        mixed = (weights @ v).transpose(1, 2).reshape(batch, tokens, self.value.out_features)
        return self.output(mixed)


class Layer(nn.Module):
    """One layer of an encoder; normalised before (ViT) or after (BERT) each of its two parts."""

    def __init__(self, width: int, heads: int, *, before: bool) -> None:
        super().__init__()
        self.before = before
        self.attention = Attention(width, heads)
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.feed = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, tokens, width)."""
        for norm, part in zip(self.norms, (self.attention, self.feed), strict=True):
            x = x + part(norm(x)) if self.before else norm(x + part(x))
        return x


class VisionTransformer(nn.Module):
    """Dosovitskiy et al. 2020, ViT-S/16, with the mean of the tokens in place of a class token."""

    def __init__(self, width: int = 384, depth: int = 12, heads: int = 6) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 16, 16)
        self.position = nn.Parameter(torch.randn(1, 196, width) * 0.02)
        self.layers = nn.Sequential(*(Layer(width, heads, before=True) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 1000)

    def forward(self, x: Tensor) -> Tensor:
        """(n, 3, 224, 224) to (n, 1000)."""
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.position
        return self.head(self.norm(self.layers(tokens)).mean(1))


class Encoder(nn.Module):
    """Devlin et al. 2018, BERT-base with 128 tokens: ids in, hidden states and the pooled first one out."""

    def __init__(self, width: int = 768, depth: int = 12, heads: int = 12) -> None:
        super().__init__()
        self.words = nn.Embedding(30522, width)
        self.position = nn.Embedding(512, width)
        self.norm = nn.LayerNorm(width)
        self.layers = nn.Sequential(*(Layer(width, heads, before=False) for _ in range(depth)))
        self.pooler = nn.Linear(width, width)
        self.head = nn.Linear(width, 2)

    def forward(self, ids: Tensor) -> Tensor:
        """(n, 128) int64 to (n, 2)."""
        places = torch.arange(ids.shape[1], device=ids.device)
        hidden = self.layers(self.norm(self.words(ids) + self.position(places)))
        return self.head(torch.tanh(self.pooler(hidden[:, 0])))


# ---- U-Net -----------------------------------------------------------------------------------------------------------


def double(inputs: int, outputs: int) -> nn.Sequential:
    """Two 3x3 convolutions."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, 1, 1, bias=False),
        *norm_relu(outputs),
        nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
        *norm_relu(outputs),
    )


class UNet(nn.Module):
    """Ronneberger et al. 2015, padded, 32 to 512 channels."""

    def __init__(self, widths: tuple[int, ...] = (32, 64, 128, 256, 512)) -> None:
        super().__init__()
        self.down = nn.ModuleList(double(a, b) for a, b in zip((3, *widths[:-1]), widths, strict=True))
        pairs = list(zip(widths[1:], widths[:-1], strict=True))[::-1]
        self.rise = nn.ModuleList(nn.ConvTranspose2d(a, b, 2, 2) for a, b in pairs)
        self.up = nn.ModuleList(double(2 * b, b) for _, b in pairs)
        self.head = nn.Conv2d(widths[0], 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(n, 3, 256, 256) to (n, 1, 256, 256)."""
        kept = []
        for level, block in enumerate(self.down):
            x = block(functional.max_pool2d(x, 2) if level else x)
            kept.append(x)
        for rise, block, skip in zip(self.rise, self.up, kept[-2::-1], strict=True):
            x = block(torch.cat([skip, rise(x)], 1))
        return self.head(x)


# ---- Making the files ------------------------------------------------------------------------------------------------

BUILDERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "resnet50": (resnet50, (1, 3, 224, 224)),
    "mobilenetv2": (mobilenetv2, (1, 3, 224, 224)),
    "vit": (VisionTransformer, (1, 3, 224, 224)),
    "bert": (Encoder, (1, 128)),
    "unet": (UNet, (1, 3, 256, 256)),
}


def example(name: str) -> Tensor:
    """An input of the model: pixels, or ids where the input is a row of tokens."""
    shape = BUILDERS[name][1]
    chance = torch.Generator().manual_seed(SEED)
    return torch.randn(shape, generator=chance) if len(shape) == 4 else torch.randint(30522, shape, generator=chance)


def build(name: str) -> nn.Module:
    """The model with seeded weights and statistics of its own activations, ready for inference."""
    torch.manual_seed(SEED)
    model = BUILDERS[name][0]()
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out" if layer.groups == 1 else "fan_in")
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias, 0.0, 0.1)
            layer.momentum = None
    if any(isinstance(layer, nn.BatchNorm2d) for layer in model.modules()):
        model.train()
        with torch.no_grad():
            for _ in range(3):
                model(torch.randn(4, *BUILDERS[name][1][1:]))
    return model.eval()


def export(model: nn.Module, inputs: Tensor, path: Path, *, torch_export: bool = False) -> None:
    """Write the ONNX file by the tracing exporter, which takes a fraction of the time of `torch_export`, the default of
    torch since 2.9."""
    names = {"input_names": ["ids" if inputs.dtype == torch.int64 else "image"], "output_names": ["output"]}
    if torch_export:
        torch.onnx.export(model, (inputs,), str(path), external_data=False, **names)
    else:
        torch.onnx.export(model, (inputs,), str(path), dynamo=False, opset_version=OPSET, **names)


def make(name: str, work: Path) -> None:
    """Write both files of one model, where they are not there yet."""
    torch_file, onnx_file = work / f"{name}.pt", work / f"{name}.onnx"
    if torch_file.exists() and onnx_file.exists():
        return
    model = build(name)
    with torch.no_grad():
        result = model(example(name))
    if not bool(torch.isfinite(result).all()):
        raise SystemExit(f"{name}: the outputs are not finite")
    export(model, example(name), onnx_file)
    # By reference to this module: whoever loads it has this folder on the import path.
    torch.save(model, torch_file)


def main() -> None:
    """Make the files asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--models", default=",".join(BUILDERS))
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    for name in arguments.models.split(","):
        make(name, arguments.work)


if __name__ == "__main__":
    import suite_models

    suite_models.main()
