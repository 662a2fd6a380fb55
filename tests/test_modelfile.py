"""modelfile: what goes in comes out, only edits change anything, and every bad file gets its own message."""

from __future__ import annotations

import errno
import hashlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx.parser
import onnxruntime  # type: ignore[import-untyped]
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from onnxprune import modelfile
from onnxprune.errors import ModelError, OutputError
from onnxprune.modelfile import ModelFile, preflight, weights, write, writing
from onnxprune.modelfile import model as model_module

TWO_LAYERS = """
<ir_version: 9, opset_import: ["" : 17], producer_name: "a test">
two_layers (float[n, 3] x) => (float[n, 2] y)
<float[3, 4] W = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}, float[4] B = {1, 2, 3, 4}>
{
    V = Constant <value = float[4, 2] {1, 2, 3, 4, 5, 6, 7, 8}> ()
    h = MatMul (x, W)
    b = Add (h, B)
    y = MatMul (b, V)
}
"""


def two_layers() -> ModelProto:
    model = onnx.parser.parse_model(TWO_LAYERS)
    model.doc_string = "kept"
    model.metadata_props.add(key="author", value="somebody")
    model.graph.initializer[0].doc_string = "also kept"
    model.graph.quantization_annotation.add(tensor_name="W")
    return model


def big_model() -> ModelProto:
    """Weights large enough for external data: Wa is in a subgraph, T and U are tied after saving."""
    rng = np.random.default_rng(0)
    branch = onnx.parser.parse_graph("branch () => (float[n, 64] z) { z = MatMul (x, Wa) }")
    branch.initializer.append(numpy_helper.from_array(rng.random((64, 64), np.float32), "Wa"))
    model = onnx.parser.parse_model("""
        <ir_version: 9, opset_import: ["" : 17]>
        big (float[n, 64] x, bool c) => (float[n, 64] y) { h = MatMul (x, W)  k = MatMul (h, T) }
    """)
    model.graph.initializer.append(numpy_helper.from_array(rng.random((64, 64), np.float32), "W"))
    model.graph.initializer.append(numpy_helper.from_array(rng.random((64, 64), np.float32), "T"))
    model.graph.initializer.append(numpy_helper.from_array(np.arange(3), "small"))
    model.graph.node.append(helper.make_node("If", ["c"], ["m"], then_branch=branch, else_branch=branch))
    model.graph.node.append(helper.make_node("Add", ["k", "m"], ["y"]))
    return model


def save(proto: ModelProto, path: Path) -> Path:
    path.write_bytes(proto.SerializeToString())
    return path


def save_external(proto: ModelProto, path: Path) -> Path:
    path.parent.mkdir(exist_ok=True)
    onnx.save(proto, path, save_as_external_data=True, location="weights.bin", size_threshold=1024)
    return path


def loaded(path: Path) -> ModelProto:
    """With all data, and without the mark onnx.load leaves on tensors that were external."""
    model = onnx.load(path)
    for weight in weights.all_tensors(model):
        weight.tensor.ClearField("data_location")
    return model


def hashes(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir() if p.is_file()}


def message(path: Path) -> str:
    with pytest.raises(ModelError) as caught:
        ModelFile.load(path)
    return str(caught.value)


def with_initializer(tensor: TensorProto) -> ModelProto:
    model = two_layers()
    model.graph.initializer.append(tensor)
    return model


# --------------------------------------------------------------------------------------------------- opening


def test_load_describes_the_file(tmp_path: Path) -> None:
    path = save(two_layers(), tmp_path / "m.onnx")
    model = ModelFile.load(str(path))
    assert (model.path, model.base_dir, model.bytes) == (path, tmp_path, path.stat().st_size)
    assert not model.has_external_data
    assert model.sha256() == hashlib.sha256(path.read_bytes()).hexdigest()


def test_tensors_are_initializers_and_constant_nodes(tmp_path: Path) -> None:
    model = ModelFile.load(save(two_layers(), tmp_path / "m.onnx"))
    tensors = model.tensors()
    assert set(tensors) == {"W", "B", "V"}
    assert model.read(tensors["V"]).tolist() == [[1, 2], [3, 4], [5, 6], [7, 8]]


def test_graph_view_wraps_the_same_tensors_and_prints_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = ModelFile.load(save(two_layers(), tmp_path / "m.onnx"))
    constant = model.graph.tensors()["W"]
    assert constant._values.tensor is model.tensors()["W"]
    assert model.graph is model.graph
    assert capfd.readouterr() == ("", "")


