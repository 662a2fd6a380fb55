"""Two separate proofs: exactness (the surgery is right) and quality (how far the result is from the original).

Models run in a child process, so that a crash of ONNX Runtime is an error message.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx

from onnxprune import calibration, runtime
from onnxprune.branches import has_branches, take_branch
from onnxprune.closeness import quality_of
from onnxprune.errors import ModelError, UsageError, VerificationError, runs_nowhere
from onnxprune.modelfile import external_files, skeleton
from onnxprune.records import Exactness, Feed, Proof, Quality
from onnxprune.widening import has_half, widen

log = logging.getLogger(__name__)

TOLERANCE = 1e-4
"""Largest allowed difference over the largest absolute output, for float32 arithmetic."""
HALF_TOLERANCE = 5e-3
"""The same for half precision models that are too large to be computed in float32."""
LARGEST_WIDENED = 1 << 30
REAL_ROWS = 16
"""Rows of the calibration data that exactness is shown on, where made-up inputs do not serve."""
QUALITY_ROWS = 512
"""Rows that quality is measured on, at most."""

Array = npt.NDArray[Any]
Outputs = dict[str, Array]


def check_file(path: Path, original: Path) -> None:
    """The checker and strict shape inference of onnx on a finished file, as far as the original passes them.

    Raises VerificationError with their words.
    """
    fault = _fault(path)
    if fault is not None and _fault(original) is None:
        raise VerificationError(f"the pruned model is not valid: {fault}") from fault


def _fault(path: Path) -> Exception | None:
    try:
        onnx.checker.check_model(str(path), full_check=False)
        onnx.shape_inference.infer_shapes(skeleton(path, lean=True), check_type=True, strict_mode=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        return error
    return None


def difference_of(reference: Array, result: Array) -> float:
    """Largest absolute difference; the share of different elements where they are not real numbers.

    Infinite where shapes differ or one side alone is not finite.
    """
    if reference.shape != result.shape:
        return math.inf
    if not reference.size:
        return 0.0
    if reference.dtype.kind != "f" and str(reference.dtype) != "bfloat16":
        return float(np.mean(reference != result))
    a, b = reference.astype(np.float64), result.astype(np.float64)
    finite = np.isfinite(a)
    if not np.array_equal(finite, np.isfinite(b)) or not np.array_equal(a[~finite], b[~finite], equal_nan=True):
        return math.inf
    return float(np.abs(np.where(finite, a, 0) - np.where(finite, b, 0)).max())


def _largest(array: Array) -> float:
    if array.dtype.kind != "f" or not array.size:
        return DISCRETE_SCALE
    return float(np.abs(np.where(np.isfinite(array), array, 0)).max())


def all_outputs(model: str, feeds: Sequence[Feed], *, wide: bool = False) -> list[Outputs]:
    """Outputs of a model for each feed; see `each_output`."""
    return list(each_output(model, feeds, wide=wide))


def each_output(model: str, feeds: Iterable[Feed], *, wide: bool = False) -> Iterator[Outputs]:
    """Outputs of a model for one feed after the other, with the runtime's usual optimisations. Run in a child process.

    Those copy weights, so a model with external data is run without them, from the mapped file. `wide`: half
    precision is computed in float32.
    """
    path = Path(model)
    usual = not external_files(path, skeleton(path, lean=True))
    source = _bytes(skeleton(path), str(path.parent), wide) if wide else model
    session = runtime.session(source, optimize=usual, prepack=usual)
    for feed in feeds:
        yield _run(session, feed)


def is_widened(path: Path) -> bool:
    """Whether a model is proved in float32: half precision, and small enough to be copied in memory."""
    proto = skeleton(path, lean=True)
    size = sum(file.stat().st_size for file in (path, *external_files(path, proto)))
    return has_half(proto) and size <= LARGEST_WIDENED


def _run(session: Any, feed: Feed) -> Outputs:
    """All outputs as arrays: of a sequence of maps (ZipMap) the values."""
    return {name: runtime.as_array(value) for name, value in runtime.run(session, feed).items()}


def compare_quality(original: str, pruned: str, feeds: Sequence[Feed], *, data: str) -> Quality:
    """How close the pruned model is to the original on `QUALITY_ROWS` rows of `feeds` at most, for every pruned model
    the same. Run in a child process."""
    chosen = calibration.batches(feeds, calibration.fixed_rows(skeleton(Path(original), lean=True)), QUALITY_ROWS)
    wide = needs_widening(original, chosen)
    return _quality(all_outputs(original, chosen, wide=wide), all_outputs(pruned, chosen, wide=wide), chosen, data=data)


def _quality(reference: Sequence[Outputs], result: Sequence[Outputs], feeds: Sequence[Feed], *, data: str) -> Quality:
    """Closeness of the outputs that both have."""
    outputs = {}
    for name in result[0]:
        a, b = ([outputs_[name] for outputs_ in side] for side in (reference, result))
        if a[0].dtype.kind == "f":
            outputs[name] = quality_of(a, b)
    samples = sum(max((len(a) for a in f.values() if a.ndim), default=1) for f in feeds)
    return Quality(outputs, "calibration" if data == "calibration" else "synthetic", samples)


def needs_widening(model: str, feeds: Sequence[Feed]) -> bool:
    """Whether the runtime lacks half precision kernels for a model, or the feeds were made for the widened one."""
    if not is_widened(Path(model)):
        return False
    try:
        all_outputs(model, feeds[:1])
    except (ModelError, UsageError):
        return True
    return False


def tolerance_for(path: Path) -> float:
    """The tolerance for the model in a file."""
    return HALF_TOLERANCE if has_half(skeleton(path, lean=True)) and not is_widened(path) else TOLERANCE


def require_exact(exactness: Exactness, tolerance: float) -> None:
    """Raise VerificationError where the surgery is not exact."""
    if not exactness.passed:
        raise VerificationError(
            f"the pruned model differs from the masked original by {exactness.max_rel:.2e} of the output range "
            f"(allowed: {tolerance:.0e}); nothing was written. Please report this model; --keep excludes groups"
        )


def require_equal(exactness: Exactness, tolerance: float) -> None:
    """Raise VerificationError where a model without blocks is not the original with their branches at zero."""
    if not exactness.passed:
        raise VerificationError(
            f"the model without the removed residual blocks differs from the original with their branches at zero by "
            f"{exactness.max_rel:.2e} of the output range (allowed: {tolerance:.0e}); nothing was written. Please "
            "report this model; it can be pruned without --depth"
        )


def worst_of(first: Exactness, second: Exactness) -> Exactness:
    """The exactness of two steps, one after the other."""
    return Exactness(
        max(first.max_abs, second.max_abs),
        max(first.max_rel, second.max_rel),
        first.passed and second.passed,
        min(first.runs, second.runs),
        first.shown and second.shown,
    )


def prove(  # noqa: PLR0913 - all that the child process has to know
    original: str,
    masked: str,
    pruned: str,
    *,
    uncut: str | None = None,
    folder: str,
    sizes: Sequence[Mapping[str, Sequence[int]]],
    bounds: Mapping[str, int],
    feeds: Sequence[Feed],
    seed: int,
    tolerance: float,
    settled: Collection[int] = (),
) -> Proof:
    """Exactness on made-up inputs of two of `sizes`, or on `feeds` where those tell nothing; quality on `feeds` or the
    same inputs. Run in a child process.

    `uncut`: what was masked and cut where that is not the original (residual blocks removed); like `masked` it has its
    external data in `folder`. `bounds`: for integer inputs, one more than the largest value. `settled`: the Ifs that
    run one branch alone, which no other is forced on (as `branches.settled_numbers`).
    """
    wide = is_widened(Path(original))
    reference = _probed_session(Path(masked), folder, wide)
    made, expected = _working_feeds(reference, original, sizes, bounds, seed, wide, feeds)
    result = _probed_session(Path(pruned), str(Path(pruned).parent), wide)
    found = [_run_pruned(result, feed) for feed in made]
    del reference, result
    whole = (original, str(Path(original).parent))
    before = (uncut, folder) if uncut else whole
    uncut_outputs = _outputs_alone(*before, made, wide)
    bounded = _bounded_outputs(skeleton(Path(pruned), lean=True))
    exactness = exactness_of(_there(expected, found, Path(pruned)), found, uncut_outputs, bounded, tolerance)
    if has_branches(skeleton(Path(masked)), settled):
        models = (before, (masked, folder), (pruned, str(Path(pruned).parent)))
        for then in (True, False):
            exactness = _with_branch(exactness, _Branch(then, settled), models, made, tolerance, wide)
    if not feeds:
        outputs = all_outputs(pruned, made, wide=wide)
        original_outputs = _outputs_alone(*whole, made, wide) if uncut else uncut_outputs
        return Proof(exactness, _quality(original_outputs, outputs, made, data="synthetic"))
    return Proof(exactness, compare_quality(original, pruned, feeds, data="calibration"))


def _outputs_alone(model: str, folder: str, feeds: Sequence[Feed], wide: bool) -> list[Outputs]:
    """What a model with its external data in `folder` returns, and what goes into its last bounded operators, in little
    memory."""
    session = _probed_session(Path(model), folder, wide)
    return [_run(session, feed) for feed in feeds]


class _Branch(NamedTuple):
    """The branch that every If takes, other than those with the numbers in `settled`."""

    then: bool
    settled: Collection[int]


def _with_branch(
    so_far: Exactness,
    branch: _Branch,
    models: Sequence[tuple[str, str]],
    feeds: Sequence[Feed],
    tolerance: float,
    wide: bool,
) -> Exactness:
    """The worse of `so_far` and the exactness where every If takes that branch, on those of `feeds` that the masked
    model then runs on. `models`: uncut, masked and pruned, with the folders of their external data.
    """
    uncut, masked, pruned = ((Path(path), folder) for path, folder in models)
    working, expected = _those_that_run(_probed_session(*masked, wide, branch), feeds)
    if not working or not _has_numbers(expected):
        return so_far
    before = _those_that_run(_probed_session(*uncut, wide, branch), working)[1]
    session = _probed_session(*pruned, wide, branch)
    found = [_run_pruned(session, feed) for feed in working]
    forced = exactness_of(
        _there(expected, found, pruned[0]), found, before, _bounded_outputs(skeleton(pruned[0])), tolerance
    )
    return Exactness(
        max(so_far.max_abs, forced.max_abs),
        max(so_far.max_rel, forced.max_rel),
        so_far.passed and forced.passed,
        so_far.runs,
        so_far.shown or forced.shown,
    )


def _those_that_run(session: Any, feeds: Sequence[Feed]) -> tuple[list[Feed], list[Outputs]]:
    working: list[Feed] = []
    results: list[Outputs] = []
    for feed in feeds:
        try:
            results.append(_run(session, feed))
            working.append(feed)
        except ModelError as error:
            log.debug("a branch that the inputs do not take does not run on them: %s", error)
    return working, results


def prove_equal(
    reference: str,
    result: str,
    *,
    original: str,
    folder: str | None,
    sizes: Sequence[Mapping[str, Sequence[int]]],
    bounds: Mapping[str, int],
    seed: int,
    tolerance: float,
) -> Exactness:
    """Exactness of the model file `result` against `reference`, both made from `original`, with their external data
    in `folder` (None: each with its own beside it). The inputs are those of `prove`. Run in a child process.
    """
    wide = is_widened(Path(original))
    session = _probed_session(Path(reference), folder or str(Path(reference).parent), wide)
    made, expected = _working_feeds(session, original, sizes, bounds, seed, wide)
    del session
    session = _probed_session(Path(result), folder or str(Path(result).parent), wide)
    found = [_run_pruned(session, feed) for feed in made]
    del session
    whole = _outputs_alone(original, str(Path(original).parent), made, wide)
    return exactness_of(
        _there(expected, found, Path(result)), found, whole, _bounded_outputs(skeleton(Path(result))), tolerance
    )


def _there(expected: Sequence[Outputs], found: Sequence[Outputs], result: Path) -> list[Outputs]:
    """What was expected, but for what goes into a last operator and has another name in the model `result`."""
    outputs = {o.name for o in skeleton(result, lean=True).graph.output}
    return [{n: v for n, v in each.items() if n in found[0] or n in outputs} for each in expected]


def exactness_of(
    expected: Sequence[Outputs],
    found: Sequence[Outputs],
    original: Sequence[Outputs],
    bounded: Collection[str],
    tolerance: float,
) -> Exactness:
    """Compare the outputs of all runs. The range of an output is the largest absolute value that it takes in any run
    of the original or the masked model, and 1 for the names in `bounded`, whose operator maps into [-1, 1].
    """
    worst_abs = worst_rel = 0.0
    moved = False
    _require_numbers(expected)
    for name in expected[0]:
        sides = [outputs[name] for outputs in (*expected, *original) if name in outputs]
        scale = max([_largest(a) for a in sides] + [1.0 if name in bounded else 0.0])
        for a, b in zip(expected, found, strict=True):
            difference = difference_of(a[name], b[name])
            relative = 0.0 if difference == 0 else difference / scale if scale > 0 else math.inf
            worst_abs, worst_rel = max(worst_abs, difference), max(worst_rel, relative)
        before = [outputs[name] for outputs in original if name in outputs]
        changes = [difference_of(a, outputs[name]) for a, outputs in zip(before, expected, strict=False)]
        moved = moved or any(c > tolerance * scale for c in changes)
    return Exactness(worst_abs, worst_rel, worst_rel <= tolerance, len(expected), moved)


def _require_numbers(expected: Sequence[Outputs]) -> None:
    """Raise VerificationError where there is not one finite number to compare."""
    if not _has_numbers(expected):
        raise VerificationError(
            "every output of the model is NaN or infinite at the inputs tried, so nothing can be proved; "
            "check the model, or give sizes it is meant for with --input-shape"
        )


def _has_numbers(results: Sequence[Outputs]) -> bool:
    found = [a for outputs in results for a in outputs.values() if a.dtype.kind == "f"]
    return not found or any(np.isfinite(a).any() for a in found)


BOUNDED = {"Sigmoid", "Softmax", "HardSigmoid", "Tanh", "Softsign"}
"""Operators into [-1, 1]: they hide differences where they saturate, so their operand is compared too."""
DISCRETE_SCALE = 100.0
"""Of results that are not real numbers one in 100 x 1 / tolerance may differ: ties fall either way."""
DISCRETE = {"TopK", "ArgMax", "ArgMin", "Round", "Sign", "Cast", "Floor", "Ceil"}


def _bounded_outputs(proto: onnx.ModelProto) -> set[str]:
    outputs = {o.name for o in proto.graph.output}
    return {o for n in proto.graph.node if n.op_type in BOUNDED for o in n.output if o in outputs}


def _probed_session(path: Path, folder: str, wide: bool, branch: _Branch | None = None) -> Any:
    """A session, graph optimisations off, that also returns what goes into the last bounded or discrete operators.

    `wide`: half precision is computed in float32. `branch`: what Ifs are made to take, None for what they say.
    """
    proto = skeleton(path, lean=path.parent == Path(folder))
    if branch is not None:
        take_branch(proto, *branch)
    producers = {o: n for n in proto.graph.node for o in n.output}
    names = [o.name for o in proto.graph.output]
    for name in list(names):
        node = producers.get(name)
        while node is not None and node.op_type in BOUNDED | DISCRETE:
            source = node.input[0]
            if source in producers and source not in names:
                names.append(source)
                proto.graph.output.append(onnx.ValueInfoProto(name=source))
            node = producers.get(source)
    return runtime.session(_bytes(proto, folder, wide), optimize=False, prepack=False, folder=folder)


def _bytes(proto: onnx.ModelProto, folder: str, wide: bool) -> bytes:
    if wide:
        onnx.external_data_helper.load_external_data_for_model(proto, folder)
        widen(proto)
    serialized: bytes = proto.SerializeToString()
    return serialized


def _run_pruned(session: Any, feed: Feed) -> Outputs:
    try:
        return _run(session, feed)
    except ModelError as error:
        raise VerificationError(f"the pruned model does not run ({error}); nothing was written") from error


def _runs(session: Any, feed: Feed) -> bool:
    try:
        _run(session, feed)
    except ModelError:
        return False
    return True


def _working_feeds(
    session: Any,
    original: str,
    sizes: Sequence[Mapping[str, Sequence[int]]],
    bounds: Mapping[str, int],
    seed: int,
    wide: bool,
    real: Sequence[Feed] = (),
) -> tuple[list[Feed], list[Outputs]]:
    """Up to two made-up feeds that the original runs on, and the outputs of the session, the masked original. Of the
    `real` ones where it runs on none that are made up, or gives no number for them.

    Raises ModelError where the original runs on none, VerificationError where it runs and the session does not.
    """
    made: list[Feed] = []
    expected: list[Outputs] = []
    failure: ModelError | None = None
    whole: Any = None
    for shapes in sizes:
        feed = runtime.synthetic_feed(runtime.input_specs(session), shapes, seed, high=bounds)
        try:
            expected.append(_run(session, feed))
            made.append(feed)
        except ModelError as error:
            whole = whole or _probed_session(Path(original), str(Path(original).parent), wide)
            if _runs(whole, feed):
                raise VerificationError(
                    f"the masked original does not run although the original does ({error}); please report"
                ) from error
            failure = error
        if len(made) == 2:
            break
    if real and not (made and _has_numbers(expected)):
        rows = calibration.batches(real, calibration.fixed_rows(skeleton(Path(original), lean=True)), REAL_ROWS)
        kinds = {name: dtype for name, _, dtype in runtime.input_specs(session)}
        given = [{name: array.astype(kinds[name]) for name, array in feed.items()} for feed in rows[:2]]
        working, results = _those_that_run(session, given)
        made, expected = (working, results) if working else (made, expected)
    if not made:
        raise runs_nowhere("the original model", failure)
    return made, expected
