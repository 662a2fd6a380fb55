"""Options that several commands share, and how the values of options are read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from onnxprune.config import PROVIDERS, RoundTo

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


PATH = click.Path(readable=False, path_type=Path)  # whoever opens it has the better message
input_shape_option = click.option(
    "--input-shape",
    "input_shapes",
    multiple=True,
    callback=parse_shapes,
    metavar="NAME:1,3,224,224",
    help="Shape of an input with dynamic axes. Repeatable.",
)
calibration_option = click.option(
    "--calibration", type=PATH, metavar="PATH", help="Inputs: a .npz of arrays by input name, or a folder of them."
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


def messages(function: Function) -> Function:
    """The options that decide what is said."""
    options = (
        click.option("-q", "--quiet", is_flag=True, help="Print errors and warnings only."),
        click.option("-v", "--verbose", is_flag=True, help="Log every step, and shorten no list."),
        click.option("--debug", is_flag=True, help="Show the traceback of an error."),
    )
    for option in reversed(options):
        function = option(function)
    return function