def test_external_tensor_is_a_bounded_read_only_map(tmp_path: Path) -> None:
    original = big_model()
    model = ModelFile.load(save_external(big_model(), tmp_path / "m.onnx"))
    assert model.has_external_data
    assert model.bytes == sum(p.stat().st_size for p in tmp_path.iterdir())
    array = model.read(model.tensors()["T"])
    assert isinstance(array, np.memmap) and not array.flags.writeable
    np.testing.assert_array_equal(array, numpy_helper.to_array(original.graph.initializer[1]))


@pytest.mark.parametrize(
    "dtype",
    ["float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "int4", "uint4", "bool", "int8", "complex64", "float64"],
)
def test_every_type_survives_an_edit(tmp_path: Path, dtype: str) -> None:
    """Also with an odd number of packed elements, inline and external."""
    values = (np.arange(700 * 9) % 7).reshape(700, 9).astype(getattr(ml_dtypes, dtype, dtype))
    path = save(with_initializer(numpy_helper.from_array(values, "extra")), tmp_path / "m.onnx")
    for external in (False, True):
        target = tmp_path / f"{external}.onnx"
        write(ModelFile.load(path), ModelFile.load(path).proto, {"extra": lambda a: a[:699]}, target, external=external)
        result = ModelFile.load(target)
        assert result.has_external_data == external
        read = result.read(result.tensors()["extra"])
        assert read.dtype == values.dtype
        np.testing.assert_array_equal(read.astype(np.complex64), values[:699].astype(np.complex64))


def test_typed_fields_and_strings_are_read_and_replaced(tmp_path: Path) -> None:
    proto = two_layers()
    proto.graph.initializer.extend(
        [
            helper.make_tensor("half", TensorProto.FLOAT16, [3], [1.0, 2.0, 3.0]),
            helper.make_tensor("nibbles", TensorProto.INT4, [3], [1, -2, 3]),
            TensorProto(name="words", data_type=TensorProto.STRING, dims=[2], string_data=[b"left", b"right"]),
            TensorProto(name="wave", data_type=TensorProto.COMPLEX64, dims=[1], float_data=[1, 2]),
        ]
    )
    assert proto.graph.initializer[2].int32_data
    model = ModelFile.load(save(proto, tmp_path / "m.onnx"))
    write(model, model.proto, {name: lambda a: a[1:] for name in ("half", "nibbles", "words")}, tmp_path / "o.onnx")
    result = ModelFile.load(tmp_path / "o.onnx")
    read = {name: result.read(tensor).tolist() for name, tensor in result.tensors().items()}
    assert (read["half"], read["nibbles"], read["words"]) == ([2.0, 3.0], [-2, 3], ["right"])
    assert result.tensors()["half"].raw_data and not result.tensors()["half"].int32_data
    assert result.tensors()["wave"] == model.tensors()["wave"]


# --------------------------------------------------------------------------------------------------- writing


def test_without_edits_the_bytes_are_the_same(tmp_path: Path) -> None:
    path = save(two_layers(), tmp_path / "m.onnx")
    model = ModelFile.load(path)
    size = write(model, model.proto, {}, tmp_path / "o.onnx")
    assert (tmp_path / "o.onnx").read_bytes() == path.read_bytes()
    assert size == path.stat().st_size
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.onnx", "o.onnx"]


def test_an_edit_changes_just_its_tensor(tmp_path: Path) -> None:
    model = ModelFile.load(save(two_layers(), tmp_path / "m.onnx"))
    before = model.proto.SerializeToString()
    edits = {"W": lambda a: a[:, [0, 2]], "V": lambda a: a[[0, 2]]}
    write(model, model.proto, edits, tmp_path / "o.onnx")
    result = onnx.load(tmp_path / "o.onnx")
    expected = two_layers()
    for tensor, array in (
        (expected.graph.initializer[0], np.array([[1, 3], [5, 7], [9, 11]], np.float32)),
        (expected.graph.node[0].attribute[0].t, np.array([[1, 2], [5, 6]], np.float32)),
    ):
        tensor.ClearField("float_data")
        tensor.dims[:] = array.shape
        tensor.raw_data = array.tobytes()
    assert result == expected
    assert model.proto.SerializeToString() == before


def test_new_nodes_and_initializers_of_the_copy_are_written(tmp_path: Path) -> None:
    model = ModelFile.load(save(two_layers(), tmp_path / "m.onnx"))
    proto = ModelProto()
    proto.CopyFrom(model.proto)
    proto.graph.initializer.append(numpy_helper.from_array(np.zeros(4, np.float32), "B2"))
    proto.graph.node[2].input[1] = "B2"
    write(model, proto, {"B2": lambda a: a + 1}, tmp_path / "o.onnx")
    result = ModelFile.load(tmp_path / "o.onnx")
    assert result.read(result.tensors()["B2"]).tolist() == [1, 1, 1, 1]
    assert result.proto.graph.node[2].input[1] == "B2"


def test_an_initializer_declared_as_input_keeps_its_declaration_true(tmp_path: Path) -> None:
    proto = two_layers()
    proto.graph.input.append(helper.make_tensor_value_info("B", TensorProto.FLOAT, [4]))
    model = ModelFile.load(save(proto, tmp_path / "m.onnx"))
    write(model, model.proto, {"B": lambda a: a[:3]}, tmp_path / "o.onnx")
    assert [d.dim_value for d in onnx.load(tmp_path / "o.onnx").graph.input[1].type.tensor_type.shape.dim] == [3]


def test_external_data_stays_external_and_the_input_untouched(tmp_path: Path) -> None:
    source, target = tmp_path / "in", tmp_path / "out"
    model = ModelFile.load(save_external(big_model(), source / "m.onnx"))
    target.mkdir()
    before = hashes(source)
    seen: list[modelfile.Array] = []

    def halve(weight: modelfile.Array) -> modelfile.Array:
        return np.concatenate([weight[:, ::2], weight[:, ::2]], axis=1)

    def check(path: Path) -> None:
        feed = {"x": np.ones((2, 64), np.float32), "c": np.array(True)}
        seen.extend(onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, feed))

    size = write(model, model.proto, {"W": halve}, target / "o.onnx", check=check)
    assert hashes(source) == before
    assert sorted(hashes(target)) == ["o.onnx", "o.onnx.data"]
    assert size == sum(p.stat().st_size for p in target.iterdir())
    expected, result = big_model(), loaded(target / "o.onnx")
    w, t, wa = (
        numpy_helper.to_array(tensor)
        for tensor in (*expected.graph.initializer[:2], expected.graph.node[2].attribute[0].g.initializer[0])
    )
    halved = np.concatenate([w[:, ::2], w[:, ::2]], axis=1)
    np.testing.assert_allclose(seen[0], np.ones((2, 64)) @ (halved @ t + wa), rtol=1e-5)
    np.testing.assert_array_equal(numpy_helper.to_array(result.graph.initializer[0]), halved)
    assert result.graph.initializer[1].raw_data == expected.graph.initializer[1].raw_data
    assert result.graph.initializer[2] == expected.graph.initializer[2]
    assert result.graph.node == expected.graph.node


