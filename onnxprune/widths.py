"""`onnxprune calibrate-widths`: the widths that this machine is fast at, measured once and remembered."""

from __future__ import annotations

import json
import logging
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from hashlib import sha256
from importlib import metadata
from pathlib import Path

from onnxprune import processor, runtime, worker
from onnxprune.config import PROVIDERS, check_threads
from onnxprune.errors import UsageError
from onnxprune.latency import machine
from onnxprune.records import FastWidths, Staircases, WidthCalibration

log = logging.getLogger(__name__)

SCHEMA = 1
LIMIT_S = 300.0
"""Time limit of the child process that measures."""


def calibrate(provider: str = "cpu", threads: int = 0) -> WidthCalibration:
    """Measure the fast widths of this machine, in some seconds, and remember them for later runs.

    `threads` 0 means all physical cores. Raises UsageError where the provider cannot be had.
    """
    if provider not in PROVIDERS:
        raise UsageError(f"--provider must be one of {', '.join(PROVIDERS)}, got {provider!r}")
    check_threads("--threads", threads, least=0)
    key = _key(provider, threads)
    for warning in machine.busy_warnings(machine.busy_share()):
        log.warning("%s", warning)
    found = _measure(key)
    return WidthCalibration(key, found, _store(key, found))


def known(provider: str, threads: int = 0) -> FastWidths:
    """The widths measured earlier for this machine; those of the table where there are none."""
    path = _file(_key(provider, threads))
    if not path.is_file():
        log.info("widths from the table of processors; `onnxprune calibrate-widths` measures those of this machine")
        return processor.table(provider)
    try:
        return _read(path, provider)
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning(
            "%s cannot be read (%s): widths from the table; run `onnxprune calibrate-widths` again", path, error
        )
        return processor.table(provider)


def measured(provider: str, threads: int = 0) -> FastWidths:
    """The widths of this machine, measured now where that has not been done.

    Nobody looks at what is measured here, so it is remembered for later runs only where the machine was quiet.
    """
    key = _key(provider, threads)
    if _file(key).is_file():
        return known(provider, threads)
    log.info("measuring the widths this machine is fast at ...")
    busy = machine.busy_warnings(machine.busy_share())
    found = _measure(key)
    if not busy:
        _store(key, found)
    return found.widths


def _measure(key: Mapping[str, str | int]) -> Staircases:
    arguments = {"provider": key["provider"], "threads": key["threads"]}
    found: Staircases = worker.call("onnxprune.latency.staircase:measure", arguments, timeout_s=LIMIT_S)
    return found


def cache_folder() -> Path:
    """ONNXPRUNE_CACHE, or the folder "onnxprune" in the user's cache (XDG_CACHE_HOME, or ~/.cache)."""
    own = os.environ.get("ONNXPRUNE_CACHE")
    if own:
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base and Path(base).is_absolute() else Path.home() / ".cache") / "onnxprune"


def _key(provider: str, threads: int) -> dict[str, str | int]:
    """What the widths depend on."""
    return {
        "processor": processor.model(provider),
        "runtime": _runtime_version(),
        "provider": provider,
        "threads": threads or runtime.physical_cores(),
    }


def _runtime_version() -> str:
    """Package and version of ONNX Runtime, without importing it."""
    for package in ("onnxruntime", "onnxruntime-gpu"):
        try:
            return f"{package} {metadata.version(package)}"
        except metadata.PackageNotFoundError:
            continue
    return "unknown"


def _file(key: Mapping[str, str | int]) -> Path:
    digest = sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    return cache_folder() / f"widths-{digest}.json"


def _read(path: Path, provider: str) -> FastWidths:
    """The stored widths; one that would leave the fast path is raised to the least that does not."""
    data = json.loads(path.read_text(encoding="utf-8"))
    if data["schema"] != SCHEMA:
        raise ValueError(f"schema {data['schema']!r}, this version reads {SCHEMA}")
    least = asdict(processor.least(provider))
    steps = {kind: int(data["widths"][kind]) for kind in least if kind != "measured"}
    odd = {kind: step for kind, step in steps.items() if step < least[kind] or step % least[kind]}
    if odd:
        raise ValueError(f"steps that are not fast: {odd}")
    return FastWidths(**steps, measured=True)


def _store(key: Mapping[str, str | int], found: Staircases) -> str | None:
    """Write all or nothing; a cache that cannot be written costs a warning."""
    path = _file(key)
    data = {"schema": SCHEMA, "key": dict(key), **asdict(found)}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".tmp", delete=False, encoding="utf-8") as file:
            file.write(json.dumps(data, indent=1) + "\n")
        os.replace(file.name, path)
    except OSError as error:
        log.warning("%s cannot be written (%s): the widths will be measured again", path, error.strerror)
        return None
    return str(path)
