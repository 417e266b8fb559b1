"""The doctor: what is installed and available, and what to do about what is missing. One screen for people, JSON for bug reports.

It must not fail, since a broken installation is what it should report. So each check runs on its own and imports what it needs, and an error
in a check is the result of that check.
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
from shards.paths import free_bytes, shell_quoted
from shards.versions import library_versions

MIN_PYTHON = (3, 11)
# The images and archives of COCO 2014, and the shards and features made from them.
COCO_BYTES = 50 * 10**9
MAX_COUNTED = 500_000
EXTRAS = {
    "timm": (("timm",), "--backbone timm:NAME"),
    "remote": (("aiohttp", "s3fs"), "shards and images at https:// and s3://"),
    "parquet": (("pyarrow",), "captions and images from Parquet and Arrow files"),
    "hub": (("pyarrow", "huggingface_hub"), "captions and images at hf:// URLs"),
    "heif": (("pillow_heif", "pillow_avif"), "HEIC, HEIF and AVIF images"),
    "excel": (("openpyxl",), "captions from Excel files"),
    "zh": (("jieba",), "captions in Chinese"),
    "ja": (("sudachipy", "sudachidict_small"), "captions in Japanese"),
    "ko": (("kiwipiepy", "kiwipiepy_model"), "captions in Korean"),
    "icu": (("icu4py",), "captions in other languages than these and English"),
    "ray": (("ray",), "sharding and caching on a cluster"),
}
CAPTION_FILES = ("annotations/captions_*.json", "karpathy/*.json", "flickr8k/*.token.txt")
NEXT_STEPS = [step for dataset in DATASETS.values() for step in dataset.next_steps.values()]


@dataclass(frozen=True, kw_only=True)
class Check:
    """The result of one check.

    Attributes:
        name: What was checked.
        ok: Whether nothing needs to be done.
        found: What was found.
        advice: What to do if it is not ok.
    """

    name: str
    ok: bool
    found: str
    advice: str = ""


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """All results; ``next_step`` is what to run next, after ``python cli.py``."""

    checks: tuple[Check, ...]
    next_step: str


def doctor(*, root: Path = Path("data"), runs: Path = Path("runs")) -> Diagnosis:
    """Run all checks. Raises nothing.

    Args:
        root: Folder of datasets, shards and features.
        runs: Folder of runs.
    """
    checkers: dict[str, Callable[[], Iterator[Check]]] = {
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
    checks = [check for name, checker in checkers.items() for check in _run_check(name, checker)]
    return Diagnosis(checks=tuple(checks), next_step=_next_step(root, runs, {check.name for check in checks if check.ok}))


def _run_check(name: str, checker: Callable[[], Iterator[Check]]) -> list[Check]:
    found: list[Check] = []
    try:
        found.extend(checker())
    except Exception as error:  # a broken installation may raise anything
        lines = str(error).splitlines() or [""]
        found.append(Check(name=name, ok=False, found=f"check failed: {type(error).__name__}: {lines[0][:200]}", advice="See README.md."))
    return [replace(check, advice="") if check.ok else check for check in found]


def _python() -> Iterator[Check]:
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()} ({sys.executable})"
    wanted = ".".join(map(str, MIN_PYTHON))
    yield Check(name="Python", ok=sys.version_info >= MIN_PYTHON, found=found, advice=f"Use {wanted} or newer: make PYTHON=python{wanted} setup")


def _packages() -> Iterator[Check]:
    """The required packages of pyproject.toml. Pillow-SIMD replaces Pillow."""
    required = [line for line in importlib.metadata.requires("capstream") or () if "extra ==" not in line]
    names = [match[0] for line in required if (match := re.match(r"[\w.-]+", line))]
    installed = library_versions(*names, "pillow-simd")
    missing = [name for name in names if name not in installed and not (name == "pillow" and "pillow-simd" in installed)]
    found = f"missing: {', '.join(missing)}" if missing else f"all {len(names)} required packages"
    yield Check(name="Packages", ok=not missing, found=found, advice="Run: make setup")


def _torch() -> Iterator[Check]:
    import torch

    from pipeline.backbone.precision import pick_precision
    from pipeline.execution.devices import pick_device

    device = pick_device("auto")
    unused = device.type == "cpu" and (shutil.which("nvidia-smi") is not None or Path("/proc/driver/nvidia").exists())
    name = f"{torch.cuda.get_device_name(device)}, {torch.cuda.device_count()} GPU(s)" if device.type == "cuda" else device.type
    advice = "An NVIDIA driver is installed, but this build of torch does not use it. Install torch for CUDA (https://pytorch.org)."
    yield Check(name="torch", ok=not unused, found=f"{torch.__version__}, device {name}, {torch.get_num_threads()} threads", advice=advice)
    chosen = pick_precision("auto", device)
    yield Check(name="Precision", ok=True, found=f"{chosen} (the first choice of --precision auto, which compares its features with those of fp32)")


def _images() -> Iterator[Check]:
    import PIL
    from PIL import Image, features

    versions = library_versions("pillow-simd", "simplejpeg")
    simd = "pillow-simd" in versions
    image = Image.new("RGB", (640, 480))
    started, count = time.perf_counter(), 20
    for _ in range(count):
        image.resize((256, 256), Image.Resampling.LANCZOS)
    rate = count / (time.perf_counter() - started)
    avx2 = _cpu_has("avx2")
    found = f"{'Pillow-SIMD' if simd else 'Pillow'} {PIL.__version__}: {rate:,.0f} images/s resized on one core"
    advice = "Pillow-SIMD resizes several times faster" + (" on this CPU with AVX2" if avx2 else "")
    advice += ". With a C compiler and the headers of libjpeg and zlib, run: make clean setup"
    yield Check(name="Images", ok=simd, found=found, advice=advice)
    missing = [name for name, feature in (("JPEG", "jpg"), ("PNG", "zlib"), ("WebP", "webp")) if not features.check(feature)]
    missing += [] if "simplejpeg" in versions else ["simplejpeg"]
    advice = "If you have such files, install libwebp-dev, libjpeg-dev and zlib1g-dev (names on Debian), then run: make clean setup"
    if missing:
        yield Check(name="Formats", ok=False, found=f"not supported: {', '.join(missing)}", advice=advice)


def _cpu_has(flag: str) -> bool:
    try:
        return re.search(rf"\b{flag}\b", Path("/proc/cpuinfo").read_text()) is not None
    except OSError:  # not Linux
        return False


def _cores() -> Iterator[Check]:
    from pipeline.execution.executors import default_workers

    usable, total = default_workers(), os.cpu_count() or 1
    busy = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    yield Check(name="Cores", ok=True, found=f"{usable} of {total} may be used{busy}")


def _disk(root: Path, runs: Path) -> Iterator[Check]:
    free = {folder: free_bytes(folder) for folder in (root, runs)}
    found = ", ".join(f"{folder}: {size / 1e9:,.1f} GB free" for folder, size in free.items())
    advice = f"COCO 2014 needs about {COCO_BYTES / 1e9:.0f} GB. A part of it needs less (download --parts, shard --limit)."
    yield Check(name="Disk", ok=free[root] >= COCO_BYTES or bool(_image_folders(root)), found=found, advice=advice)


def _extras() -> Iterator[Check]:
    installed, missing = [], []
    for extra, (packages, purpose) in EXTRAS.items():
        versions = {name: version for name, version in library_versions(*packages).items() if importlib.util.find_spec(name) is not None}
        if len(versions) == len(packages):
            installed.append(" ".join(f"{name} {version}" for name, version in versions.items()))
        else:
            missing.append(f"'.[{extra}]' for {purpose}")
    yield Check(name="Extras", ok=not missing, found=", ".join(installed) or "none", advice=f"If you need them: pip install {'; '.join(missing)}")


def _java() -> Iterator[Check]:
    from pipeline.evaluation.java import NEEDS, JavaError, find_java, require

    java, problems, available = find_java(), [], []
    for what, files in NEEDS.items():
        try:
            require(*files, what=what)
            available.append(what)
        except JavaError as error:
            problems.append(str(error))
    if java is None:
        problems = ["Optional: install a Java runtime (Debian: default-jre-headless) for METEOR, SPICE and evaluate --ptb java."]
    yield Check(name="Java", ok=not problems, found=f"{java or 'none'}{': ' + ', '.join(available) if available else ''}", advice=" ".join(problems))


def _data(root: Path) -> Iterator[Check]:
    found = [f"{name} ({_count(root / name):,} files)" for name in _image_folders(root)]
    captions = [path.name for pattern in CAPTION_FILES for path in sorted(root.glob(pattern))]
    advice = f"python cli.py download coco2014 --root {shell_quoted(root)}, or python cli.py demo for drawn scenes"
    yield Check(name="Data", ok=bool(found and captions), found=", ".join([*found, *captions]) or f"nothing in {root}", advice=advice)


def _image_folders(root: Path) -> list[str]:
    """The image folders of known datasets that exist below the root."""
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
    """The runs of training, and the demo's run, which is one folder deeper."""
    return [path.parent for pattern in ("*/config.json", "*/run/config.json") for path in sorted(runs.glob(pattern))]


def _trained_runs(runs: Path) -> list[Path]:
    """The runs that have a checkpoint."""
    return [run for run in _run_folders(runs) if (run / "latest.json").is_file()]


def _next_step(root: Path, runs: Path, ok: set[str]) -> str:
    if "Runs" in ok:
        return f"caption --run {_trained_runs(runs)[0]} PHOTO.jpg"
    if "Features" in ok:
        return f"train --features {min(root.glob('*/*.h5')).parent} --out {runs}/first"
    if "Shards" in ok:
        return f"cache-features --shards {min(root.glob('*/dataset.json')).parent} --out {root}/features"
    possible = (step.on(root) for step in NEXT_STEPS if "Data" in ok and step.possible(root))
    return next(possible, f"download coco2014 --root {shell_quoted(root)}, or python cli.py demo")
