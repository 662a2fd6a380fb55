"""The folder for several results."""

from __future__ import annotations

import os
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
