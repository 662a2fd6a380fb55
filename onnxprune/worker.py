"""Runs a function in a child process, so that a crash or a hang of native code is an error message.

Crafted and merely unusual models have crashed ONNX Runtime (SIGSEGV takes the whole process with it) and can keep it
busy for ever. `call` therefore runs verification and timing in a child of its own. `multiprocessing` is not used: its
spawn method imports the user's main script again, which an unguarded script does not survive.

The two sides exchange pickles through files in one private temporary directory. The child's standard output and error
go to a log file there: ONNX Runtime writes to them directly, and none of it belongs on the user's terminal. What the
user's own code prints there is handed on to standard error when the child has ended.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnxprune import errors, usercode
from onnxprune.errors import OnnxPruneError, WorkerError

_logger = logging.getLogger(__name__)

_REQUEST, _REPLY, _LOG, _PRINTS = "request.pickle", "reply.pickle", "log.txt", "prints.txt"
_LOG_TAIL_BYTES = 65536
_LOG_TAIL_LINES = 8
# Colour codes, which ONNX Runtime puts around its log lines.
_ESCAPE = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


@dataclass(frozen=True)
class _Request:
    function: str
    arguments: dict[str, Any]
    log_level: int


@dataclass(frozen=True)
class _Failure:
    """An exception of the child: class names from the class itself up, message, and the traceback as text."""

    classes: tuple[str, ...]
    message: str
    traceback: str


def call(function: str, arguments: Mapping[str, Any], *, timeout_s: float, threads: int = 1) -> Any:
    """Return `function(**arguments)`, run in a child process; `function` is written "package.module:name".

    An exception of the OnnxPruneError tree is raised here with the same class and message. WorkerError is raised for
    every other exception, for a crash (naming the signal) and after `timeout_s` seconds. KeyboardInterrupt ends the
    child. Arguments and result must be picklable, and the function importable by that name. `threads`: of numpy's
    matrix products.
    """
    directory = Path(tempfile.mkdtemp(prefix="onnxprune-"))
    try:
        level = _logger.getEffectiveLevel()
        with (directory / _REQUEST).open("wb") as file:
            pickle.dump(_Request(function, dict(arguments), level), file, protocol=5)
        exit_code = _run_child(directory, function, timeout_s, threads)
        reply = _read_reply(directory, function, exit_code)
        if isinstance(reply, _Failure):
            _raise(reply, function, directory)
        return reply
    finally:
        _forward_log(directory)
        _forward_prints(directory)
        shutil.rmtree(directory, ignore_errors=True)


def _run_child(directory: Path, function: str, timeout_s: float, threads: int) -> int:
    # runpy warns when the package has imported this module already; under PYTHONWARNINGS=error that would be fatal.
    command = [sys.executable, "-W", "ignore::RuntimeWarning:runpy", "-m", "onnxprune.worker", str(directory)]
    # Of a child of a child, the process at the top hands on what is printed.
    environment = {usercode.PRINTS: str(directory / _PRINTS), **_environment(threads)}
    with (directory / _LOG).open("wb") as log:
        # A session of its own: Ctrl-C reaches only the parent, which ends the child.
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=log, stderr=log, env=environment, start_new_session=True
        )
    try:
        return process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        limit = f"{timeout_s:g} s"
        message = f"{function} did not finish within {limit} and was stopped. Raise the limit (timeout_s in Python)"
        message += " where the model is merely slow; a model that never finishes hangs in the runtime."
    finally:
        _end(process)
    raise WorkerError(message + _log_tail(directory))


def _environment(count: int = 1) -> dict[str, str]:
    """The parent's environment, with its import path: the child must find the same packages in the same order."""
    path = os.pathsep.join(os.path.abspath(entry) for entry in sys.path)
    # Safe path: `-m` would put the working directory first, where any file could shadow a module.
    # A given number of threads for numpy's matrix products: the sums are then the same on every run.
    threads = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(count))
    return {**os.environ, **threads, "PYTHONPATH": path, "PYTHONSAFEPATH": "1"}


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.kill()
        process.wait()
    if process.stdin is not None:
        process.stdin.close()


def _read_reply(directory: Path, function: str, exit_code: int) -> Any:
    if exit_code != 0:
        raise WorkerError(f"{function} {describe_exit(exit_code)} in its child process.{_log_tail(directory)}")
    try:
        with (directory / _REPLY).open("rb") as file:
            return pickle.load(file)
    except Exception as error:  # a damaged pickle can raise nearly anything
        text = f"the result of {function} cannot be read back: {type(error).__name__}: {error}"
        raise WorkerError(text + _log_tail(directory)) from error


