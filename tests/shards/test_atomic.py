import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from shards.atomic import committed_file, hold_lock, temporary_path
from shards.errors import OccupiedError, ResourceError
from shards.json_files import write_json
from tests import ROOT


def test_a_failed_write_leaves_the_old_file_and_nothing_temporary(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"old": 1})
    with pytest.raises(RuntimeError), committed_file(path) as file:
        file.write(b"half")
        raise RuntimeError
    assert json.loads(path.read_bytes()) == {"old": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_file_where_a_folder_should_be_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ResourceError, match="in the way"):
        write_json(tmp_path / "file" / "a.json", 1)


def test_a_full_disk_is_a_clear_error_and_nothing_is_left(tmp_path: Path) -> None:
    code = (
        "import resource, signal, sys; from pathlib import Path; from shards.atomic import committed_file\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "from shards.errors import ResourceError\n"
        "try:\n with committed_file(Path(sys.argv[1])) as f: f.write(b'x' * 10000)\n"
        "except ResourceError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "big")], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "no space left" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_second_writer_is_refused_and_a_killed_one_releases_the_lock(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from shards.atomic import hold_lock\n"
        "with hold_lock(Path(sys.argv[1]), 'x', 'writing'): print('in', flush=True); time.sleep(60)"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "in\n"
    with pytest.raises(OccupiedError, match="another process"), hold_lock(tmp_path, "x", "writing"):
        pass
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    time.sleep(0.05)
    with hold_lock(tmp_path, "x", "writing"):
        pass


def test_temporary_files_are_next_to_their_target(tmp_path: Path) -> None:
    assert temporary_path(tmp_path / "a.tar") == tmp_path / ".a.tar.tmp"
