"""`onnxprune inspect MODEL`."""

from __future__ import annotations

from pathlib import Path

import click

from onnxprune.cli.group import Once
from onnxprune.cli.options import PATH, input_shape_option, json_option, messages
from onnxprune.cli.terminal import Voice, deliver, failures, file_of, has_colour, progress, terminal_width, write_text
from onnxprune.config import check_paths, check_report_path


@click.command("inspect", cls=Once, short_help="Show groups, couplings, shares and refusals; write nothing.")
@click.argument("model", type=PATH)
@input_shape_option
@json_option
@click.option(
    "--graph", type=PATH, metavar="FILE", help="Draw what couples what: FILE.mmd for Mermaid, FILE.dot for Graphviz."
)
@messages
def inspect_command(
    model: Path,
    *,
    input_shapes: dict[str, tuple[int, ...]],
    json_path: Path | None,
    graph: Path | None,
    quiet: bool,
    verbose: bool,
    debug: bool,
) -> None:
    """Show what of MODEL can be pruned, what must go together, and what cannot be pruned and why. Writes nothing."""
    voice = Voice(quiet, verbose, debug)
    with failures(voice):
        _inspect(model, input_shapes, json_path, graph, voice)


def _inspect(
    model: Path, shapes: dict[str, tuple[int, ...]], json_path: Path | None, graph: Path | None, voice: Voice
) -> None:
    from onnxprune.report import coupling

    report = file_of(json_path)
    check_paths({"the input model": model}, {"--json": report, "--graph": graph})
    check_report_path("--json", report, "{")
    check_report_path("--graph", graph, coupling.start(graph) if graph else "")
    from onnxprune.api import inspect
    from onnxprune.report import console, plain_json

    with progress(voice, "load ..."):
        found = inspect(model, shapes)
    if graph:
        write_text(graph, coupling.text(found, graph))
    text = console.inspect_text(found, width=terminal_width(), colour=has_colour(), every=voice.verbose)
    deliver(text, plain_json.dumps(plain_json.report_data(found)), json_path, voice)
