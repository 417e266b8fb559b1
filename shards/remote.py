"""Shard datasets at URLs: a mirror folder in the local cache, with every sidecar, and tars that come when they are needed.

A mirror is opened like any shard dataset; readers call :meth:`shards.manifest.Shard.open` and do not see the difference. What this
trades is disk for time: up to the bound, a tar that was fetched once is read locally ever after.
"""

import hashlib
import re
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from shards.atomic import committed, disk_errors, write_json
from shards.errors import CapstreamError, InputError
from shards.fetch import Stopped, download, is_url, url_parts
from shards.manifest import (
    DATASET_FILE,
    DatasetFile,
    Shard,
    Split,
    read_dataset_file,
    read_sidecar,
    records_path,
    sidecar_path,
    tar_path,
)
from shards.mirror import (
    ADVICE,
    CACHE_OPTION,
    DEFAULT_CACHE_BYTES,
    FORMAT_VERSION,
    MIRROR_FILE,
    Mirror,
    default_cache,
    fetch_tar,
    fetching,
    gigabytes,
    make_room,
    read_mirror,
    touch,
)
from shards.paths import Location

# Sidecars are small: waiting for answers is what takes time.
SIDECARS_AT_ONCE = 8
MAX_SIDECAR_BYTES = 1 << 30
# A fetch notices between two chunks that it is no longer wanted.
JOIN_SECONDS = 5.0


def localize(place: Location, *, cache: Path | None = None, cache_bytes: int = DEFAULT_CACHE_BYTES) -> Path:
    """The local folder of a shard dataset: a path as it is; for a URL its mirror, with ``dataset.json`` and all sidecars as they are there now.

    Args:
        place: A folder, or a URL of one: ``https://host/path/shards``, ``s3://bucket/shards``.
        cache: Where mirrors are kept, by default :func:`shards.mirror.default_cache`. Each URL has its own folder there.
        cache_bytes: How many bytes of tars the mirror may hold at any time.

    Raises:
        InputError: The URL makes no sense, there is no dataset, or a package is missing.
        DamageError: What is there is damaged.
        MismatchError: Another format version.
        ResourceError: No network, not allowed, disk full.
    """
    if not is_url(place):
        return Path(place)
    url = _checked_url(str(place))
    folder = (cache if cache is not None else default_cache()) / mirror_name(url)
    mirror = Mirror(url=url, cache_bytes=cache_bytes)
    with fetching(folder):
        with disk_errors(folder, CACHE_OPTION):
            make_room(folder, cache_bytes)
        if read_mirror(folder) != mirror:
            write_json(folder / MIRROR_FILE, {"format_version": FORMAT_VERSION, "url": url, "cache_bytes": cache_bytes})
        _fetch_dataset(folder, url)
    return folder


def origin(folder: Path) -> str:
    """Where a dataset really is, as text that :func:`localize` takes: a mirror's URL, or the absolute path."""
    mirror = read_mirror(folder)
    return mirror.url if mirror is not None else str(folder.resolve())


def mirror_name(url: str) -> str:
    """The name of a URL's mirror: what a reader recognises, and a digest that is the URL's alone.

    >>> mirror_name("https://host:8000/path/shards")
    'host-8000-path-shards-cd9653f801c4'
    """
    readable = re.sub(r"[^A-Za-z0-9]+", "-", url.partition("://")[2]).strip("-")[:48]
    return f"{readable}-{hashlib.sha256(url.encode()).hexdigest()[:12]}"


def _checked_url(place: str) -> str:
    """The URL without a slash at its end."""
    url = place.rstrip("/")
    advice = "Give one like https://host/path/shards or s3://bucket/path/shards."
    parts = url_parts(url, advice)
    if not parts.netloc:
        raise InputError(f"{place}: this URL names no host or bucket. {advice}")
    if parts.query or parts.fragment or (parts.scheme in ("http", "https") and "@" in parts.netloc):
        raise InputError(f"{place}: a dataset's URL is that of a folder: without ? and #, and without a password. ~/.netrc can hold passwords.")
    return url


def _fetch_dataset(folder: Path, url: str) -> None:
    """``dataset.json`` last: once it stands there, the sidecars that it lists do."""
    there = folder / DATASET_FILE
    with committed(there, CACHE_OPTION) as temporary:
        download(f"{url}/{DATASET_FILE}", temporary, at_most=MAX_SIDECAR_BYTES, advice=ADVICE)
        with _named(temporary, f"{url}/{DATASET_FILE}"):
            dataset = read_dataset_file(folder, temporary.name)
        same = there.is_file() and there.read_bytes() == temporary.read_bytes()
        tars = list(_tars(folder, dataset))
        with ThreadPoolExecutor(SIDECARS_AT_ONCE) as pool:
            wanted = [tar for tar in tars if not (same and sidecar_path(tar).is_file())]
            for _ in pool.map(lambda tar: _fetch_sidecar(tar, url), wanted):
                pass
        _remove_strangers(folder, tars)


def _tars(folder: Path, dataset: DatasetFile) -> Iterator[Path]:
    for name, summary in dataset.splits.items():
        for index in range(summary["shards"]):
            yield tar_path(folder, name, summary, index)


