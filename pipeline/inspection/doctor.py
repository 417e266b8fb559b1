"""What is here to work with, and what to do about what is not: for people on one screen, as JSON for reports of problems.

Nothing here may fail: a broken installation is just what this is asked about. So each question is put by itself, imports what it needs, and
whatever goes wrong with it is its answer.
"""

import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.datasets.catalogue import DATASETS
from shards.paths import free_bytes

MIN_PYTHON = (3, 11)
# SourceImages of COCO 2014, its archives, what is made of them: README.md has the single figures.
COCO_BYTES = 50 * 10**9
MAX_COUNTED = 500_000
EXTRAS = {
    "timm": (("timm",), "--backbone timm:NAME"),
    "remote": (("aiohttp", "s3fs"), "shards and photographs at https:// and s3://"),
    "parquet": (("pyarrow",), "captions from Parquet files"),
    "ray": (("ray",), "sharding and caching on a cluster"),
}
CAPTION_FILES = ("annotations/captions_*.json", "karpathy/*.json", "flickr8k/*.token.txt")
NEXT_STEPS = [step for dataset in DATASETS.values() for step in dataset.next_steps.values()]


@dataclass(frozen=True, kw_only=True)
class Check:
    """One answer.

    Attributes:
        name: What was asked about.
        ok: Whether nothing needs to be done.
        found: What is there.
        advice: What to do where it is not ok.
    """

    name: str
    ok: bool
    found: str
    advice: str = ""


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """All answers; ``next_step`` is what to run next, behind ``python cli.py``."""

    checks: tuple[Check, ...]
    next_step: str


def doctor(*, root: Path = Path("data"), runs: Path = Path("runs")) -> Diagnosis:
    """Ask about everything. It raises nothing.

    Args:
        root: Folder of data.
        runs: Folder of runs.
    """
    questions: dict[str, Callable[[], Iterator[Check]]] = {
        "Python": _python,
        "Packages": _packages,
        "torch": _torch,
        "Images": _images,
        "Cores": _cores,
        "Disk": lambda: _disk(root, runs),
        "Extras": _extras,
        "Java": _java,
        "Data": lambda: _data(root),
        "Shards": lambda: _shards(root),
        "Features": lambda: _features(root),
        "Runs": lambda: _runs(runs),
    }
    checks = [check for name, question in questions.items() for check in _answers(name, question)]
    return Diagnosis(checks=tuple(checks), next_step=_next_step(root, runs, {check.name for check in checks if check.ok}))


def _answers(name: str, question: Callable[[], Iterator[Check]]) -> list[Check]:
    found: list[Check] = []
    try:
        found.extend(question())
    except Exception as error:  # whatever a broken installation raises is what was asked for
        lines = str(error).splitlines() or [""]
        found.append(Check(name=name, ok=False, found=f"could not be found out: {type(error).__name__}: {lines[0][:200]}", advice="See README.md."))
    return [replace(check, advice="") if check.ok else check for check in found]


def _python() -> Iterator[Check]:
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()} ({sys.executable})"
    wanted = ".".join(map(str, MIN_PYTHON))
    yield Check(name="Python", ok=sys.version_info >= MIN_PYTHON, found=found, advice=f"Use {wanted} or newer: make PYTHON=python{wanted} setup")


def _versions(*packages: str) -> dict[str, str]:
    """Those that are installed; by the standard library alone, where anything else may be what is missing."""
    found = {}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _packages() -> Iterator[Check]:
    """Those that pyproject.toml asks for in any case; Pillow-SIMD stands in for Pillow."""
    required = [line for line in importlib.metadata.requires("capstream") or () if "extra ==" not in line]
    names = [match[0] for line in required if (match := re.match(r"[\w.-]+", line))]
    there = _versions(*names, "pillow-simd")
    missing = [name for name in names if name not in there and not (name == "pillow" and "pillow-simd" in there)]
    found = f"missing: {', '.join(missing)}" if missing else f"all {len(names)} that are needed"
    yield Check(name="Packages", ok=not missing, found=found, advice="Run: make setup")


