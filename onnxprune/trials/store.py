"""The folder of a search: one JSON file and one plan per finished trial, each written whole or not at all.

The plan comes first; a trial is finished when its JSON file is there, so that a search can be cut off at any time.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from onnxprune.errors import OutputError
from onnxprune.folder import make_folder
from onnxprune.records import Latency, LatencySide, Measured, Totals, Trial, TrialResult
from onnxprune.trials import space

log = logging.getLogger(__name__)

SCHEMA = 1
KEY_DIGITS = 12
"""Digits of the key in file names."""


class Store:
    """Results by trial and key in `folder`, which is made where it is not there. Raises OutputError where it cannot."""

    def __init__(self, folder: Path) -> None:
        """Open the folder."""
        self.folder = folder
        make_folder(folder, if_file="this is a file; give a folder for the results")
        if not os.access(folder, os.W_OK | os.X_OK):
            raise OutputError(f"{folder}: no permission to write to the folder; choose another")

    def read(self, trial: Trial, key: str) -> TrialResult | None:
        """The result of a finished trial; None where there is none, or none that is whole."""
        path = self._path(trial, key, "json")
        if not path.exists():
            return None
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            found = _result(data) if data["schema"] == SCHEMA else None
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("%s cannot be read (%s): the trial is made again", path, error)
            return None
        if found is None or found.key != key or (found.plan and not (self.folder / found.plan).exists()):
            return None
        return found

    def write(self, result: TrialResult, plan: str | None = None) -> TrialResult:
        """Keep a result, and the text of its plan where it is new; the result with the name of the plan."""
        if plan is not None:
            path = self._path(result.trial, result.key, "plan.json")
            self._replace(path, plan)
            result = dataclasses.replace(result, plan=path.name)
        data = {"schema": SCHEMA, **dataclasses.asdict(result)}
        if data["latency"]:
            data["latency"]["before"].pop("samples")
            data["latency"]["after"].pop("samples")
        self._replace(self._path(result.trial, result.key, "json"), json.dumps(data, indent=1) + "\n")
        return result

    def _path(self, trial: Trial, key: str, ending: str) -> Path:
        return self.folder / f"{space.slug(trial)}-{key[:KEY_DIGITS]}.{ending}"

    def _replace(self, path: Path, text: str) -> None:
        fresh = self.folder / f".onnxprune-{uuid.uuid4().hex}"
        try:
            try:
                with fresh.open("x", encoding="utf-8") as file:
                    file.write(text)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(fresh, path)
            except BaseException:
                fresh.unlink(missing_ok=True)
                raise
        except OSError as error:
            raise OutputError(f"{path}: cannot be written ({error.strerror}); finished trials are kept") from error


def _result(data: Mapping[str, Any]) -> TrialResult:
    fields = {f.name: data[f.name] for f in dataclasses.fields(TrialResult)}
    fields["trial"] = Trial(**data["trial"])
    fields["quality"], fields["original"] = _measured(data["quality"]), _measured(data["original"])
    fields["after"] = Totals(**data["after"]) if data["after"] else None
    fields["latency"] = _latency(data["latency"]) if data["latency"] else None
    return TrialResult(**fields)


def _measured(data: Mapping[str, Any] | None) -> Measured | None:
    return Measured(data["value"], tuple(data["ci95"]) if data["ci95"] else None) if data else None


def _latency(data: Mapping[str, Any]) -> Latency:
    changed = {
        "before": LatencySide(**data["before"]),
        "after": LatencySide(**data["after"]),
        "ci95": tuple(data["ci95"]),
        "noise_floor": tuple(data["noise_floor"]),
        "warnings": tuple(data["warnings"]),
        "inputs": {name: tuple(shape) for name, shape in data["inputs"].items()},
    }
    return Latency(**{**data, **changed})
