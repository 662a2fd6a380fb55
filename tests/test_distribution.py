"""Work on several items at once: order, errors, warnings, lost workers; a real dask cluster on this machine."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper

import onnxprune
from onnxprune import Config, Workers, distribution
from onnxprune.errors import UsageError, WorkerError

ITEMS = [(str(n), n) for n in range(4)]
NET = """
<ir_version: 8, opset_import: ["": 17]>
net (float[n, 8] x) => (float[n, 4] y) {
    a = Gemm(x, w1)
    b = Relu(a)
    y = Gemm(b, w2)
}
"""


def task() -> Any:
    """A function that is sent as it is: workers cannot import this file."""

    def product(common: int, item: int) -> tuple[int, int]:
        import logging
        import os

        for _ in range(2):
            logging.getLogger("onnxprune.somewhere").warning("odd values")
        logging.getLogger("onnxprune.somewhere").info("a step")
        return common * item, os.getpid()

    return product


@pytest.mark.parametrize("jobs", [1, 2])
def test_results_and_warnings_come_home(jobs: int, caplog: pytest.LogCaptureFixture) -> None:
    found = list(distribution.each(task(), 10, ITEMS, Workers(jobs)))
    assert sorted(value for value, _ in found) == [0, 10, 20, 30]
    assert ({pid for _, pid in found} == {os.getpid()}) == (jobs == 1)
    own = [r.getMessage() for r in caplog.records if r.name == "onnxprune.distribution"]
    assert sorted(own) == [f"{name}: odd values" for name, _ in ITEMS]


def test_relative_paths_mean_the_same_in_workers_that_are_left_from_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def folder(common: int, item: int) -> str:
        import os

        return os.getcwd()

    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        assert set(distribution.each(folder, 0, ITEMS, Workers(2))) == {str(tmp_path / name)}


def test_handlers_hear_a_warning_once() -> None:
    heard: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            heard.append(f"{record.levelname} {record.getMessage()}")

    logger, handler = logging.getLogger("onnxprune"), Handler(logging.INFO)
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        list(distribution.each(task(), 10, ITEMS[:2], Workers(1)))
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
    assert heard == ["INFO a step", "WARNING 0: odd values", "INFO a step", "WARNING 1: odd values"]
    assert not handler.filters


def test_errors_end_all() -> None:
    def fails(common: int, item: int) -> None:
        raise UsageError(f"item {item}")

    for jobs in (1, 2):
        with pytest.raises(UsageError, match=r"item \d"):
            list(distribution.each(fails, 0, ITEMS, Workers(jobs)))


def test_a_lost_worker_is_an_error() -> None:
    def dies(common: int, item: int) -> None:
        import os

        os._exit(1)

    with pytest.raises(WorkerError, match="fewer --jobs"):
        list(distribution.each(dies, 0, ITEMS, Workers(2)))


@pytest.mark.parametrize("ends", ["error", "death"])
def test_what_workers_leave_is_removed_however_they_end(ends: str, tmp_path: Path) -> None:
    def work(common: tuple[str, str], item: int) -> None:
        import os
        import tempfile
        import time
        from pathlib import Path

        from onnxprune.errors import UsageError
        from onnxprune.folder import unfinished

        notes = Path(common[0])
        if item == 0:
            places = [tempfile.mkdtemp(prefix="onnxprune-"), tempfile.mkdtemp(prefix=unfinished(), dir=common[1])]
            (notes / "new").write_text("\n".join([*places, os.environ["TMPDIR"]]))
            (notes / "new").rename(notes / "made")
            time.sleep(60)
        while not (notes / "made").exists():
            time.sleep(0.01)
        if common[1].endswith("death"):
            os._exit(1)
        raise UsageError("wrong")

    results, notes = tmp_path / ends, tmp_path / "notes"
    results.mkdir()
    notes.mkdir()
    (results / ".onnxprune-another").mkdir()
    common = (str(notes), str(results))
    with pytest.raises((UsageError, WorkerError)):
        list(distribution.each(work, common, ITEMS[:2], Workers(2), results=[results]))
    made = (notes / "made").read_text().splitlines()
    assert len(made) == 3 and not any(Path(path).exists() for path in made)
    assert [path.name for path in results.iterdir()] == [".onnxprune-another"], "that is of another process"


@pytest.mark.parametrize(
    ("workers", "word"),
    [
        (Workers(backend="slurm"), "--backend must be one of"),
        (Workers(jobs=0), "--jobs must be at least 1"),
        (Workers(scheduler="tcp://a:1"), "--backend dask or ray"),
        (Workers(shared_paths=True), "--backend dask or ray"),
        (Workers(backend="dask"), "needs --scheduler"),
        (Workers(2, "dask", "tcp://a:1"), "--jobs is for this machine"),
    ],
)
def test_options_that_make_no_sense(workers: Workers, word: str) -> None:
    with pytest.raises(UsageError, match=word):
        list(distribution.each(task(), 0, ITEMS, workers))


@pytest.mark.parametrize(("backend", "package"), [("dask", r"onnxprune\[cluster\]"), ("ray", r"ray\[default\]")])
def test_missing_packages_are_named(backend: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=f"pip install .*{package}"):
        list(distribution.each(task(), 0, ITEMS, Workers(backend=backend, scheduler="tcp://127.0.0.1:1")))


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1"])
def test_a_port_where_nothing_listens(address: str) -> None:
    with pytest.raises(OSError, match="refused"):
        distribution._knock(address)


def test_one_job_per_two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    for cores, jobs in ((1, 1), (2, 1), (5, 2), (16, 8)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid, n=cores: set(range(n)), raising=False)
        assert distribution.default_jobs() == jobs


# ---- dask ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A scheduler with two workers, each a process of its own, on the loopback interface."""
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address=":0", silence_logs=logging.CRITICAL
    ) as found:
        yield found


