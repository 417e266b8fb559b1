"""How fast is sharding, and how close is it to the speed of decoding, resizing and encoding alone?

The data are real images, replicated as hard links. The ways take turns (A B C ours, A B C ours, ...):

    A     the tutorial's way: one process resizes a folder into another (with stock Pillow, if --tutorial-python has it; with the tutorial's
          JPEG quality of 75), then webdataset's TarWriter copies the files with their captions
    B     img2dataset on the same files: two processes, its default resize mode, JPEG quality 95 (needs --img2dataset-python)
    C     the limit: processes that only decode, resize and encode, from memory to memory, started and loaded before the clock
    ours  `python cli.py shard`: the whole command, from the start of the interpreter to its end

With --memory it measures the peak memory of `shard` instead, for 1,000 and 20,000 images of one annotation file, and the memory that the
annotation file itself takes.

    python -m benchmarks.bench_shard --images ../shared/data/coco-cc --out benchmarks/results
"""

import argparse
import contextlib
import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks.machine import machine, machine_line, table, write_report
from benchmarks.peers import version
from benchmarks.workload import ROOT, Served, Usage, replicate, run_command, run_python, say
from shards.tar import write_tar

SIZE, QUALITY = 256, 95


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Speed of sharding.", formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--images", type=Path, default=Path("../shared/data/coco-cc"), help="folder with images/ and captions.json (COCO)")
    parser.add_argument("--num-images", type=int, default=4000, help="images per measurement of ours and of the limit")
    parser.add_argument("--peer-images", type=int, default=1000, help="images per measurement of A")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="numbers of processes")
    parser.add_argument("--repeats", type=int, default=3, help="measurements of each way")
    parser.add_argument("--shard-size", type=int, default=500, help="images per shard")
    parser.add_argument("--tutorial-python", default=sys.executable, help="interpreter with stock Pillow, for A")
    parser.add_argument("--img2dataset-python", default=None, help="interpreter with img2dataset, for B")
    parser.add_argument("--memory", type=int, nargs="*", default=None, help="measure peak memory with these numbers of images instead (1000 20000)")
    parser.add_argument("--out", type=Path, default=None, help="folder for a dated JSON and Markdown report")
    settings = parser.parse_args(argv)
    if not (settings.images / "captions.json").is_file():
        parser.error(f"--images {settings.images}: holds no captions.json")
    return settings


def ours(data: Path, out: Path, count: int, workers: int, shard_size: int) -> Usage:
    """Run the whole `shard` command."""
    options = ["--limit", count, "--workers", workers, "--shard-size", shard_size, "--size", SIZE, "--quality", QUALITY]
    return run_command("shard", "--images", data / "images", "--captions", data / "captions.json", "--out", out, *options)


