"""Speed and memory of the whole command on generated models.

    python benchmarks/scale.py huge     3 GB of weights in external data: peak memory beyond the file cache
    python benchmarks/scale.py resnet50 a ResNet-50-sized file from the shell
    python benchmarks/scale.py analysis analysis of 425 to 20,000 nodes, and of a tensor with 5,000 consumers
    python benchmarks/scale.py help     `onnxprune --help`

Each prints one JSON line; `--output FILE` appends it with the machine and the versions.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import processes
from onnx import TensorProto, helper, numpy_helper


def main() -> None:
    """Run the chosen measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=sorted(MEASUREMENTS))
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    row = {"what": arguments.what, **MEASUREMENTS[arguments.what](), **machine()}
    print(json.dumps(row))
    if arguments.output:
        with arguments.output.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def machine() -> dict[str, Any]:
    """The machine and the versions of what runs on it."""
    versions = {"onnx": onnx.__version__, "onnxruntime": onnxruntime.__version__, "python": platform.python_version()}
    return {"cores": os.cpu_count(), "machine": platform.machine(), "versions": versions}


def _onnxprune(arguments: list[str]) -> processes.Run:
    return processes.run([sys.executable, "-m", "onnxprune", *arguments])


def huge() -> dict[str, Any]:
    """A model of 3 GB: MatMul layers 8192 wide and Conv layers, written tensor by tensor."""
    with tempfile.TemporaryDirectory(dir=os.environ.get("ONNXPRUNE_BENCHMARK_FOLDER")) as folder:
        path = Path(folder) / "huge.onnx"
        size = write_huge(path)
        found = _onnxprune([str(path), "--ratio", "0.5"])
    return {
        "bytes": size,
        "seconds": round(found.seconds, 2),
        "peak_bytes": found.anonymous,
        "target_peak_bytes": 1 << 30,
    }


def write_huge(path: Path) -> int:
    """Write the model and its data file; returns the bytes of the weights."""
    random = np.random.default_rng(0)
    width, layers, channels, convolutions = 8192, 12, 1024, 8
    initializers: list[TensorProto] = []
    nodes = []
    offset = 0
    with (path.parent / "huge.onnx.data").open("wb") as data:

        def add(name: str, shape: tuple[int, ...], scale: float) -> None:
            nonlocal offset
            tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=shape)
            tensor.data_location = TensorProto.EXTERNAL
            rows = int(np.prod(shape)) // shape[-1]
            count = 0
            for first in range(0, rows, 4096):
                block = random.standard_normal((min(4096, rows - first), shape[-1]), np.float32) * np.float32(scale)
                count += data.write(block.tobytes())
            for key, value in (("location", "huge.onnx.data"), ("offset", offset), ("length", count)):
                tensor.external_data.add(key=key, value=str(value))
            offset += count
            initializers.append(tensor)

        last = "image"
        for k in range(convolutions):
            add(f"conv{k}", (channels, channels if k else 3, 3, 3), 0.01)
            nodes += [
                helper.make_node("Conv", [last, f"conv{k}"], [f"c{k}"], name=f"conv{k}", pads=[1, 1, 1, 1]),
                helper.make_node("Relu", [f"c{k}"], [f"r{k}"], name=f"relu{k}"),
            ]
            last = f"r{k}"
        nodes += [
            helper.make_node("GlobalAveragePool", [last], ["pooled"]),
            helper.make_node("Flatten", ["pooled"], ["h"]),
        ]
        last = "h"
        for k in range(layers):
            add(f"matmul{k}", (channels if k == 0 else width, width), 0.01)
            nodes += [
                helper.make_node("MatMul", [last, f"matmul{k}"], [f"m{k}"], name=f"matmul{k}"),
                helper.make_node("Relu", [f"m{k}"], [f"h{k}"]),
            ]
            last = f"h{k}"
        add("head", (width, 10), 0.01)
        nodes.append(helper.make_node("MatMul", [last, "head"], ["logits"], name="head"))
    graph = helper.make_graph(
        nodes,
        "huge",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 10])],
        initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    path.write_bytes(model.SerializeToString())
    return offset


