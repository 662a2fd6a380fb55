"""Inputs from a Python function: `module:function`, or `path/file.py:function`.

The function takes no arguments and returns an iterable (a generator, a list). Every item is a dict of arrays by input
name, or one array for a model with one input; the first axis counts rows. It is asked for no more items than needed.
"""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from onnxprune import usercode
from onnxprune.errors import UsageError
from onnxprune.records import Feed


def read(source: str, name: str, names: Sequence[str], limit: int, extra: str | None = None) -> Iterator[Feed]:
    """Feeds of the inputs `names`, and of `extra` where an item has it, until they hold `limit` rows.

    What the user's code prints goes to standard error. Raises UsageError with the place for whatever it raises.
    """
    label = f"--calibration {source}:{name}"
    rows = 0
    items = _items(label, source, _find(source, name))
    while rows < limit:
        with _guarded(label, source):
            item = next(items, None)
            feed = None if item is None else _feed(label, item, names, extra)
        if feed is None:
            return
        counts = {len(a) if a.ndim else -1 for a in feed.values()}
        total = counts.pop() if len(counts) == 1 else -1
        if total > limit - rows:
            feed = {n: a[: limit - rows] for n, a in feed.items()}
        yield feed
        rows += total if total >= 0 else 1
    with _guarded(label, source):
        del items  # a generator runs its `finally` here


def _find(source: str, name: str) -> Callable[[], Any]:
    label = f"--calibration {source}:{name}"
    with _guarded(label, source):
        module = usercode.load(source)
    function = getattr(module, name, None)
    if function is None:
        raise UsageError(f"{label}: {source} has no function {name!r}")
    if not callable(function):
        raise UsageError(f"{label}: {name!r} is not a function but {type(function).__name__}")
    found: Callable[[], Any] = function
    return found


def _items(label: str, source: str, function: Callable[[], Any]) -> Iterator[Any]:
    with _guarded(label, source):
        result = function()
        if isinstance(result, (np.ndarray, Mapping)):
            return iter([result])
        try:
            return iter(result)
        except TypeError as error:
            raise UsageError(
                f"{label}: it returned {type(result).__name__}; it must return or yield dicts of arrays by input name"
            ) from error


def _feed(label: str, item: Any, names: Sequence[str], extra: str | None) -> Feed:
    if isinstance(item, Mapping):
        missing = [n for n in names if n not in item]
        if missing:
            raise UsageError(
                f"{label}: input {missing[0]!r} has no array; an item has {', '.join(sorted(map(str, item)))}"
            )
        wanted = [*names, extra] if extra is not None and extra in item else names
        return {n: np.asarray(item[n]) for n in wanted}
    if len(names) == 1 and isinstance(item, np.ndarray):
        return {names[0]: item}
    raise UsageError(
        f"{label}: it yields {type(item).__name__}; the model needs dicts with arrays for {', '.join(names)}"
    )


@contextlib.contextmanager
def _guarded(label: str, source: str) -> Iterator[None]:
    """The user's code: its prints to standard error, its exceptions as UsageError with the line they come from."""
    try:
        with usercode.running(source):
            yield
    except UsageError:
        raise
    except (Exception, SystemExit) as error:
        frames = traceback.extract_tb(error.__traceback__)
        own = [f for f in frames if f.filename not in (__file__, usercode.__file__) and f.filename[:1] != "<"]
        where = f" ({own[-1].filename}, line {own[-1].lineno})" if own else ""
        raise UsageError(f"{label}: {usercode.words(error)}{where}") from error
