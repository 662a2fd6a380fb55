"""A command from the shell: how long it takes, and how much memory it and its children hold at once."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

PAUSE_S = 0.01


@dataclass(frozen=True)
class Run:
    """Seconds, and bytes at the peak over the whole process tree, sampled every 10 ms.

    `resident`: sum of VmRSS, which counts pages of libraries and mapped files once for every process that touched
    them. `anonymous`: sum of RssAnon and RssShmem, what cannot be given back to the file cache.
    """

    seconds: float
    resident: int
    anonymous: int
    printed: str


def run(command: Sequence[str], environment: Mapping[str, str] | None = None) -> Run:
    """Run to the end, in this environment or the caller's.

    Raises RuntimeError with the end of what was printed where the command fails.
    """
    start = time.perf_counter()
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, errors="replace"
    )
    peaks = [0, 0]
    watcher = threading.Thread(target=_watch, args=(process, peaks))
    watcher.start()
    printed, _ = process.communicate()
    seconds = time.perf_counter() - start
    watcher.join()
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}: {printed[-800:]}")
    return Run(seconds, peaks[0], peaks[1], printed)


def _watch(process: subprocess.Popen[str], peaks: list[int]) -> None:
    while process.poll() is None:
        found = [_memory(pid) for pid in _tree(process.pid)]
        for k in range(2):
            peaks[k] = max(peaks[k], sum(sizes[k] for sizes in found))
        time.sleep(PAUSE_S)


def _tree(root: int) -> list[int]:
    """A process and all its descendants."""
    found = [root]
    for pid in found:
        try:
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text()
        except OSError:
            continue
        found += [int(child) for child in children.split()]
    return found


def _memory(pid: int) -> tuple[int, int]:
    """Resident and anonymous bytes of one process; zeros where it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0, 0
    sizes = {name: int(rest.split()[0]) * 1024 for name, _, rest in (line.partition(":") for line in lines)
             if name in ("VmRSS", "RssAnon", "RssShmem")}  # fmt: skip
    return sizes.get("VmRSS", 0), sizes.get("RssAnon", 0) + sizes.get("RssShmem", 0)
