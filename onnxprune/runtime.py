"""The door to ONNX Runtime: sessions with equal, fixed options, their inputs, and inputs made up for them.

Only this module and `latency` import onnxruntime, and only inside functions: the library analyses and cuts without it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from onnxprune.errors import ModelError, UsageError
from onnxprune.records import NO_NAMES, Feed
from onnxprune.wording import plural

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

Array = npt.NDArray[np.generic]
InputSpec = tuple[str, tuple[int | str | None, ...], np.dtype[Any]]

IMAGE_CHANNELS = (1, 3, 4)
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}

_DTYPES: dict[str, np.dtype[Any]] = {
    "tensor(float)": np.dtype(np.float32),
    "tensor(double)": np.dtype(np.float64),
    "tensor(float16)": np.dtype(np.float16),
    "tensor(bool)": np.dtype(np.bool_),
    "tensor(string)": np.dtype(np.object_),
    **{f"tensor({sign}int{bits})": np.dtype(f"{sign}int{bits}") for sign in ("", "u") for bits in (8, 16, 32, 64)},
}


# ---- Sessions --------------------------------------------------------------------------------------------------------


def session(
    model: str | Path | bytes,
    *,
    provider: str = "cpu",
    threads: int = 0,
    optimize: bool = True,
    prepack: bool = True,
    arena: bool = True,
    folder: str | None = None,
    profile: str | None = None,
    weights: Mapping[str, Array] | None = None,
) -> InferenceSession:
    """Return an ONNX Runtime session of a model file (or of serialised bytes) on exactly the provider asked for.

    `threads` 0 means all physical cores; `optimize` False turns the graph optimisations off; `prepack` False keeps
    weights as they are in memory (less memory, slower); `arena` False gives memory back after every run, which inputs
    of many sizes would else pile up; `folder` holds the external data of a model given as bytes.
    `profile`: begin a profile in a file whose name begins so; `end_profiling` of the session ends it. `weights`: the
    numbers of initializers that the model declares as external data, by name: no strings, none of less than a byte.
    UsageError where the provider cannot be had: a session never falls back to another one. ModelError where ONNX
    Runtime refuses the model.
    """
    runtime = _import()
    wanted = _available_provider(runtime, provider)
    options = _options(runtime, threads, optimize, prepack, arena)
    if folder is not None:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", folder)
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = profile
    given = {name: _value(runtime, array) for name, array in (weights or {}).items()}
    if given:
        options.add_external_initializers(list(given), list(given.values()))
    source = model if isinstance(model, bytes) else os.fspath(model)
    label = "the model" if isinstance(model, bytes) else f"'{source!s}'"
    # CUDA sessions always need the CPU beside them: the runtime keeps shape arithmetic there on purpose.
    providers = list(dict.fromkeys((wanted, PROVIDERS["cpu"])))
    try:
        result = runtime.InferenceSession(source, options, providers=providers, enable_fallback=0)
    except Exception as error:  # the runtime's exceptions share no base class
        raise ModelError(f"ONNX Runtime cannot load {label}: {words(error)}") from error
    _require_honoured(runtime, result, provider, wanted)
    if given:  # where the runtime uses their memory as it is, they must live as long as the session
        result.onnxprune_weights = given
    return result


def _value(runtime: Any, array: Array) -> Any:
    from onnx.helper import np_dtype_to_tensor_dtype

    return runtime.OrtValue.ortvalue_from_numpy_with_onnx_type(array, np_dtype_to_tensor_dtype(array.dtype))


def require_provider(provider: str) -> None:
    """Raise UsageError where this machine cannot run models on `provider`. Run in a child process."""
    _available_provider(_import(), provider)


def version() -> str:
    """Package and version, such as "onnxruntime 1.31.1"."""
    return _package(_import())


def _import() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        advice = "pip install onnxruntime (or onnxruntime-gpu for NVIDIA GPUs; never both)"
        raise UsageError(f"ONNX Runtime is not installed, and running a model needs it: {advice}") from error
    return onnxruntime


def _options(runtime: Any, threads: int, optimize: bool, prepack: bool, arena: bool) -> Any:
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads or physical_cores()
    options.inter_op_num_threads = 1
    level = runtime.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimize else level.ORT_DISABLE_ALL
    # Spinning worker threads of one session take the cores from the session it is compared with.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    options.enable_cpu_mem_arena = options.enable_mem_pattern = arena
    if not prepack:
        options.add_session_config_entry("session.disable_prepacking", "1")
    return options


def _available_provider(runtime: Any, provider: str) -> str:
    """The full name of a provider this build of ONNX Runtime has; loads CUDA's libraries where pip installed them."""
    wanted = PROVIDERS.get(provider)
    if wanted is None:
        raise UsageError(f"provider '{provider}' is unknown; choose one of {', '.join(PROVIDERS)}")
    available = runtime.get_available_providers()
    if wanted not in available:
        raise UsageError(
            f"provider '{provider}' was asked for ({wanted}), but the installed {_package(runtime)} has only "
            f"{', '.join(available)}. {_INSTALL_GPU}"
        )
    if provider == "cuda" and hasattr(runtime, "preload_dlls"):
        runtime.preload_dlls()
    return wanted