def test_external_weights_of_subgraphs_can_be_edited(tmp_path: Path) -> None:
    proto = big_model()
    proto.graph.node[2].attribute[1].g.CopyFrom(
        onnx.parser.parse_graph("other () => (float[n, 64] z) { z = Identity (x) }")
    )
    model = ModelFile.load(save_external(proto, tmp_path / "m.onnx"))
    write(model, model.proto, {"Wa": lambda a: -a}, tmp_path / "o.onnx")
    before, after = (onnx.load(tmp_path / n).graph.node[2].attribute[0].g.initializer[0] for n in ("m.onnx", "o.onnx"))
    np.testing.assert_array_equal(numpy_helper.to_array(after), -numpy_helper.to_array(before))


def test_inline_and_external_convert_into_each_other(tmp_path: Path) -> None:
    inline = ModelFile.load(save(big_model(), tmp_path / "m.onnx"))
    write(inline, inline.proto, {}, tmp_path / "e.onnx", external=True)
    outside = ModelFile.load(tmp_path / "e.onnx")
    assert outside.has_external_data and not weights.is_external(outside.tensors()["small"])
    write(outside, outside.proto, {}, tmp_path / "i.onnx", external=False)
    assert not (tmp_path / "i.onnx.data").exists()
    assert onnx.load(tmp_path / "i.onnx") == big_model()


