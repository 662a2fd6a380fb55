"""Small networks of the kinds that benchmarks/architectures.py measures; float32 images [batch,3,32,32], or ids."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

CLASSES = 48
OF_TEXT = ("text_encoder", "lstm", "gru")
"""The networks that read ids."""
TOKENS, WORDS, TEXT_CLASSES = 48, 2000, 12
"""Of the text: tokens in a row, words of the vocabulary, classes."""


def conv_norm(inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """A convolution and its BatchNorm."""
    return [nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False), nn.BatchNorm2d(outputs)]


# ---- Transformers ----------------------------------------------------------------------------------------------------


class SeparateAttention(nn.Module):
    """Self-attention with a projection each for queries, keys and values."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.output = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[batch,tokens,width]."""
        parts = (part(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.query, self.key, self.value))
        return self.output(functional.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2))


class FusedAttention(nn.Module):
    """Self-attention with one projection for all three, as in timm."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[batch,tokens,width]."""
        batch, tokens = x.shape[:2]
        each = self.qkv.out_features // (3 * self.heads)
        query, key, value = self.qkv(x).reshape(batch, tokens, 3, self.heads, each).permute(2, 0, 3, 1, 4).unbind(0)
        weights = (query * each**-0.5 @ key.transpose(-2, -1)).softmax(-1)
        return self.output((weights @ value).transpose(1, 2).reshape(batch, tokens, self.heads * each))


class Layer(nn.Module):
    """A layer of a transformer, normalised before each part (ViT) or after it (BERT)."""

    def __init__(self, attention: nn.Module, width: int, *, before: bool) -> None:
        super().__init__()
        self.before = before
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        feed = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.parts = nn.ModuleList([attention, feed])

    def forward(self, x: Tensor) -> Tensor:
        """[batch,tokens,width]."""
        for norm, part in zip(self.norms, self.parts, strict=True):
            x = x + part(norm(x)) if self.before else norm(x + part(x))
        return x


class VisionTransformer(nn.Module):
    """Dosovitskiy et al. 2020, with three convolutions in place of one to make 16 patches (Xiao et al. 2021)."""

    def __init__(self, attention: type[nn.Module], width: int = 96, depth: int = 4, heads: int = 6) -> None:
        super().__init__()
        stem = [*conv_norm(3, 24, 3, 2), nn.ReLU(), *conv_norm(24, 48, 3, 2), nn.ReLU()]
        self.patches = nn.Sequential(*stem, nn.Conv2d(48, width, 3, 2, 1))
        self.position = nn.Parameter(torch.randn(1, 16, width) * 0.02)
        self.layers = nn.Sequential(*(Layer(attention(width, heads), width, before=True) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Images to logits."""
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.position
        return self.head(self.norm(self.layers(tokens)).mean(1))


class TextEncoder(nn.Module):
    """Devlin et al. 2018, small: ids int64 [batch,tokens] to logits, by the mean of the tokens."""

    def __init__(self, width: int = 64, depth: int = 3, heads: int = 4) -> None:
        super().__init__()
        self.words, self.position = nn.Embedding(WORDS, width), nn.Embedding(TOKENS, width)
        self.norm = nn.LayerNorm(width)
        self.layers = nn.Sequential(
            *(Layer(SeparateAttention(width, heads), width, before=False) for _ in range(depth))
        )
        self.pooler, self.head = nn.Linear(width, width), nn.Linear(width, TEXT_CLASSES)

    def forward(self, ids: Tensor) -> Tensor:
        """Ids to logits."""
        places = torch.arange(TOKENS, device=ids.device)
        hidden = self.layers(self.norm(self.words(ids) + self.position(places)))
        return self.head(torch.tanh(self.pooler(hidden.mean(1))))


class MixerLayer(nn.Module):
    """Tolstikhin et al. 2021: one perceptron over the tokens, one over the channels."""

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.across = nn.Sequential(nn.Linear(tokens, 2 * tokens), nn.GELU(), nn.Linear(2 * tokens, tokens))
        self.along = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """[batch,tokens,width]."""
        x = x + self.across(self.norms[0](x).transpose(1, 2)).transpose(1, 2)
        return x + self.along(self.norms[1](x))


class Mixer(nn.Module):
    """MLP-Mixer over 64 patches."""

    def __init__(self, width: int = 64, depth: int = 3) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.layers = nn.Sequential(*(MixerLayer(64, width) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Images to logits."""
        return self.head(self.norm(self.layers(self.patches(x).flatten(2).transpose(1, 2))).mean(1))


# ---- Convolutional networks ------------------------------------------------------------------------------------------


def pooled(inputs: int) -> list[nn.Module]:
    """The mean over the places and the last layer."""
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, CLASSES)]


