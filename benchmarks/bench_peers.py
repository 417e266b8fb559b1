"""How fast are other tools on the same files, at writing, loading for training and reading cached features?

The tools take turns (A B C ours, A B C ours, ...), each in its own process:

    writing    images -> 256 x 256 JPEGs of quality 95 with captions: whole calls, from the start of the interpreter to its end
    loading    a pass over the same JPEGs in each tool's format: decoded, cropped to 224 and flipped, in batches of 128; each image comes
               with all of its captions, padded
    features   a shuffled pass over rows of float16, with the captions

Loaders have been started and have made an untimed pass (workers started, code compiled, page cache warm). A cold pass comes last, after the
files have been dropped from the page cache. The report says where the system did not drop them.

``peer_ways.py`` has what each tool runs, ``peers.py`` makes its environment. The suite runs this: ``--only peers``.
"""

import argparse
import contextlib
import ctypes
import json
import mmap
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from benchmarks import bench_shard, bench_train, training_ways
from benchmarks.generated import write_words
from benchmarks.machine import spread, table
from benchmarks.peer_ways import BATCH, GZIP_ROWS, WORKERS, Pass, serve
from benchmarks.peers import PEERS, NotInstalledError, interpreter, version
from benchmarks.tutorial import unpack
from benchmarks.workload import PATIENCE, ROOT, Served, ServedError, last_line, shard_images, take_turns
from pipeline.captions.vocabulary import read_vocabulary
from pipeline.loading.batches import EncodedCaptions, training_batches
from pipeline.loading.feature_source import FeatureSource
from pipeline.loading.sources import ShardSource, Source
from shards.caption_table import CaptionTable, table_of_split
from shards.dataset import open_split
from shards.features import open_features

T = TypeVar("T")
OURS, FOLDER, IMG2DATASET = "ours", "DataLoader", "img2dataset"
WRITERS = (IMG2DATASET, "webdataset", "litdata", "mosaicml-streaming", "ffcv")
LOADERS = (FOLDER, "webdataset", "litdata", "mosaicml-streaming", "ffcv")
GZIP, NPY = "h5py, gzip", ".npy files"
FEATURES = ("h5py", GZIP, "h5py, sorted batches", NPY)
OUR_EPOCHS = 5  # epochs in a pass of our feature loader, because one is too short to time
SETTINGS = {
    IMG2DATASET: "2 processes of 8 threads, its default resize_mode (border; it cannot change the aspect ratio), webdataset output",
    FOLDER: "PyTorch's DataLoader over a map-style dataset of JPEG files; 2 persistent workers",
    "webdataset": "ShardWriter in 2 processes; shuffle(1000), batched in 2 persistent WebLoader workers",
    "litdata": "optimize with 2 workers, chunks of 64 MB; StreamingDataset with shuffle and transform, StreamingDataLoader, 2 persistent workers",
    "mosaicml-streaming": "MDSWriter in 2 processes, merge_index; StreamingDataset with batch_size and shuffle, DataLoader, 2 persistent workers",
    "ffcv": "DatasetWriter with 2 workers, OpenCV's JPEGs of quality 95; Loader with 2 threads, OrderOption.RANDOM, os_cache",
    "h5py": "contiguous, a row at a time; DataLoader, 2 persistent workers, each opens the file",
    GZIP: f"compression='gzip' in the chunks that h5py chooses, otherwise as h5py; {GZIP_ROWS} rows per pass",
    "h5py, sorted batches": "contiguous, a batch's rows at once in ascending order; DataLoader, 2 persistent workers",
    NPY: "one file per image; DataLoader, 2 persistent workers",
    OURS: "the code of `shard`, `train --shards` and `train --features`, 2 processes or threads, captions_per_image 5",
}


def prepare(s: argparse.Namespace, work: Path) -> None:
    """Make the source images, our shards, the same JPEGs as files, a feature file, and lists of these for the other tools."""
    split = shard_images(s.images, work, s.peer_images, "--shard-size", 250)
    unpack(split, work / "jpegs")
    content = table_of_split(split)
    write_words(work / "vocab.json", content)
    bench_train.write_feature_file(argparse.Namespace(feature_images=s.peer_features, feature_dim=s.feature_dim, lengths=s.lengths), work)
    features = open_features(work / "features" / "train.h5")
    (work / "packed").mkdir()
    np.save(work / "packed" / "features.npy", features.features[:, 0])
    (work / "features.json").write_text(json.dumps([{"tokens": tokens} for tokens in ids_of(features.table, work)]))
    sources, jpegs = work / "source" / "images", work / "jpegs"
    images = [
        {"source": str(sources / name), "jpeg": str(jpegs / f"{key}.jpg"), "tokens": tokens}
        for key, name, tokens in zip(content.keys, content.file_names, ids_of(content, work), strict=True)
    ]
    (work / "images.json").write_text(json.dumps(images))


def ids_of(content: CaptionTable, work: Path) -> list[list[list[int]]]:
    """Each image's captions as ids."""
    encoded = EncodedCaptions(content, read_vocabulary(work / "vocab.json"))
    captions: list[list[list[int]]] = [[] for _ in content.keys]
    for row, ids in zip(content.image_rows.tolist(), torch.split(encoded.ids, encoded.lengths.tolist()), strict=True):
        captions[row].append(ids.tolist())
    return captions


