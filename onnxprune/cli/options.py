"""Options that several commands share, and how the values of options are read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from onnxprune.config import PROVIDERS, RoundTo
from onnxprune.distribution import BACKENDS
from onnxprune.preparation import COLORS, LAYOUTS, parse_numbers, parse_size

Function = TypeVar("Function", bound=Callable[..., Any])


def parse_shapes(
    context: click.Context, parameter: click.Parameter, values: Sequence[str]
) -> dict[str, tuple[int, ...]]:
    """Input shapes by name from NAME:SIZE,SIZE,... values; a BadParameter says which is none."""
    shapes: dict[str, tuple[int, ...]] = {}
    for value in values:
        name, colon, sizes = value.rpartition(":")
        try:
            shape = tuple(int(size) for size in sizes.split(","))
        except ValueError:
            shape = ()
        if not (name and colon and shape) or min(shape) < 1:
            raise click.BadParameter(f"{value!r} is not NAME:SIZE,SIZE,... with whole sizes of at least 1")
        if name in shapes:
            raise click.BadParameter(f"input {name!r} is given twice")
        shapes[name] = shape
    return shapes


def parse_round_to(context: click.Context, parameter: click.Parameter, value: str) -> RoundTo:
    """The value of --round-to."""
    if value == "auto":
        return "auto"
    if not value.isdecimal() or int(value) < 1:
        raise click.BadParameter(f"{value!r} is neither 'auto' nor a whole number of at least 1")
    return int(value)


def parse_channels(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[float, ...]:
    """The value of --mean or --std: one number, or one per channel."""
    try:
        return parse_numbers(value) if value else ()
    except ValueError:
        raise click.BadParameter(f"{value!r} is not a number, nor numbers with commas between them") from None


def parse_scale(context: click.Context, parameter: click.Parameter, value: str | None) -> float | None:
    """The value of --scale: a number or a fraction."""
    try:
        (number,) = parse_numbers(value) if value else (None,)
    except ValueError:
        raise click.BadParameter(f"{value!r} is not a number such as 1/255 or 0.0039") from None
    return number


def parse_resize(context: click.Context, parameter: click.Parameter, value: str) -> tuple[int, int] | None:
    """The value of --resize: (height, width), None for auto."""
    try:
        return parse_size(value)
    except ValueError:
        raise click.BadParameter(f"{value!r} is neither 'auto' nor HEIGHTxWIDTH such as 224x224") from None


PATH = click.Path(readable=False, path_type=Path)  # whoever opens it has the better message
input_shape_option = click.option(
    "--input-shape",
    "input_shapes",
    multiple=True,
    callback=parse_shapes,
    metavar="NAME:1,3,224,224",
    help="Shape of an input with dynamic axes, which stay dynamic. Repeatable.",
)
calibration_option = click.option(
    "--calibration",
    type=PATH,
    metavar="PLACE",
    help="Real inputs: a .npz (arrays by input name) or .npy file, a folder of them or of images, or a Python "
    "function MODULE:FUNCTION or FILE.py:FUNCTION that yields them.",
)
provider_option = click.option(
    "--provider", type=click.Choice(PROVIDERS), default="cpu", show_default=True, help="What the model will run on."
)
seed_option = click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of everything random."
)
json_option = click.option(
    "--json", "json_path", type=PATH, metavar="FILE", help="Write the report as JSON; '-' is standard output."
)


def _with(options: Sequence[Callable[[Function], Function]], function: Function) -> Function:
    """A command with these options, in this order."""
    for option in reversed(options):
        function = option(function)
    return function


def cluster_options(function: Function) -> Function:
    """The options that say where work is done, beside this machine."""
    options = (
        click.option(
            "--backend",
            type=click.Choice(BACKENDS),
            default="local",
            show_default=True,
            help="Where models are pruned.",
        ),
        click.option("--scheduler", metavar="ADDRESS", help="Of the cluster: tcp://10.0.0.1:8786."),
        click.option("--shared-paths", is_flag=True, help="The cluster sees the same files: none need be sent."),
    )
    return _with(options, function)


def image_options(function: Function) -> Function:
    """The options that say how images become inputs."""
    options = (
        click.option("--mean", callback=parse_channels, metavar="M,M,M", help="Images: subtracted from scaled pixels."),
        click.option(
            "--std", callback=parse_channels, metavar="S,S,S", help="Images: what is left is divided by this."
        ),
        click.option(
            "--scale",
            callback=parse_scale,
            metavar="X",
            help="Images: pixels are multiplied by this.  [default: 1/255]",
        ),
        click.option("--layout", type=click.Choice(LAYOUTS), default="auto", help="Images: where the channels are."),
        click.option(
            "--resize", callback=parse_resize, default="auto", metavar="HxW|auto", help="Images: size they are given."
        ),
        click.option("--color", type=click.Choice(COLORS), default="auto", help="Images: order of the channels."),
    )
    return _with(options, function)


def recovery_options(function: Function) -> Function:
    """The options that say how much of the inputs is used, and what the recovery may take."""
    options = (
        click.option(
            "--calibration-size",
            type=click.IntRange(1),
            default=1024,
            show_default=True,
            metavar="N",
            help="Rows of the calibration data to use, at most.",
        ),
        click.option(
            "--threads",
            type=click.IntRange(1),
            default=1,
            show_default=True,
            metavar="N",
            help="Threads for the recovery.",
        ),
        click.option(
            "--memory",
            type=click.IntRange(1),
            default=1024,
            show_default=True,
            metavar="MB",
            help="Activations the recovery holds in memory, at most; beyond that in temporary files.",
        ),
    )
    return _with(options, function)


def messages(function: Function) -> Function:
    """The options that decide what is said."""
    options = (
        click.option("-q", "--quiet", is_flag=True, help="Print errors and warnings only."),
        click.option("-v", "--verbose", is_flag=True, help="Log every step, and shorten no list."),
        click.option("--debug", is_flag=True, help="Show the traceback of an error."),
    )
    return _with(options, function)