def describe_exit(exit_code: int) -> str:
    """Words for the exit code of a child that failed, such as "crashed with SIGSEGV (segmentation fault)"."""
    if exit_code >= 0:
        return f"ended with exit code {exit_code if exit_code < 256 else hex(exit_code)}"
    try:
        name = signal.Signals(-exit_code).name
    except ValueError:
        return f"was ended by signal {-exit_code}"
    if name == "SIGKILL":
        return "was killed (SIGKILL; most often the machine ran out of memory)"
    words = signal.strsignal(-exit_code)
    return f"crashed with {name}" + (f" ({words.lower()})" if words else "")


def _raise(failure: _Failure, function: str, directory: Path) -> None:
    _logger.debug("%s failed in its child process:\n%s", function, failure.traceback)
    for name in failure.classes:
        known = getattr(errors, name, None)
        if isinstance(known, type) and issubclass(known, OnnxPruneError):
            raise known(failure.message)
    if "MemoryError" in failure.classes:
        raise WorkerError("there is not enough memory to run the model; give smaller sizes with --input-shape")
    text = f"{function} failed in its child process: {failure.classes[0]}: {failure.message}"
    raise WorkerError(text + _log_tail(directory))


def _log_lines(directory: Path) -> list[str]:
    try:
        with (directory / _LOG).open("rb") as file:
            # A hanging runtime can write gigabytes; only the end is of interest.
            file.seek(max(0, file.seek(0, os.SEEK_END) - _LOG_TAIL_BYTES))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return []
    return [line.rstrip() for line in _ESCAPE.sub("", text).splitlines() if line.strip()]


def _log_tail(directory: Path) -> str:
    lines = _log_lines(directory)[-_LOG_TAIL_LINES:]
    return "".join(["\nLast output of the child process:", *(f"\n  {line}" for line in lines)]) if lines else ""


def _forward_log(directory: Path) -> None:
    if _logger.isEnabledFor(logging.DEBUG):
        for line in _log_lines(directory):
            _logger.debug("child: %s", line)


def _forward_prints(directory: Path) -> None:
    """What user code printed in the child, on standard error."""
    path = directory / _PRINTS
    if path.exists() and sys.stderr is not None:
        with contextlib.suppress(OSError, ValueError), path.open(encoding="utf-8", errors="replace") as file:
            shutil.copyfileobj(file, sys.stderr)


# ---- The child's side ------------------------------------------------------------------------------------------------


def main() -> None:
    """Answer the request in the directory named on the command line, and leave without any teardown."""
    directory = Path(sys.argv[1])
    _forbid_core_file()
    threading.Thread(target=_watch_parent, args=(directory,), daemon=True).start()
    reply = _answer(directory)
    try:
        _write_reply(directory, reply)
    except Exception as error:  # noqa: BLE001 - any object may refuse to be pickled, in any way
        _write_reply(directory, _failure(error))
    sys.stdout.flush()
    sys.stderr.flush()
    # Native libraries (CUDA above all) are known to crash while they unload; the result is on disk by now.
    os._exit(0)


def _forbid_core_file() -> None:
    """A crash is expected here and reported; it must not leave a core file in the user's working directory."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource  # absent on Windows

        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))


def _watch_parent(directory: Path) -> None:
    """End this process when the parent is gone: its end of the pipe on standard input closes however it died."""
    with contextlib.suppress(OSError):
        while os.read(0, 1):
            pass
    shutil.rmtree(directory, ignore_errors=True)
    os._exit(1)


def _answer(directory: Path) -> Any:
    try:
        with (directory / _REQUEST).open("rb") as file:
            request: _Request = pickle.load(file)
        logging.basicConfig(level=request.log_level, format="%(name)s: %(message)s")
        module, _, name = request.function.partition(":")
        return getattr(importlib.import_module(module), name)(**request.arguments)
    except Exception as error:  # noqa: BLE001 - whatever it is, the parent reports it
        return _failure(error)


def _failure(error: Exception) -> _Failure:
    classes = tuple(kind.__name__ for kind in type(error).__mro__)
    return _Failure(classes, str(error), traceback.format_exc())


def _write_reply(directory: Path, reply: Any) -> None:
    with (directory / _REPLY).open("wb") as file:
        pickle.dump(reply, file, protocol=5)


if __name__ == "__main__":
    # Pickles name classes by module: use those of the imported module, not their twins in __main__.
    importlib.import_module("onnxprune.worker").main()
