"""The whole way on a system that has no more than Windows has: no fork server, no calls of POSIX alone; and in folders with names of any script."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests import ROOT

# Read by every Python of the test before anything else, worker processes too.
WITHOUT_POSIX = """
import multiprocessing, multiprocessing.context, os
for name in ("sched_getaffinity", "sync", "killpg", "posix_fadvise", "posix_fallocate", "mkfifo"):
    if hasattr(os, name):
        delattr(os, name)
multiprocessing.get_all_start_methods = lambda: ["spawn"]
"""

# Runs commands, one per line of standard input as JSON, and says their exit codes.
COMMANDS = """
import json, sys
from click.testing import CliRunner
from cli import cli
if __name__ == "__main__":
    for line in sys.stdin:
        done = CliRunner().invoke(cli, json.loads(line))
        print(json.dumps([done.exit_code, done.output, repr(done.exception)]), flush=True)
"""


def test_the_whole_way_runs_without_posix_calls_in_folders_with_spaces_and_other_scripts(tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(WITHOUT_POSIX)
    base = tmp_path / "Meine Bilder – 写真 и фото"
    base.mkdir()
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path / 'site'}{os.pathsep}{ROOT}"}

    def script(*arguments: object) -> None:
        words = [sys.executable, str(ROOT / "cli.py"), *map(str, arguments)]
        done = subprocess.run(words, cwd=base, env=environment, capture_output=True, text=True, check=False, timeout=240)
        assert done.returncode == 0, done.stdout + done.stderr

    # Scripts are imported again by the workers that they spawn.
    script("synth", "die Daten", "--images", 20, "--workers", 2)
    for split in ("train", "val"):
        shard = ("shard", "--images", "die Daten/images", "--captions", f"die Daten/captions_{split}.json", "--out", "テープ", "--split", split)
        script(*shard, "--size", 64, "--shard-size", 6, "--workers", 2)

    # What imports PyTorch runs in one process.
    words = [sys.executable, "-c", COMMANDS]
    child = subprocess.Popen(words, cwd=base, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    told, answered = child.stdin, child.stdout
    assert told is not None
    assert answered is not None

    def command(*arguments: object) -> str:
        print(json.dumps([str(argument) for argument in arguments]), file=told, flush=True)
        code, output, problem = json.loads(answered.readline())
        assert code == 0, output + problem
        return str(output)

    assert "All shards are intact" in command("verify", "テープ", "--deep", "--workers", 2)
    command("cache-features", "--shards", "テープ", "--out", "признаки", "--backbone", "squeezenet1_1", "--weights", "random", "--device", "cpu")
    command("train", "--features", "признаки", "--out", "ein Lauf", "--min-count", 1, "--epochs", 1, "--hidden-dim", 16, "--device", "cpu")
    shutil.copyfile(base / "die Daten/images/scene_000000.jpg", base / "Фото 1.jpg")
    assert len(command("caption", "--run", "ein Lauf", "Фото 1.jpg").split()) > 1
    child.communicate(timeout=60)
    assert child.returncode == 0
