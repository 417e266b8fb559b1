"""Passes that are killed, meet a full disk or a folder that may not be used, and go on."""

import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shards.errors import ResourceError
from shards.features import open_features
from tests import ROOT
from tests.caching import cache_features
from tests.conftest import Small, shard_small
from tests.pipeline.features.test_cache_features import RESNET, with_kept_weights
from tests.processes import run_python

COMMAND = """
import sys
from pathlib import Path
from tests.caching import cache_features
cache_features(shards=Path(sys.argv[1]), out=Path(sys.argv[2]), splits=["train"], backbone="resnet18", weights="random",
               device="cpu", precision="fp32", batch_size=2)
"""
# Kills itself some time after it was about to rename one more file of features than argv[3].
KILL = """
import os, signal, sys, threading
renamed = 0
def hook(event, args):
    global renamed
    if event == "os.rename" and str(args[1]).endswith(".h5"):
        renamed += 1
        if renamed == int(sys.argv[3]) + 1:
            if float(sys.argv[4]):
                threading.Timer(float(sys.argv[4]), os.kill, (os.getpid(), signal.SIGKILL)).start()
            else:
                os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(hook)
"""
KEEP_PARTS = "import shutil; shutil.rmtree = lambda *a, **k: None  # the parts stay, to be looked at\n"


