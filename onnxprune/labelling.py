"""Class numbers of images, which have names and no order: by a table of names, or by the folders they lie in."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from onnxprune.calibration.arrays import why
from onnxprune.errors import UsageError
from onnxprune.wording import plural

TABLES = (".csv", ".tsv", ".txt")
"""Endings of tables: an image and its class number in every line, with a comma, semicolon, tab or space between."""


def is_of_names(place: Path) -> bool:
    """Whether `place` gives labels by name: a table, or a folder of folders."""
    return place.is_dir() or place.suffix.lower() in TABLES


def classes(place: Path, files: Sequence[Path]) -> npt.NDArray[np.int64]:
    """The class number of every image. Raises UsageError where `place` says none for one of them."""
    return _by_folder(place, files) if place.is_dir() else _by_table(place, files)


def _by_folder(place: Path, files: Sequence[Path]) -> npt.NDArray[np.int64]:
    """The folders in `place` are the classes, in the order of their names; of an image that lies elsewhere, the last
    folder on its path that is called like one."""
    numbers = {name: k for k, name in enumerate(sorted(e.name for e in os.scandir(place) if _is_class(e)))}
    root, found = place.resolve(), []
    for file in files:
        above = file.resolve().parent
        parts = above.relative_to(root).parts[:1] if above.is_relative_to(root) else above.parts[::-1]
        name = next((part for part in parts if part in numbers), None)
        if name is None:
            raise UsageError(
                f"--labels {place}: the folders in it are the classes, and {file} lies in none of them; give the "
                "folder that holds one folder of images per class, or a .csv table of names and class numbers"
            )
        found.append(numbers[name])
    return np.array(found, np.int64)


def _is_class(entry: os.DirEntry[str]) -> bool:
    return entry.is_dir() and not entry.name.startswith(".")


def _by_table(place: Path, files: Sequence[Path]) -> npt.NDArray[np.int64]:
    """By the end of the path, as far as the table has it: `cat.jpg`, `cats/cat.jpg`."""
    table = _table(place)
    found: dict[str, Path] = {}
    missing: list[Path] = []
    for file in files:
        ends = ("/".join(file.parts[k:]) for k in range(len(file.parts)))
        name = next((end for end in ends if end in table), None)
        if name is None:
            missing.append(file)
        elif found.setdefault(name, file) != file:
            raise UsageError(f"--labels {place}: {name} may be {found[name]} or {file}; give their folders too")
    if missing:
        raise UsageError(
            f"--labels {place}: {plural(len(missing), 'image')} of {len(files)} have no line in it, the first of them "
            f"{missing[0]}; a class number below 0 leaves an image out"
        )
    return np.array([table[name] for name in found], np.int64)


def _table(place: Path) -> dict[str, int]:
    """Class numbers by name. The first line may be a heading."""
    try:
        lines = place.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--labels {place}: not a table of text ({why(error)})") from error
    filled = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    between = next((c for c in ",;\t" if filled and c in filled[-1][1]), " ")
    table: dict[str, int] = {}
    for position, (number, line) in enumerate(filled):
        row = [cell.strip() for cell in next(csv.reader([line], delimiter=between, skipinitialspace=True))]
        name, label = (" ".join(row[:-1]) if between == " " else row[0], row[-1]) if len(row) > 1 else ("", "")
        if not name or not label.lstrip("+-").isdecimal():
            if position == 0:
                continue
            raise UsageError(
                f"--labels {place}: line {number} is {line[:80]!r}; a name and a class number are needed, such as "
                "cat.jpg,3"
            )
        name = name.replace("\\", "/").removeprefix("./")
        if table.setdefault(name, int(label)) != int(label):
            raise UsageError(f"--labels {place}: {name} has the class {table[name]}, and in line {number} {int(label)}")
    return table