_INSTALL_GPU = (
    "Install the GPU build in its place: pip uninstall onnxruntime, then pip install 'onnxruntime-gpu[cuda,cudnn]'"
)


def _package(runtime: Any) -> str:
    return f"{getattr(runtime, 'package_name', 'onnxruntime')} {runtime.__version__}"


def _require_honoured(runtime: Any, result: InferenceSession, provider: str, wanted: str) -> None:
    """A provider that fails to start is dropped by ONNX Runtime with a log line; here it is an error."""
    used = result.get_providers()
    if not used or used[0] != wanted:
        built_for = getattr(runtime, "cuda_version", "") or "an unknown version"
        raise UsageError(
            f"provider '{provider}' was asked for ({wanted}), but ONNX Runtime could not start it and would run on "
            f"{', '.join(used) or 'nothing'}. Installed is {_package(runtime)}, built for CUDA {built_for}: check the "
            "driver with nvidia-smi and the libraries with pip install 'onnxruntime-gpu[cuda,cudnn]'"
        )
    placed = nodes_per_provider(result)
    if placed and wanted not in placed:
        where = ", ".join(f"{name}: {plural(count, 'node')}" for name, count in placed.items())
        raise UsageError(
            f"provider '{provider}' was asked for ({wanted}), but it runs no node of the model ({where}): its "
            "operators or element types are not available there. Use --provider cpu"
        )


def nodes_per_provider(session: InferenceSession) -> dict[str, int]:
    """Number of graph nodes per execution provider, as placed before fusion; {} where ONNX Runtime does not tell."""
    counts: dict[str, int] = {}
    try:
        for part in session.get_provider_graph_assignment_info():
            counts[part.ep_name] = counts.get(part.ep_name, 0) + len(part.get_nodes())
    except Exception:  # noqa: BLE001 - absent before ONNX Runtime 1.24, or not recorded; the figure is a courtesy
        return {}
    return counts


def physical_cores() -> int:
    """Cores this process may use, hardware threads of one core counted once; logical processors where unknown."""
    try:
        usable = os.sched_getaffinity(0)
        topology = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
        return len({Path(topology.format(cpu)).read_text(encoding="ascii") for cpu in usable})
    except (AttributeError, OSError):
        return os.cpu_count() or 1


def words(error: Exception) -> str:
    """The message of an ONNX Runtime exception without its "[ONNXRuntimeError] : 1 : FAIL : " prefix."""
    text = str(error)
    return text.split(" : ", 3)[-1] if text.startswith("[ONNXRuntimeError]") else text


# ---- Running ---------------------------------------------------------------------------------------------------------


def input_specs(session: InferenceSession) -> list[InputSpec]:
    """(name, shape, dtype) of every input; a dynamic axis is its name, or None where it has none."""
    specs: list[InputSpec] = []
    for value in session.get_inputs():
        if value.type not in _DTYPES:
            raise ModelError(f"input '{value.name}' has type {value.type}, which cannot be fed from Python here")
        shape = tuple(None if axis in NO_NAMES else axis for axis in value.shape)
        specs.append((value.name, shape, _DTYPES[value.type]))
    return specs


