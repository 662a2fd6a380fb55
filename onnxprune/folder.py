"""Folders: for several results, and for what is there only while work is done."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from onnxprune.errors import OutputError


def make_folder(folder: Path, *, if_file: str) -> None:
    """Make the folder in one that is there, unless it is there. Raises OutputError where nothing can be written to it;
    `if_file` says what to do where it is a file."""
    try:
        folder.mkdir(exist_ok=True)
    except FileExistsError as error:
        raise OutputError(f"{folder}: {if_file}") from error
    except FileNotFoundError as error:
        raise OutputError(f"{folder}: the folder {folder.parent} does not exist; create it first") from error
    except OSError as error:
        raise OutputError(f"{folder}: cannot be made ({error.strerror}); choose another place") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(f"{folder}: no permission to write to this folder; choose another")


@contextlib.contextmanager
def unless_empty(folder: Path) -> Iterator[None]:
    """Remove the folder after the block if it was not there before, and has nothing in it."""
    was_there = folder.exists()
    try:
        yield
    finally:
        if not was_there:
            with contextlib.suppress(OSError):
                folder.rmdir()


# ---- Temporary files of processes that may be killed -----------------------------------------------------------------

_OWNER = "ONNXPRUNE_OWNER"
"""The environment variable with the name of the folder that the temporary files of this process belong to."""
_TEMPORARY = ("TMPDIR", "TEMP", "TMP")


def unfinished(name: str = "") -> str:
    """How names of unfinished results begin that belong to the folder `name`; of this process where none is given."""
    return f".{name or os.environ.get(_OWNER, 'onnxprune')}-"


@contextlib.contextmanager
def owned(results: Iterable[Path]) -> Iterator[Path]:
    """A folder for all that processes of this one write before it is finished, however they end: it is removed after
    the block, and so is what they left of unfinished results in the folders `results`."""
    root = Path(tempfile.mkdtemp(prefix="onnxprune-"))
    try:
        yield root
    finally:
        shutil.rmtree(root, ignore_errors=True)
        for left in [path for place in set(results) for path in place.glob(f"{unfinished(root.name)}*")]:
            shutil.rmtree(left, ignore_errors=True)


@contextlib.contextmanager
def belonging_to(root: Path) -> Iterator[None]:
    """Temporary files of this process, and of those that it starts, lie in the folder `root` while the block runs."""
    before = {name: os.environ.get(name) for name in (*_TEMPORARY, _OWNER)}
    folder = tempfile.tempdir
    os.environ.update({**dict.fromkeys(_TEMPORARY, str(root)), _OWNER: root.name})
    tempfile.tempdir = str(root)
    try:
        yield
    finally:
        tempfile.tempdir = folder
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
