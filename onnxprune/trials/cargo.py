"""What a worker needs: the model, the inputs and the options, by path or, for another machine, as the files themselves.

Files travel below MOST_BYTES in all. A cluster whose machines see the same folders needs none to travel.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from onnxprune import __version__, widths
from onnxprune.calibration import places
from onnxprune.config import Config
from onnxprune.errors import UsageError
from onnxprune.modelfile import CHUNK_BYTES, external_files, skeleton
from onnxprune.records import Trial
from onnxprune.trials import space

MOST_BYTES = 256 << 20
"""Files that travel, in all."""
PLACES = ("calibration", "evaluation", "labels", "metric")
"""Fields that may name files, folders or functions in a file."""
INDIFFERENT = {*space.DECIDED, "threads", "batch", "run_threads", "budget_s"} - {"ratio", "target", "criterion"}
"""Fields that change nothing about the result of a trial; of `run_threads` the key has the widths it rounds to."""


@dataclass(frozen=True)
class Cargo:
    """The model and options; with `files` (by name below a folder to unpack into), paths are those in that folder.

    `rounding`: what --round-to auto rounds to on this machine, None where it is not asked for. `given`: what the user
    calls the files and folders of options, by what they are called here.
    """

    model: str
    config: Config
    files: Mapping[str, bytes]
    rounding: Mapping[str, object] | None
    given: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def loaded(self, freight: Freight) -> Cargo:
        """The cargo of `pack_options` with a model."""
        return dataclasses.replace(self, model=freight.model, files={**self.files, **freight.files})

    def places(self, folder: Path) -> dict[str, str]:
        """What the user calls the files and folders of options, by what they are called when unpacked into `folder`."""
        return {str(folder / there) if self.files else there: here for there, here in self.given.items()}

    def unpacked(self, folder: Path) -> tuple[Path, Config]:
        """The model's path and the options on this machine; `folder` is empty and stays as long as they are used.

        Raises UsageError where this machine sees no such files, or would round to other widths.
        """
        if _rounding(self.config) != self.rounding:
            raise UsageError(
                f"the machine {socket.gethostname()} is fast at other widths than the one that asks: give --round-to N"
            )
        for name, data in self.files.items():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
        if self.files:
            return folder / self.model, _moved(self.config, lambda field, path: folder / path)
        for path in (Path(self.model), *(path for _, path in _located(self.config))):
            if not path.exists():
                raise UsageError(f"the machine {socket.gethostname()} sees no {path}: leave --shared-paths out")
        return Path(self.model), self.config


@dataclass(frozen=True)
class Freight:
    """A model alone: its path, or its files by name below a folder to unpack into."""

    model: str
    files: Mapping[str, bytes]


def pack(model: Path, config: Config, *, travels: bool) -> Cargo:
    """What workers need; `travels`: as the files themselves. Raises UsageError where they are too large for that."""
    if travels:
        require_light(model, config)
    return pack_options(config, travels=travels).loaded(freight(model, travels=travels))


def require_light(model: Path, config: Config) -> None:
    """Raise UsageError for a model that is too large to travel with the files of the options."""
    size = sum(path.stat().st_size for _, _, path in _files(model, config))
    if size > MOST_BYTES:
        raise UsageError(
            f"model and inputs hold {size >> 20} MB, and no more than {MOST_BYTES >> 20} MB travel to the workers: put "
            "them where all machines see them under the same path, and give --shared-paths"
        )


def pack_options(config: Config, *, travels: bool) -> Cargo:
    """What workers need of all models alike: a cargo without a model."""
    changed = _renamed(config) if travels else _moved(config, lambda field, path: absolute(path))
    given = {str(there): str(here) for (_, there), (_, here) in zip(_located(changed), _located(config), strict=True)}
    return Cargo("", changed, _read(_option_files(config)) if travels else {}, _rounding(config), given)


def freight(model: Path, *, travels: bool) -> Freight:
    """A model for `Cargo.loaded`."""
    return Freight(f"model/{model.name}", _read(_model_files(model))) if travels else Freight(str(absolute(model)), {})


def _read(files: Iterable[tuple[str, str, Path]]) -> dict[str, bytes]:
    return {f"{field}/{name}": path.read_bytes() for field, name, path in files}


class Keys:
    """Names for trials by what decides their result: the bytes of model and inputs, the options, this version."""

    def __init__(self, model: Path, config: Config) -> None:
        """Read the files once; costs the time of reading them."""
        files = [(field, name, _digest(path)) for field, name, path in _files(model, config)]
        self._known = [__version__, files, _rounding(config)]
        self._config = _renamed(config)

    def key(self, trial: Trial) -> str:
        """SHA-256 in hexadecimal."""
        options = dataclasses.asdict(space.of(self._config, trial))
        told = {name: value for name, value in options.items() if name not in INDIFFERENT}
        text = json.dumps([*self._known, told], sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()


def _rounding(config: Config) -> Mapping[str, object] | None:
    """The steps that the plans of this machine round to."""
    if config.round_to != "auto":
        return None
    return dataclasses.asdict(widths.known(config.provider, config.run_threads))


def _split(value: Path | str) -> tuple[Path, str] | None:
    """(file or folder, ":function" or "") of the value of a field; None where it names no file."""
    found = places.function_of(Path(value))
    if found is None:
        return (Path(value), "") if isinstance(value, Path) else None
    return (Path(found[0]), f":{found[1]}") if found[0].endswith(".py") else None


def _located(config: Config) -> Iterator[tuple[str, Path]]:
    """The fields that name files or folders, and which."""
    for field in PLACES:
        value = getattr(config, field)
        if value is not None and (split := _split(value)) is not None:
            yield field, split[0]


def _moved(config: Config, change: Callable[[str, Path], Path]) -> Config:
    """The configuration with other paths."""
    moved: dict[str, object] = {}
    for field, path in _located(config):
        value = getattr(config, field)
        split = _split(value)
        moved[field] = type(value)(f"{change(field, path)}{split[1] if split else ''}")
    return dataclasses.replace(config, **moved)  # type: ignore[arg-type]


def _renamed(config: Config) -> Config:
    """The configuration with the paths that files have where they are unpacked."""
    return _moved(config, lambda field, path: Path(field) / absolute(path).name)


def absolute(path: Path) -> Path:
    """The path from the root on, links kept: external data lies beside the link to a model."""
    return Path(os.path.abspath(path))


def _files(model: Path, config: Config) -> Iterator[tuple[str, str, Path]]:
    """(field, name below it, path) of every file that a trial reads."""
    yield from _model_files(model)
    yield from _option_files(config)


def _model_files(model: Path) -> Iterator[tuple[str, str, Path]]:
    model = absolute(model)
    for path in (model, *external_files(model, skeleton(model))):
        yield "model", _below(path, model.parent), path


def _option_files(config: Config) -> Iterator[tuple[str, str, Path]]:
    for field, given in _located(config):
        place = absolute(given)
        if place.is_dir():
            for path in places.files_in(place, (*places.ARRAYS, *places.IMAGES)):
                yield field, _below(path, place.parent), path
        else:
            yield field, place.name, place


def _below(path: Path, folder: Path) -> str:
    return str(PurePosixPath(*path.relative_to(folder).parts))


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