def fitting_feed(session: InferenceSession, feeds: Mapping[str, Array]) -> Feed:
    """The entries of `feeds` that the model takes; UsageError naming the input where one is missing or does not fit."""
    chosen: Feed = {}
    for name, shape, dtype in input_specs(session):
        if name not in feeds:
            raise UsageError(f"input '{name}' of the model has no data; given: {', '.join(feeds) or 'nothing'}")
        array = np.asarray(feeds[name])
        if array.dtype != dtype and dtype != np.object_:
            raise UsageError(f"input '{name}' takes {dtype}, but the array given is {array.dtype}")
        _require_shape(name, shape, array.shape)
        chosen[name] = array
    return chosen


def _require_shape(name: str, declared: Sequence[int | str | None], given: Sequence[int]) -> None:
    fits = len(declared) == len(given) and all(
        not isinstance(axis, int) or axis == size for axis, size in zip(declared, given, strict=True)
    )
    if not fits:
        wanted = ", ".join("?" if axis is None else str(axis) for axis in declared)
        raise UsageError(f"input '{name}' has shape ({wanted}), but ({', '.join(map(str, given))}) was given")


def run(session: InferenceSession, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """All outputs by name for one set of inputs; UsageError for inputs that do not fit, ModelError where it fails."""
    chosen = fitting_feed(session, feeds)
    names = [value.name for value in session.get_outputs()]
    try:
        return dict(zip(names, session.run(names, chosen), strict=True))
    except Exception as error:  # the runtime's exceptions share no base class
        raise ModelError(f"ONNX Runtime fails while it runs the model: {words(error)}") from error


def as_array(value: Any) -> Array:
    """What a session gives as an array: of a sequence or map (ZipMap) the values, behind each other."""
    if isinstance(value, dict):
        return np.asarray(list(value.values()))
    return np.concatenate([np.ravel(as_array(v)) for v in value]) if isinstance(value, list) else np.asarray(value)


def measure_types(
    model: bytes, folder: str, sizes: Mapping[str, Sequence[int]]
) -> dict[str, tuple[int, tuple[int, ...]]]:
    """(TensorProto data type, shape) of every output in one run on made-up inputs. Run in a child process."""
    from onnx.helper import np_dtype_to_tensor_dtype

    opened = session(model, optimize=False, prepack=False, folder=folder)
    outputs = run(opened, synthetic_feed(input_specs(opened), sizes))
    arrays = {name: value for name, value in outputs.items() if isinstance(value, np.ndarray)}
    return {name: (int(np_dtype_to_tensor_dtype(a.dtype)), a.shape) for name, a in arrays.items()}


# ---- Made-up inputs --------------------------------------------------------------------------------------------------


def synthetic_feed(
    specs: Sequence[InputSpec],
    shapes: Mapping[str, Sequence[int]],
    seed: int = 0,
    *,
    high: Mapping[str, int] | None = None,
) -> Feed:
    """Plausible inputs, the same for the same seed; axes as in `resolve_shapes`.

    Float: smooth images (1/f spectrum, mean 0, deviation 1) for 4-D inputs of 1 or 3 channels, else standard normal.
    Integer: uniform in [0, high[name]), or in [0, 2) where the bound is not known. Bool: fair coin. Inputs with "mask"
    in their name: ones, whatever their type. String: "a".
    """
    unknown = ", ".join(sorted(set(high or {}) - {name for name, _, _ in specs}))
    if unknown:
        raise UsageError(f"bounds are given for inputs the model does not have: {unknown}")
    resolved = resolve_shapes(specs, shapes)
    random = np.random.default_rng(seed)
    return {name: _draw(random, name, resolved[name], dtype, (high or {}).get(name, 2)) for name, _, dtype in specs}


def _draw(random: np.random.Generator, name: str, shape: tuple[int, ...], dtype: np.dtype[Any], high: int) -> Array:
    if dtype == np.object_:
        return np.full(shape, "a", dtype=dtype)
    if "mask" in name.lower():
        return np.ones(shape, dtype)
    if dtype == np.bool_:
        return np.asarray(random.random(shape) < 0.5)
    if np.issubdtype(dtype, np.integer):
        return np.asarray(random.integers(0, min(max(high, 1), int(np.iinfo(dtype).max)), shape)).astype(dtype)
    channel = channel_axis(shape)
    if channel is None:
        return np.asarray(random.standard_normal(shape)).astype(dtype)
    return np.moveaxis(_smooth_images(random, np.moveaxis(np.empty(shape), channel, 1).shape), 1, channel).astype(dtype)


def channel_axis(shape: Sequence[int | str | None]) -> int | None:
    """The channel axis of an image batch (1, 3 or 4 channels), first or last; None where it is no image batch."""
    if len(shape) != 4:
        return None
    return next((axis for axis in (1, 3) if shape[axis] in IMAGE_CHANNELS), None)


def _smooth_images(random: np.random.Generator, shape: tuple[int, ...]) -> npt.NDArray[np.float64]:
    """Images (n, c, h, w) whose amplitude falls as 1/f, as that of photographs does; mean 0, deviation 1 each."""
    height, width = shape[2:]
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :])
    frequency[0, 0] = np.inf
    spectrum = np.fft.rfft2(random.standard_normal(shape)) / frequency
    images = np.fft.irfft2(spectrum, s=(height, width))
    deviation = images.std(axis=(2, 3), keepdims=True)
    return np.asarray(images / np.where(deviation > 0, deviation, 1.0))


