"""What other tools run, each as its documentation recommends. Runs in the tool's own environment and imports nothing of Capstream.

    python peer_ways.py PEER write LIST OUT    images -> 256 x 256 JPEGs of quality 95 with captions, in the tool's format
    python peer_ways.py PEER pack LIST OUT     the same format from existing JPEGs (or features)
    python peer_ways.py PEER load LIST OUT     answers each line on standard input with a pass over what pack wrote: images and seconds

LIST is a JSON file with the paths of source images and JPEGs, and each image's captions as ids. All loaders share the fastest settings that we
know: libjpeg-turbo decodes to uint8, a random crop of 224 and a flip, batches of 128 in which each image comes with all of its captions,
padded; two worker processes, or threads where the tool has them.
"""

# mypy: disable-error-code="import-not-found"
# ruff: noqa: ARG001 - all tools are called with the same arguments

import io
import json
import multiprocessing
import os
import random
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

SIZE, CROP, QUALITY, BATCH, WORKERS, SEED = 256, 224, 95, 128, 2, 0
GZIP_ROWS = 2 * BATCH
Image = dict[str, Any]  # source, jpeg: paths; tokens: a list of ids for each caption
Item = tuple[NDArray[Any], list[list[int]]]
Pass = Callable[[], int]


def squashed(image: Image) -> Any:
    """The source image as a Pillow image of the stored size."""
    from PIL import Image as Pillow

    with Pillow.open(image["source"]) as file:
        return file.convert("RGB").resize((SIZE, SIZE), Pillow.Resampling.LANCZOS)


def jpeg_of(image: Image, resize: bool) -> bytes:
    """The bytes to store: encoded from the source image, or those of the existing JPEG."""
    if not resize:
        return Path(image["jpeg"]).read_bytes()
    target = io.BytesIO()
    squashed(image).save(target, "JPEG", quality=QUALITY)
    return target.getvalue()


def view(jpeg: bytes) -> NDArray[np.uint8]:
    """uint8 (224, 224, 3): decoded, cropped and flipped at random."""
    import simplejpeg

    pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(jpeg, "RGB")
    top, left = random.randrange(SIZE - CROP + 1), random.randrange(SIZE - CROP + 1)
    pixels = pixels[top : top + CROP, left : left + CROP]
    return pixels[:, ::-1] if random.random() < 0.5 else pixels


def collate(items: list[Item]) -> tuple[Any, Any]:
    """A batch: (images, ...) and int64 (captions, longest), padded with 0."""
    import torch

    captions = [caption for _, tokens in items for caption in tokens]
    padded = np.zeros((len(captions), max(map(len, captions))), dtype=np.int64)
    for row, caption in enumerate(captions):
        padded[row, : len(caption)] = caption
    return torch.from_numpy(np.stack([image for image, _ in items])), torch.from_numpy(padded)


def counted(batches: Iterable[Any]) -> int:
    """The number of images in a pass."""
    return sum(len(batch[0]) for batch in batches)


def loader_options(**more: Any) -> dict[str, Any]:
    return {"batch_size": BATCH, "num_workers": WORKERS, "collate_fn": collate, "persistent_workers": True, **more}


def in_processes(function: Callable[[int, list[Image]], None], images: list[Image]) -> None:
    """Call ``function(number, part)`` in each worker process, for its part of the images."""
    with ProcessPoolExecutor(WORKERS, mp_context=multiprocessing.get_context("spawn")) as pool:
        list(pool.map(function, range(WORKERS), [images[number::WORKERS] for number in range(WORKERS)]))


# A folder of JPEGs with a map-style dataset: plain PyTorch.


class Mapped:
    """A map-style dataset of ``read(row)`` and the captions."""

    def __init__(self, images: list[Image], read: Callable[[int], NDArray[Any]]) -> None:
        self.images, self.read = images, read

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> Item:
        return self.read(row), self.images[row]["tokens"]


def mapped_loader(images: list[Image], read: Callable[[int], NDArray[Any]]) -> Pass:
    from torch.utils.data import DataLoader

    loader: Any = DataLoader(Mapped(images, read), shuffle=True, **loader_options())  # type: ignore[arg-type]
    return lambda: counted(loader)


def read_jpeg(images: list[Image], row: int) -> NDArray[np.uint8]:
    return view(Path(images[row]["jpeg"]).read_bytes())


def folder_pack(images: list[Image], out: Path, *, resize: bool) -> None:
    """Nothing to do: the JPEGs are already in their folder."""


def folder_load(images: list[Image], out: Path) -> Pass:
    return mapped_loader(images, partial(read_jpeg, images))


# webdataset: https://github.com/webdataset/webdataset, README and its FAQ.


def webdataset_part(out: Path, resize: bool, number: int, images: list[Image]) -> None:
    import webdataset as wds

    with wds.ShardWriter(str(out / f"{number}-%06d.tar"), maxcount=250, verbose=0) as sink:
        for row, image in enumerate(images):
            sink.write({"__key__": f"{number}-{row:06d}", "jpg": jpeg_of(image, resize), "json": image["tokens"]})


