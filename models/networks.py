"""The torch networks that ``train.py`` trains; every input is float32 [batch,3,32,32]."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


def conv_bn(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """Make a bias-free convolution with "same" padding, and its BatchNorm."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(outputs)]


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with a skip connection; a 1x1 projection where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        """Map [batch,inputs,h,w] to [batch,outputs,h/stride,w/stride]."""
        super().__init__()
        self.body = nn.Sequential(*conv_bn(inputs, outputs, 3, stride), nn.ReLU(), *conv_bn(outputs, outputs))
        same = inputs == outputs and stride == 1
        self.skip = nn.Identity() if same else nn.Sequential(*conv_bn(inputs, outputs, 1, stride))
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Add the body to the skip path, then ReLU."""
        out: Tensor = self.relu(self.body(x) + self.skip(x))
        return out


class InvertedResidual(nn.Module):
    """MobileNetV2 block: 1x1 expansion, depthwise 3x3, linear 1x1 projection, and a skip where shapes agree."""

    def __init__(self, inputs: int, outputs: int, stride: int, expand: int) -> None:
        """Map [batch,inputs,h,w] to [batch,outputs,h/stride,w/stride] through ``inputs * expand`` channels."""
        super().__init__()
        hidden = inputs * expand
        self.body = nn.Sequential(
            *conv_bn(inputs, hidden, 1),
            nn.ReLU6(),
            *conv_bn(hidden, hidden, 3, stride, groups=hidden),
            nn.ReLU6(),
            *conv_bn(hidden, outputs, 1),
        )
        self.same = inputs == outputs and stride == 1

    def forward(self, x: Tensor) -> Tensor:
        """Run the block."""
        out: Tensor = self.body(x)
        return x + out if self.same else out


class UNet(nn.Module):
    """A three-level U-Net: concat skips, transposed-convolution upsampling, one output logit per pixel."""

    def __init__(self, width: int = 16) -> None:
        """Build levels of ``width``, ``2 * width`` and ``4 * width`` channels."""
        super().__init__()
        w1, w2, w3 = width, 2 * width, 4 * width
        self.pool = nn.MaxPool2d(2)
        self.enc1, self.enc2, self.mid = double_conv(3, w1), double_conv(w1, w2), double_conv(w2, w3)
        self.up2, self.dec2 = nn.ConvTranspose2d(w3, w2, 2, 2), double_conv(2 * w2, w2)
        self.up1, self.dec1 = nn.ConvTranspose2d(w2, w1, 2, 2), double_conv(2 * w1, w1)
        self.head = nn.Conv2d(w1, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map float32 [batch,3,32,32] to logits float32 [batch,1,32,32]."""
        level1 = self.enc1(x)
        level2 = self.enc2(self.pool(level1))
        deep = self.mid(self.pool(level2))
        deep = self.dec2(torch.cat([self.up2(deep), level2], 1))
        logits: Tensor = self.head(self.dec1(torch.cat([self.up1(deep), level1], 1)))
        return logits


def double_conv(inputs: int, outputs: int) -> nn.Sequential:
    """Make two 3x3 convolutions, each with BatchNorm and ReLU."""
    return nn.Sequential(*conv_bn(inputs, outputs), nn.ReLU(), *conv_bn(outputs, outputs), nn.ReLU())


def resnet(classes: int) -> nn.Module:
    """Build a residual CNN of 32-64-128 channels; logits float32 [batch,classes]."""
    return nn.Sequential(
        *conv_bn(3, 32, 3, 2),
        nn.ReLU(),
        ResidualBlock(32, 32, 1),
        ResidualBlock(32, 64, 2),
        ResidualBlock(64, 64, 1),
        ResidualBlock(64, 128, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(128, classes),
    )


def mobilenet(classes: int) -> nn.Module:
    """Build a depthwise-separable CNN (MobileNetV2 style) of 32-48-80 channels; logits float32 [batch,classes]."""
    return nn.Sequential(
        *conv_bn(3, 32, 3, 2),
        nn.ReLU6(),
        InvertedResidual(32, 32, 1, 2),
        InvertedResidual(32, 48, 2, 3),
        InvertedResidual(48, 48, 1, 3),
        InvertedResidual(48, 80, 2, 3),
        InvertedResidual(80, 80, 1, 3),
        *conv_bn(80, 256, 1),
        nn.ReLU6(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(256, classes),
    )


def unet(classes: int) -> nn.Module:
    """Build the U-Net that segments the glyph (``classes`` is not used); logits float32 [batch,1,32,32]."""
    return UNet()


BUILDERS: dict[str, Callable[[int], nn.Module]] = {
    "resnet": resnet,
    "mobilenet": mobilenet,
    "unet": unet,
}
