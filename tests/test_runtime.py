"""Sessions and made-up inputs: options, providers, messages, shapes."""

from __future__ import annotations

import types
from pathlib import Path
from typing import Any

import numpy as np
import onnx.parser
import pytest

from onnxprune import runtime
from onnxprune.errors import ModelError, UsageError
from onnxprune.records import Feed
from onnxprune.synthetic import signals

F32, I64, BOOL = np.dtype(np.float32), np.dtype(np.int64), np.dtype(np.bool_)


def _model(text: str) -> bytes:
    return bytes(onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {text}').SerializeToString())


_TINY = _model("g (float[N, 4] x, int64[2] k) => (float[N, 4] y, int64[2] l) { y = Relu(x)  l = Neg(k) }")


def test_a_session_runs_a_model_from_bytes_and_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "tiny.onnx"
    path.write_bytes(_TINY)
    feeds: Feed = {"x": np.array([[-1, 2, -3, 4]], np.float32), "k": np.array([1, 2], np.int64)}
    for model in (_TINY, path, str(path)):
        outputs = runtime.run(runtime.session(model), feeds)
        np.testing.assert_array_equal(outputs["y"], [[0, 2, 0, 4]])
        np.testing.assert_array_equal(outputs["l"], [-1, -2])


def test_options_are_the_ones_asked_for() -> None:
    options = runtime.session(_TINY, threads=1, optimize=False, prepack=False).get_session_options()
    assert options.intra_op_num_threads == 1
    assert options.inter_op_num_threads == 1
    assert options.log_severity_level == 3
    assert options.graph_optimization_level.name == "ORT_DISABLE_ALL"
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    assert options.get_session_config_entry("session.disable_prepacking") == "1"


def test_no_threads_means_all_physical_cores() -> None:
    assert runtime.session(_TINY).get_session_options().intra_op_num_threads == runtime.physical_cores() >= 1


def test_input_specs_name_the_dynamic_axes() -> None:
    assert runtime.input_specs(runtime.session(_TINY)) == [("x", ("N", 4), F32), ("k", (2,), I64)]


def test_nodes_per_provider_counts_nodes() -> None:
    assert runtime.nodes_per_provider(runtime.session(_TINY)) == {"CPUExecutionProvider": 2}


def test_nodes_per_provider_is_empty_where_the_runtime_does_not_tell() -> None:
    assert runtime.nodes_per_provider(types.SimpleNamespace()) == {}


# ---- Refusals --------------------------------------------------------------------------------------------------------


def test_a_broken_model_is_a_model_error(tmp_path: Path) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"not a model")
    with pytest.raises(ModelError, match=r"ONNX Runtime cannot load '.*broken\.onnx': "):
        runtime.session(path)
    with pytest.raises(ModelError, match=r"ONNX Runtime cannot load '.*absent\.onnx': .*exist"):
        runtime.session(tmp_path / "absent.onnx")


def test_an_unknown_provider_lists_the_known_ones() -> None:
    with pytest.raises(UsageError, match="provider 'gpu' is unknown; choose one of cpu, cuda"):
        runtime.session(_TINY, provider="gpu")


class _FakeRuntime:
    """An ONNX Runtime whose installed providers, used providers and node placement can be chosen."""

    __version__ = "1.31.1"
    package_name = "onnxruntime-gpu"
    cuda_version = "13.0"

    def __init__(self, available: list[str], used: list[str], placed: dict[str, int]) -> None:
        import onnxruntime

        self.SessionOptions = onnxruntime.SessionOptions
        self.GraphOptimizationLevel = onnxruntime.GraphOptimizationLevel
        self.available, self.used, self.placed = available, used, placed
        self.asked: dict[str, Any] = {}
        self.preloaded = False

    def get_available_providers(self) -> list[str]:
        return self.available

    def preload_dlls(self) -> None:
        self.preloaded = True

    def InferenceSession(self, model: Any, options: Any, **asked: Any) -> Any:
        self.asked = asked
        parts = [
            types.SimpleNamespace(ep_name=name, get_nodes=lambda count=count: [None] * count)
            for name, count in self.placed.items()
        ]
        return types.SimpleNamespace(
            get_providers=lambda: self.used, get_provider_graph_assignment_info=lambda: parts, options=options
        )


_CPU, _CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"


def _fake(monkeypatch: pytest.MonkeyPatch, **choices: Any) -> _FakeRuntime:
    fake = _FakeRuntime(**{"available": [_CUDA, _CPU], "used": [_CUDA, _CPU], "placed": {_CUDA: 9, _CPU: 1}, **choices})
    monkeypatch.setattr(runtime, "_import", lambda: fake)
    return fake