def resolve_shapes(specs: Sequence[InputSpec], shapes: Mapping[str, Sequence[int]]) -> dict[str, tuple[int, ...]]:
    """A concrete shape per input: that of `shapes` where given, else a default for every dynamic axis.

    Defaults: the first axis 1; in 4-D float inputs the channels 3 and the spatial axes 224 (channels first unless the
    last axis is 1, 3 or 4); in 3-D float inputs (audio, features) 64; else 16. Axes of one name get one size, so that a
    shape given for one input holds for its companions too.
    """
    unknown = ", ".join(sorted(set(shapes) - {name for name, _, _ in specs}))
    if unknown:
        raise UsageError(f"shapes are given for inputs the model does not have: {unknown}")
    sizes: dict[str, int] = {}
    for name, declared, _ in specs:
        if name in shapes:
            _require_shape(name, declared, shapes[name])
            _bind(name, declared, shapes[name], sizes)
    resolved = {}
    for name, declared, dtype in specs:
        defaults = shapes[name] if name in shapes else _default_shape(declared, dtype)
        resolved[name] = tuple(
            sizes.setdefault(axis, size) if isinstance(axis, str) else size
            for axis, size in zip(declared, defaults, strict=True)
        )
    return resolved


def _bind(name: str, declared: Sequence[int | str | None], given: Sequence[int], sizes: dict[str, int]) -> None:
    for axis, size in zip(declared, given, strict=True):
        if size < 1:
            raise UsageError(f"the shape given for input '{name}' has an axis of {size}; every axis must be at least 1")
        if isinstance(axis, str) and sizes.setdefault(axis, size) != size:
            raise UsageError(f"the shapes given make axis '{axis}' both {sizes[axis]} and {size} (input '{name}')")


def _default_shape(declared: Sequence[int | str | None], dtype: np.dtype[Any]) -> list[int]:
    is_float = np.issubdtype(dtype, np.floating)
    rank = len(declared)
    sizes = [16] * rank
    if is_float and rank == 3:
        sizes = [64] * 3
    if is_float and rank == 4:
        channel = channel_axis(declared) or 1
        sizes = [3 if axis == channel else 224 for axis in range(4)]
    sizes[:1] = [1] * min(rank, 1)
    return [axis if isinstance(axis, int) else size for axis, size in zip(declared, sizes, strict=True)]