@pytest.fixture(scope="module")
def many_parts(small: Small, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    """Shards of 2 images, 18 of them, and the bytes of an uninterrupted pass over them."""
    base = tmp_path_factory.mktemp("many")
    shard_small(small.source, base / "shards", "train", shard_size=2)
    out = with_kept_weights(small, base / "out")
    run_python(COMMAND, base / "shards", out, check=True)
    return base / "shards", (out / "train.h5").read_bytes()


def kill_and_compare(small: Small, many_parts: tuple[Path, bytes], out: Path, finished: int, wait: float) -> None:
    """Kill a pass ``wait`` seconds after it has finished some parts; another pass then ends with the uninterrupted one's bytes."""
    shards, whole = many_parts
    out = with_kept_weights(small, out)
    assert run_python(KILL + COMMAND, shards, out, finished, wait).returncode == -signal.SIGKILL
    parts = out / ".train.parts"
    kept = {p.name: p.stat().st_mtime_ns for p in parts.glob("0*.h5")}
    assert len(kept) == finished or (wait and len(kept) > finished)
    run_python(KEEP_PARTS + COMMAND, shards, out, check=True)
    assert (out / "train.h5").read_bytes() == whole
    now = {p.name: p.stat().st_mtime_ns for p in parts.glob("0*.h5")}
    assert {name: now[name] for name in kept} == kept
    assert len(now) == 18


@pytest.mark.parametrize("finished", [1, 9, 18])
def test_a_killed_pass_goes_on_behind_its_finished_parts_to_the_same_bytes(
    small: Small, many_parts: tuple[Path, bytes], tmp_path: Path, finished: int
) -> None:
    kill_and_compare(small, many_parts, tmp_path / "out", finished, 0)


@pytest.mark.full
@pytest.mark.parametrize("seed", range(20))
def test_a_pass_killed_at_any_moment_goes_on_to_the_same_bytes(small: Small, many_parts: tuple[Path, bytes], tmp_path: Path, seed: int) -> None:
    random = np.random.default_rng(seed)
    kill_and_compare(small, many_parts, tmp_path / "out", int(random.integers(0, 18)), float(random.uniform(0, 0.02)))


def test_parts_that_a_pass_killed_right_behind_its_end_has_left_are_removed(small: Small, tmp_path: Path) -> None:
    out = tmp_path / "features"
    shutil.copytree(small.features, out)
    parts = out / ".train.parts"
    parts.mkdir()
    shutil.copyfile(out / "train.h5", parts / "000000.h5")
    (kept, _) = cache_features(shards=small.shards, out=out, backbone="resnet18", weights="random", device="cpu")
    assert kept.kept
    assert not parts.exists()


def test_a_damaged_part_is_made_anew_and_nothing_is_left_over(small: Small, many_parts: tuple[Path, bytes], tmp_path: Path) -> None:
    shards, whole = many_parts
    out = with_kept_weights(small, tmp_path / "out")
    run_python(KEEP_PARTS + COMMAND, shards, out, check=True)
    parts = sorted((out / ".train.parts").glob("0*.h5"))
    (out / "train.h5").unlink()
    for number, part in enumerate(parts[:4]):
        content = bytearray(part.read_bytes())
        if number == 0:
            content = content[: len(content) // 2]
        elif number < 3:
            content[content.index(open_features(part).features.tobytes()) + 100 * number] ^= 4
        part.write_bytes(content if number < 3 else b"")
    run_python(COMMAND, shards, out, check=True)
    assert (out / "train.h5").read_bytes() == whole
    assert sorted(p.name for p in out.iterdir()) == ["backbone.safetensors", "train.h5", "train.samples.tar"]


@pytest.mark.parametrize("fits", ["no part", "parts, but not the whole"])
def test_a_full_disk_is_a_clear_error_and_a_second_run_ends_with_the_same_bytes(
    small: Small, many_parts: tuple[Path, bytes], tmp_path: Path, fits: str
) -> None:
    shards, whole = many_parts
    out = with_kept_weights(small, tmp_path / "out")
    limit = 4096 if fits == "no part" else len(whole) - 1
    code = (
        "import resource, sys; from cli import cli; import pipeline.features.parts as parts\n"
        "make = parts.pixel_batches\n"
        "def limited(*args, **kwargs):\n"  # the shared memory of the workers is a file too: the limit comes after it
        "    batches = make(*args, **kwargs)\n    first = next(batches)\n"
        f"    resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
        "    yield first\n    yield from batches\n"
        "parts.pixel_batches = limited\n"
        "cli(['cache-features', '--shards', sys.argv[1], '--out', sys.argv[2], '--split', 'train', '--backbone', 'resnet18',"
        " '--weights', 'random', '--device', 'cpu', '--precision', 'fp32', '--batch-size', '2'])"
    )
    done = run_python(code, shards, out)
    assert done.returncode == 1, done.stderr
    assert re.search(r"(000000|train)\.h5: no space left \(File too large\)", done.stderr)
    assert "Traceback" not in done.stderr
    assert not (out / "train.h5").exists()
    assert len(list((out / ".train.parts").glob("0*.h5"))) == (0 if fits == "no part" else 18)
    run_python(COMMAND, shards, out, check=True)
    assert (out / "train.h5").read_bytes() == whole


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX permissions")
@pytest.mark.parametrize("closed", ["out", "shards"])
def test_a_folder_that_may_not_be_used_is_a_clear_error(small: Small, tmp_path: Path, closed: str) -> None:
    out, shards = with_kept_weights(small, tmp_path / "out"), tmp_path / "shards"
    shutil.copytree(small.shards, shards)
    (tmp_path / closed).chmod(0o555 if closed == "out" else 0)
    code = (
        "import os, shlex, sys; from cli import cli; import pipeline.console.commands.cache_features, pipeline.features.cache_features\n"
        "if os.getuid() == 0: os.setgroups([]); os.setegid(65534); os.seteuid(65534)\n"  # root may do anything anywhere
        "cli(['cache-features', '--shards', sys.argv[1], '--out', sys.argv[2], '--backbone', 'resnet18', '--weights', 'random'])"
    )
    for folder in (tmp_path, *tmp_path.parents):
        if os.getuid() == 0 and not folder.stat().st_mode & 0o001:
            folder.chmod(folder.stat().st_mode | 0o001)
    # A process of its own: a forked one, as another user, could not reach the fork server.
    command = [sys.executable, "-c", code, str(shards), str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert re.search(rf"{tmp_path / closed}.*: (not allowed|permission denied)", done.stderr)


def kill_a_device_process(out: Path) -> None:
    """Wait for the first part, then kill one of the processes that hold a device."""
    while not list(out.glob(".train.parts/0*.h5")):
        time.sleep(0.005)
    os.kill(multiprocessing.active_children()[0].pid or 0, signal.SIGKILL)


def test_a_device_process_that_is_killed_ends_the_others_and_a_second_run_goes_on(
    small: Small, many_parts: tuple[Path, bytes], tmp_path: Path
) -> None:
    shards, _ = many_parts
    out = with_kept_weights(small, tmp_path / "out")
    threading.Thread(target=kill_a_device_process, args=(out,), daemon=True).start()
    common: dict[str, Any] = {"shards": shards, "out": out, "splits": ["train"], **RESNET, "device": "cpu,cpu", "batch_size": 2}
    with pytest.raises(ResourceError, match=r"ended with code -9.*finished parts are kept"):
        cache_features(**common)
    assert not multiprocessing.active_children()
    assert cache_features(**common)[0].images == 36
