"""`onnxprune sensitivity MODEL --calibration ...`."""

from __future__ import annotations

from pathlib import Path

import click

from onnxprune.cli.group import Once
from onnxprune.cli.options import (
    PATH,
    calibration_option,
    image_options,
    input_shape_option,
    json_option,
    messages,
    recovery_options,
    seed_option,
)
from onnxprune.cli.terminal import (
    Voice,
    check_picture_path,
    deliver,
    failures,
    file_of,
    has_colour,
    progress,
    terminal_width,
    write_picture,
)
from onnxprune.config import Config, check_paths, check_report_path


@click.command("sensitivity", cls=Once, short_help="Measure what removing shares of each group does to the outputs.")
@click.argument("model", type=PATH)
@calibration_option
@image_options
@input_shape_option
@click.option("--criterion", metavar="NAME", help="The order of removal: obs (default), variance, wanda or pca.")
@click.option("--keep", multiple=True, metavar="P", help="Leave groups whose id, tensors or nodes match P. Repeatable.")
@click.option("--only", multiple=True, metavar="P", help="Measure only groups that match the pattern P. Repeatable.")
@recovery_options
@json_option
@click.option("--svg", type=PATH, metavar="FILE", help="Draw the curves.")
@seed_option
@messages
def sensitivity_command(  # noqa: PLR0913 - one argument per flag
    model: Path,
    *,
    calibration: Path | None,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    scale: float | None,
    layout: str,
    resize: tuple[int, int] | None,
    color: str,
    input_shapes: dict[str, tuple[int, ...]],
    criterion: str | None,
    keep: tuple[str, ...],
    only: tuple[str, ...],
    calibration_size: int,
    threads: int,
    memory: int,
    json_path: Path | None,
    svg: Path | None,
    seed: int,
    quiet: bool,
    verbose: bool,
    debug: bool,
) -> None:
    """Remove 10, 25, 50 and 75% of one group of MODEL at a time, refit what reads it, and show the damage at the
    outputs. Writes no model."""
    voice = Voice(quiet, verbose, debug)
    with failures(voice):
        check_paths({"the model": model, "--calibration": calibration}, {"--json": file_of(json_path), "--svg": svg})
        check_report_path("--json", file_of(json_path), "{")
        check_picture_path(svg)
        config = Config(
            calibration=calibration,
            mean=mean,
            std=std,
            scale=scale,
            layout=layout,
            resize=resize,
            color=color,
            input_shapes=input_shapes,
            criterion=criterion,
            keep=keep,
            only=only,
            calibration_size=calibration_size,
            threads=threads,
            memory_bytes=memory << 20,
            seed=seed,
        )
        from onnxprune.report import curves, picture, plain_json
        from onnxprune.survey import sensitivity

        with progress(voice, "sensitivity ..."):
            found = sensitivity(model, config)
        if svg:
            write_picture(svg, picture.curves(found, f"Sensitivity of {model.name}"))
        text = curves.sensitivity_text(found, width=terminal_width(), colour=has_colour())
        deliver(text, plain_json.dumps(plain_json.sensitivity_data(found)), json_path, voice)
