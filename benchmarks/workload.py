"""What benchmarks share: replicated images, their shards, weights, timed commands, processes that serve passes, and measurements in turns."""

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
PATIENCE = 300.0  # seconds that a process may take to start, to make a pass, or to write
ROOT = Path(__file__).resolve().parents[1]
# Minimum seconds between two samples of the memory of processes: a short command ends soon.
SHORTEST_PAUSE = 0.02


def say(line: str) -> None:
    """Print progress on standard error: measurements take minutes."""
    print(line, file=sys.stderr, flush=True)


def replicate(dataset: Path, folder: Path, count: int) -> None:
    """Make ``count`` hard links to a dataset's images (copies on another disk), with their captions in COCO's format."""
    source = json.loads((dataset / "captions.json").read_text())
    captions: dict[int, list[str]] = {}
    for annotation in source["annotations"]:
        captions.setdefault(annotation["image_id"], []).append(annotation["caption"])
    (folder / "images").mkdir(parents=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index, image in zip(range(count), itertools.cycle(source["images"])):
        name = f"{index:06d}.jpg"
        original = dataset / "images" / image["file_name"]
        try:
            (folder / "images" / name).hardlink_to(original.resolve())
        except OSError:
            (folder / "images" / name).write_bytes(original.read_bytes())
        images.append({"id": index, "file_name": name})
        annotations += [{"id": len(annotations) + place, "image_id": index, "caption": text} for place, text in enumerate(captions[image["id"]])]
    (folder / "captions.json").write_text(json.dumps({"images": images, "annotations": annotations}))


@dataclass(frozen=True, kw_only=True)
class Usage:
    """The resources that a whole command used.

    Attributes:
        seconds: From the start of the interpreter to its end.
        peak_bytes: The peak memory of its largest process.
        together_bytes: The peak memory of all its processes together, shared pages counted once; None if it was not watched.
        output: Its standard output.
    """

    seconds: float
    peak_bytes: int
    together_bytes: int | None = None
    output: str = ""


def run_command(*arguments: object, watch: bool = False) -> Usage:
    """Run a Capstream command; with ``watch``, sample the memory of its processes, for at most a tenth of the time."""
    return run_python("cli.py", *arguments, watch=watch)


def run_python(*arguments: object, watch: bool = False) -> Usage:
    """Run a Python program of this environment, as :func:`run_command` does."""
    command = [sys.executable, "-S", str(ROOT / "benchmarks" / "launch.py"), sys.executable, *map(str, arguments)]
    launcher = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    ended = threading.Event()
    seen = [0]

    def sample() -> None:
        pause = SHORTEST_PAUSE
        while not ended.wait(pause):
            began = time.perf_counter()
            seen.append(sum(map(memory_of_tree, children(launcher.pid))))
            pause = max(SHORTEST_PAUSE, 10 * (time.perf_counter() - began))

    watcher = threading.Thread(target=sample)
    if watch:
        watcher.start()
    output = launcher.communicate()[0].decode()
    ended.set()
    if watch:
        watcher.join()
    *own, last = output.splitlines()
    seconds, code, kilobytes = json.loads(last)
    if code != 0:
        raise RuntimeError(f"{' '.join(map(str, arguments))} ended with exit code {code}")
    return Usage(seconds=seconds, peak_bytes=kilobytes * 1024, together_bytes=max(seen) or None, output="\n".join(own))


def children(process: int) -> list[int]:
    """The child processes of a process; none if it has ended, or if the system does not list them."""
    try:
        return [int(child) for task in Path(f"/proc/{process}/task").iterdir() for child in (task / "children").read_text().split()]
    except OSError:
        return []


def memory_of_tree(process: int) -> int:
    """Bytes of a process and its descendants, shared pages counted in proportion (Linux's PSS); 0 where the system does not report them."""
    try:
        sizes = dict(line.split(":", 1) for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()[1:])
    except OSError:
        return 0  # it has ended
    return int(sizes["Pss"].split()[0]) * 1024 + sum(map(memory_of_tree, children(process)))


def shard_images(dataset: Path, work: Path, count: int, *options: object) -> Split:
    """Replicate a dataset's images into ``work/source`` and shard them into ``work/shards`` with the command."""
    say(f"preparing {count} images")
    source = work / "source"
    replicate(dataset, source, count)
    run_command("shard", "--images", source / "images", "--captions", source / "captions.json", "--out", work / "shards", *options)
    return open_split(work / "shards", "train")


def write_weights(split: Split, backbone: str, path: Path) -> None:
    """Write random weights with BatchNorm statistics of a split's images as a .safetensors file. They are as fast as trained weights."""
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
        if key.endswith(".bn3.weight"):  # scales a residual branch; at full scale, rounding errors grow more than in any trained network
            value.mul_(0.2)
    save_file(state, path)


def measured_apart(module: str, options: Mapping[str, object], work: Path, what: str) -> dict[str, float]:
    """Make one measurement of a benchmark in its own process, so that measurements do not affect each other's memory allocator.

    Args:
        module: A benchmark with the option ``--measure``, such as ``benchmarks.bench_train``.
        options: Its options by name.
        work: The folder with the prepared data.
        what: The name of the measurement.
    """
    given = [text for name, value in options.items() for text in ("--" + name.replace("_", "-"), str(value))]
    found: dict[str, float] = json.loads(run_module(module, *given, "--work", str(work), "--measure", what).splitlines()[-1])
    return found


def run_module(module: str, *arguments: str) -> str:
    """Run ``python -m MODULE ARGUMENTS``; what it writes to standard output."""
    return subprocess.run([sys.executable, "-m", module, *arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout


def take_turns(ways: Mapping[str, Callable[[], T]], repeats: int) -> dict[str, list[T]]:
    """Measure A, B, C, A, B, C ..., so that a slow period of the machine affects all of them."""
    found: dict[str, list[T]] = {way: [] for way in ways}
    for repeat in range(repeats):
        for way, measure in ways.items():
            began = time.perf_counter()
            found[way].append(measure())
            say(f"repeat {repeat + 1} of {repeats}: {way}: {found[way][-1]}, {time.perf_counter() - began:.0f} s")
    return found


class ServedError(Exception):
    """A process ended or did not answer in time; the message has the details."""


class Served:
    """A process that makes a pass over its data on request: the client of :func:`benchmarks.peer_ways.serve`."""

    def __init__(self, command: Sequence[str], log: Path, *, environment: Mapping[str, str] | None = None) -> None:
        self.log = log
        with log.open("wb") as errors:
            pipe = subprocess.PIPE
            # Its own session, so that its workers can be killed with it.
            self.process = subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=errors, env=environment, start_new_session=True)

    def answer(self) -> dict[str, float]:
        """The next answer."""
        assert self.process.stdout is not None
        if not select.select([self.process.stdout], [], [], PATIENCE)[0]:
            raise ServedError(f"no answer in {PATIENCE:.0f} s")
        line = self.process.stdout.readline()
        if not line:
            raise ServedError(last_line(self.log))
        found: dict[str, float] = json.loads(line)
        return found

    def start(self, images: int) -> bool:
        """Wait until it is ready and has made a first pass, and check the pass's number of images."""
        self.answer()
        found = self.make_pass()["images"]
        if found != images:
            raise ServedError(f"a pass had {found} of {images} images")
        return True

    def make_pass(self) -> dict[str, float]:
        """Images and seconds of one pass."""
        self.ask()
        return self.answer()

    def ask(self) -> None:
        """Request a pass."""
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
    return lines[-1][:300] if lines else "it ended without a message"
