"""What several benchmarks need: many photographs from a few, shards of them, weights, commands timed as a
whole, processes that are asked for passes, turns.
"""

import contextlib
import itertools
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from safetensors.torch import save_file

from model.encoder import backbone_state
from pipeline.backbone.backbones import open_backbone
from pipeline.features.calibration import calibration_batches
from shards.dataset import Split, open_split

T = TypeVar("T")
PATIENCE = 300.0  # seconds that a process may take to start, for a pass, or to write
ROOT = Path(__file__).resolve().parents[1]
# Seconds between two looks at processes, at the least: a short command ends soon.
SHORTEST_LOOK = 0.02


def say(line: str) -> None:
    """Progress, on standard error: what is measured takes minutes."""
    print(line, file=sys.stderr, flush=True)


def replicate(photographs: Path, folder: Path, count: int) -> None:
    """``count`` hard links to the photographs (or copies, on another disk), with the captions of each, in COCO's format."""
    source = json.loads((photographs / "captions.json").read_text())
    captions: dict[int, list[str]] = {}
    for annotation in source["annotations"]:
        captions.setdefault(annotation["image_id"], []).append(annotation["caption"])
    (folder / "images").mkdir(parents=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index, image in zip(range(count), itertools.cycle(source["images"])):
        name = f"{index:06d}.jpg"
        original = photographs / "images" / image["file_name"]
        try:
            (folder / "images" / name).hardlink_to(original.resolve())
        except OSError:
            (folder / "images" / name).write_bytes(original.read_bytes())
        images.append({"id": index, "file_name": name})
        annotations += [{"id": len(annotations) + place, "image_id": index, "caption": text} for place, text in enumerate(captions[image["id"]])]
    (folder / "captions.json").write_text(json.dumps({"images": images, "annotations": annotations}))


@dataclass(frozen=True, kw_only=True)
class Usage:
    """What a whole command took.

    Attributes:
        seconds: From the interpreter's start to its end.
        peak_bytes: The most memory of its largest process.
        together_bytes: The most memory of all its processes at a time, pages that they share counted once; None where nobody watched.
        said: What it wrote to standard output.
    """

    seconds: float
    peak_bytes: int
    together_bytes: int | None = None
    said: str = ""


def run_command(*arguments: object, watch: bool = False) -> Usage:
    """Run a command of ours; with ``watch``, look at the memory of its processes for a tenth of the time."""
    return run_python("cli.py", *arguments, watch=watch)


def run_python(*arguments: object, watch: bool = False) -> Usage:
    """Run a program of this environment, as :func:`run_command` does."""
    command = [sys.executable, "-S", str(ROOT / "benchmarks" / "launch.py"), sys.executable, *map(str, arguments)]
    launcher = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    ended = threading.Event()
    seen = [0]

    def look() -> None:
        pause = SHORTEST_LOOK
        while not ended.wait(pause):
            began = time.perf_counter()
            seen.append(sum(map(memory_of_tree, children(launcher.pid))))
            pause = max(SHORTEST_LOOK, 10 * (time.perf_counter() - began))

    watcher = threading.Thread(target=look)
    if watch:
        watcher.start()
    said = launcher.communicate()[0].decode()
    ended.set()
    if watch:
        watcher.join()
    *own, last = said.splitlines()
    seconds, code, kilobytes = json.loads(last)
    if code != 0:
        raise RuntimeError(f"{' '.join(map(str, arguments))} ended with exit code {code}")
    return Usage(seconds=seconds, peak_bytes=kilobytes * 1024, together_bytes=max(seen) or None, said="\n".join(own))


def children(process: int) -> list[int]:
    """The processes that a process has started, where the system says it; none if it has ended."""
    try:
        return [int(child) for task in Path(f"/proc/{process}/task").iterdir() for child in (task / "children").read_text().split()]
    except OSError:
        return []


def memory_of_tree(process: int) -> int:
    """Bytes of a process and all that it started, shared pages in proportion (Linux's PSS); 0 where the system does not say."""
    try:
        sizes = dict(line.split(":", 1) for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()[1:])
    except OSError:
        return 0  # it has ended meanwhile
    return int(sizes["Pss"].split()[0]) * 1024 + sum(map(memory_of_tree, children(process)))


def shard_photographs(photographs: Path, work: Path, count: int, *options: object) -> Split:
    """Replicate photographs into ``work/photographs`` and shard them into ``work/shards``, as a user does."""
    say(f"preparing {count} photographs")
    source = work / "photographs"
    replicate(photographs, source, count)
    run_command("shard", "--images", source / "images", "--captions", source / "captions.json", "--out", work / "shards", *options)
    return open_split(work / "shards", "train")


def write_weights(split: Split, backbone: str, path: Path) -> None:
    """Random weights with BatchNorm statistics of a split's images, as a .safetensors file: as fast as trained ones."""
    _, frozen = open_backbone(
        backbone=backbone,
        weights="random",
        resize=split.config["resize"],
        kept=path.with_name("kept.safetensors"),
        sample=lambda crop: itertools.islice(calibration_batches(split, crop), 1),
    )
    frozen.whitening = None
    state = backbone_state(frozen)
    for key, value in state.items():
        if key.endswith(".bn3.weight"):  # ends a residual branch; at full strength, rounding errors grow as in no trained network
            value.mul_(0.2)
    save_file(state, path)


def measured_apart(module: str, options: Mapping[str, object], work: Path, what: str) -> dict[str, float]:
    """One measurement of a benchmark in a process of its own: what one does to the allocator, the next must not feel.

    Args:
        module: A benchmark that answers ``--measure``, such as ``benchmarks.bench_train``.
        options: What it is given, by name.
        work: The folder in which everything has been prepared.
        what: The measurement's name.
    """
    given = [text for name, value in options.items() for text in ("--" + name.replace("_", "-"), str(value))]
    command = [sys.executable, "-m", module, *given, "--work", str(work), "--measure", what]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def take_turns(ways: Mapping[str, Callable[[], T]], repeats: int) -> dict[str, list[T]]:
    """Measure A, B, C, A, B, C ..., so that a slow minute of the machine meets all of them."""
    found: dict[str, list[T]] = {way: [] for way in ways}
    for repeat in range(repeats):
        for way, measure in ways.items():
            began = time.perf_counter()
            found[way].append(measure())
            say(f"repeat {repeat + 1} of {repeats}: {way}: {found[way][-1]}, {time.perf_counter() - began:.0f} s")
    return found


class ServedError(Exception):
    """A process ended, or did not answer in time; the message says how."""


class Served:
    """A process that makes a pass over its data whenever it is asked: the other side of :func:`benchmarks.peer_ways.serve`."""

    def __init__(self, command: Sequence[str], log: Path, *, environment: Mapping[str, str] | None = None) -> None:
        self.log = log
        with log.open("wb") as errors:
            pipe = subprocess.PIPE
            # A session of its own, so that its workers can be ended with it.
            self.process = subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=errors, env=environment, start_new_session=True)

    def answer(self) -> dict[str, float]:
        """Its next line."""
        assert self.process.stdout is not None
        if not select.select([self.process.stdout], [], [], PATIENCE)[0]:
            raise ServedError(f"no answer in {PATIENCE:.0f} s")
        line = self.process.stdout.readline()
        if not line:
            raise ServedError(last_line(self.log))
        found: dict[str, float] = json.loads(line)
        return found

    def start(self, images: int) -> bool:
        """Wait until it is ready and has made a first pass, of so many images."""
        self.answer()
        found = self.make_pass()["images"]
        if found != images:
            raise ServedError(f"a pass gave {found} of {images} images")
        return True

    def make_pass(self) -> dict[str, float]:
        """Images and seconds of one pass."""
        self.ask()
        return self.answer()

    def ask(self) -> None:
        """Let it begin a pass."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(b"\n")
            self.process.stdin.flush()

    def rate(self) -> float:
        """Images/s of one pass."""
        found = self.make_pass()
        return found["images"] / found["seconds"]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(10)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.process.stdout.close()


def last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it ended without a word"
