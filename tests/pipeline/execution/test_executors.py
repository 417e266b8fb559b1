import os
import signal
import time
from pathlib import Path

import pytest

from pipeline.execution.executors import run_tasks
from shards.errors import InputError, ResourceError
from tests.processes import start_python


def square(number: int) -> tuple[int, int]:
    return number * number, os.getpid()


def fail_at_three(number: int) -> int:
    if number == 3:
        raise InputError("three")
    return number


def kill_itself() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def sleep_beside(folder: Path, name: int) -> None:
    (folder / f"{name}.pid").write_text(str(os.getpid()))
    time.sleep(600)


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_results_come_in_the_order_of_the_tasks(workers: int) -> None:
    results = list(run_tasks(square, [(n,) for n in range(20)], workers=workers))
    assert [value for value, _ in results] == [n * n for n in range(20)]
    assert (os.getpid() in {pid for _, pid in results}) == (workers == 1)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_tasks_error_reaches_the_caller(workers: int) -> None:
    with pytest.raises(InputError, match="three"):
        list(run_tasks(fail_at_three, [(n,) for n in range(8)], workers=workers))


def test_a_killed_worker_is_an_error_with_advice() -> None:
    with pytest.raises(ResourceError, match="fewer `workers`"):
        list(run_tasks(kill_itself, [(), ()], workers=2))


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_workers_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from pipeline.execution.executors import run_tasks; "
        "from tests.pipeline.execution.test_executors import sleep_beside\n"
        "list(run_tasks(sleep_beside, [(Path(sys.argv[1]), n) for n in range(2)], workers=2))"
    )
    parent = start_python(code, tmp_path)
    deadline = time.monotonic() + 60
    while len(pids := [int(p.read_text() or 0) for p in tmp_path.glob("*.pid")]) < 2 or 0 in pids:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert all(map(runs, pids))
    parent.kill()
    parent.wait()
    while any(map(runs, pids)):
        assert time.monotonic() < deadline
        time.sleep(0.05)
