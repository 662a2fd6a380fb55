"""Work on several items at once: in processes of this machine, or on a cluster, by joblib.

Results come as they are finished. What a worker logs is logged again here, once for each item, with its
name.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from onnxprune import __version__
from onnxprune.errors import UsageError, WorkerError
from onnxprune.folder import belonging_to, owned

log = logging.getLogger(__name__)

Common = TypeVar("Common")
Item = TypeVar("Item")
Result = TypeVar("Result")

BACKENDS = ("local", "dask", "ray")
CORES_PER_JOB = 2
CONNECT_S = 20
"""Seconds to wait for a scheduler."""
LOST = "a worker ended before its work was done (most often for want of memory)"


@dataclass(frozen=True)
class Workers:
    """Where work is done.

    `jobs`: processes at a time on this machine (None: one per two cores). `backend`: "local", "dask" or "ray", with the
    address of its `scheduler`. `shared_paths`: the machines of the cluster see the same files under the same paths, so
    that none need to travel.
    """

    jobs: int | None = None
    backend: str = "local"
    scheduler: str | None = None
    shared_paths: bool = False

    @property
    def files_travel(self) -> bool:
        """Whether workers cannot be expected to see the files of this machine."""
        return self.backend != "local" and not self.shared_paths

    def check(self) -> None:
        """Raise UsageError for options that make no sense together."""
        if self.backend not in BACKENDS:
            raise UsageError(f"--backend must be one of {', '.join(BACKENDS)}, got {self.backend!r}")
        if self.jobs is not None and self.jobs < 1:
            raise UsageError(f"--jobs must be at least 1, got {self.jobs}")
        if self.backend == "local" and (self.scheduler or self.shared_paths):
            raise UsageError("--scheduler and --shared-paths are for a cluster: give --backend dask or ray")
        if self.backend != "local" and not self.scheduler:
            raise UsageError(f"--backend {self.backend} needs --scheduler ADDRESS, such as tcp://10.0.0.1:8786")
        if self.backend != "local" and self.jobs is not None:
            raise UsageError(
                "--jobs is for this machine: a cluster has as many jobs at a time as its workers have threads"
            )


def each(
    function: Callable[[Common, Item], Result],
    common: Common,
    items: Sequence[tuple[str, Item]],
    workers: Workers,
    *,
    results: Iterable[Path] = (),
) -> Iterator[Result]:
    """`function(common, item)` of every named item, in the order in which they are finished.

    An exception of one ends all, and nothing is left then of temporary files, nor of unfinished models in the folders
    `results` that the items write to. `function` is found by its name on other machines. Raises UsageError where the
    cluster cannot be reached or used, WorkerError where a worker is lost.
    """
    workers.check()
    if not items:
        return
    if workers.backend == "local":
        jobs = min(workers.jobs or default_jobs(), len(items))
        found = _alone(function, common, items) if jobs == 1 else _local(function, common, items, jobs, results)
    elif workers.backend == "dask":
        found = _dask(function, common, items, str(workers.scheduler))
    else:
        found = _ray(function, common, items, str(workers.scheduler))
    for name, result, messages in found:
        for message in dict.fromkeys(messages):
            log.warning("%s: %s", name, message)
        yield result


def default_jobs() -> int:
    """One job per two of the cores that this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // CORES_PER_JOB)


Done = tuple[str, Result, list[str]]


def _alone(
    function: Callable[[Common, Item], Result], common: Common, items: Sequence[tuple[str, Item]]
) -> Iterator[Done[Result]]:
    for item in items:
        yield _run(function, common, item)


def _local(
    function: Callable[[Common, Item], Result],
    common: Common,
    items: Sequence[tuple[str, Item]],
    jobs: int,
    results: Iterable[Path],
) -> Iterator[Done[Result]]:
    from concurrent.futures.process import BrokenProcessPool

    import joblib

    run = joblib.Parallel(n_jobs=jobs, backend="loky", batch_size=1, return_as="generator_unordered")
    folder = os.getcwd()
    with owned(results) as root:
        try:
            yield from run(joblib.delayed(_run_in)((folder, root), function, common, item) for item in items)
        except BrokenProcessPool as error:
            raise WorkerError(f"{LOST}; give fewer --jobs") from error


