"""`onnxprune benchmark A.onnx B.onnx [...]`."""

from __future__ import annotations

from collections.abc import Sequence
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
    provider_option,
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
from onnxprune.config import check_paths, check_report_path
from onnxprune.preparation import Preparation


@click.command("benchmark", cls=Once, short_help="Compare the latency of models in interleaved pairs of runs.")
@click.argument("models", type=PATH, nargs=-1, required=True, metavar="A.onnx B.onnx [...]")
@input_shape_option
@calibration_option
@image_options
@click.option("--batch", type=click.IntRange(1), metavar="N", help="Size of dynamic first axes; 1 if not given.")
@provider_option
@click.option(
    "--threads", type=click.IntRange(0), default=0, show_default=True, metavar="N", help="0 means all physical cores."
)
@click.option(
    "--budget", type=float, default=10.0, show_default=True, metavar="SECONDS", help="Time for each comparison."
)
@json_option
@click.option("--svg", type=PATH, metavar="FILE", help="Draw the distributions; a page where FILE ends in .html.")
@seed_option
@messages
def benchmark_command(  # noqa: PLR0913 - one argument per flag
    models: tuple[Path, ...],
    *,
    input_shapes: dict[str, tuple[int, ...]],
    calibration: Path | None,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    scale: float | None,
    layout: str,
    resize: tuple[int, int] | None,
    color: str,
    batch: int | None,
    provider: str,
    threads: int,
    budget: float,
    json_path: Path | None,
    svg: Path | None,
    seed: int,
    quiet: bool,
    verbose: bool,
    debug: bool,
) -> None:
    """Time every further model against the first, on the same inputs, in interleaved pairs of runs."""
    voice = Voice(quiet, verbose, debug)
    with failures(voice):
        _check_reports(models, calibration, json_path, svg)
        from onnxprune.comparison import benchmark
        from onnxprune.report import console, picture, plain_json

        with progress(voice, "benchmark ..."):
            results = benchmark(
                models,
                input_shapes=input_shapes,
                calibration=calibration,
                preparation=Preparation(mean, std, scale, layout, resize, color),
                batch=batch,
                provider=provider,
                threads=threads,
                budget_s=budget,
                seed=seed,
            )
        if svg:
            write_picture(svg, picture.histograms([model.name for model in models], results))
        data = plain_json.dumps(plain_json.comparison_data(models, results, seed=seed))
        text = console.comparison_text(models, results, width=terminal_width(), colour=has_colour())
        deliver(text, data, json_path, voice)


def _check_reports(models: Sequence[Path], calibration: Path | None, json_path: Path | None, svg: Path | None) -> None:
    read = {f"the model {model}": model for model in models}
    check_paths({**read, "--calibration": calibration}, {"--json": file_of(json_path), "--svg": svg})
    check_report_path("--json", file_of(json_path), "{")
    check_picture_path(svg)