def resnet50() -> dict[str, Any]:
    """ResNet-50 (random weights, BatchNormalization folded) at 224x224, from the shell to the verified file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "resnet50.onnx"
        path.write_bytes(build_resnet50().SerializeToString())
        size = path.stat().st_size
        runs = [_onnxprune([str(path), "--no-recover", "--force"]) for _ in range(3)]
    return {
        "bytes": size,
        "seconds": sorted(round(r.seconds, 2) for r in runs),
        "peak_bytes": max(r.anonymous for r in runs),
        "target_seconds": 6.0,
    }


def build_resnet50() -> onnx.ModelProto:
    """The graph of He et al. 2015, variant 1.5, He-initialised."""
    random = np.random.default_rng(0)
    nodes: list[onnx.NodeProto] = []
    weights: list[TensorProto] = []

    def conv(x: str, cin: int, cout: int, k: int, stride: int = 1, relu: bool = True) -> str:
        name = f"conv{len(weights) // 2}"
        scale = np.float32(np.sqrt(2.0 / (cin * k * k)))
        weights.append(
            numpy_helper.from_array(random.standard_normal((cout, cin, k, k), np.float32) * scale, f"{name}.w")
        )
        weights.append(numpy_helper.from_array(np.zeros(cout, np.float32), f"{name}.b"))
        nodes.append(
            helper.make_node(
                "Conv", [x, f"{name}.w", f"{name}.b"], [name], name=name, strides=[stride] * 2, pads=[k // 2] * 4
            )
        )
        if relu:
            nodes.append(helper.make_node("Relu", [name], [f"{name}.r"]))
        return f"{name}.r" if relu else name

    x = conv("image", 3, 64, 7, 2)
    nodes.append(helper.make_node("MaxPool", [x], ["pool"], kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4))
    x, cin = "pool", 64
    for stage, (width, blocks) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3))):
        for block in range(blocks):
            stride = 2 if stage and not block else 1
            y = conv(conv(conv(x, cin, width, 1), width, width, 3, stride), width, 4 * width, 1, relu=False)
            skip = conv(x, cin, 4 * width, 1, stride, relu=False) if not block else x
            nodes += [
                helper.make_node("Add", [y, skip], [f"{y}.sum"]),
                helper.make_node("Relu", [f"{y}.sum"], [f"{y}.out"]),
            ]
            x, cin = f"{y}.out", 4 * width
    nodes += [helper.make_node("GlobalAveragePool", [x], ["gap"]), helper.make_node("Flatten", ["gap"], ["flat"])]
    weights.append(numpy_helper.from_array(random.standard_normal((2048, 1000), np.float32) * np.float32(0.02), "fc.w"))
    nodes.append(helper.make_node("Gemm", ["flat", "fc.w"], ["logits"], name="fc"))
    graph = helper.make_graph(
        nodes,
        "resnet50",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 224, 224])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 1000])],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def analysis() -> dict[str, Any]:
    """Seconds of shape inference and dimension inference, best of three, in a warm process."""
    sizes = (425, 1000, 5000, 20000)
    return {
        "seconds_by_nodes": {n: _best(lambda n=n: chain(n)) for n in sizes},
        "seconds_5000_consumers": _best(lambda: fan(5000)),
        "targets": {"425": 0.2, "20000": 3.0, "5000_consumers": 1.0},
    }


def _best(build: Callable[[], onnx.ModelProto]) -> float:
    from onnxprune.analysis import analyse
    from onnxprune.opening import unhurried_collector
    from onnxprune.shapes import infer

    model = build()
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        with unhurried_collector():
            analyse(model, infer(model))
        seconds.append(time.perf_counter() - start)
    return round(min(seconds), 4)


def chain(nodes: int) -> onnx.ModelProto:
    """Residual blocks of Conv, Relu, Conv, Add until there are `nodes` nodes."""
    made: list[onnx.NodeProto] = []
    weights = [numpy_helper.from_array(np.ones((8, 3, 1, 1), np.float32), "stem")]
    made.append(helper.make_node("Conv", ["x", "stem"], ["t0"]))
    last = "t0"
    while len(made) < nodes:
        k = len(made)
        for part in ("a", "b"):
            weights.append(numpy_helper.from_array(np.ones((8, 8, 3, 3), np.float32), f"w{k}{part}"))
        made += [
            helper.make_node("Conv", [last, f"w{k}a"], [f"a{k}"], pads=[1] * 4),
            helper.make_node("Relu", [f"a{k}"], [f"r{k}"]),
            helper.make_node("Conv", [f"r{k}", f"w{k}b"], [f"b{k}"], pads=[1] * 4),
            helper.make_node("Add", [f"b{k}", last], [f"s{k}"]),
        ]
        last = f"s{k}"
    return _model(made, weights, last)


def fan(consumers: int) -> onnx.ModelProto:
    """One convolution read by many, whose results are added up."""
    weights = [numpy_helper.from_array(np.ones((8, 3, 1, 1), np.float32), "stem")]
    made = [helper.make_node("Conv", ["x", "stem"], ["t"])]
    for k in range(consumers):
        weights.append(numpy_helper.from_array(np.ones((8, 8, 1, 1), np.float32), f"w{k}"))
        made.append(helper.make_node("Conv", ["t", f"w{k}"], [f"c{k}"]))
    made.append(helper.make_node("Sum", [f"c{k}" for k in range(consumers)], ["sum"]))
    return _model(made, weights, "sum")


def _model(nodes: list[onnx.NodeProto], weights: list[TensorProto], last: str) -> onnx.ModelProto:
    weights.append(numpy_helper.from_array(np.ones((4, 8, 1, 1), np.float32), "head"))
    nodes.append(helper.make_node("Conv", [last, "head"], ["y"]))
    graph = helper.make_graph(
        nodes,
        "generated",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 16, 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def show_help() -> dict[str, Any]:
    """Seconds of `onnxprune --help`, three runs."""
    return {"seconds": sorted(round(_onnxprune(["--help"]).seconds, 3) for _ in range(3)), "target_seconds": 0.5}


MEASUREMENTS: dict[str, Callable[[], dict[str, Any]]] = {
    "analysis": analysis,
    "help": show_help,
    "huge": huge,
    "resnet50": resnet50,
}

if __name__ == "__main__":
    main()