def test_cuda_that_is_not_installed_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = _fake(monkeypatch, available=[_CPU])
    fake.package_name = "onnxruntime"
    with pytest.raises(UsageError) as caught:
        runtime.session(_TINY, provider="cuda")
    assert str(caught.value) == (
        "provider 'cuda' was asked for (CUDAExecutionProvider), but the installed onnxruntime 1.31.1 has only "
        "CPUExecutionProvider. Install the GPU build in its place: pip uninstall onnxruntime, then "
        "pip install 'onnxruntime-gpu[cuda,cudnn]'"
    )


def test_cuda_that_does_not_start_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    _fake(monkeypatch, used=[_CPU])
    with pytest.raises(
        UsageError, match=r"could not start it and would run on CPUExecutionProvider\..*CUDA 13\.0.*nvidia-smi"
    ):
        runtime.session(_TINY, provider="cuda")


@pytest.mark.parametrize(("count", "words"), [(7, "7 nodes"), (1, "1 node")])
def test_cuda_that_runs_no_node_is_refused(monkeypatch: pytest.MonkeyPatch, count: int, words: str) -> None:
    _fake(monkeypatch, placed={_CPU: count})
    with pytest.raises(UsageError, match=rf"it runs no node of the model \(CPUExecutionProvider: {words}\)"):
        runtime.session(_TINY, provider="cuda")


def test_cuda_that_works_loads_its_libraries_and_never_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = _fake(monkeypatch)
    session = runtime.session(_TINY, provider="cuda")
    assert fake.preloaded
    assert fake.asked == {"providers": [_CUDA, _CPU], "enable_fallback": 0}
    assert runtime.nodes_per_provider(session) == {_CUDA: 9, _CPU: 1}


def test_the_runtime_missing_is_a_usage_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(UsageError, match="ONNX Runtime is not installed.*pip install onnxruntime"):
        runtime.session(_TINY)


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ({"x": np.zeros((1, 4), np.float32)}, "input 'k' of the model has no data; given: x"),
        ({"x": np.zeros((1, 4))}, "input 'x' takes float32, but the array given is float64"),
        ({"x": np.zeros((1, 5), np.float32)}, "input 'x' has shape (N, 4), but (1, 5) was given"),
        ({"x": np.zeros(4, np.float32)}, "input 'x' has shape (N, 4), but (4) was given"),
    ],
)
def test_inputs_that_do_not_fit_are_named(feeds: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        runtime.run(runtime.session(_TINY), feeds)
    assert str(caught.value) == message


def test_a_model_that_fails_while_it_runs_is_a_model_error() -> None:
    text = "g (float[N] x, float[M] z) => (float[K] y) { y = Add(x, z) }"
    with pytest.raises(ModelError, match="ONNX Runtime fails while it runs the model: .*Add") as caught:
        runtime.run(runtime.session(_model(text)), {"x": np.zeros(2, np.float32), "z": np.zeros(3, np.float32)})
    assert "[ONNXRuntimeError]" not in str(caught.value)


def test_an_input_that_is_no_tensor_is_refused() -> None:
    session = runtime.session(_model("g (seq(float[2]) s) => (int64 n) { n = SequenceLength(s) }"))
    with pytest.raises(ModelError, match=r"input 's' has type seq\(tensor\(float\)\)"):
        runtime.input_specs(session)


# ---- Made-up inputs --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("declared", "dtype", "shape"),
    [
        (("N", 3, None, "W"), F32, (1, 3, 224, 224)),
        ((None, "H", "W", 3), F32, (1, 224, 224, 3)),
        (("N", 3, 32, 48), F32, (1, 3, 32, 48)),
        ((None, None, None, None), F32, (1, 3, 224, 224)),
        (("N", "T", 80), F32, (1, 64, 80)),
        (("N", "L"), I64, (1, 16)),
        ((None, None), F32, (1, 16)),
        ((), F32, ()),
        ((7,), F32, (7,)),
    ],
)
def test_default_shapes(declared: tuple[Any, ...], dtype: Any, shape: tuple[int, ...]) -> None:
    assert runtime.resolve_shapes([("x", declared, dtype)], {}) == {"x": shape}


