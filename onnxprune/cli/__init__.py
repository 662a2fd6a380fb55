"""The command line: a thin twin of the Python API. One command is one function, one flag one field of `Config`.

Results go to standard output, progress and messages to standard error. Nothing heavy is imported before the options
have been read, so that `--help` is quick. One file per command; `group` joins them.
"""

from __future__ import annotations

import signal
import sys

from onnxprune.cli import benchmarking, inspection, pruning, searching, sensitivity, widths
from onnxprune.cli.group import command

TERMINATED = 143

command.add_command(pruning.prune_command)
command.add_command(inspection.inspect_command)
command.add_command(sensitivity.sensitivity_command)
command.add_command(benchmarking.benchmark_command)
command.add_command(searching.search_command)
command.add_command(widths.widths_command)


def main() -> None:
    """Entry point of the command `onnxprune`."""
    for stream in (sys.stdout, sys.stderr):
        # Names in models may hold what the terminal's encoding does not.
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    # As an exception, so that temporary files are removed.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(TERMINATED))
    command(prog_name="onnxprune")