def _dask(
    function: Callable[[Common, Item], Result], common: Common, items: Sequence[tuple[str, Item]], address: str
) -> Iterator[Done[Result]]:
    try:
        import distributed
    except ImportError as error:
        raise UsageError('--backend dask needs another package: pip install "onnxprune[cluster]"') from error
    import joblib

    try:
        client = distributed.Client(address, timeout=CONNECT_S, set_as_default=False)
    except (OSError, ValueError) as error:
        raise UsageError(f"--scheduler {address}: no dask scheduler answers there ({error})") from error
    with client:
        _check_workers(client, address)
        try:
            with joblib.parallel_config(backend="dask", client=client, scatter=[common]):
                run = joblib.Parallel(n_jobs=-1, batch_size=1, return_as="generator_unordered")
                yield from run(joblib.delayed(_run)(function, common, item) for item in items)
        except distributed.KilledWorker as error:
            raise WorkerError(f"{LOST}; give the workers of {address} more") from error


def _check_workers(client: Any, address: str) -> None:
    """Raise UsageError where there are no workers, or they lack this version of onnxprune."""
    try:
        found = client.run(version)
    except ImportError as error:
        raise UsageError(
            f"the workers of {address} lack onnxprune ({error}): pip install onnxprune=={__version__} there"
        ) from error
    if not found:
        raise UsageError(
            f"--scheduler {address}: the scheduler has no workers; start some with `dask worker {address}`"
        )
    others = sorted({other for other in found.values() if other != __version__})
    if others:
        raise UsageError(f"the workers of {address} have onnxprune {', '.join(others)}; this is {__version__}")


def _ray(
    function: Callable[[Common, Item], Result], common: Common, items: Sequence[tuple[str, Item]], address: str
) -> Iterator[Done[Result]]:
    """ray gives joblib all results at once, at the end."""
    try:
        import ray
        from ray.util.joblib import register_ray
    except ImportError as error:
        raise UsageError('--backend ray needs another package: pip install "ray[default]"') from error
    import joblib

    try:
        _knock(address)
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, ValueError, RuntimeError) as error:
        raise UsageError(f"--scheduler {address}: no ray cluster answers there ({error})") from error
    try:
        register_ray()
        with joblib.parallel_config(backend="ray"):
            run = joblib.Parallel(n_jobs=-1, batch_size=1)
            yield from run(joblib.delayed(_run)(function, common, item) for item in items)
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """Raise OSError where nothing listens at HOST:PORT or SCHEME://HOST:PORT: ray would try for minutes."""
    host, _, port = address.rpartition("//")[2].rpartition(":")
    if port.isdecimal():
        socket.create_connection((host, int(port)), timeout=CONNECT_S).close()


# ---- The worker's side -----------------------------------------------------------------------------------------------


def version() -> str:
    """The version of onnxprune."""
    return __version__


def _run(function: Callable[[Common, Item], Result], common: Common, item: tuple[str, Item]) -> Done[Result]:
    """The name of the item, the result, and the warnings of this thread."""
    with warnings_aside() as found:
        result = function(common, item[1])
    return item[0], result, found


def _run_in(
    places: tuple[str, Path], function: Callable[[Common, Item], Result], common: Common, item: tuple[str, Item]
) -> Done[Result]:
    """`_run` in the folder of the process that asks: this one may be left from a time when that was in another.

    `places`: that folder, and the one for temporary files, which outlives this process.
    """
    os.chdir(places[0])
    with belonging_to(places[1]):
        return _run(function, common, item)


class _Warnings(logging.Handler):
    """Warnings of this thread; other handlers get what `is_other`."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.found: list[str] = []
        self.thread = threading.get_ident()

    def emit(self, record: logging.LogRecord) -> None:
        if record.thread == self.thread:
            self.found.append(record.getMessage())

    def is_other(self, record: logging.LogRecord) -> bool:
        """Whether the record is none of those."""
        return record.thread != self.thread or record.levelno < logging.WARNING


@contextlib.contextmanager
def warnings_aside() -> Iterator[list[str]]:
    """The warnings of the library that this thread gives while the block runs, kept from the handlers there are."""
    logger, handler = logging.getLogger("onnxprune"), _Warnings()
    others = list(logger.handlers)
    for other in others:
        other.addFilter(handler.is_other)
    logger.addHandler(handler)
    try:
        yield handler.found
    finally:
        logger.removeHandler(handler)
        for other in others:
            other.removeFilter(handler.is_other)