def _torch() -> Iterator[Check]:
    import torch

    from pipeline.backbone.precision import pick_precision
    from pipeline.execution.devices import pick_device

    device = pick_device("auto")
    unused = device.type == "cpu" and (shutil.which("nvidia-smi") is not None or Path("/proc/driver/nvidia").exists())
    name = f"{torch.cuda.get_device_name(device)}, {torch.cuda.device_count()} GPU(s)" if device.type == "cuda" else device.type
    advice = "There is an NVIDIA driver, but this torch does not use it: install its build for CUDA (https://pytorch.org)."
    yield Check(name="torch", ok=not unused, found=f"{torch.__version__}, device {name}, {torch.get_num_threads()} threads", advice=advice)
    chosen = pick_precision("auto", device)
    yield Check(name="Precision", ok=True, found=f"{chosen} (what --precision auto begins with; features are compared with fp32 first)")


def _images() -> Iterator[Check]:
    import PIL
    from PIL import Image, features

    versions = _versions("pillow-simd", "simplejpeg")
    simd = "pillow-simd" in versions
    image = Image.new("RGB", (640, 480))
    started, count = time.perf_counter(), 20
    for _ in range(count):
        image.resize((256, 256), Image.Resampling.LANCZOS)
    rate = count / (time.perf_counter() - started)
    avx2 = _cpu_has("avx2")
    found = f"{'Pillow-SIMD' if simd else 'Pillow'} {PIL.__version__}: {rate:,.0f} photographs/s resized on a core"
    advice = "Pillow-SIMD resizes several times faster" + (" on this CPU, which has AVX2" if avx2 else "")
    advice += ": with a C compiler and the headers of libjpeg and zlib, run: make clean setup"
    yield Check(name="Images", ok=simd, found=found, advice=advice)
    missing = [name for name, feature in (("JPEG", "jpg"), ("PNG", "zlib"), ("WebP", "webp")) if not features.check(feature)]
    missing += [] if "simplejpeg" in versions else ["simplejpeg"]
    advice = "If you have such files: install libwebp-dev, libjpeg-dev and zlib1g-dev (Debian's names), then run: make clean setup"
    if missing:
        yield Check(name="Formats", ok=False, found=f"no {', '.join(missing)} here", advice=advice)


def _cpu_has(flag: str) -> bool:
    try:
        return re.search(rf"\b{flag}\b", Path("/proc/cpuinfo").read_text()) is not None
    except OSError:  # not Linux
        return False


def _cores() -> Iterator[Check]:
    from pipeline.execution.executors import default_workers

    usable, there = default_workers(), os.cpu_count() or 1
    busy = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    yield Check(name="Cores", ok=True, found=f"{usable} of {there} may be used{busy}")


def _disk(root: Path, runs: Path) -> Iterator[Check]:
    free = {folder: free_bytes(folder) for folder in (root, runs)}
    found = ", ".join(f"{folder}: {size / 1e9:,.1f} GB free" for folder, size in free.items())
    advice = f"All of COCO 2014 takes about {COCO_BYTES / 1e9:.0f} GB; a part of it is less (download --parts, shard --limit)."
    yield Check(name="Disk", ok=free[root] >= COCO_BYTES or bool(_image_folders(root)), found=found, advice=advice)


def _extras() -> Iterator[Check]:
    there, missing = [], []
    for extra, (packages, purpose) in EXTRAS.items():
        versions = {name: version for name, version in _versions(*packages).items() if importlib.util.find_spec(name) is not None}
        if len(versions) == len(packages):
            there.append(" ".join(f"{name} {version}" for name, version in versions.items()))
        else:
            missing.append(f"'.[{extra}]' for {purpose}")
    yield Check(name="Extras", ok=not missing, found=", ".join(there) or "none", advice=f"If you want it, pip install {'; '.join(missing)}")


