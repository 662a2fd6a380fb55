"""Plans as files: saved, edited, replayed.

{schema, model{name, sha256}, blocks[name], tensors[{name, axis, size, kept, role}], groups[{id, size, kept}]}
"""

from __future__ import annotations

import json
import operator
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxprune import dims
from onnxprune.dims import Dim
from onnxprune.errors import OutputError, UsageError
from onnxprune.records import Analysis, Group, IndexArray, Plan, Role

SCHEMA = 1


def masks(analysis: Analysis, kept: Mapping[str, IndexArray]) -> dict[Dim, npt.NDArray[np.bool_]]:
    """What stays of every group that shrinks, as a bool mask (size,) by atom."""
    return {g.dim: np.isin(np.arange(g.size), kept[g.id]) for g in analysis.groups if g.id in kept}


def to_json(
    plan: Plan, analysis: Analysis, slices: Mapping[str, Mapping[int, IndexArray]], *, model: str, sha256: str
) -> dict[str, Any]:
    """The plan as plain data: one entry per tensor axis that shrinks, one per group that shrinks.

    Setting the slices with the role `contracted` to zero (a quantized weight: to its zero point) in the original masks
    the removed indices.
    """
    roles = _roles(analysis, [g for g in analysis.groups if g.id in plan.kept])
    tensors = [
        {
            "name": name,
            "axis": axis,
            "size": analysis.weights[name][axis].size,
            "kept": kept.tolist(),
            "role": roles.get((name, axis), "carried"),
        }
        for name, axes in slices.items()
        for axis, kept in sorted(axes.items())
    ]
    sizes = {g.id: g.size for g in analysis.groups}
    groups = [{"id": name, "size": sizes[name], "kept": kept.tolist()} for name, kept in plan.kept.items()]
    return {
        "schema": SCHEMA,
        "model": {"name": model, "sha256": sha256},
        "blocks": list(plan.blocks),
        "tensors": tensors,
        "groups": groups,
    }


def _roles(analysis: Analysis, groups: Iterable[Group]) -> dict[tuple[str, int], Role]:
    """The role of every tensor axis the groups lie on.

    A group that is somewhere summed over between activations alone (the width of a head in queries and keys) is not
    masked by its contracted weights; zeroing all of its slices does it, so they all get that role.
    """
    between = {a for c in analysis.contractions if not c.weighted for d in c.dims for a in dims.atoms(d)}
    roles: dict[tuple[str, int], Role] = {}
    for group in groups:
        for o in group.occurrences:
            role: Role = "contracted" if group.dim in between else o.role
            if roles.get((o.tensor, o.axis)) != "contracted":
                roles[o.tensor, o.axis] = role
    return roles


def save(data: Mapping[str, Any], path: Path) -> None:
    """Write plain data as JSON. Raises OutputError where the file cannot be written."""
    try:
        path.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror}); choose another place") from error


def load(path: Path, groups: Mapping[str, Group], *, sha256: Callable[[], str] | None = None) -> Plan:
    """Read a plan and check it against the prunable groups of the model, by id. Raises UsageError naming the entry, and
    the model that the plan was made for where that is another one by its `sha256`."""
    data = _read(path)
    try:
        entries = [(str(g["id"]), int(g["size"]), [operator.index(i) for i in g["kept"]]) for g in data["groups"]]
        if len({name for name, *_ in entries}) < len(entries):
            raise ValueError("a group is listed twice")
    except (ValueError, KeyError, TypeError) as error:
        raise _no_plan(path, error) from error
    try:
        kept = {name: _checked(path, groups, name, size, kept) for name, size, kept in entries}
    except UsageError as error:
        made_for = data.get("model")
        if sha256 is None or not isinstance(made_for, dict) or made_for.get("sha256") in (None, sha256()):
            raise
        found = str(error).removeprefix(f"{path}: ")
        raise UsageError(f"{path}: the plan was made for another model, {made_for.get('name')}: {found}") from error
    return Plan(kept, load_blocks(path))


def load_blocks(path: Path) -> tuple[str, ...]:
    """The names of the residual blocks that a plan removes: its key `blocks`, which may be absent."""
    names = _read(path).get("blocks", [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UsageError(f"{path}: 'blocks' must be a list of names of residual sums, got {names!r}")
    return tuple(names)


def _read(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        schema = data.get("schema")
    except (OSError, ValueError, AttributeError) as error:
        raise _no_plan(path, error) from error
    if schema != SCHEMA and "groups" in data:
        raise UsageError(f"{path}: plan schema {schema!r}, this version reads {SCHEMA}")
    return dict(data)


def _no_plan(path: Path, error: Exception) -> UsageError:
    return UsageError(f"{path}: not a plan ({type(error).__name__}: {error}); make one with --save-plan")


def _checked(path: Path, groups: Mapping[str, Group], name: str, size: int, kept: list[int]) -> IndexArray:
    group = groups.get(name)
    if group is None:
        raise UsageError(f"{path}: the model has no prunable group {name!r}; see `onnxprune inspect`")
    if group.size != size:
        raise UsageError(f"{path}: group {name!r} has {group.size} indices in the model, {size} in the plan")
    if not kept or sorted(set(kept)) != kept or kept[0] < 0 or kept[-1] >= size:
        raise UsageError(f"{path}: the kept indices of group {name!r} must rise within 0..{size - 1} and not be empty")
    if len(kept) < group.least:
        raise UsageError(
            f"{path}: group {name!r} keeps {len(kept)} indices, but the model chooses {group.least} of them; keep more"
        )
    return np.asarray(kept, np.int64)