def _fetch_sidecar(tar: Path, url: str) -> None:
    path = sidecar_path(tar)
    with committed(path, CACHE_OPTION) as temporary:
        download(f"{url}/{path.name}", temporary, at_most=MAX_SIDECAR_BYTES, advice=ADVICE)
        with _named(temporary, f"{url}/{path.name}"):
            sidecar = read_sidecar(temporary)
        before = read_sidecar(path) if path.is_file() else None
        if before is None or (before.tar_sha256, before.records) != (sidecar.tar_sha256, sidecar.records):
            for stale in (tar, records_path(tar)):
                stale.unlink(missing_ok=True)


@contextmanager
def _named(path: Path, url: str) -> Iterator[None]:
    """Errors about a file that was just fetched name where it came from."""
    try:
        yield
    except CapstreamError as error:
        raise type(error)(str(error).replace(str(path), url)) from None


def _remove_strangers(folder: Path, tars: Sequence[Path]) -> None:
    """What belongs to no shard of the dataset any more goes."""
    ours = {tar.name for tar in tars} | {Path(name).with_suffix(".tar").name for name in (DATASET_FILE, MIRROR_FILE)}
    for path in folder.iterdir():
        if path.suffix in (".tar", ".json", ".records") and not path.name.startswith(".") and path.with_suffix(".tar").name not in ours:
            path.unlink()


def check_cache_holds(split: Split, shards: int) -> None:
    """Refuse a cache that could not hold any ``shards`` shards of a split at a time: they would be fetched again and again.

    Raises:
        InputError: Names what is needed.
    """
    mirror = next((shard.mirror for shard in split.shards if shard.mirror is not None), None)
    if mirror is None:
        return
    needed = sum(sorted((shard.sidecar.tar_bytes for shard in split.shards), reverse=True)[:shards])
    if needed > mirror.cache_bytes:
        raise InputError(
            f"{mirror.url}: {CACHE_OPTION}-gb {mirror.cache_bytes / 1e9:g} is too little: training keeps {min(shards, len(split.shards))} shards of "
            f"split {split.name!r} at hand, which have {needed} bytes. Give at least {gigabytes(needed)}."
        )


class FetchAhead:
    """Makes an epoch's remote shards local before they are read, in a thread; does nothing for local ones.

    At position i the shards ``order[i : i + window]`` are in use. They and up to ``window`` more after them are fetched, in order, as far
    as the cache holds them all at once; what is removed for them is none of these. What cannot be fetched is passed over: who reads that
    shard tries again, and has the error.

    Args:
        order: The shards in the order in which they are read: an epoch's, and better the next epoch's first ones behind it.
        window: How many shards are in use at a time.

    Example:
        Say that where batches are taken, not where they are built ahead: a shard may be removed once the position has passed it. ::

            order = [split.shards[index] for index in visited]
            with FetchAhead(order, window=WINDOW_SHARDS) as ahead:
                for batch in batches:
                    ahead.at(first_shard_of_the_batchs_window)
                    step(batch)
    """

    def __init__(self, order: Sequence[Shard], *, window: int) -> None:
        self._order = [shard for shard in order if shard.mirror is not None]
        self._window = window
        self._position = 0
        self._moved = threading.Condition()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="capstream-fetch-ahead", daemon=True)
        if self._order:
            self._thread.start()

    def at(self, position: int) -> None:
        """Shards before ``position`` are done with; those of the window that begins there are in use. Costs nothing if it has not moved."""
        if position == self._position or not self._order:
            return
        with self._moved:
            self._position = position
            self._moved.notify()

    def close(self) -> None:
        """Fetch no more. A tar that is half there is given up."""
        with self._moved:
            self._stop.set()
            self._moved.notify()
        if self._order:
            self._thread.join(JOIN_SECONDS)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def _run(self) -> None:
        done = -1
        while True:
            with self._moved:
                while self._position == done and not self._stop.is_set():
                    self._moved.wait()
                position = self._position
            if self._stop.is_set():
                return
            try:
                self._fetch(position)
            except Stopped:
                return
            done = position

    def _fetch(self, position: int) -> None:
        wanted = self._wanted(position)
        keep = {shard.path.name for shard in wanted}
        missing = [shard for shard in wanted if not touch(shard.path, shard.sidecar.tar_bytes)]
        for shard in missing:
            if self._stop.is_set():
                raise Stopped
            if self._position != position:
                return
            self._fetch_one(shard, keep)

    def _fetch_one(self, shard: Shard, keep: set[str]) -> None:
        assert shard.mirror is not None
        sidecar = shard.sidecar
        try:
            fetch_tar(shard.path, shard.mirror, tar_bytes=sidecar.tar_bytes, tar_sha256=sidecar.tar_sha256, keep=keep, stop=self._stop).close()
        except CapstreamError:
            return  # whoever reads this shard meets the error, and reports it

    def _wanted(self, position: int) -> list[Shard]:
        """The shards in use, and those after them that fit beside them."""
        wanted: dict[Path, Shard] = {}
        room = 0
        for shard in self._order[position : position + 2 * self._window]:
            assert shard.mirror is not None
            if shard.path in wanted or not shard.sidecar.samples:
                continue
            room += shard.sidecar.tar_bytes
            if room > shard.mirror.cache_bytes:
                break
            wanted[shard.path] = shard
        return list(wanted.values())