def test_large_external_tensors_are_page_aligned_and_tied_ones_stored_once(tmp_path: Path) -> None:
    proto = big_model()
    for name, shape in (("odd", (300,)), ("large", (512, 513))):
        proto.graph.initializer.append(numpy_helper.from_array(np.ones(shape, np.float32), name))
    save_external(proto, tmp_path / "m.onnx")
    skeleton = onnx.load(tmp_path / "m.onnx", load_external_data=False)
    del skeleton.graph.initializer[1].external_data[:]
    skeleton.graph.initializer[1].external_data.extend(skeleton.graph.initializer[0].external_data)
    model = ModelFile.load(save(skeleton, tmp_path / "m.onnx"))
    write(model, model.proto, {}, tmp_path / "o.onnx")
    result = ModelFile.load(tmp_path / "o.onnx")
    offsets = {n: weights.external_entries(result.tensors()[n])["offset"] for n in ("W", "T", "large")}
    assert offsets["W"] == offsets["T"]
    assert int(offsets["large"]) % 4096 == 0
    assert (result.read(result.tensors()["large"]) == 1).all()


@pytest.mark.parametrize("external", [None, False])
def test_beyond_the_protobuf_limit_weights_go_outside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, external: bool | None
) -> None:
    inline = save(big_model(), tmp_path / "i.onnx")
    path = inline if external is None else save_external(big_model(), tmp_path / "m.onnx")
    model = ModelFile.load(path)
    monkeypatch.setattr(writing, "MAX_INLINE_BYTES", 40_000)
    edits = {"W": lambda a: np.concatenate([a, a])} if external is None else {}
    write(model, model.proto, edits, tmp_path / "o.onnx", external=external)
    assert (tmp_path / "o.onnx").stat().st_size < 40_000
    result, original = loaded(tmp_path / "o.onnx"), big_model()
    assert result.graph.initializer[1].raw_data == original.graph.initializer[1].raw_data
    assert result.graph.node == original.graph.node


def test_a_skeleton_beyond_the_limit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = ModelFile.load(save(two_layers(), tmp_path / "m.onnx"))
    monkeypatch.setattr(writing, "MAX_PROTO_BYTES", 100)
    with pytest.raises(OutputError, match="a protobuf file holds at most 100"):
        write(model, model.proto, {}, tmp_path / "o.onnx")
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]


def test_sparse_initializers_pass_untouched(tmp_path: Path) -> None:
    proto = two_layers()
    values = numpy_helper.from_array(np.ones(2, np.float32), "S")
    indices = numpy_helper.from_array(np.array([0, 3]), "S_indices")
    proto.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [4]))
    proto.graph.node[2].input[1] = "S"
    path = save(proto, tmp_path / "m.onnx")
    write(ModelFile.load(path), proto, {}, tmp_path / "o.onnx")
    assert (tmp_path / "o.onnx").read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    ("edits", "text"),
    [
        ({"nowhere": lambda a: a}, "'nowhere', and 0 weights"),
        ({"Wa": lambda a: a}, "'Wa', and 2 weights"),
        ({"W": lambda a: a.astype(np.float64)}, "from float32 to float64"),
    ],
)
def test_edits_that_cannot_be_meant_are_refused(tmp_path: Path, edits: dict[str, modelfile.Edit], text: str) -> None:
    model = ModelFile.load(save(big_model(), tmp_path / "m.onnx"))
    with pytest.raises(ValueError, match=text):
        write(model, model.proto, edits, tmp_path / "o.onnx")
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]


# ---------------------------------------------------------------------------------------- refusing to write


@pytest.fixture
def opened(tmp_path: Path) -> ModelFile:
    return ModelFile.load(save_external(big_model(), tmp_path / "in" / "m.onnx"))


def test_input_files_are_never_written(opened: ModelFile, tmp_path: Path) -> None:
    before = hashes(opened.base_dir)
    (tmp_path / "link.onnx").symlink_to(opened.path)
    targets = [opened.path, opened.base_dir / "weights.bin", tmp_path / "link.onnx", opened.base_dir / "../in/m.onnx"]
    for target in targets:
        with pytest.raises(OutputError, match="belongs to the input model"):
            write(opened, opened.proto, {}, target, force=True)
    (opened.base_dir / "weights.bin").rename(opened.base_dir / "o.onnx.data")
    for tensor in (opened.proto.graph.initializer[0], opened.proto.graph.initializer[1]):
        tensor.external_data[0].value = "o.onnx.data"
    for attribute in opened.proto.graph.node[2].attribute:
        attribute.g.initializer[0].external_data[0].value = "o.onnx.data"
    with pytest.raises(OutputError, match=r"o\.onnx\.data: this belongs to the input model"):
        preflight(opened, opened.base_dir / "o.onnx", force=True)
    assert sorted(hashes(opened.base_dir).values()) == sorted(before.values())


