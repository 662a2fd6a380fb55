"""What a --calibration names: a file, a folder, or a Python function. Reads nothing."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

ARRAYS = (".npz", ".npy")
IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")


def function_of(place: Path) -> tuple[str, str] | None:
    """(module or file, name) of `module:function` or `path/file.py:function`; None for a path."""
    match = re.fullmatch(r"(.+):([A-Za-z_]\w*)", str(place))
    return (match[1], match[2]) if match and not place.exists() else None


def exists(place: Path) -> bool:
    """Whether `place` is a file or folder that is there, or is written like a function whose file may be."""
    found = function_of(place)
    if found is None:
        return place.exists()
    return not found[0].endswith(".py") or Path(found[0]).is_file()


def files_in(folder: Path, endings: tuple[str, ...]) -> Iterator[Path]:
    """The files of a folder and its subfolders with one of `endings` (any case), by name; hidden ones left out."""
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        for name in sorted(names):
            if name.lower().endswith(endings) and not name.startswith("."):
                yield Path(place) / name