def build(folder: Path) -> Path:
    generator = np.random.default_rng(0)
    proto = onnx.parser.parse_model(NET)
    for name, shape in {"w1": (8, 32), "w2": (32, 4)}.items():
        proto.graph.initializer.append(numpy_helper.from_array(generator.standard_normal(shape, np.float32), name))
    (folder / "net.onnx").write_bytes(proto.SerializeToString())
    np.savez(folder / "inputs.npz", x=generator.standard_normal((320, 8), np.float32))
    return folder / "net.onnx"


def test_search_on_a_cluster(cluster: Any, tmp_path: Path) -> None:
    model = build(tmp_path)
    config = Config(calibration=tmp_path / "inputs.npz", round_to=1, recover=False)
    workers = Workers(backend="dask", scheduler=cluster.scheduler_address)
    settings: Any = {"ratios": [0.25, 0.5], "criteria": ["l2"], "timed": False}
    far = onnxprune.search(model, config, folder=tmp_path / "far", workers=workers, **settings)
    near = onnxprune.search(model, config, folder=tmp_path / "near", **settings)
    assert [(r.key, r.quality, r.after, r.plan) for r in far.results] == [
        (r.key, r.quality, r.after, r.plan) for r in near.results
    ]
    for result in far.results:
        plans = [(tmp_path / place / str(result.plan)).read_text() for place in ("far", "near")]
        assert plans[0] == plans[1]


def test_files_reach_workers_that_do_not_see_them(cluster: Any, tmp_path: Path) -> None:
    from onnxprune.records import Trial
    from onnxprune.trials import cargo, work

    model = build(tmp_path)
    config = Config(calibration=tmp_path / "inputs.npz", round_to=1, recover=False)
    address = cluster.scheduler_address
    sent, named = (cargo.pack(model, config, travels=travels) for travels in (True, False))
    model.unlink()
    items = [("one", work.Task(Trial("ratio=0.5", "l2"), "key"))]
    (done,) = distribution.each(work.attempt, sent, items, Workers(backend="dask", scheduler=address))
    assert done.result.after is not None and done.result.after.parameters == 16 * 12
    with pytest.raises(UsageError, match=r"sees no .*net\.onnx"):
        list(distribution.each(work.attempt, named, items, Workers(None, "dask", address, True)))


def _twins(folder: Path) -> list[Path]:
    """Two models and, between them, a file that is none."""
    model = build(folder)
    (folder / "twin.onnx").write_bytes(model.read_bytes())
    (folder / "broken.onnx").write_text("no model")
    return [model, folder / "broken.onnx", folder / "twin.onnx"]