@pytest.mark.parametrize("existing", ["o.onnx", "o.onnx.data"])
def test_existing_output_needs_force(opened: ModelFile, tmp_path: Path, existing: str) -> None:
    (tmp_path / existing).write_text("precious")
    with pytest.raises(OutputError, match=f"{existing}: the file exists.*--force"):
        write(opened, opened.proto, {}, tmp_path / "o.onnx")
    assert (tmp_path / existing).read_text() == "precious"
    write(opened, opened.proto, {}, tmp_path / "o.onnx", force=True)
    assert loaded(tmp_path / "o.onnx").graph.node == big_model().graph.node


def test_external_on_request_finds_an_old_data_file_before_any_work(tmp_path: Path) -> None:
    model = ModelFile.load(save(big_model(), tmp_path / "m.onnx"))
    (tmp_path / "o.onnx.data").write_text("precious")
    with pytest.raises(OutputError, match=r"o\.onnx\.data: the file exists.*--force"):
        write(model, model.proto, {"W": lambda a: pytest.fail("too late")}, tmp_path / "o.onnx", external=True)


def test_unusable_places_are_refused(opened: ModelFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OutputError, match=r"the folder .*missing does not exist\. Create it"):
        preflight(opened, tmp_path / "missing" / "o.onnx")
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(OutputError, match="this is a folder"):
        preflight(opened, tmp_path / "folder.onnx", force=True)
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    with pytest.raises(OutputError, match="no permission to write to the folder"):
        preflight(opened, tmp_path / "o.onnx")


def fail_check(path: Path) -> None:
    raise RuntimeError("not equal")


