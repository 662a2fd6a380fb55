"""One of several models, wherever it is pruned: here, in another process, or on another machine.

To a machine that does not see the files of this one the model travels as bytes, and so does what is written there.
What the report says of places then is what it would say here.
"""

from __future__ import annotations

import dataclasses
import logging
import tempfile
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onnxprune.api import prune
from onnxprune.config import Config, default_output
from onnxprune.errors import OnnxPruneError
from onnxprune.modelfile import ModelFile, preflight, publish
from onnxprune.records import Pruned
from onnxprune.trials import cargo
from onnxprune.trials.cargo import Cargo, Freight

log = logging.getLogger(__name__)

_WITH_PLACES = ("model", "output", "options", "notes", "inputs", "metric")
"""Fields of a report that may name files."""


@dataclass(frozen=True)
class Job:
    """A model, and where its result goes; None for the default."""

    model: Path
    output: Path | None

    @property
    def written(self) -> Path:
        """Where the result goes."""
        return self.output or default_output(self.model)


@dataclass(frozen=True)
class Sent:
    """A job for another machine, with its model as it goes there; `output`: the place that all machines see."""

    job: Job
    freight: Freight
    output: Path


@dataclass(frozen=True)
class Back:
    """What became of a job on another machine, and the files written there that are to come here, by name."""

    pruned: Pruned
    files: Mapping[str, bytes] = field(default_factory=dict)


def attempt(config: Config, job: Job) -> Pruned:
    """Prune one model; an error is part of the record."""
    try:
        return Pruned(str(job.model), prune(job.model, dataclasses.replace(config, output=job.output)))
    except OnnxPruneError as error:
        return Pruned(str(job.model), None, str(error), error.exit_code)
    except Exception as error:  # noqa: BLE001 - the other models are still to be pruned
        log.debug("%s", traceback.format_exc())
        return Pruned(str(job.model), None, f"internal error: {type(error).__name__}: {error}", 1)


# ---- On another machine ----------------------------------------------------------------------------------------------


def attempt_far(packed: Cargo, sent: Sent) -> Back:
    """`attempt` on a machine of a cluster."""
    with tempfile.TemporaryDirectory(prefix="onnxprune-") as name:
        folder = Path(name)
        for part in ("in", "out"):
            (folder / part).mkdir()
        try:
            model, config = packed.loaded(sent.freight).unpacked(folder / "in")
        except OnnxPruneError as error:
            return Back(Pruned(str(sent.job.model), None, str(error), error.exit_code))
        output = folder / "out" / sent.job.written.name if sent.freight.files else sent.output
        found = attempt(config, Job(model, output))
        said = {
            str(model): str(sent.job.model),
            str(model.parent): str(sent.job.model.parent),
            str(output): str(sent.job.written),
            **packed.places(folder / "in"),
        }
        return Back(
            _renamed(found, sent.job, said), {path.name: path.read_bytes() for path in (folder / "out").iterdir()}
        )


def _renamed(found: Pruned, job: Job, said: Mapping[str, str]) -> Pruned:
    """The record with the places as the user knows them."""
    report = found.report
    if report is not None:
        report = dataclasses.replace(report, **{name: _told(getattr(report, name), said) for name in _WITH_PLACES})
    return Pruned(str(job.model), report, _told(found.error, said), found.exit_code)


def _told(value: Any, said: Mapping[str, str]) -> Any:
    """Any record with other names for places, the longest of them first."""
    if isinstance(value, Path):
        return Path(_told(str(value), said))
    if isinstance(value, str):
        for there, here in sorted(said.items(), key=lambda pair: -len(pair[0])):
            value = value.replace(there, here)
    if isinstance(value, Mapping):
        return {name: _told(entry, said) for name, entry in value.items()}
    if isinstance(value, tuple):
        return tuple(_told(entry, said) for entry in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        changed = {entry.name: _told(getattr(value, entry.name), said) for entry in dataclasses.fields(value)}
        return dataclasses.replace(value, **changed)
    return value


# ---- The way there and back ------------------------------------------------------------------------------------------


class Shipment(Sequence[tuple[str, Sent]]):
    """Jobs by name, as they are sent. Files are read when one is asked for: they need not all fit into memory."""

    def __init__(self, jobs: Sequence[Job], *, travels: bool) -> None:
        """The jobs in their order; `travels`: the models as files."""
        self._jobs = jobs
        self._travels = travels

    def __len__(self) -> int:
        """How many jobs there are."""
        return len(self._jobs)

    def __getitem__(self, index: Any) -> Any:
        """The job, with its files read now."""
        job = self._jobs[index]
        freight = cargo.freight(job.model, travels=self._travels)
        return str(job.model), Sent(job, freight, cargo.absolute(job.written))


def refused(jobs: Sequence[Job], config: Config, *, travels: bool) -> Iterator[Pruned]:
    """The jobs that cannot be sent, with the reason: no model, too large, or a result that must not be written."""
    for job in jobs:
        try:
            model = ModelFile.load(job.model, lean=True)
            if not config.dry_run:
                preflight(model, job.written, config.force)
            if travels:
                cargo.require_light(job.model, config)
        except OnnxPruneError as error:
            yield Pruned(str(job.model), None, str(error), error.exit_code)


def received(back: Back, job: Job, *, force: bool) -> Pruned:
    """The record, with the files that came back in their place; an error of that is part of it."""
    if not back.files:
        return back.pruned
    try:
        publish(back.files, job.written, force=force)
    except OnnxPruneError as error:
        return Pruned(str(job.model), None, str(error), error.exit_code)
    return back.pruned
