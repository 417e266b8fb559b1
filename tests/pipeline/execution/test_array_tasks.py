from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.execution.array_tasks import ArrayTask, pick_array_task, writer_lock
from shards.errors import InputError, OccupiedError
from tests.processes import PythonProcess, start_python
from tests.servers import contents, draw, shard

NAMES = [f"{number}.jpg" for number in range(10)]
HOLD = """
import sys
from pathlib import Path
from pipeline.execution.array_tasks import ArrayTask, writer_lock
task = ArrayTask(task_id=int(sys.argv[2]), num_tasks=int(sys.argv[3])) if len(sys.argv) > 2 else None
with writer_lock(Path(sys.argv[1]), "train", task, "writing split 'train'"):
    print("held", flush=True)
    sys.stdin.readline()
"""


@given(st.integers(0, 40), st.integers(1, 12))
def test_array_tasks_cover_all_tasks_once(tasks: int, num_tasks: int) -> None:
    selected = [ArrayTask(task_id=number, num_tasks=num_tasks).select(range(tasks)) for number in range(num_tasks)]
    assert sorted(task for own in selected for task in own) == list(range(tasks))
    assert max(map(len, selected)) - min(map(len, selected)) <= 1


@pytest.mark.parametrize(
    ("task_id", "num_tasks", "says"),
    [
        (3, 3, "`task_id` 3: must be between 0 and 2"),
        (-1, 3, "`task_id` -1"),
        (0, 0, "`num_tasks` 0: must be at least 1"),
        (0, None, "go together"),
        (None, 2, "go together"),
    ],
)
def test_impossible_array_tasks_are_refused(task_id: int | None, num_tasks: int | None, says: str) -> None:
    with pytest.raises(InputError, match=says):
        pick_array_task(task_id, num_tasks)


def hold(folder: Path, *task: int) -> PythonProcess:
    child = start_python(HOLD, folder, *task, pipes=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "held\n"
    return child


@pytest.mark.parametrize(
    ("holder", "other", "says"),
    [
        ((0, 4), None, "another process is writing split 'train'"),
        ((), ArrayTask(task_id=1, num_tasks=4), "another process is writing split 'train'"),
        ((1, 4), ArrayTask(task_id=1, num_tasks=4), "another process is writing split 'train' as task 1 of 4"),
        ((0, 4), ArrayTask(task_id=1, num_tasks=8), "another process is writing split 'train'"),
        ((), None, "another process is writing split 'train'"),
    ],
)
def test_processes_that_would_do_the_same_tasks_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, holder: tuple[int, ...], other: ArrayTask | None, says: str
) -> None:
    monkeypatch.setattr("pipeline.execution.array_tasks.CHECK_SECONDS", 0.1)
    child = hold(tmp_path, *holder)
    with pytest.raises(OccupiedError, match=says), writer_lock(tmp_path, "train", other, "writing split 'train'"):
        pass
    with writer_lock(tmp_path, "val", None, "writing split 'val'"), writer_lock(tmp_path, "train_2", other, "writing split 'train_2'"):
        pass  # other splits are independent
    if holder and other is not None and other.num_tasks == 4:
        with writer_lock(tmp_path, "train", ArrayTask(task_id=2, num_tasks=4), "writing split 'train'"):
            pass  # another array task of the same job array
    child.kill()
    child.communicate()
    with writer_lock(tmp_path, "train", other, "writing split 'train'"):
        pass
    assert not list(tmp_path.iterdir()), "a killed process's lock is gone"


def test_array_tasks_make_the_same_files_as_one_run_and_the_last_run_commits(tmp_path: Path) -> None:
    draw(tmp_path, NAMES)
    shard(tmp_path, tmp_path / "whole")
    out = tmp_path / "out"
    code = (
        "import sys; from pathlib import Path; from pipeline.execution.array_tasks import ArrayTask; from tests.servers import shard\n"
        "shard(Path(sys.argv[1]), Path(sys.argv[1]) / 'out', array_task=ArrayTask(task_id=int(sys.argv[2]), num_tasks=3))"
    )
    children = [start_python(code, tmp_path, number) for number in range(3)]
    assert [child.wait(120) for child in children] == [0, 0, 0]
    assert not (out / "dataset.json").exists()
    assert sorted(contents(out)) == sorted(name for name in contents(tmp_path / "whole") if name.startswith("train-"))
    summary = shard(tmp_path, out)
    assert (summary.kept, summary.committed) == (4, True)
    assert contents(out) == contents(tmp_path / "whole")


def test_the_last_run_does_what_the_array_tasks_did_not(tmp_path: Path) -> None:
    draw(tmp_path, NAMES)
    shard(tmp_path, tmp_path / "whole")
    first = shard(tmp_path, tmp_path / "out", array_task=ArrayTask(task_id=0, num_tasks=2))
    assert (first.shards, first.images, first.committed) == (2, 6, False)
    nothing = shard(tmp_path, tmp_path / "out", array_task=ArrayTask(task_id=5, num_tasks=7))
    assert (nothing.shards, nothing.images) == (0, 0)
    assert shard(tmp_path, tmp_path / "out").kept == 2
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
