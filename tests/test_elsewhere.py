"""The whole way on a system that has no more than Windows has: no fork server, no calls of POSIX alone; and in folders with names of any script."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests import ROOT

# Read by every Python of the test before anything else, workers too.
WITHOUT_POSIX = """
import multiprocessing, multiprocessing.context, os
for name in ("sched_getaffinity", "sync", "killpg", "posix_fadvise", "posix_fallocate", "mkfifo"):
    if hasattr(os, name):
        delattr(os, name)
multiprocessing.get_all_start_methods = lambda: ["spawn"]
"""


def test_the_whole_way_runs_without_posix_calls_in_folders_with_spaces_and_other_scripts(tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(WITHOUT_POSIX)
    base = tmp_path / "Meine Bilder – 写真 и фото"
    base.mkdir()
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path / 'site'}{os.pathsep}{ROOT}"}

    def command(*arguments: object) -> str:
        words = [sys.executable, str(ROOT / "cli.py"), *map(str, arguments)]
        done = subprocess.run(words, cwd=base, env=environment, capture_output=True, text=True, check=False, timeout=240)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    command("synth", "die Daten", "--images", 20, "--workers", 2)
    for split in ("train", "val"):
        shard = ("shard", "--images", "die Daten/images", "--captions", f"die Daten/captions_{split}.json", "--out", "テープ", "--split", split)
        command(*shard, "--size", 64, "--shard-size", 6, "--workers", 2)
    assert "All shards are intact" in command("verify", "テープ", "--deep", "--workers", 2)
    command("cache-features", "--shards", "テープ", "--out", "признаки", "--backbone", "squeezenet1_1", "--weights", "random", "--device", "cpu")
    command("train", "--features", "признаки", "--out", "ein Lauf", "--min-count", 1, "--epochs", 1, "--hidden-dim", 16, "--device", "cpu")
    shutil.copyfile(base / "die Daten/images/scene_000000.jpg", base / "Фото 1.jpg")
    assert len(command("caption", "--run", "ein Lauf", "Фото 1.jpg").split()) > 1