def limit(images: Path, count: int, workers: int, *, decode_only: bool = False) -> float:
    """C: seconds of decoding, resizing and encoding alone, or of decoding alone."""
    numbers = (count // workers, 0 if decode_only else SIZE, QUALITY)
    command = [sys.executable, "-m", "benchmarks.bare_pillow", str(images / "images"), *map(str, numbers)]
    with tempfile.TemporaryDirectory() as logs, contextlib.ExitStack() as stack:
        processes = [stack.enter_context(Served(command, Path(logs, str(worker)))) for worker in range(workers)]
        for process in processes:
            process.answer()
        started = time.perf_counter()
        for process in processes:
            process.ask()
        for process in processes:
            process.answer()
        return time.perf_counter() - started


def tutorial(data: Path, folder: Path, count: int, python: str) -> float:
    """A: seconds of the two loops, without start-up and imports."""
    import webdataset

    (folder / "resized").mkdir(parents=True)
    command = [python, str(ROOT / "benchmarks" / "tutorial_resize.py"), str(data / "images"), str(folder / "resized"), str(count)]
    seconds = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    annotation = json.loads((data / "captions.json").read_text())
    captions: dict[int, list[str]] = {}
    for entry in annotation["annotations"]:
        captions.setdefault(entry["image_id"], []).append(entry["caption"])
    started = time.perf_counter()
    with webdataset.TarWriter(str(folder / "out.tar")) as sink:
        for image in annotation["images"][:count]:
            jpeg = (folder / "resized" / image["file_name"]).read_bytes()
            sink.write({"__key__": f"{image['id']:09d}", "jpg": jpeg, "json": {"captions": captions[image["id"]]}})
    return seconds + time.perf_counter() - started


def img2dataset(data: Path, folder: Path, count: int, python: str) -> float:
    """B: seconds of the whole call, as for ours."""
    folder.mkdir(parents=True)
    annotation = json.loads((data / "captions.json").read_text())
    first = {entry["image_id"]: entry["caption"] for entry in reversed(annotation["annotations"])}
    with (folder / "list.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["url", "caption"])
        writer.writerows(((data / "images" / image["file_name"]).resolve().as_uri(), first[image["id"]]) for image in annotation["images"][:count])
    options = {
        "url_list": folder / "list.csv",
        "input_format": "csv",
        "url_col": "url",
        "caption_col": "caption",
        "output_format": "webdataset",
        "output_folder": folder / "out",
        "image_size": SIZE,
        "encode_quality": QUALITY,
        "processes_count": 2,
        "thread_count": 8,
        "number_sample_per_shard": 500,
    }
    code = "import json, sys\nfrom img2dataset import download\nif __name__ == '__main__':\n    download(**json.loads(sys.argv[1]))"
    (folder / "call.py").write_text(code)  # in a file, because its worker processes import the main module
    arguments = json.dumps({name: str(value) if isinstance(value, Path) else value for name, value in options.items()})
    started = time.perf_counter()
    subprocess.run([python, str(folder / "call.py"), arguments], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    seconds = time.perf_counter() - started
    written = sum(json.loads(path.read_text())["successes"] for path in (folder / "out").glob("*_stats.json"))
    if written != count:
        raise RuntimeError(f"img2dataset wrote {written} of {count} images")
    return seconds


def speed(s: argparse.Namespace, base: Path) -> dict[str, Any]:
    """Measure images/s of every way, in turns."""
    data = base / "data"
    replicate(s.images, data, s.num_images)
    rates: dict[str, list[float]] = {}

    def note(way: str, count: int, seconds: float) -> None:
        rates.setdefault(way, []).append(count / seconds)
        say(f"{way}: {count} images in {seconds:.1f} s")

    for repeat in range(s.repeats):
        for workers in s.workers:
            divisible = s.num_images // workers * workers
            note(f"C, {workers}", divisible, limit(s.images, divisible, workers))
            note(f"ours, {workers}", s.num_images, ours(data, base / f"ours-{repeat}-{workers}", s.num_images, workers, s.shard_size).seconds)
        if s.img2dataset_python:
            note("B, 2", s.num_images, img2dataset(data, base / f"b-{repeat}", s.num_images, s.img2dataset_python))
        note("A, 1", min(s.peer_images, s.num_images), tutorial(data, base / f"a-{repeat}", min(s.peer_images, s.num_images), s.tutorial_python))
    medians = {way: statistics.median(values) for way, values in rates.items()}
    ratios = {f"ours, {w} / C, {w}": medians[f"ours, {w}"] / medians[f"C, {w}"] for w in s.workers}
    most = max(s.workers)
    ratios |= {f"ours, {most} / {way}": medians[f"ours, {most}"] / medians[way] for way in ("A, 1", "B, 2") if way in medians}
    return {"rates": rates, "medians": medians, "ratios": ratios}


def memory(s: argparse.Namespace, base: Path) -> dict[str, Any]:
    """Measure peak memory with several numbers of images, from one annotation file for the largest number."""
    data = base / "data"
    replicate(s.images, data, max(s.memory))
    rows = []
    for count in s.memory:
        usage = ours(data, base / f"memory-{count}", count, 1, 1000)
        rows.append({"images": count, "peak_bytes": usage.peak_bytes, "seconds": usage.seconds})
        say(f"{count} images, one process: peak {usage.peak_bytes / 1e6:.0f} MB")
    own = []
    for count in s.memory:
        small = base / f"annotation-{count}"
        replicate(s.images, small, count)
        usage, size = plan(small), (small / "captions.json").stat().st_size
        own.append({"images": count, "peak_bytes": usage.peak_bytes, "seconds": usage.seconds, "file_bytes": size})
        say(f"reading the annotations alone, {count} images: peak {usage.peak_bytes / 1e6:.0f} MB")
    return {"sharding": rows, "planning": own}


def plan(data: Path) -> Usage:
    """Read the annotation file alone."""
    code = (
        "import sys; from pathlib import Path; from pipeline.captions.read import CaptionSource, read_splits; "
        "read_splits(CaptionSource(paths=(Path(sys.argv[1]),)))"
    )
    return run_python("-c", code, data / "captions.json")


def tar_rate(folder: Path) -> float:
    """Bytes/s of writing a tar with its checksums and flushing it to the disk."""
    jpeg = os.urandom(30_000)
    started = time.perf_counter()
    _, size, _ = write_tar(folder / "x.tar", ((f"{key:09d}", jpeg, {"captions": []}) for key in range(2000)))
    return size / (time.perf_counter() - started)


def markdown(report: dict[str, Any]) -> str:
    lines = [f"# Sharding, {report['date']}", ""]
    if "medians" in report:
        settings = report["settings"]
        lines += [
            f"{settings['num_images']} real images (A: {settings['peer_images']}), shards of {settings['shard_size']}, {SIZE}x{SIZE}, JPEG quality "
            f"{QUALITY}. Median (min to max) of {settings['repeats']} interleaved measurements; warm page cache.",
            "",
            *table(
                ["Way, processes", "images/s"],
                [[way, f"{report['medians'][way]:,.0f} ({min(v):,.0f} to {max(v):,.0f})"] for way, v in sorted(report["rates"].items())],
            ),
            "",
            *table(["Ratio", "Value"], [[name, f"{value:.2f}"] for name, value in report["ratios"].items()]),
            "",
            f"Writing a tar alone, with checksums and flush: {report['tar_bytes_per_second'] / 1e6:,.0f} MB/s.",
        ]
    else:
        for title, rows in (("Sharding, one process", report["sharding"]), ("Reading the annotations alone", report["planning"])):
            cells = [[f"{row['images']:,}", f"{row['peak_bytes'] / 1e6:,.0f} MB", f"{row['seconds']:.1f}"] for row in rows]
            lines += [f"## {title}", "", *table(["Images", "Peak memory", "Seconds"], cells), ""]
    return "\n".join([*lines, "", machine_line(report["machine"]), ""])


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the benchmark, print its table, write it to ``--out``, and return the report."""
    settings = parse(argv)
    with tempfile.TemporaryDirectory(prefix="capstream-bench-") as folder:
        if settings.memory is not None:
            settings.memory = settings.memory or [1000, 20_000]
            report = memory(settings, Path(folder))
        else:
            report = {**speed(settings, Path(folder)), "tar_bytes_per_second": tar_rate(Path(folder))}
    shown = ("num_images", "peer_images", "workers", "repeats", "shard_size")
    report |= {
        "date": date.today().isoformat(),
        "settings": {name: getattr(settings, name) for name in shown},
        "machine": machine("pillow-simd", "pillow", "simplejpeg", "nltk", "webdataset")
        | {
            "A's pillow": version(settings.tutorial_python, "pillow"),
            "img2dataset": version(settings.img2dataset_python, "img2dataset") if settings.img2dataset_python else "not run",
        },
    }
    name = "bench_shard-memory" if settings.memory is not None else "bench_shard"
    write_report(settings.out, f"{name}-{report['date']}", report, markdown(report))
    return report


if __name__ == "__main__":
    main()