@pytest.mark.parametrize("shared_paths", [False, True])
def test_many_models_on_a_cluster(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared_paths: bool
) -> None:
    """Files, reports and errors are those of this machine, and nothing else is written."""
    models = [Path(model.name) for model in _twins(tmp_path)]
    monkeypatch.chdir(tmp_path)
    found = {}
    for place, workers in {
        "near": Workers(1),
        "far": Workers(backend="dask", scheduler=cluster.scheduler_address, shared_paths=shared_paths),
    }.items():
        config = Config(calibration=Path("inputs.npz"), round_to=1, output=Path(place))
        found[place] = onnxprune.prune_many(models, config, workers=workers)
    assert [entry.exit_code for entry in found["far"]] == [0, 3, 0], found["far"]
    for far, near in zip(found["far"], found["near"], strict=True):
        assert (far.model, far.error) == (near.model, near.error)
        if far.report is None or near.report is None:
            continue
        assert str(tmp_path) not in repr(far) and "/in/" not in repr(far)
        assert far.report.output == near.report.output.replace("near", "far") if near.report.output else None
        assert (far.report.inputs, far.report.notes) == (near.report.inputs, near.report.notes)
        assert {**far.report.options, "output": None} == {**near.report.options, "output": None}
        assert Path(str(far.report.output)).read_bytes() == Path(str(near.report.output)).read_bytes()
    assert sorted(path.name for path in Path("far").iterdir()) == ["net.onnx", "twin.onnx"]
    again = onnxprune.prune_many(models, config, workers=workers)
    assert [entry.exit_code for entry in again] == [2, 3, 2] and "the file exists" in str(again[0].error)


def test_models_and_results_travel(cluster: Any, tmp_path: Path) -> None:
    from onnxprune import jobs
    from onnxprune.trials import cargo

    model = build(tmp_path)
    proto = onnx.load(model)
    onnx.save(proto, model, save_as_external_data=True, location="weights.bin", size_threshold=0)
    config = Config(calibration=tmp_path / "inputs.npz", round_to=1)
    shipment = list(jobs.Shipment([jobs.Job(model, tmp_path / "small.onnx")], travels=True))
    packed = cargo.pack_options(config, travels=True)
    for path in tmp_path.iterdir():
        path.unlink()
    workers = Workers(backend="dask", scheduler=cluster.scheduler_address)
    (back,) = distribution.each(jobs.attempt_far, packed, shipment, workers)
    assert back.pruned.exit_code == 0, back.pruned.error
    done = jobs.received(back, shipment[0][1].job, force=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["small.onnx", "small.onnx.data"]
    assert {tuple(t.dims) for t in onnx.load(tmp_path / "small.onnx").graph.initializer} >= {(8, 16), (16, 4)}
    assert done.report is not None and done.report.output == str(tmp_path / "small.onnx")
    taken = jobs.received(back, shipment[0][1].job, force=False)
    assert taken.exit_code == 2 and "the file exists" in str(taken.error)


def test_a_dry_run_on_a_cluster_writes_nothing(cluster: Any, tmp_path: Path) -> None:
    model, _, twin = _twins(tmp_path)
    before = sorted(tmp_path.iterdir())
    workers = Workers(backend="dask", scheduler=cluster.scheduler_address)
    config = Config(round_to=1, recover=False, dry_run=True, output=tmp_path / "out")
    found = onnxprune.prune_many([model, twin], config, workers=workers)
    assert [entry.exit_code for entry in found] == [0, 0]
    assert sorted(tmp_path.iterdir()) == before


def test_a_model_that_is_too_large_to_travel(cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxprune.trials import cargo

    model, _, twin = _twins(tmp_path)
    twin.write_bytes(twin.read_bytes() + onnx.ModelProto(doc_string=" " * 10_000).SerializeToString())
    monkeypatch.setattr(cargo, "MOST_BYTES", model.stat().st_size + 1000)
    workers = Workers(backend="dask", scheduler=cluster.scheduler_address)
    config = Config(round_to=1, recover=False, output=tmp_path / "out")
    found = onnxprune.prune_many([model, twin], config, workers=workers)
    assert [entry.exit_code for entry in found] == [0, 2] and "--shared-paths" in str(found[1].error)


def test_clusters_that_cannot_be_used(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    workers = Workers(backend="dask", scheduler=cluster.scheduler_address)
    monkeypatch.setattr(distribution, "__version__", "99.0")
    with pytest.raises(UsageError, match=r"have onnxprune .*; this is 99\.0"):
        list(distribution.each(task(), 0, ITEMS, workers))
    monkeypatch.setattr(distribution, "CONNECT_S", 1)
    with pytest.raises(UsageError, match="no dask scheduler answers"):
        list(distribution.each(task(), 0, ITEMS, Workers(backend="dask", scheduler="tcp://127.0.0.1:1")))


def test_a_cluster_without_workers_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(n_workers=0, host="127.0.0.1", dashboard_address=":0") as empty,
        pytest.raises(UsageError, match="the scheduler has no workers"),
    ):
        list(distribution.each(task(), 0, ITEMS, Workers(backend="dask", scheduler=empty.scheduler_address)))
