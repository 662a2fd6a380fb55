"""The user's Python code: a module by its name, or a file `path/file.py`."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType


def load(source: str) -> ModuleType:
    """The module of that name, from the working directory too, or of that file. Raises whatever its code raises."""
    with importable(source):
        return _load_file(Path(source)) if source.endswith(".py") else importlib.import_module(source)


def _load_file(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextlib.contextmanager
def importable(source: str) -> Iterator[None]:
    """Meanwhile what lies beside the file can be imported; of a module, what lies in the working directory."""
    folder = str(Path(source).parent.resolve()) if source.endswith(".py") else os.getcwd()
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(folder)