def _java() -> Iterator[Check]:
    from pipeline.evaluation.java import NEEDS, JavaError, find_java, require

    java, problems, there = find_java(), [], []
    for what, files in NEEDS.items():
        try:
            require(*files, what=what)
            there.append(what)
        except JavaError as error:
            problems.append(str(error))
    if java is None:
        problems = ["Optional: install a Java runtime (Debian: default-jre-headless) for METEOR, SPICE and evaluate --ptb java."]
    yield Check(name="Java", ok=not problems, found=f"{java or 'none'}{': ' + ', '.join(there) if there else ''}", advice=" ".join(problems))


def _data(root: Path) -> Iterator[Check]:
    found = [f"{name} ({_count(root / name):,} files)" for name in _image_folders(root)]
    captions = [path.name for pattern in CAPTION_FILES for path in sorted(root.glob(pattern))]
    advice = f"python cli.py download coco2014 --root {root}, or python cli.py demo for drawn scenes"
    yield Check(name="Data", ok=bool(found and captions), found=", ".join([*found, *captions]) or f"nothing in {root}", advice=advice)


def _image_folders(root: Path) -> list[str]:
    """Those of the known datasets that are there, below the root."""
    return [name for name in dict.fromkeys(name for step in NEXT_STEPS for name in step.images) if (root / name).is_dir()]


def _count(folder: Path) -> int:
    with os.scandir(folder) as entries:
        return sum(1 for _, _ in zip(range(MAX_COUNTED), entries, strict=False))


def _shards(root: Path) -> Iterator[Check]:
    from shards.dataset import read_dataset_file

    found = []
    for path in sorted(root.glob("*/dataset.json")):
        splits = [f"{name} {summary['images']:,}" for name, summary in read_dataset_file(path.parent).splits.items()]
        found.append(f"{path.parent} ({', '.join(splits)})")
    yield Check(name="Shards", ok=bool(found), found=", ".join(found) or f"none below {root}", advice="Make them with: python cli.py shard")


def _features(root: Path) -> Iterator[Check]:
    files = sorted(root.glob("*/*.h5"))
    found = ", ".join(f"{path} ({path.stat().st_size / 1e6:,.0f} MB)" for path in files)
    advice = "Make them with: python cli.py cache-features, or import-features"
    yield Check(name="Features", ok=bool(files), found=found or f"none below {root}", advice=advice)


def _runs(runs: Path) -> Iterator[Check]:
    found, trained = _run_folders(runs), _trained_runs(runs)
    shown = ", ".join(str(run) for run in found[:5]) + (f", and {len(found) - 5} more" if len(found) > 5 else "")
    what = f"{shown} ({len(trained)} with a checkpoint)" if found else f"none in {runs}"
    yield Check(name="Runs", ok=bool(trained), found=what, advice="Make one with: python cli.py train")


def _run_folders(runs: Path) -> list[Path]:
    """Those of training, and the demo's, which stands one folder deeper."""
    return [path.parent for pattern in ("*/config.json", "*/run/config.json") for path in sorted(runs.glob(pattern))]


def _trained_runs(runs: Path) -> list[Path]:
    """Those that have a checkpoint to caption with."""
    return [run for run in _run_folders(runs) if (run / "latest.json").is_file()]


def _next_step(root: Path, runs: Path, ok: set[str]) -> str:
    if "Runs" in ok:
        return f"caption --run {_trained_runs(runs)[0]} PHOTO.jpg"
    if "Features" in ok:
        return f"train --features {min(root.glob('*/*.h5')).parent} --out {runs}/first"
    if "Shards" in ok:
        return f"cache-features --shards {min(root.glob('*/dataset.json')).parent} --out {root}/features"
    possible = (step.on(root) for step in NEXT_STEPS if "Data" in ok and step.possible(root))
    return next(possible, f"download coco2014 --root {root}, or python cli.py demo")