def ours_pass(work: Path, kind: str) -> Pass:
    """A pass over our shards, or over our feature file, as training reads them."""
    source: Source
    if kind == "loading":
        split = open_split(work / "shards", "train")
        source, epochs = ShardSource(split, table_of_split(split), training_ways.shard_preprocessing(split), "tutorial", threads=WORKERS), 1
    else:
        source, epochs = FeatureSource(open_features(work / "features" / "train.h5")), OUR_EPOCHS
    encoded = EncodedCaptions(source.table, read_vocabulary(work / "vocab.json"))
    most = int(np.bincount(source.table.image_rows).max())

    def one_pass() -> int:
        streams = (training_batches(source, encoded, seed=0, epoch=epoch, batch_size=BATCH, captions_per_image=most) for epoch in range(epochs))
        return sum(len(batch.images) for stream in streams for batch in stream)

    return one_pass


def peer_environment() -> dict[str, str]:
    """The environment in which litdata and albumentations (of img2dataset) do not look for newer versions."""
    return {**os.environ, "LITDATA_DISABLE_VERSION_CHECK": "1", "NO_ALBUMENTATIONS_UPDATE": "1"}


def peer_command(python: str, peer: str, action: str, work: Path, out: Path) -> list[str]:
    listed = work / ("features.json" if peer in FEATURES else "images.json")
    return [python, str(ROOT / "benchmarks" / "peer_ways.py"), peer, action, str(listed), str(out)]


def run_peer(python: str, peer: str, action: str, work: Path, out: Path) -> float:
    """Seconds of a whole call of a tool."""
    log = work / "peer.log"
    started = time.perf_counter()
    with log.open("wb") as errors:
        try:
            command = peer_command(python, peer, action, work, out)
            done = subprocess.run(command, cwd=ROOT, stdout=errors, stderr=errors, check=False, timeout=PATIENCE, env=peer_environment())
        except subprocess.TimeoutExpired:
            raise ServedError(f"not finished after {PATIENCE:.0f} s") from None
    if done.returncode:
        raise ServedError(last_line(log))
    return time.perf_counter() - started


def pythons(s: argparse.Namespace) -> tuple[dict[str, str], dict[str, str]]:
    """The interpreter of each installed tool, and why the others are missing. Tools without an environment of their own use ours."""
    found = dict.fromkeys((FOLDER, *FEATURES), sys.executable)
    missing = {}
    for name in PEERS:
        if s.peers is not None and name not in s.peers:
            continue
        try:
            found[name] = interpreter(name)
        except NotInstalledError as problem:
            missing[name] = f"not installed: {problem}"
    return found, missing


def attempt(measure: Callable[[], T], missing: dict[str, str], name: str) -> T | None:
    """A measurement of a tool. One that has failed is not repeated; its reason is kept in ``missing``."""
    if name in missing:
        return None
    try:
        return measure()
    except (ServedError, RuntimeError, subprocess.CalledProcessError) as problem:
        missing[name] = f"failed: {problem}"
        return None


def without_gaps(found: dict[str, list[float | None]]) -> dict[str, list[float]]:
    """The ways that were measured in every turn."""
    return {way: [rate for rate in rates if rate is not None] for way, rates in found.items() if None not in rates}


def writing(s: argparse.Namespace, work: Path, found: dict[str, str], missing: dict[str, str]) -> dict[str, dict[str, list[float]]]:
    """Images/s of whole calls that write."""
    images: int = s.peer_images

    def peer(name: str) -> float:
        out = Path(tempfile.mkdtemp(dir=work)) / "out"
        if name == IMG2DATASET:
            return images / bench_shard.img2dataset(work / "source", out, images, found[name])
        return images / run_peer(found[name], name, "write", work, out)

    def ours() -> float:
        out = Path(tempfile.mkdtemp(dir=work)) / "out"
        return images / bench_shard.ours(work / "source", out, images, WORKERS, 250).seconds

    peers = [name for name in WRITERS if name in found]
    ways = {name: partial(attempt, partial(peer, name), missing, f"{name}, writing") for name in peers}
    return {"warm": without_gaps(take_turns({OURS: ours, **ways}, s.repeats)), "cold": {}}


