"""`onnxprune MODEL`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import click
from click.core import ParameterSource

from onnxprune.cli.group import Default
from onnxprune.cli.many import prune_several
from onnxprune.cli.options import (
    PATH,
    calibration_option,
    cluster_options,
    image_options,
    input_shape_option,
    json_option,
    messages,
    parse_round_to,
    provider_option,
    recovery_options,
    seed_option,
)
from onnxprune.cli.terminal import Voice, deliver, failures, file_of, has_colour, progress, terminal_width
from onnxprune.config import ALLOCATIONS, NOTHING_TO_SPLIT, Config, RoundTo, check_paths, check_report_path
from onnxprune.distribution import Workers
from onnxprune.errors import UsageError


@click.command("prune", cls=Default, hidden=True)
@click.argument("models", type=PATH, nargs=-1, required=True, metavar="MODEL")
@click.option(
    "-o",
    "--output",
    type=PATH,
    metavar="OUT",
    help="Where to write; MODEL_pruned.onnx if not given. Of several models the folder.",
)
@click.option(
    "--ratio", type=float, default=0.5, show_default=True, metavar="R", help="Share of every group to remove, 0 to 1."
)
@click.option(
    "--depth",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    metavar="N",
    help="Remove the N residual blocks that matter least first; alone with --ratio 0.",
)
@click.option(
    "--target",
    metavar="WHAT=X",
    help="In place of --ratio: macs=0.5 or params=0.5 (the share kept), size=10MB (or kB, MiB ...), latency=0.6 "
    "(the share kept) or latency=5ms.",
)
@click.option(
    "--metric",
    metavar="NAME",
    help="Measure on rows held out: accuracy, precision, recall or f1 (with labels), agreement or cosine (with the "
    "original), or module:function or file.py:function of (outputs, labels).",
)
@click.option(
    "--labels",
    type=PATH,
    metavar="PLACE",
    help="Class numbers for --metric: .npy or .npz by the order of rows; of images a .csv of names and numbers or "
    "the folder whose folders are the classes. Else the array 'labels' of the inputs.",
)
@click.option(
    "--evaluation",
    type=PATH,
    metavar="PATH",
    help="Inputs to measure on, in place of rows held out of --calibration; the labels are then those of these rows.",
)
@click.option(
    "--max-drop",
    type=float,
    metavar="X",
    help="In place of --ratio: remove as much as lets the metric fall by X (0.01) at most; at most to --target. "
    "Without --metric: agreement with the original, or cosine. Needs --calibration.",
)
@click.option(
    "--allocation",
    type=click.Choice(ALLOCATIONS),
    default="sensitivity",
    show_default=True,
    help="How a --target is split over the groups.",
)
@click.option(
    "--criterion",
    metavar="NAME",
    help="What a channel is worth: obs, variance, wanda, pca or apoz (measured on inputs), l1, l2, linf or random.  "
    "[default: obs; l2 with --no-recover and no inputs]",
)
@calibration_option
@image_options
@input_shape_option
@click.option(
    "--round-to",
    default="auto",
    show_default=True,
    callback=parse_round_to,
    metavar="auto|N",
    help="Round kept widths up to multiples: 'auto' for what the provider is fast at.",
)
@click.option("--keep", multiple=True, metavar="P", help="Leave groups whose id, tensors or nodes match P. Repeatable.")
@click.option("--only", multiple=True, metavar="P", help="Prune only groups that match the pattern P. Repeatable.")
@click.option(
    "--heads/--no-heads",
    default=True,
    show_default=True,
    help="Whether attention heads and groups of channels may go; without, such products stay whole.",
)
@click.option("--head-width", is_flag=True, help="Of heads times their width cut the width alone.")
@click.option(
    "--recover/--no-recover",
    default=True,
    show_default=True,
    help="Refit what is left to the original's outputs, on the --calibration inputs or on synthetic ones.",
)
@click.option(
    "--fuse/--no-fuse",
    default=True,
    show_default=True,
    help="Take scalings and shifts between the layers into their weights, where ONNX Runtime does not.",
)
@click.option("--tune", is_flag=True, help="Distil from the original after that (needs the extra 'gradients').")
@recovery_options
@click.option(
    "--jobs",
    type=click.IntRange(1),
    metavar="N",
    help="Of several models, so many at a time; 1 if not given.",
)
@cluster_options
@provider_option
@click.option("--benchmark", is_flag=True, help="Measure the latency of both models; write nothing that is not faster.")
@click.option(
    "--batch", type=click.IntRange(1), metavar="N", help="Size of dynamic first axes to measure with; 1 if not given."
)
@click.option(
    "--run-threads",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    metavar="N",
    help="Threads to measure with; 0 means all physical cores.",
)
@click.option(
    "--budget",
    type=float,
    default=10.0,
    show_default=True,
    metavar="SECONDS",
    help="Time for each comparison of latencies.",
)
@click.option("--dry-run", is_flag=True, help="Decide and report, but write no model.")
@json_option
@click.option("--save-plan", type=PATH, metavar="FILE", help="Write what is kept as a JSON plan.")
@click.option("--plan", type=PATH, metavar="FILE", help="Prune as this plan says, in place of --ratio.")
@seed_option
@click.option("--force", is_flag=True, help="Replace an existing output; write a model that is not faster, too.")
@messages
def prune_command(  # noqa: PLR0913 - one argument per flag
    models: tuple[Path, ...],
    *,
    output: Path | None,
    ratio: float,
    depth: int,
    target: str | None,
    metric: str | None,
    labels: Path | None,
    evaluation: Path | None,
    max_drop: float | None,
    allocation: str,
    criterion: str | None,
    calibration: Path | None,
    input_shapes: dict[str, tuple[int, ...]],
    round_to: RoundTo,
    keep: tuple[str, ...],
    only: tuple[str, ...],
    heads: bool,
    head_width: bool,
    recover: bool,
    fuse: bool,
    tune: bool,
    calibration_size: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    scale: float | None,
    layout: str,
    resize: tuple[int, int] | None,
    color: str,
    threads: int,
    memory: int,
    jobs: int | None,
    backend: str,
    scheduler: str | None,
    shared_paths: bool,
    provider: Literal["cpu", "cuda"],
    benchmark: bool,
    batch: int | None,
    run_threads: int,
    budget: float,
    dry_run: bool,
    json_path: Path | None,
    save_plan: Path | None,
    plan: Path | None,
    seed: int,
    force: bool,
    quiet: bool,
    verbose: bool,
    debug: bool,
) -> None:
    """Prune MODEL, or several of them in the same way."""
    voice = Voice(quiet, verbose, debug)
    with failures(voice):
        _check_ratio({"--target": target, "--max-drop": max_drop, "--plan": plan})
        _check_allocation(target is not None or max_drop is not None)
        _check_plan(plan)
        config = Config(
            output=output,
            ratio=ratio,
            depth=depth,
            target=target,
            metric=metric,
            labels=labels,
            evaluation=evaluation,
            max_drop=max_drop,
            allocation=allocation,
            criterion=criterion,
            calibration=calibration,
            input_shapes=input_shapes,
            round_to=round_to,
            keep=keep,
            only=only,
            heads=heads,
            head_width=head_width,
            recover=recover,
            fuse=fuse,
            tune=tune,
            calibration_size=calibration_size,
            mean=mean,
            std=std,
            scale=scale,
            layout=layout,
            resize=resize,
            color=color,
            threads=threads,
            memory_bytes=memory << 20,
            provider=provider,
            benchmark=benchmark,
            batch=batch,
            run_threads=run_threads,
            budget_s=budget,
            dry_run=dry_run,
            plan=plan,
            save_plan=save_plan,
            seed=seed,
            force=force,
        )
        _check_idle(config)
        workers = Workers(jobs or 1 if backend == "local" else jobs, backend, scheduler, shared_paths)
        if len(models) == 1:
            _check_place(workers)
            _prune(models[0], config, json_path, voice)
        else:
            prune_several(models, config, workers, json_path, voice)


def _check_place(workers: Workers) -> None:
    """Raise UsageError where one model is to be pruned on a cluster, or several at a time."""
    if (workers.jobs or 1) > 1:
        raise UsageError(f"--jobs {workers.jobs} is for several models, and one is given: leave it out")
    if dataclasses.replace(workers, jobs=1) != Workers(1):
        raise UsageError("--backend, --scheduler and --shared-paths are for several models: one is pruned here")


def _is_given(name: str) -> bool:
    """Whether an option is on the command line, be it with its default."""
    return click.get_current_context().get_parameter_source(name) is not ParameterSource.DEFAULT


def _check_ratio(others: Mapping[str, object]) -> None:
    """Raise UsageError where --ratio is given beside one of the `others`, which take its place."""
    given = next((name for name, value in others.items() if value is not None), None)
    if given and _is_given("ratio"):
        raise UsageError(f"{given} takes the place of --ratio: leave one of them out")


def _check_allocation(is_split: bool) -> None:
    """Raise UsageError where --allocation is given, be it the default, and there is no target to split."""
    if not is_split and _is_given("allocation"):
        raise UsageError(NOTHING_TO_SPLIT)


def _check_plan(plan: Path | None) -> None:
    """Raise UsageError for options that choose what a plan says."""
    given = next((name for name in ("target", "criterion", "round_to", "heads", "head_width") if _is_given(name)), None)
    if plan is not None and given is not None:
        raise UsageError(f"--plan says which groups are cut: leave --{given.replace('_', '-')} out")


def _check_idle(config: Config) -> None:
    """Raise UsageError for options that nothing of the run asks for."""
    given = next((name for name in ("batch", "budget") if _is_given(name)), None)
    if given and not (config.benchmark or config.aims_at_latency):
        raise UsageError(
            f"--{given} says how latency is measured, and nothing measures it: give --benchmark or --target latency=X, "
            f"or leave --{given} out"
        )


def _prune(model: Path, config: Config, json_path: Path | None, voice: Voice) -> None:
    report = file_of(json_path)
    config.validate(model)
    read = {"the input model": model, **config.files_read}
    output = config.output_for(model)
    check_paths(read, {"--output": output, "--save-plan": config.save_plan, "--json": report})
    check_report_path("--json", report, "{")
    from onnxprune.api import prune
    from onnxprune.report import console, plain_json

    with progress(voice, "load ..."):
        found = prune(model, config)
    text = console.prune_text(found, width=terminal_width(), colour=has_colour(), every=voice.verbose)
    deliver(text, plain_json.dumps(plain_json.report_data(found)), json_path, voice)
