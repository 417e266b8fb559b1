import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
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


def test_two_processes_write_one_file_one_after_the_other(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from shards.atomic import committed_file\n"
        "for _ in range(30):\n"
        " with committed_file(Path(sys.argv[1])) as file:\n"
        "  for _ in range(20): file.write(sys.argv[2].encode() * 1000); file.flush()\n"
    )
    writers = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "a"), letter], cwd=ROOT) for letter in "xyz"]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    assert set((tmp_path / "a").read_text()) in ({"x"}, {"y"}, {"z"})
    assert (tmp_path / "a").stat().st_size == 20_000
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_two_threads_write_one_file_one_after_the_other(tmp_path: Path) -> None:
    def write(letter: str) -> None:
        with committed_file(tmp_path / "a") as file:
            for _ in range(5):
                file.write(letter.encode() * 10)
                time.sleep(0.001)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, "wxyz"))
    assert (tmp_path / "a").read_text() in [letter * 50 for letter in "wxyz"]


def test_a_writer_continues_after_one_that_was_killed_while_it_wrote(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; from shards.atomic import committed_file\n"
        "with committed_file(Path(sys.argv[1])) as file: file.write(b'half'); file.flush(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path / "a")], cwd=ROOT, check=False).returncode == -signal.SIGKILL
    assert sorted(path.name for path in tmp_path.iterdir()) == [".a.tmp", ".a.tmp.lock"]
    write_json(tmp_path / "a", 1)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("kind", ["a named pipe", "a socket", "a folder", "a device"])
def test_anything_but_a_file_is_refused_as_output_and_stays(tmp_path: Path, kind: str) -> None:
    path = Path(os.devnull) if kind == "a device" else tmp_path / "x"
    with socket.socket(socket.AF_UNIX) as server:
        make: dict[str, Callable[[], object]] = {
            "a named pipe": lambda: os.mkfifo(path),
            "a socket": lambda: server.bind(str(path)),
            "a folder": path.mkdir,
            "a device": lambda: None,
        }
        make[kind]()
        before = path.stat()
        with pytest.raises(ResourceError, match=f"x?: cannot be written, {kind} is in the way"):
            write_json(path, 1)
        assert path.stat() == before


def test_the_target_of_a_symbolic_link_is_written(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "other" / "file")
    for content in (1, 2):
        write_json(tmp_path / "link", content)
        assert (tmp_path / "link").is_symlink()
        assert json.loads((tmp_path / "other" / "file").read_bytes()) == content
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["file"]
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(OSError, match="symbolic links"):
        write_json(tmp_path / "loop", 1)
