"""What several benchmarks need: many photographs from a few, and a command of ours timed as a whole."""

import itertools
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


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


def run_command(*arguments: object) -> tuple[float, int]:
    """Seconds of a whole command of ours, from the interpreter's start to its end, and the peak memory of the process in bytes."""
    started = time.perf_counter()
    child = subprocess.Popen([sys.executable, "cli.py", *map(str, arguments)], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    seconds = time.perf_counter() - started
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode != 0:
        raise RuntimeError(f"{arguments[0]} ended with exit code {child.returncode}")
    return seconds, usage.ru_maxrss * 1024