def interrupt_check(path: Path) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(("check", "error"), [(fail_check, RuntimeError), (interrupt_check, KeyboardInterrupt)])
def test_a_failing_check_leaves_nothing(
    opened: ModelFile, tmp_path: Path, check: Callable[[Path], None], error: type[BaseException]
) -> None:
    (tmp_path / "o.onnx").write_text("old")
    with pytest.raises(error):
        write(opened, opened.proto, {}, tmp_path / "o.onnx", check=check, force=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "o.onnx"]
    assert (tmp_path / "o.onnx").read_text() == "old"


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (errno.ENOSPC, "no space left on the disk"),
        (errno.EROFS, "no permission to write"),
        (errno.EIO, "cannot be written: Input/output error"),
    ],
)
@pytest.mark.parametrize("step", ["fsync", "replace", "mkdtemp"])
def test_a_failing_disk_leaves_nothing(
    opened: ModelFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, text: str, step: str
) -> None:
    replace = os.replace

    def fail(*args: Any, **kwargs: Any) -> None:
        if step == "replace" and str(args[1]).endswith(".data"):
            replace(*args)
            return
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(tempfile if step == "mkdtemp" else os, step, fail)
    with pytest.raises(OutputError, match=text):
        write(opened, opened.proto, {}, tmp_path / "o.onnx")
    assert [p.name for p in tmp_path.iterdir()] == ["in"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_really_full_disk_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The data file is /dev/full: the buffered write itself fails, and so does closing the file."""
    model = ModelFile.load(save_external(big_model(), tmp_path / "m.onnx"))
    data_path = writing._data_path

    def full(path: Path) -> Path:
        return Path("/dev/full") if ".onnxprune-" in str(path) else data_path(path)

    monkeypatch.setattr(writing, "_data_path", full)
    monkeypatch.setattr(Path, "open", lambda path, mode: open(path, mode.replace("x", "w")))  # noqa: SIM115
    with pytest.raises(OutputError, match="no space left on the disk"):
        write(model, model.proto, {}, tmp_path / "o.onnx")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.onnx", "weights.bin"]


# ------------------------------------------------------------------------------------------------ bad files


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", r"the file is empty \(0 bytes\)"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n", "git-lfs pointer.*git lfs pull"),
        (b'{"nodes": []}\n', r"this is text, not an ONNX protobuf: it begins with '\{\"nodes\": \[\]\}'"),
        (b"\xff" * 64, "not an ONNX model"),
        (b"\x18\x00\x00\x00ORTM" + bytes(20), r"an ONNX Runtime \.ort file"),
        (b"\x08\x09", "the file holds no graph"),
        (b"\x3a\x04\x0a\x02\x0a\x7f", "the file is damaged"),
    ],
)
def test_files_that_are_no_model(tmp_path: Path, content: bytes, text: str) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=text) as caught:
        ModelFile.load(path)
    assert str(path) in str(caught.value)


def test_truncated_file_states_both_sizes(tmp_path: Path) -> None:
    whole = two_layers()
    whole.ClearField("opset_import")
    whole.ClearField("metadata_props")
    data = whole.SerializeToString()
    (tmp_path / "m.onnx").write_bytes(data[:100])
    assert f"truncated: it needs {len(data)} bytes or more and has 100" in message(tmp_path / "m.onnx")


def test_paths_that_cannot_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "no such file" in message(tmp_path / "m.onnx")
    assert "this is a folder" in message(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    assert "not a regular file" in message(tmp_path / "pipe")
    path = save(two_layers(), tmp_path / "m.onnx")
    assert "an ONNX Runtime .ort file" in message(save(two_layers(), tmp_path / "m.ort"))
    with (tmp_path / "huge.onnx").open("wb") as file:
        file.truncate(2**31)
    assert "2147483648 bytes, and a protobuf file holds at most 2147483647" in message(tmp_path / "huge.onnx")

    def refuse(path: Path, mode: str) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    assert "no permission to read it" in message(path)


def ir_99(model: ModelProto) -> None:
    model.ir_version = 99


def opset_999(model: ModelProto) -> None:
    model.opset_import[0].version = 999


def no_opset(model: ModelProto) -> None:
    del model.opset_import[:]


def no_nodes(model: ModelProto) -> None:
    del model.graph.node[:]


def short_raw_data(model: ModelProto) -> None:
    model.graph.initializer.append(TensorProto(name="t", data_type=1, dims=[2, 2], raw_data=bytes(12)))


def short_float_data(model: ModelProto) -> None:
    model.graph.initializer[0].float_data.pop()


def short_constant(model: ModelProto) -> None:
    model.graph.node[0].attribute[0].t.dims[0] = 5


def overflowing_shape(model: ModelProto) -> None:
    model.graph.initializer.append(TensorProto(name="t", data_type=1, dims=[2**33, 2**33], raw_data=bytes(16)))


def wrong_packed_length(model: ModelProto) -> None:
    model.graph.initializer.append(TensorProto(name="t", data_type=TensorProto.INT4, dims=[3], raw_data=bytes(3)))


def negative_dimension(model: ModelProto) -> None:
    model.graph.initializer.append(TensorProto(name="t", data_type=1, dims=[-1, -4], raw_data=bytes(16)))


def unknown_type(model: ModelProto) -> None:
    model.graph.initializer.append(TensorProto(name="t", data_type=77, dims=[1], raw_data=bytes(4)))


def segmented(model: ModelProto) -> None:
    model.graph.initializer[0].segment.begin = 0


def external_strings(model: ModelProto) -> None:
    model.graph.initializer.append(TensorProto(name="t", data_type=8, dims=[1], data_location=TensorProto.EXTERNAL))


def same_initializer(model: ModelProto) -> None:
    model.graph.initializer.append(model.graph.initializer[0])


def same_input(model: ModelProto) -> None:
    model.graph.input.append(model.graph.input[0])


def same_output(model: ModelProto) -> None:
    model.graph.node[3].output[0] = "h"


def circular(model: ModelProto) -> None:
    model.graph.node[1].input[0] = model.graph.node[-1].output[0]


def undefined_input(model: ModelProto) -> None:
    model.graph.node[1].name = "first"
    model.graph.node[1].input[0] = "ghost"


def undefined_output(model: ModelProto) -> None:
    model.graph.output[0].name = "ghost"


def undefined_in_subgraph(model: ModelProto) -> None:
    branch = onnx.parser.parse_graph("branch () => (float[n] z) { z = Relu (ghost) }")
    model.graph.node.append(helper.make_node("If", ["x"], ["m"], then_branch=branch, else_branch=branch))


def undefined_in_function(model: ModelProto) -> None:
    body = [helper.make_node("Relu", ["W"], ["out"])]
    model.functions.append(helper.make_function("own", "F", ["in"], ["out"], body, list(model.opset_import)))


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (ir_99, r"IR version 99, and the installed onnx \S+ knows up to \d+\. Upgrade onnx"),
        (opset_999, r"opset 999 of domain 'ai.onnx', and the installed onnx \S+ knows up to \d+"),
        (no_opset, "no opset_import"),
        (no_nodes, "the graph has no nodes"),
        (short_raw_data, r"tensor 't' of shape \[2, 2\] and type FLOAT needs 16 bytes of raw_data and has 12"),
        (short_float_data, r"tensor 'W' of shape \[3, 4\] .* needs 12 entries of float_data and has 11"),
        (short_constant, r"tensor 'V' of shape \[5, 2\] .* needs 10 entries of float_data and has 8"),
        (overflowing_shape, rf"needs {2**68} bytes of raw_data and has 16"),
        (wrong_packed_length, "needs 2 bytes of raw_data and has 3"),
        (negative_dimension, r"tensor 't' has a negative dimension in its shape \[-1, -4\]"),
        (unknown_type, "tensor 't' has the unknown data type 77"),
        (segmented, "tensor 'W' is stored in segments"),
        (external_strings, "tensor 't' holds strings as external data"),
        (same_initializer, "two initializers are named 'W'"),
        (same_input, "two graph inputs are named 'x'"),
        (same_output, r"node '#3' \(MatMul\) defines tensor 'h' again"),
        (circular, r"the graph has a cycle: node '#1' \(MatMul\) reads tensor 'y', and node '#\d' \(\w+\), which"),
        (undefined_input, r"node 'first' \(MatMul\) reads tensor 'ghost', which no input, initializer or earlier"),
        (undefined_output, "graph output 'ghost' is defined by nothing"),
        (undefined_in_subgraph, r"\(Relu\) reads tensor 'ghost'"),
        (undefined_in_function, r"\(Relu\) reads tensor 'W'"),
    ],
)
def test_damaged_models(tmp_path: Path, damage: Callable[[ModelProto], None], text: str) -> None:
    model = two_layers()
    damage(model)
    path = save(model, tmp_path / "m.onnx")
    with pytest.raises(ModelError, match=text) as caught:
        ModelFile.load(path)
    assert str(caught.value).startswith(str(path))


def test_subgraphs_see_the_tensors_around_them(tmp_path: Path) -> None:
    inner = ModelFile.load(save(big_model(), tmp_path / "m.onnx")).proto.graph.node[2].attribute[0].g
    assert list(inner.node[0].input) == ["x", "Wa"] and not inner.input
    stranger = big_model()
    for attribute in stranger.graph.node[2].attribute:
        attribute.g.node[0].input[0] = "nowhere"
    with pytest.raises(ModelError, match=r"\(MatMul\) reads tensor 'nowhere'"):
        ModelFile.load(save(stranger, tmp_path / "s.onnx"))


def test_checking_a_long_graph_is_linear(tmp_path: Path) -> None:
    nodes = [helper.make_node("Relu", [f"t{i}"], [f"t{i + 1}"]) for i in range(20_000)]
    info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("t0", "t20000")]
    model = helper.make_model(helper.make_graph(nodes, "long", info[:1], info[1:]), ir_version=9)
    model.opset_import[0].version = 17
    assert len(ModelFile.load(save(model, tmp_path / "m.onnx")).proto.graph.node) == 20_000


@pytest.mark.parametrize(
    ("entries", "text"),
    [
        ({"location": "/etc/passwd"}, "has the absolute path '/etc/passwd'"),
        ({"location": r"C:\w.bin"}, r"has the absolute path 'C:\\w.bin'"),
        ({"location": "../w.bin"}, r"at '\.\./w\.bin', outside the model's folder"),
        ({"location": r"a\..\..\w.bin"}, "outside the model's folder"),
        ({"location": "lost.bin"}, r"tensor 'W' should be in '.*lost\.bin', which is missing"),
        ({"location": ""}, "no usable file name"),
        ({"location": "soft.bin"}, r"soft\.bin' is a symbolic link, which onnx refuses.*cp -rL"),
        ({"location": "softdir/w.bin"}, r"softdir' is a symbolic link"),
        ({"location": "hard.bin"}, r"hard\.bin' has 2 hard links, which onnx refuses.*cp -rL"),
        ({"location": "folder"}, "not a regular file"),
        ({"location": "w.bin", "offset": "16"}, "ends at byte 64 of 'w.bin', which has 48 bytes"),
        ({"location": "w.bin", "length": "44"}, "needs 48 bytes and its external data states 44"),
        ({"location": "w.bin", "offset": "-4"}, r"negative external offset \(-4\)"),
        ({"location": "w.bin", "offset": "many"}, "offset or length that is no number"),
        ({"location": "lfs.bin", "offset": "99"}, "git-lfs pointer, not the weights"),
    ],
)
def test_bad_external_data(tmp_path: Path, entries: dict[str, str], text: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "w.bin").write_bytes(bytes(48))
    for name in ("w.bin", "original.bin"):
        (tmp_path / name).write_bytes(bytes(48))
    (tmp_path / "lfs.bin").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n")
    (tmp_path / "soft.bin").symlink_to("w.bin")
    (tmp_path / "softdir").symlink_to("folder")
    os.link(tmp_path / "original.bin", tmp_path / "hard.bin")
    path = save(external_model(entries), tmp_path / "m.onnx")
    with pytest.raises(ModelError, match=text):
        ModelFile.load(path)


def external_model(entries: dict[str, str]) -> ModelProto:
    model = two_layers()
    tensor = model.graph.initializer[0]
    tensor.ClearField("float_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)
    return model


def test_external_data_without_length_or_offset(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(np.arange(20, dtype=np.float32).tobytes())
    model = ModelFile.load(save(external_model({"location": "w.bin"}), tmp_path / "m.onnx"))
    np.testing.assert_array_equal(model.read(model.tensors()["W"]), np.arange(12).reshape(3, 4))


def test_unreadable_external_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_external(big_model(), tmp_path / "m.onnx")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert "no permission to read" in message(path)


def test_total_size_is_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(two_layers(), tmp_path / "m.onnx")
    monkeypatch.setattr(model_module, "MAX_TOTAL_BYTES", 50)
    assert "the limit is 50" in message(path)


def test_data_that_shrinks_after_loading_is_noticed(opened: ModelFile, tmp_path: Path) -> None:
    os.truncate(opened.base_dir / "weights.bin", 20_000)
    with pytest.raises(ModelError, match="which has 20000 bytes"):
        opened.read(opened.tensors()["T"])
    with pytest.raises(ModelError, match="which has 20000 bytes"):
        write(opened, opened.proto, {}, tmp_path / "o.onnx")
    assert [p.name for p in tmp_path.iterdir()] == ["in"]


# --------------------------------------------------------------------------------------------------- memory

MEASURE = """
import sys
from pathlib import Path
from onnxprune.modelfile import ModelFile, write
# ru_maxrss would start at the peak of the parent process, which is inherited, and hide the growth.
peak = lambda: int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024
before = peak()
model = ModelFile.load(sys.argv[1])
edits = {name: lambda a: a[:, ::2] for name in ("W0", "W1", "W2")}
write(model, model.proto, edits, Path(sys.argv[2]))
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak memory from /proc")
def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    """Ten tensors of 32 MiB in a sparse file, three of them edited through their memory maps."""
    side, count = 2896, 10
    size = side * side * 4
    nodes = [helper.make_node("MatMul", [f"t{i}", f"W{i}"], [f"t{i + 1}"]) for i in range(count)]
    info = [helper.make_tensor_value_info(f"t{i}", TensorProto.FLOAT, [1, side]) for i in (0, count)]
    model = helper.make_model(helper.make_graph(nodes, "large", info[:1], info[1:]), ir_version=9)
    model.opset_import[0].version = 17
    for i in range(count):
        tensor = model.graph.initializer.add(name=f"W{i}", data_type=TensorProto.FLOAT, dims=[side, side])
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", "w.bin"), ("offset", i * size), ("length", size)):
            tensor.external_data.add(key=key, value=str(value))
    with (tmp_path / "w.bin").open("wb") as file:
        file.truncate(count * size)
    path = save(model, tmp_path / "m.onnx")
    command = [sys.executable, "-c", MEASURE, str(path), str(tmp_path / "o.onnx")]
    grown = float(subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout)
    assert (tmp_path / "o.onnx.data").stat().st_size > 8 * size
    assert grown < 120
