"""Tasks on a real local Ray instance with two worker processes."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from pipeline.backbone.backbones import KEPT_FILE
from pipeline.features.cluster import task_resources
from shards.errors import InputError, ResourceError
from tests import ROOT
from tests.caching import cache_features
from tests.servers import contents, draw, shard

ray = pytest.importorskip("ray")

from pipeline.execution.ray_cluster import RayCluster, ray_cluster  # noqa: E402

NAMES = [f"{number}.jpg" for number in range(12)]
NETWORK: dict[str, Any] = {"backbone": "squeezenet1_1", "weights": "random", "device": "cpu", "precision": "fp32", "batch_size": 2}
Run = Callable[..., Result]


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    with ray_cluster(cpus=2, object_store_bytes=80 << 20) as cluster:
        yield cluster
    assert not ray.is_initialized()


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawn")
    draw(folder, NAMES)
    shard(folder, folder / "whole")
    return folder


# Tasks are written down here and sent by value: the workers have the packages of the code, and not the tests.


def test_results_are_in_order_and_shared_objects_are_sent_once(cluster: RayCluster) -> None:
    def task(shared: list[int], number: int) -> tuple[int, int, int, str]:
        shared.append(number)  # the same list for all tasks of a process
        return number, os.getpid(), len(shared), os.getcwd()  # noqa: PTH109 - as text

    results = list(cluster.run(task, [(number,) for number in range(40)], shared=([],)))
    assert [number for number, *_ in results] == list(range(40))
    pids = {pid for _, pid, *_ in results}
    assert os.getpid() not in pids
    assert sum(max(count for _, each, count, _ in results if each == pid) for pid in pids) == 40
    assert {folder for *_, folder in results} == {str(Path.cwd())}


def test_a_tasks_error_reaches_the_caller_unchanged(cluster: RayCluster) -> None:
    def task(number: int) -> int:
        if number == 3:
            raise InputError("three: give another number")
        return number

    with pytest.raises(InputError) as caught:
        list(cluster.run(task, [(number,) for number in range(8)]))
    assert str(caught.value) == "three: give another number"


def test_a_task_whose_process_dies_every_time_is_an_error_with_advice(cluster: RayCluster) -> None:
    with pytest.raises(ResourceError, match=r"died in 4 attempts at one task.*fewer CPUs"):
        list(cluster.run(lambda: os.kill(os.getpid(), signal.SIGKILL), [()]))


def test_a_task_that_waits_for_resources_is_reported(cluster: RayCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.execution.ray_cluster.REPORT_SECONDS", 1.0)
    held = cluster.run(time.sleep, [(0,), (5,)])
    next(held)  # the second one holds a CPU now
    said: list[str] = []
    assert list(RayCluster(said.append).run(lambda: 5, [()], cpus=2)) == [5]
    assert said[0] == "A task that needs 2 CPUs and 0 GPUs has not finished after 1 s. Free on the cluster: 1 CPUs, 0 GPUs."
    assert "has not finished after 2 s" in said[1]


def test_shards_are_byte_for_byte_those_of_the_local_executor(cluster: RayCluster, drawn: Path, tmp_path: Path) -> None:
    assert shard(drawn, tmp_path / "out", cluster=cluster).shards == 4
    assert contents(tmp_path / "out") == contents(drawn / "whole")
    assert shard(drawn, tmp_path / "out", cluster=cluster).kept == 4


def test_the_shard_of_a_killed_worker_is_made_again(cluster: RayCluster, drawn: Path, tmp_path: Path) -> None:
    """One image is a pipe: its reader blocks. It is killed then, and the next reader gets the image."""
    pipes = tmp_path / "images"
    pipes.mkdir()
    for name in NAMES:
        (pipes / name).symlink_to(drawn / "images" / name)
    (pipes / NAMES[4]).unlink()
    os.mkfifo(pipes / NAMES[4])
    killed: list[int] = []

    def kill() -> None:
        with (pipes / NAMES[4]).open("wb"):  # opens once somebody reads
            (tmp_path / "photograph").symlink_to(drawn / "images" / NAMES[4])
            (tmp_path / "photograph").rename(pipes / NAMES[4])
            killed.extend(readers(pipes))
            for pid in killed:
                os.kill(pid, signal.SIGKILL)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    summary = shard(drawn, tmp_path / "out", images=pipes, cluster=cluster)
    killer.join(10)
    assert len(killed) == 1
    assert (summary.images, summary.rejects) == (12, {})
    assert contents(tmp_path / "out") == contents(drawn / "whole")


def readers(start: Path) -> list[int]:
    """Other processes that have a file open whose path begins like this, except lock files."""
    found = []
    for handle in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            name, pid = str(handle.readlink()), int(handle.parts[2])
            if name.startswith(str(start)) and not name.endswith(".lock") and pid != os.getpid():
                found.append(pid)
        except OSError:
            continue
    return found


@pytest.mark.full
def test_features_are_byte_for_byte_those_of_the_local_executor(cluster: RayCluster, drawn: Path, tmp_path: Path) -> None:
    cache_features(shards=drawn / "whole", out=tmp_path / "local", **NETWORK)
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / KEPT_FILE).write_bytes((tmp_path / "local" / KEPT_FILE).read_bytes())
    (summary,) = cache_features(shards=drawn / "whole", out=tmp_path / "ray", cluster=cluster, **NETWORK)
    assert (summary.images, summary.kept, summary.committed) == (12, False, True)
    assert contents(tmp_path / "ray") == contents(tmp_path / "local")


def test_the_command_runs_on_an_existing_cluster(cluster: RayCluster, drawn: Path, tmp_path: Path) -> None:
    address = ray.get_runtime_context().gcs_address
    command = [sys.executable, "cli.py", "shard", "--images", drawn / "images", "--captions", drawn / "c.json", "--out", tmp_path / "out"]
    options = ["--size", "32", "--shard-size", "3", "--executor", "ray", "--ray-address", address]
    done = subprocess.run([*map(str, command), *options], cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("Next: ")
    assert done.stderr.startswith("There is no split val")
    assert len(done.stderr.splitlines()) == 1
    assert contents(tmp_path / "out") == contents(drawn / "whole")


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
@pytest.mark.parametrize("end", [pytest.param(signal.SIGINT, marks=pytest.mark.full), signal.SIGKILL])
def test_workers_end_with_the_command(cluster: RayCluster, drawn: Path, tmp_path: Path, end: signal.Signals) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for name in NAMES:
        os.mkfifo(images / name)  # nobody writes: each worker waits
    address = ray.get_runtime_context().gcs_address
    command = [sys.executable, "cli.py", "shard", "--images", images, "--captions", drawn / "c.json", "--out", tmp_path / "out"]
    options = ["--size", "32", "--shard-size", "3", "--executor", "ray", "--ray-address", address]
    child = subprocess.Popen([*map(str, command), *options], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while len(list((tmp_path / "out").glob(".train-*.tmp"))) < 2:
        assert child.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    workers = readers(tmp_path / "out" / ".train-0")
    assert len(workers) == 2
    child.send_signal(end)
    _, said = child.communicate(timeout=60)
    assert child.returncode == (130 if end is signal.SIGINT else -signal.SIGKILL)
    assert "Traceback" not in said
    while any(Path(f"/proc/{pid}").exists() for pid in workers):
        assert time.monotonic() < deadline + 30
        time.sleep(0.05)


class Machines:
    """A cluster of machines that do not exist, for decisions before any task runs."""

    def __init__(self, *machines: tuple[float, float]) -> None:
        self._machines = machines

    def run(self, *_: Any, **__: Any) -> Any:
        raise AssertionError

    def resources(self) -> list[dict[str, float]]:
        return [{"CPU": cpus, "GPU": gpus} for cpus, gpus in self._machines]


def test_a_task_requests_a_gpu_if_there_is_one_and_otherwise_the_cpus_of_the_smallest_machine() -> None:
    gpu = task_resources(Machines((0, 0), (16, 4), (32, 4)), "auto")
    assert (gpu.kind, gpu.gpus, gpu.cpus, gpu.workers) == ("cuda", 1, 4, 4)
    cpu = task_resources(Machines((0, 0), (16, 4), (1, 0)), "cpu")
    assert (cpu.kind, cpu.gpus, cpu.cpus, cpu.workers) == ("cpu", 0, 1, 1)
    with pytest.raises(InputError, match="the cluster has no GPU"):
        task_resources(Machines((8, 0)), "cuda")
    with pytest.raises(InputError, match="auto, cpu or cuda"):
        task_resources(Machines((8, 1)), "cuda:1")
    with pytest.raises(InputError, match="no CPU"):
        task_resources(Machines((0, 0)), "auto")


@pytest.mark.parametrize(
    ("address", "kind", "says"),
    [
        ("ray://host:10001", InputError, "give the address of the cluster's head like host:6379"),
        ("host", InputError, "give the address of the cluster's head like host:6379"),
        ("127.0.0.1:1", ResourceError, "nothing answers there.*ray start --head"),
    ],
)
def test_an_address_without_a_cluster_is_refused_at_once(address: str, kind: type[Exception], says: str) -> None:
    with pytest.raises(kind, match=says), ray_cluster(address):
        pass


def test_without_ray_the_error_names_what_installs_it(monkeypatch: pytest.MonkeyPatch, drawn: Path, tmp_path: Path, run_cli: Run) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    options = ["--images", drawn / "images", "--captions", drawn / "c.json", "--out", tmp_path / "out"]
    result = run_cli("shard", *options, "--executor", "ray")
    assert result.exit_code == 1
    assert "pip install '.[ray]'" in result.output


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--ray-address", "auto"], "--ray-address requires --executor ray"),
        (["--executor", "ray", "--task-id", "0", "--num-tasks", "2"], "--task-id requires --executor local"),
        (["--executor", "ray", "--ray-address", "auto", "--workers", "2"], "--workers cannot be combined with --ray-address"),
    ],
)
@pytest.mark.parametrize("command", [["shard", "--images", "x", "--captions", "x"], ["cache-features", "--shards", "x"]])
def test_incompatible_options_are_wrong_usage(run_cli: Run, command: list[str], options: list[str], says: str) -> None:
    result = run_cli(*command, "--out", "y", *options)
    assert result.exit_code == 2
    assert says in result.output


def test_ray_is_imported_only_when_it_is_used() -> None:
    code = "import sys, pipeline.sharding.shard, pipeline.features.cache_features, pipeline.execution.ray_cluster\nprint('ray' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
