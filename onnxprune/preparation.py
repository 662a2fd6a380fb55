"""How pixels become the input of a model: the options for folders of images, checked.

value = (pixel * scale - mean) / std        pixel: 0 to 255
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from onnxprune.errors import UsageError

LAYOUTS = ("auto", "nchw", "nhwc")
COLORS = ("auto", "rgb", "bgr", "gray")
CHANNELS = {"rgb": 3, "bgr": 3, "gray": 1}


@dataclass(frozen=True)
class Preparation:
    """`mean`, `std`: one number or one per channel, of scaled pixels. `scale`: None for 1/255, or for pixels as they
    are where the input holds unsigned integers. `resize`: (height, width), None for that of the model. `color`: "auto"
    is rgb for three channels and gray for one. `layout`: "auto" goes by which axis has 1 or 3 channels."""

    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    scale: float | None = None
    layout: str = "auto"
    resize: tuple[int, int] | None = None
    color: str = "auto"

    @property
    def factor(self) -> float:
        """What pixels are multiplied by."""
        return 1 / 255 if self.scale is None else self.scale

    @property
    def is_plain(self) -> bool:
        """Whether nothing is said about values."""
        return not self.mean and not self.std and self.scale is None

    def check(self) -> None:
        """Raise UsageError for numbers and names that make no sense."""
        if self.layout not in LAYOUTS:
            raise UsageError(f"--layout must be one of {', '.join(LAYOUTS)}, got {self.layout!r}")
        if self.color not in COLORS:
            raise UsageError(f"--color must be one of {', '.join(COLORS)}, got {self.color!r}")
        if not (self.factor > 0 and math.isfinite(self.factor)):
            raise UsageError(f"--scale must be a positive number such as 1/255, got {self.scale}")
        if any(not (s > 0 and math.isfinite(s)) for s in self.std):
            raise UsageError(f"--std must hold positive numbers, got {listed(self.std)}")
        if any(not abs(m) <= 255.001 * self.factor for m in self.mean):
            raise UsageError(
                f"--mean {listed(self.mean)}: pixels times --scale lie between 0 and {255 * self.factor:g}; "
                "give means of that range, or --scale 1 with means of 0 to 255"
            )
        if self.resize is not None and (len(self.resize) != 2 or min(self.resize) < 1):
            raise UsageError(f"--resize must be HEIGHTxWIDTH of at least 1, got {'x'.join(map(str, self.resize))}")


def listed(values: tuple[float, ...]) -> str:
    """Numbers as they are written on the command line."""
    return ",".join(f"{value:g}" for value in values)


def parse_numbers(text: str) -> tuple[float, ...]:
    """Numbers or fractions with commas between them: "0.485,0.456,0.406", "1/255". ValueError for anything else."""
    return tuple(_number(part) for part in text.split(","))


def _number(text: str) -> float:
    top, slash, bottom = text.partition("/")
    if slash and float(bottom) == 0:
        raise ValueError("division by zero")
    return float(top) / float(bottom) if slash else float(top)


def parse_size(text: str) -> tuple[int, int] | None:
    """(height, width) of "224x224", None of "auto". ValueError for anything else."""
    if text == "auto":
        return None
    height, _, width = text.lower().partition("x")
    return int(height), int(width)