def webdataset_pack(images: list[Image], out: Path, *, resize: bool) -> None:
    in_processes(partial(webdataset_part, out, resize), images)


def webdataset_load(images: list[Image], out: Path) -> Pass:
    import webdataset as wds

    shards = sorted(map(str, out.glob("*.tar")))
    data = wds.WebDataset(shards, shardshuffle=len(shards), empty_check=False).shuffle(1000).to_tuple("jpg", "json").map_tuple(view, json.loads)
    # Batched in the workers, as its documentation recommends for speed.
    loader = wds.WebLoader(data.batched(BATCH, collation_fn=collate), batch_size=None, num_workers=WORKERS, persistent_workers=True)
    return lambda: counted(loader)


# litdata: https://github.com/Lightning-AI/litData, README.


def litdata_item(resize: bool, image: Image) -> Image:
    return {"jpeg": jpeg_of(image, resize), "tokens": json.dumps(image["tokens"])}


def litdata_view(item: Image) -> Item:
    return view(item["jpeg"]), json.loads(item["tokens"])


def litdata_pack(images: list[Image], out: Path, *, resize: bool) -> None:
    import litdata

    litdata.optimize(partial(litdata_item, resize), images, str(out), chunk_bytes="64MB", num_workers=WORKERS, mode="overwrite", verbose=False)


def litdata_load(images: list[Image], out: Path) -> Pass:
    import litdata

    data = litdata.StreamingDataset(str(out), shuffle=True, transform=litdata_view)
    loader = litdata.StreamingDataLoader(data, **loader_options())
    return lambda: counted(loader)


# mosaicml-streaming: https://docs.mosaicml.com/projects/streaming, "Parallel dataset conversion" and "Quick start".

MDS_COLUMNS = {"jpeg": "bytes", "tokens": "json"}


def declare_operators() -> None:
    """mosaicml-streaming imports torchvision, whose published wheels cannot be imported with a CPU build of torch: use Capstream's workaround."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from model.torchvision_loading import torchvision_models

    torchvision_models()


def streaming_part(out: Path, resize: bool, number: int, images: list[Image]) -> None:
    declare_operators()
    from streaming import MDSWriter

    with MDSWriter(out=str(out / str(number)), columns=MDS_COLUMNS) as sink:
        for image in images:
            sink.write({"jpeg": jpeg_of(image, resize), "tokens": image["tokens"]})


def streaming_pack(images: list[Image], out: Path, *, resize: bool) -> None:
    declare_operators()
    from streaming.base.util import merge_index

    in_processes(partial(streaming_part, out, resize), images)
    merge_index(str(out), keep_local=True)


def streaming_load(images: list[Image], out: Path) -> Pass:
    declare_operators()
    from streaming import StreamingDataset
    from torch.utils.data import DataLoader

    class Views(StreamingDataset):  # type: ignore[misc, unused-ignore]
        def __getitem__(self, row: int) -> Item:
            item = super().__getitem__(row)
            return view(item["jpeg"]), item["tokens"]

    loader: Any = DataLoader(Views(local=str(out), batch_size=BATCH, shuffle=True), **loader_options())
    return lambda: counted(loader)


# ffcv: https://docs.ffcv.io, "Writing a dataset", "Working with image data", "Tuning guide".


class Arrays:
    """The input of ffcv's writer: pixels, which it encodes itself, and captions, padded to one length and number."""

    def __init__(self, images: list[Image], resize: bool) -> None:
        self.images, self.resize = images, resize
        self.shape = padded_shape(images)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        import simplejpeg

        image = self.images[row]
        pixels = np.asarray(squashed(image)) if self.resize else simplejpeg.decode_jpeg(Path(image["jpeg"]).read_bytes(), "RGB")
        padded = np.zeros(self.shape, dtype=np.int64)
        for number, caption in enumerate(image["tokens"]):
            padded[number, : len(caption)] = caption
        return pixels, padded


def padded_shape(images: list[Image]) -> tuple[int, int]:
    return max(len(image["tokens"]) for image in images), max(len(caption) for image in images for caption in image["tokens"])


def ffcv_pack(images: list[Image], out: Path, *, resize: bool) -> None:
    from ffcv.fields import NDArrayField, RGBImageField
    from ffcv.writer import DatasetWriter

    fields = {
        "image": RGBImageField(write_mode="jpg", max_resolution=SIZE, jpeg_quality=QUALITY),
        "tokens": NDArrayField(np.dtype(np.int64), padded_shape(images)),
    }
    DatasetWriter(str(out / "data.beton"), fields, num_workers=WORKERS).from_indexed_dataset(Arrays(images, resize))