def test_axes_without_a_name_are_not_one() -> None:
    proto = onnx.parser.parse_model('<ir_version: 9, opset_import: ["" : 17]> g (float[N,2] x) => (float[N,2] y) {}')
    node = onnx.helper.make_node("Relu", ["x"], ["y"])
    proto.graph.node.append(node)
    for value in (*proto.graph.input, *proto.graph.output):
        for axis in value.type.tensor_type.shape.dim:
            axis.dim_param = "?"
    assert runtime.input_specs(runtime.session(proto.SerializeToString())) == [("x", (None, None), F32)]


def test_axes_of_one_name_get_one_size() -> None:
    specs: list[runtime.InputSpec] = [("mask", ("N", "L"), I64), ("ids", ("N", "L"), I64)]
    assert runtime.resolve_shapes(specs, {"ids": (2, 9)}) == {"ids": (2, 9), "mask": (2, 9)}


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"y": (1,)}, "shapes are given for inputs the model does not have: y"),
        ({"a": (1, 5)}, r"input 'a' has shape \(N, 4\), but \(1, 5\) was given"),
        ({"a": (0, 4)}, "the shape given for input 'a' has an axis of 0"),
        ({"a": (2, 4), "b": (3, 4)}, r"make axis 'N' both 2 and 3 \(input 'b'\)"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(shapes: dict[str, tuple[int, ...]], message: str) -> None:
    specs: list[runtime.InputSpec] = [("a", ("N", 4), F32), ("b", ("N", 4), F32)]
    with pytest.raises(UsageError, match=message):
        runtime.resolve_shapes(specs, shapes)


def test_made_up_inputs_have_their_types_and_bounds() -> None:
    specs: list[runtime.InputSpec] = [
        ("ids", (4, 100), I64),
        ("types", (4, 100), np.dtype(np.int32)),
        ("attention_mask", (4, 100), I64),
        ("flags", (4, 100), BOOL),
        ("half", (4, 100), np.dtype(np.float16)),
        ("scale", (), F32),
        ("words", (2,), np.dtype(np.object_)),
        ("small", (500,), np.dtype(np.int8)),
    ]
    feed = runtime.synthetic_feed(specs, {}, 3, high={"ids": 30000, "small": 1000})
    assert {name: array.dtype for name, array in feed.items()} == {name: dtype for name, _, dtype in specs}
    assert {name: array.shape for name, array in feed.items()} == {name: shape for name, shape, _ in specs}
    assert 20000 < int(feed["ids"].max()) < 30000
    assert set(np.unique(feed["types"])) == {0, 1}
    assert feed["attention_mask"].min() == 1
    assert 0 < feed["flags"].sum() < 400
    assert 0 <= int(feed["small"].min()) <= int(feed["small"].max()) < 127


def test_the_seed_decides() -> None:
    specs: list[runtime.InputSpec] = [("x", (1, 3, 16, 16), F32)]
    first, again, other = (runtime.synthetic_feed(specs, {}, seed)["x"] for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("shape", [(2, 3, 64, 48), (2, 64, 48, 3), (2, 1, 64, 48)])
def test_images_are_smooth_and_normalised(shape: tuple[int, ...]) -> None:
    image = np.asarray(runtime.synthetic_feed([("x", shape, F32)], {})["x"], np.float64)
    assert image.shape == shape
    rows = (2, 3) if shape[1] in (1, 3) else (1, 2)
    np.testing.assert_allclose(image.mean(axis=rows), 0, atol=1e-6)
    np.testing.assert_allclose(image.std(axis=rows), 1, rtol=1e-5)
    # Neighbours of white noise differ by sqrt(2) on average; those of a photograph by much less.
    assert np.diff(image, axis=rows[1]).std() < 0.9


def test_a_single_pixel_is_no_division_by_zero() -> None:
    assert np.isfinite(np.asarray(runtime.synthetic_feed([("x", (1, 3, 1, 1), F32)], {})["x"], np.float64)).all()


def test_bounds_for_unknown_inputs_are_refused() -> None:
    with pytest.raises(UsageError, match="bounds are given for inputs the model does not have: typo"):
        runtime.synthetic_feed([("ids", (1,), I64)], {}, high={"typo": 3})


def test_images_of_four_channels_are_images_in_every_place() -> None:
    shapes = ((2, 4, 9, 9), (2, 9, 9, 4), (2, 2, 9, 9), (2, 4, 9))
    assert [runtime.channel_axis(shape) for shape in shapes] == [1, 3, None, None]
    assert runtime.resolve_shapes([("x", [None, None, None, 4], np.dtype(np.float32))], {}) == {"x": (1, 224, 224, 4)}
    assert signals.kind_of("x", np.dtype(np.float32), (2, 4, 9, 9)) == "image"
