"""`onnxprune search MODEL`."""

from __future__ import annotations

from pathlib import Path

import click

from onnxprune.cli.group import Once
from onnxprune.cli.options import PATH, cluster_options, json_option, messages
from onnxprune.cli.pruning import prune_command
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
    write_text,
)
from onnxprune.config import Config, check_paths, check_report_path
from onnxprune.distribution import Workers

SHARED = (
    *("calibration", "mean", "std", "scale", "layout", "resize", "color", "calibration_size"),
    *("metric", "labels", "evaluation", "input_shapes", "allocation", "depth", "round_to", "keep", "only", "heads"),
    *("head_width", "recover", "fuse", "tune", "threads", "memory", "provider", "seed"),
    *("batch", "run_threads", "budget"),
)
"""Options of `onnxprune MODEL` that hold for every trial."""


class _Search(Once):
    """What is shared with `onnxprune MODEL` reaches the function as one configuration."""

    def invoke(self, ctx: click.Context) -> object:
        shared = {name: ctx.params.pop(name) for name in SHARED}
        measured = {"memory_bytes": shared.pop("memory") << 20, "budget_s": shared.pop("budget")}
        ctx.params["config"] = Config(**measured, **shared)
        return super().invoke(ctx)


@click.command("search", cls=_Search, short_help="Try many amounts and criteria; show which no other beats.")
@click.argument("model", type=PATH)
@click.option("--ratios", metavar="R,R,...", help="Shares of every group to remove.")
@click.option(
    "--targets", metavar="WHAT=X,X,...", help="Targets: macs=0.3,0.5 or params=0.5 (shares kept), size=5MB,10MB."
)
@click.option("--criteria", default="obs", show_default=True, metavar="NAME,...", help="Criteria to try with each.")
@click.option(
    "-o", "--output", type=PATH, metavar="DIR", help="Folder for results and plans; MODEL_search if not given."
)
@click.option(
    "--latency/--no-latency", default=True, show_default=True, help="Whether to time every model, after all trials."
)
@click.option("--jobs", type=click.IntRange(1), metavar="N", help="Trials at a time; one per two cores if not given.")
@cluster_options
@click.option("--svg", type=PATH, metavar="FILE", help="Draw quality against latency; DIR/front.svg if not given.")
@json_option
@messages
def search_command(  # noqa: PLR0913 - one argument per flag
    model: Path,
    *,
    config: Config,
    ratios: str | None,
    targets: str | None,
    criteria: str,
    output: Path | None,
    latency: bool,
    jobs: int | None,
    backend: str,
    scheduler: str | None,
    shared_paths: bool,
    svg: Path | None,
    json_path: Path | None,
    quiet: bool,
    verbose: bool,
    debug: bool,
) -> None:
    """Prune MODEL in many ways and show the front: what no other result beats in quality, latency and size.

    Every finished trial leaves a JSON file and a plan for --plan in a folder; a search that was cut off goes on where
    it stopped. Options that are not listed first hold for every trial.
    """
    voice = Voice(quiet, verbose, debug)
    with failures(voice):
        folder = output or config.output_for(model).with_name(f"{model.stem}_search")
        _check(model, config, folder, file_of(json_path), svg)
        from onnxprune.report import plain_json, scatter, several
        from onnxprune.trials.run import search
        from onnxprune.trials.space import parse_ratios, parse_targets

        with progress(voice, "search ..."):
            found = search(
                model,
                config,
                ratios=parse_ratios(ratios) if ratios else (),
                targets=parse_targets(targets) if targets else (),
                criteria=[name.strip() for name in criteria.split(",")],
                folder=folder,
                workers=Workers(jobs, backend, scheduler, shared_paths),
                timed=latency,
            )
        data = plain_json.dumps(plain_json.search_data(found))
        write_text(folder / "front.json", data)
        write_picture(svg or folder / "front.svg", scatter.front(found))
        deliver(several.search_text(found, width=terminal_width(), colour=has_colour()), data, json_path, voice)


def _check(model: Path, config: Config, folder: Path, report: Path | None, svg: Path | None) -> None:
    read = {"the input model": model, **config.files_read}
    check_paths(read, {"--output": folder, "--json": report, "--svg": svg})
    check_report_path("--json", report, "{")
    check_picture_path(svg)


search_command.params += [parameter for parameter in prune_command.params if parameter.name in SHARED]