def ffcv_load(images: list[Image], out: Path) -> Pass:
    from ffcv.fields.decoders import NDArrayDecoder, RandomResizedCropRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import RandomHorizontalFlip, ToTensor

    area = (CROP / SIZE) ** 2  # a crop of exactly 224 x 224
    pipelines = {
        "image": [RandomResizedCropRGBImageDecoder((CROP, CROP), scale=(area, area), ratio=(1, 1)), RandomHorizontalFlip(), ToTensor()],
        "tokens": [NDArrayDecoder(), ToTensor()],
    }
    options = {"batch_size": BATCH, "num_workers": WORKERS, "order": OrderOption.RANDOM, "os_cache": True, "seed": SEED, "drop_last": False}
    loader = Loader(str(out / "data.beton"), pipelines=pipelines, **options)
    return lambda: counted(loader)


# Features: a float16 matrix (images, dim) is next to LIST.


def matrix(out: Path) -> NDArray[np.float16]:
    """The features, which the caller of pack writes next to the tools' folders."""
    found: NDArray[np.float16] = np.load(out.parent / "features.npy", mmap_mode="r")
    return found


class H5Rows:
    """Rows of an HDF5 file, which each worker process opens for itself."""

    def __init__(self, path: Path) -> None:
        self.path, self.dataset = path, None

    def __call__(self, rows: Any) -> NDArray[np.float16]:
        import h5py

        if self.dataset is None:
            self.dataset = h5py.File(self.path)["features"]
        found: NDArray[np.float16] = self.dataset[rows]  # type: ignore[index]
        return found


def h5py_pack(images: list[Image], out: Path, *, resize: bool, compression: str | None = None) -> None:
    import h5py

    with h5py.File(out / "features.h5", "w") as file:
        file.create_dataset("features", data=matrix(out), compression=compression)


def h5py_load(images: list[Image], out: Path) -> Pass:
    return mapped_loader(images, H5Rows(out / "features.h5"))


def h5py_gzip_load(images: list[Image], out: Path) -> Pass:
    """Loads only the first rows, because each one takes long."""
    return mapped_loader(images[:GZIP_ROWS], H5Rows(out / "features.h5"))


class Batched(Mapped):
    """Reads the rows of a batch at once, in ascending order as HDF5 requires."""

    def __getitem__(self, rows: Any) -> Any:
        order = sorted(rows)
        found = self.read(order)  # type: ignore[arg-type]
        return collate([(row, self.images[number]["tokens"]) for row, number in zip(found, order, strict=True)])


def h5py_batches_load(images: list[Image], out: Path) -> Pass:
    from torch.utils.data import BatchSampler, DataLoader, RandomSampler

    sampler = BatchSampler(RandomSampler(range(len(images))), BATCH, drop_last=False)
    data: Any = Batched(images, H5Rows(out / "features.h5"))
    loader: Any = DataLoader(data, batch_size=None, sampler=sampler, num_workers=WORKERS, persistent_workers=True)
    return lambda: counted(loader)


def npy_pack(images: list[Image], out: Path, *, resize: bool) -> None:
    for row, features in enumerate(matrix(out)):
        np.save(out / f"{row}.npy", features)


def read_npy(out: Path, row: int) -> NDArray[np.float16]:
    found: NDArray[np.float16] = np.load(out / f"{row}.npy")
    return found


def npy_load(images: list[Image], out: Path) -> Pass:
    return mapped_loader(images, partial(read_npy, out))


PACK: dict[str, Callable[..., None]] = {
    "DataLoader": folder_pack,
    "webdataset": webdataset_pack,
    "litdata": litdata_pack,
    "mosaicml-streaming": streaming_pack,
    "ffcv": ffcv_pack,
    "h5py": h5py_pack,
    "h5py, gzip": partial(h5py_pack, compression="gzip"),
    "h5py, sorted batches": h5py_pack,
    ".npy files": npy_pack,
}
LOAD = {
    "DataLoader": folder_load,
    "webdataset": webdataset_load,
    "litdata": litdata_load,
    "mosaicml-streaming": streaming_load,
    "ffcv": ffcv_load,
    "h5py": h5py_load,
    "h5py, gzip": h5py_gzip_load,
    "h5py, sorted batches": h5py_batches_load,
    ".npy files": npy_load,
}


def serve(make: Callable[[], Pass]) -> None:
    """Create a loader, report that it is ready, and answer each line with a pass. Libraries' output goes to standard error."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    one_pass = make()
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for _ in lines():
        started = time.perf_counter()
        images = one_pass()
        print(json.dumps({"images": images, "seconds": time.perf_counter() - started}), file=answers, flush=True)


def lines() -> Iterator[str]:
    """Lines of standard input as soon as they arrive, without reading ahead: forked workers would inherit the buffer."""
    while line := sys.stdin.readline():
        yield line


def main(peer: str, action: str, listed: str, out: str) -> None:
    images = json.loads(Path(listed).read_text())
    random.seed(SEED)
    if action == "load":
        serve(lambda: LOAD[peer](images, Path(out)))
    else:
        Path(out).mkdir(parents=True)
        PACK[peer](images, Path(out), resize=action == "write")


if __name__ == "__main__":
    main(*sys.argv[1:])
