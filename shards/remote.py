"""Shard datasets at URLs: a mirror folder in the local cache holds every sidecar, and tars are fetched when they are needed.

A mirror is opened like any shard dataset. Readers call :meth:`shards.dataset.Shard.open` and do not see the difference. A tar that was
fetched once is read locally from then on, as long as the bound on the cache allows.
"""

import hashlib
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from shards.atomic import committed, disk_errors
from shards.dataset import DatasetFile, Split, read_dataset_file
from shards.errors import CapstreamError, InputError
from shards.fetch import download, split_url
from shards.json_files import write_json
from shards.layout import DATASET_FILE, MIRROR_FILE, records_path, sidecar_path, tar_path
from shards.mirror import (
    ADVICE,
    CACHE_SETTING,
    CACHE_SIZE_SETTING,
    DEFAULT_CACHE_BYTES,
    FORMAT_VERSION,
    Mirror,
    default_cache,
    evict_tars,
    gigabytes,
    mirror_lock,
    read_mirror,
)
from shards.paths import Location, is_url
from shards.sidecar import read_sidecar

# Sidecars are small: their downloads mostly wait for answers.
PARALLEL_SIDECARS = 8
MAX_SIDECAR_BYTES = 1 << 30


def localize(location: Location, *, cache: Path | None = None, cache_bytes: int = DEFAULT_CACHE_BYTES) -> Path:
    """The local folder of a shard dataset: a path stays as it is; a URL gives its mirror, with the current ``dataset.json`` and sidecars.

    Args:
        location: A folder, or the URL of one: ``https://host/path/shards``, ``s3://bucket/shards``.
        cache: The folder of all mirrors, by default :func:`shards.mirror.default_cache`. Each URL has its own folder in it.
        cache_bytes: How many bytes of tars the mirror may hold at any time.

    Raises:
        InputError: The URL is invalid, there is no dataset, or a package is missing.
        DamageError: The remote ``dataset.json`` or a sidecar is damaged.
        MismatchError: It has another format version.
        ResourceError: No network, access denied, disk full.
    """
    if not is_url(location):
        return Path(location)
    url = _checked_url(str(location))
    folder = (cache if cache is not None else default_cache()) / mirror_name(url)
    mirror = Mirror(url=url, cache_bytes=cache_bytes)
    with mirror_lock(folder):
        with disk_errors(folder, CACHE_SETTING):
            evict_tars(folder, cache_bytes)
        if read_mirror(folder) != mirror:
            write_json(folder / MIRROR_FILE, {"format_version": FORMAT_VERSION, "url": url, "cache_bytes": cache_bytes})
        _fetch_dataset(folder, url)
    return folder


def origin(folder: Path) -> str:
    """Where a dataset comes from, as text that :func:`localize` takes: a mirror's URL, or the absolute path."""
    mirror = read_mirror(folder)
    return mirror.url if mirror is not None else str(folder.resolve())


def mirror_name(url: str) -> str:
    """The folder name of a URL's mirror: a part that people recognise, and a digest that is unique to the URL.

    >>> mirror_name("https://host:8000/path/shards")
    'host-8000-path-shards-cd9653f801c4'
    """
    readable = re.sub(r"[^A-Za-z0-9]+", "-", url.partition("://")[2]).strip("-")[:48]
    return f"{readable}-{hashlib.sha256(url.encode()).hexdigest()[:12]}"


def _checked_url(location: str) -> str:
    """The URL without a trailing slash."""
    url = location.rstrip("/")
    advice = "Give one like https://host/path/shards or s3://bucket/path/shards."
    parts = split_url(url, advice)
    if not parts.netloc:
        raise InputError(f"{location}: this URL names no host or bucket. {advice}")
    if parts.query or parts.fragment or (parts.scheme in ("http", "https") and "@" in parts.netloc):
        raise InputError(f"{location}: give the URL of a folder, without ?, # or a password. Put passwords into ~/.netrc.")
    return url


def _fetch_dataset(folder: Path, url: str) -> None:
    """Fetch ``dataset.json`` and the sidecars. ``dataset.json`` is committed last, when the sidecars that it lists are complete."""
    path = folder / DATASET_FILE
    with committed(path, CACHE_SETTING) as temporary:
        download(f"{url}/{DATASET_FILE}", temporary, max_bytes=MAX_SIDECAR_BYTES, advice=ADVICE)
        with _errors_name_url(temporary, f"{url}/{DATASET_FILE}"):
            dataset = read_dataset_file(folder, temporary.name)
        unchanged = path.is_file() and path.read_bytes() == temporary.read_bytes()
        tars = list(_tars(folder, dataset))
        with ThreadPoolExecutor(PARALLEL_SIDECARS) as pool:
            needed = [tar for tar in tars if not (unchanged and sidecar_path(tar).is_file())]
            for _ in pool.map(lambda tar: _fetch_sidecar(tar, url), needed):
                pass
        _remove_other_files(folder, tars)


def _tars(folder: Path, dataset: DatasetFile) -> Iterator[Path]:
    for name, summary in dataset.splits.items():
        for index in range(summary["shards"]):
            yield tar_path(folder, name, summary, index)


def _fetch_sidecar(tar: Path, url: str) -> None:
    """Fetch a sidecar; remove the tar and the records that belonged to another version of it."""
    path = sidecar_path(tar)
    with committed(path, CACHE_SETTING) as temporary:
        download(f"{url}/{path.name}", temporary, max_bytes=MAX_SIDECAR_BYTES, advice=ADVICE)
        with _errors_name_url(temporary, f"{url}/{path.name}"):
            sidecar = read_sidecar(temporary)
        before = read_sidecar(path) if path.is_file() else None
        if before is None or (before.tar_sha256, before.records) != (sidecar.tar_sha256, sidecar.records):
            for stale in (tar, records_path(tar)):
                stale.unlink(missing_ok=True)


@contextmanager
def _errors_name_url(path: Path, url: str) -> Iterator[None]:
    """Make errors about a file that was just fetched name its URL."""
    try:
        yield
    except CapstreamError as error:
        raise type(error)(str(error).replace(str(path), url)) from None


def _remove_other_files(folder: Path, tars: Sequence[Path]) -> None:
    """Remove the files of shards that are no longer in the dataset."""
    current = {tar.name for tar in tars} | {Path(name).with_suffix(".tar").name for name in (DATASET_FILE, MIRROR_FILE)}
    for path in folder.iterdir():
        if path.suffix in (".tar", ".json", ".records") and not path.name.startswith(".") and path.with_suffix(".tar").name not in current:
            path.unlink()


def check_cache_holds(split: Split, shards: int) -> None:
    """Refuse a cache that cannot hold any ``shards`` shards of a split at a time: they would be fetched again and again.

    Raises:
        InputError: Names the size that is needed.
    """
    mirror = next((shard.mirror for shard in split.shards if shard.mirror is not None), None)
    if mirror is None:
        return
    needed = sum(sorted((shard.sidecar.tar_bytes for shard in split.shards), reverse=True)[:shards])
    if needed > mirror.cache_bytes:
        raise InputError(
            f"{mirror.url}: `{CACHE_SIZE_SETTING}` {mirror.cache_bytes / 1e9:g} is too little: training uses {min(shards, len(split.shards))} "
            f"shards of split {split.name!r} at a time, which have {needed} bytes. Give at least {gigabytes(needed)}."
        )
