"""`onnxprune calibrate-widths`."""

from __future__ import annotations

from pathlib import Path

import click

from onnxprune.cli.group import Once
from onnxprune.cli.options import json_option, messages, provider_option
from onnxprune.cli.terminal import Voice, deliver, failures, file_of, has_colour, progress, terminal_width
from onnxprune.config import check_report_path


@click.command(
    "calibrate-widths", cls=Once, short_help="Measure the widths this machine is fast at, for --round-to auto."
)
@provider_option
@click.option(
    "--threads", type=click.IntRange(0), default=0, show_default=True, metavar="N", help="0 means all physical cores."
)
@json_option
@messages
def widths_command(
    *, provider: str, threads: int, json_path: Path | None, quiet: bool, verbose: bool, debug: bool
) -> None:
    """Measure in some seconds at which widths layers are fast on this machine, and remember it for --round-to auto.

    The result is kept in ~/.cache/onnxprune (XDG_CACHE_HOME and ONNXPRUNE_CACHE choose another place), by processor,
    version of ONNX Runtime, provider and threads.
    """
    voice = Voice(quiet, verbose, debug)
    with failures(voice):
        check_report_path("--json", file_of(json_path), "{")
        from onnxprune import widths
        from onnxprune.report import console, plain_json

        with progress(voice, "measuring widths ..."):
            found = widths.calibrate(provider, threads)
        text = console.widths_text(found, width=terminal_width(), colour=has_colour())
        deliver(text, plain_json.dumps(plain_json.widths_data(found)), json_path, voice)