def reading(
    s: argparse.Namespace, work: Path, kind: str, peers: Sequence[str], found: dict[str, str], missing: dict[str, str]
) -> dict[str, dict[str, list[float]]]:
    """Images/s of warm passes, and of one cold pass."""
    ours = [sys.executable, "-m", "benchmarks.bench_peers", "--serve", kind, "--work", str(work)]
    commands = {OURS: ours}
    files = {OURS: work / "shards", FOLDER: work / "jpegs"}
    for name in peers:
        out = work / "packed" / name.replace(" ", "-")
        if name in found and attempt(partial(run_peer, found[name], name, "pack", work, out), missing, f"{name}, {kind}") is not None:
            commands[name] = peer_command(found[name], name, "load", work, out)
            files.setdefault(name, out)
    with contextlib.ExitStack() as stack:
        loaders = {}
        for name, command in commands.items():
            loader = stack.enter_context(Served(command, work / f"{kind}-{name.replace(' ', '-')}.log", environment=peer_environment()))
            if attempt(partial(loader.start, images_of_a_pass(s, kind, name)), missing, f"{name}, {kind}") is not None:
                loaders[name] = loader
        if OURS not in loaders:
            raise RuntimeError(missing[f"{OURS}, {kind}"])
        warm = take_turns({name: partial(attempt, loader.rate, missing, f"{name}, {kind}") for name, loader in loaders.items()}, s.repeats)
        cold = {}
        for name, loader in loaders.items():
            if (kind, name) != ("features", OURS) and dropped(files[name]):  # ours are in memory
                cold[name] = [attempt(loader.rate, missing, f"{name}, {kind}")]
    return {"warm": without_gaps(warm), "cold": without_gaps(cold)}


def images_of_a_pass(s: argparse.Namespace, kind: str, name: str) -> int:
    """The number of images in a complete pass."""
    if kind == "loading":
        return int(s.peer_images)
    return int({OURS: OUR_EPOCHS * s.peer_features, GZIP: min(GZIP_ROWS, s.peer_features)}.get(name, s.peer_features))


def dropped(folder: Path) -> bool:
    """Drop a folder's files from the page cache; return whether they are really gone from it."""
    if not hasattr(os, "posix_fadvise"):
        return False
    paths = [path for path in folder.rglob("*") if path.is_file() and path.stat().st_size]
    for path in paths:
        with path.open("rb") as file:
            os.fsync(file.fileno())  # pages that are not yet written cannot be dropped
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return not any(map(in_page_cache, paths))


def in_page_cache(path: Path) -> bool:
    """Whether any page of a file is in memory. The check itself loads none."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as mapped:
        pages = (ctypes.c_ubyte * -(-len(mapped) // mmap.PAGESIZE))()
        start = ctypes.c_ubyte.from_buffer(mapped)
        failed = ctypes.CDLL(None).mincore(ctypes.c_void_p(ctypes.addressof(start)), ctypes.c_size_t(len(mapped)), pages)
        del start  # otherwise the mapping could not be closed
        return bool(failed) or any(page & 1 for page in pages)


def measure(s: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Measure all three kinds. ``not_measured`` has the tools without figures and the reasons."""
    prepare(s, work)
    found, missing = pythons(s)
    report: dict[str, Any] = {"writing": writing(s, work, found, missing)}
    report["loading"] = reading(s, work, "loading", LOADERS, found, missing)
    report["features"] = reading(s, work, "features", FEATURES, found, missing)
    packages = {name: PEERS[name].package if name in PEERS else "torch" if name == FOLDER else "numpy" if name == NPY else "h5py" for name in found}
    versions = {name: version(found[name], package) for name, package in packages.items()}
    return report | {
        "medians": {kind: {way: statistics.median(rates) for way, rates in report[kind]["warm"].items()} for kind in report},
        "versions": versions,
        "not_measured": missing,
        "peer_images": s.peer_images,
        "peer_features": s.peer_features,
        "repeats": s.repeats,
    }


def lines(report: dict[str, Any]) -> Iterator[str]:
    """The section as Markdown."""
    titles = {
        "writing": "Images to shards of 256 x 256 JPEGs with captions: two processes, whole calls",
        "loading": "JPEGs to batches of 128 crops of 224, flipped, with captions: two workers or threads",
        "features": "Cached features (float16) to shuffled batches of 128, with captions",
    }
    yield f"{report['peer_images']:,} images per pass, and {report['peer_features']:,} rows of features."
    yield f"Medians (min to max) of {report['repeats']} interleaved measurements, page cache warm; one cold pass."
    for kind, title in titles.items():
        own = report["medians"][kind][OURS]
        cold = report[kind]["cold"]
        rows = [
            [
                way,
                report["versions"].get(way, ""),
                spread(rates, ",.0f"),
                f"{own / statistics.median(rates):.2f}",
                f"{cold[way][0]:,.0f}" if way in cold else "not measured" if kind != "writing" else "",
                SETTINGS[way],
            ]
            for way, rates in sorted(report[kind]["warm"].items(), key=lambda item: -statistics.median(item[1]))
        ]
        yield from (
            "",
            f"### {title}",
            "",
            *table(["Tool", "Version", "images/s", "Speed-up of ours", "Cold, images/s", "Settings"], rows),
        )
    if report["not_measured"]:
        yield from ("", *(f"- {name}: {why}" for name, why in report["not_measured"].items()))


def main(argv: Sequence[str] | None = None) -> None:
    """Serve passes of our own loaders; the suite runs this."""
    parser = argparse.ArgumentParser(description="Passes of our loaders on request. All measurements: python -m benchmarks.run --only peers")
    parser.add_argument("--serve", required=True, choices=("loading", "features"))
    parser.add_argument("--work", type=Path, required=True)
    settings = parser.parse_args(argv)
    serve(partial(ours_pass, settings.work, settings.serve))


if __name__ == "__main__":
    main()