class ChannelNorm(nn.Module):
    """LayerNorm over the channels of [batch,channels,h,w]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """[batch,channels,h,w]."""
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvNextBlock(nn.Module):
    """Liu et al. 2022."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 7, 1, 3, groups=width)
        self.body = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )
        self.scale = nn.Parameter(torch.full((width,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        """[batch,channels,h,w]."""
        return x + (self.scale * self.body(self.depthwise(x).permute(0, 2, 3, 1))).permute(0, 3, 1, 2)


def convnext() -> nn.Module:
    """ConvNeXt of two stages, with two convolutions in place of one to make the patches."""
    layers: list[nn.Module] = [*conv_norm(3, 24, 3, 2), nn.ReLU(), *conv_norm(24, 48, 3, 2), nn.ReLU()]
    for inputs, outputs, blocks in ((48, 48, 2), (48, 96, 2)):
        layers += [ChannelNorm(inputs), nn.Conv2d(inputs, outputs, 2, 2)] if inputs != outputs else []
        layers += [ConvNextBlock(outputs) for _ in range(blocks)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LayerNorm(96), nn.Linear(96, CLASSES))


class DenseLayer(nn.Module):
    """Huang et al. 2017, with the bottleneck; normalised before each convolution."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.BatchNorm2d(inputs),
            nn.ReLU(),
            *conv_norm(inputs, 4 * growth),
            nn.ReLU(),
            nn.Conv2d(4 * growth, growth, 3, 1, 1, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        """[batch,channels,h,w], with more channels out than in."""
        return torch.cat([x, self.body(x)], 1)


def densenet(growth: int = 12) -> nn.Module:
    """DenseNet-BC of three blocks."""
    layers: list[nn.Module] = [nn.Conv2d(3, 24, 3, 2, 1, bias=False)]
    width = 24
    for block, layers_in in enumerate((2, 4, 4)):
        if block:
            layers += [nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, width // 2, 1, bias=False), nn.AvgPool2d(2)]
            width //= 2
        for _ in range(layers_in):
            layers.append(DenseLayer(width, growth))
            width += growth
    return nn.Sequential(*layers, nn.BatchNorm2d(width), nn.ReLU(), *pooled(width))


class Squeeze(nn.Module):
    """Hu et al. 2018: every channel scaled by what the means of all say."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(width, hidden, 1), nn.SiLU(), nn.Conv2d(hidden, width, 1), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        """[batch,channels,h,w]."""
        return x * self.gate(x)


class MobileBlock(nn.Module):
    """Tan and Le 2019: inverted residual with squeeze and SiLU."""

    def __init__(self, inputs: int, outputs: int, stride: int, kernel: int) -> None:
        super().__init__()
        hidden = 4 * inputs
        self.body = nn.Sequential(
            *conv_norm(inputs, hidden),
            nn.SiLU(),
            *conv_norm(hidden, hidden, kernel, stride, hidden),
            nn.SiLU(),
            Squeeze(hidden, inputs // 4),
            *conv_norm(hidden, outputs),
        )
        self.same = inputs == outputs and stride == 1

    def forward(self, x: Tensor) -> Tensor:
        """[batch,channels,h,w]."""
        return x + self.body(x) if self.same else self.body(x)


def efficientnet() -> nn.Module:
    """EfficientNet of four blocks."""
    table = ((24, 32, 2, 3), (32, 32, 1, 3), (32, 56, 2, 5), (56, 56, 1, 5))
    blocks = [MobileBlock(*row) for row in table]
    return nn.Sequential(*conv_norm(3, 24, 3, 2), nn.SiLU(), *blocks, *conv_norm(56, 192), nn.SiLU(), *pooled(192))


class ShuffleBlock(nn.Module):
    """Ma et al. 2018: half of the channels pass by, then all are shuffled; with a stride both halves see all."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        half, entering = outputs // 2, inputs if stride > 1 else outputs // 2
        self.stride = stride
        aside = [*conv_norm(inputs, inputs, 3, 2, inputs), *conv_norm(inputs, half), nn.ReLU()]
        self.aside = nn.Sequential(*(aside if stride > 1 else []))
        self.body = nn.Sequential(
            *conv_norm(entering, half),
            nn.ReLU(),
            *conv_norm(half, half, 3, stride, half),
            *conv_norm(half, half),
            nn.ReLU(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """[batch,channels,h,w]."""
        one, other = (x, x) if self.stride > 1 else x.chunk(2, 1)
        joined = torch.cat([self.aside(one), self.body(other)], 1)
        batch, channels, height, width = joined.shape
        return joined.view(batch, 2, channels // 2, height, width).transpose(1, 2).reshape(joined.shape)


def shufflenet() -> nn.Module:
    """ShuffleNetV2 of five blocks."""
    table = ((32, 96, 2), (96, 96, 1), (96, 96, 1), (96, 192, 2), (192, 192, 1))
    blocks = [ShuffleBlock(*row) for row in table]
    return nn.Sequential(*conv_norm(3, 32, 3, 2), nn.ReLU(), *blocks, *conv_norm(192, 256), nn.ReLU(), *pooled(256))


class Residual(nn.Module):
    """A body beside a shortcut, then ReLU."""

    def __init__(self, body: list[nn.Module], shortcut: list[nn.Module]) -> None:
        super().__init__()
        self.body, self.shortcut = nn.Sequential(*body), nn.Sequential(*shortcut)

    def forward(self, x: Tensor) -> Tensor:
        """[batch,channels,...]."""
        return functional.relu(self.body(x) + self.shortcut(x))


def regnet(group: int = 16) -> nn.Module:
    """Radosavovic et al. 2020, RegNetX: 3x3 convolutions in groups of `group` channels."""
    layers: list[nn.Module] = [*conv_norm(3, 32, 3, 2), nn.ReLU()]
    for inputs, width, stride in ((32, 64, 2), (64, 64, 1), (64, 128, 2), (128, 128, 1)):
        grouped = conv_norm(width, width, 3, stride, width // group)
        body = [*conv_norm(inputs, width), nn.ReLU(), *grouped, nn.ReLU(), *conv_norm(width, width)]
        layers.append(Residual(body, conv_norm(inputs, width, 1, stride) if inputs != width else []))
    return nn.Sequential(*layers, *pooled(128))


def normalised(norm: Callable[[int], nn.Module]) -> nn.Module:
    """A residual network of 32-64-128 channels with some normalisation other than BatchNorm."""
    layers: list[nn.Module] = [nn.Conv2d(3, 32, 3, 2, 1), norm(32), nn.ReLU()]
    for inputs, width, stride in ((32, 32, 1), (32, 64, 2), (64, 64, 1), (64, 96, 2)):
        first, second = nn.Conv2d(inputs, width, 3, stride, 1), nn.Conv2d(width, width, 3, 1, 1)
        shortcut = [nn.Conv2d(inputs, width, 1, stride), norm(width)] if inputs != width else []
        layers.append(Residual([first, norm(width), nn.ReLU(), second, norm(width)], shortcut))
    return nn.Sequential(*layers, *pooled(96))


# ---- Sequences and perceptrons ---------------------------------------------------------------------------------------


class Recurrent(nn.Module):
    """Ids int64 [batch,tokens] through a recurrent network; the mean of its states to logits."""

    def __init__(self, cell: nn.Module, width: int) -> None:
        super().__init__()
        self.words, self.cell, self.head = nn.Embedding(WORDS, 64), cell, nn.Linear(width, TEXT_CLASSES)

    def forward(self, ids: Tensor) -> Tensor:
        """Ids to logits."""
        states, _ = self.cell(self.words(ids))
        return self.head(states.mean(1))


def temporal() -> nn.Module:
    """Choi et al. 2019, TC-ResNet for keyword spotting: 1-d convolutions of 9 steps, which are rows of the image."""

    def conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> list[nn.Module]:
        return [nn.Conv1d(inputs, outputs, kernel, stride, kernel // 2, bias=False), nn.BatchNorm1d(outputs)]

    layers: list[nn.Module] = [nn.Flatten(1, 2), *conv(96, 96, 3), nn.ReLU()]
    for inputs, width, stride in ((96, 96, 1), (96, 128, 2), (128, 128, 1)):
        body = [*conv(inputs, width, 9, stride), nn.ReLU(), *conv(width, width, 9)]
        layers.append(Residual(body, conv(inputs, width, 1, stride) if inputs != width else []))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(128, CLASSES))


def perceptron() -> nn.Module:
    """Three hidden layers."""
    widths = (3072, 512, 384, 256)
    hidden = [layer for a, b in itertools.pairwise(widths) for layer in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(256, CLASSES))


BUILDERS: dict[str, Callable[[], nn.Module]] = {
    "vit_fused": lambda: VisionTransformer(FusedAttention),
    "convnext": convnext,
    "lstm": lambda: Recurrent(nn.LSTM(64, 96, 2, batch_first=True), 96),
    "densenet": densenet,
    "efficientnet": efficientnet,
    "text_encoder": TextEncoder,
    "vit_separate": lambda: VisionTransformer(SeparateAttention),
    "shufflenet": shufflenet,
    "regnet": regnet,
    "mixer": Mixer,
    "gru": lambda: Recurrent(nn.GRU(64, 64, 2, batch_first=True, bidirectional=True), 128),
    "keywords": temporal,
    "groupnorm": lambda: normalised(lambda width: nn.GroupNorm(8, width)),
    "instancenorm": lambda: normalised(lambda width: nn.InstanceNorm2d(width, affine=True)),
    "perceptron": perceptron,
}
