"""Download a dataset's archives, check them and unpack them into a folder.

After an interruption the same command resumes: it fetches the rest of an archive and unpacks the files that are missing. A receipt next to the
data lists what an archive held, so that the files can be checked after the archive is deleted.
"""

import hashlib
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

from pipeline.datasets.catalogue import DATASETS, Archive, Dataset
from pipeline.datasets.unzip import ArchiveMember, bytes_present, is_complete, list_members, unzip
from pipeline.execution.progress import Progress
from shards.atomic import disk_errors, hold_lock, sync_folder, temporary_path
from shards.errors import CapstreamError, DamageError, InputError, ResourceError, SettingsError
from shards.fetch import FetchCancelledError
from shards.json_files import read_versioned_json, write_json
from shards.paths import free_bytes
from shards.resume import resume_download, state_path

FORMAT_VERSION = 1
CHUNK_BYTES = 1 << 20
MAX_MEMBERS = 500_000
# The limit for an archive whose size is not published
MAX_ARCHIVE_BYTES = 64 << 30
# An archive may hold this many times the bytes that the catalogue says
ALLOWANCE = 1.5
# Disk space that is left free
SPARE_BYTES = 200 << 20
GB = 1e9


@dataclass(frozen=True, kw_only=True)
class ArchiveSummary:
    """What was done for one archive.

    Attributes:
        name: The archive's file name.
        archive: Its path; None if the file does not exist.
        into: The folder of its files.
        files, bytes: How many files it holds, and their bytes.
        written: How many files were written now.
        fetched: How many bytes were downloaded now.
    """

    name: str
    archive: Path | None
    into: Path
    files: int
    bytes: int
    written: int
    fetched: int


@dataclass(frozen=True, kw_only=True)
class DownloadSummary:
    """All archives of a download. ``next_step`` is the command to run next, without ``python cli.py``."""

    archives: tuple[ArchiveSummary, ...]
    next_step: str


@dataclass(kw_only=True, eq=False)
class _ArchiveTransfer:
    """An archive that is being fetched and unpacked.

    Attributes:
        url: Its URL; None if the publisher has to be asked for it.
        path: Where it is stored.
        into: The folder that it is unpacked into.
        receipt: The file that lists its members after it was unpacked.
        members: Its members, once the receipt or the archive was read.
        finished: Whether all members are unpacked.
        written: How many members were written.
        fetched: How many bytes were downloaded.
    """

    archive: Archive
    url: str | None
    path: Path
    into: Path
    receipt: Path
    members: tuple[ArchiveMember, ...] = ()
    finished: bool = False
    written: int = 0
    fetched: int = 0

    @property
    def part(self) -> Path:
        return temporary_path(self.path)

    @property
    def bytes_to_fetch(self) -> int | None:
        """How many bytes of the archive still have to be fetched; None if its size is not published."""
        if self.path.is_file():
            return 0
        return None if self.archive.size is None else max(self.archive.size - _bytes_of(self.part), 0)

    @property
    def bytes_to_unpack(self) -> int:
        """How many bytes still have to be unpacked; as the catalogue says if the members are not known."""
        if not self.members:
            return self.archive.unpacked
        return sum(member.size for member in self.members) - bytes_present(self.into, self.members)


def download(
    dataset: str, *, root: Path = Path("data"), parts: Sequence[str] = (), base_url: str | None = None, quiet: bool = True
) -> DownloadSummary:
    """Fetch, check and unpack a dataset's archives, several at a time.

    Args:
        dataset: A key of :data:`pipeline.datasets.catalogue.DATASETS`.
        root: The folder for archives and files. An archive that the user put there is checked and used.
        parts: Some of the dataset's parts; empty for all of them.
        base_url: The URL of a mirror, in place of the publisher's.
        quiet: Show no progress.

    Raises:
        InputError: No such dataset, part or file, or the publisher has to be asked for the dataset.
        DamageError: An archive is not the published one, or is not safe to unpack.
        OccupiedError: Another process is downloading this dataset here.
        ResourceError: No network, disk full, not allowed.
    """
    chosen, names = _chosen(dataset, parts)
    base = base_url if base_url is not None else chosen.base_url
    transfers = [_transfer(chosen.parts[name], root, base) for name in names]
    with disk_errors(root, "root"):
        root.mkdir(parents=True, exist_ok=True)
    with hold_lock(root, dataset, "downloading"):
        _find_finished(transfers, quiet=quiet)
        missing = [transfer for transfer in transfers if not transfer.finished]
        _check_available(missing, dataset, chosen)
        to_fetch = [transfer for transfer in missing if not transfer.path.is_file()]
        _list_members(transfer for transfer in missing if transfer not in to_fetch)
        _check_disk(missing, root)
        _fetch(missing, chosen.page, quiet=quiet)
        _list_members(to_fetch)
        _check_disk(missing, root)
        _unpack(missing, quiet=quiet)
    summaries = tuple(
        ArchiveSummary(
            name=transfer.archive.name,
            archive=transfer.path if transfer.path.is_file() else None,
            into=transfer.into,
            files=len(transfer.members),
            bytes=sum(member.size for member in transfer.members),
            written=transfer.written,
            fetched=transfer.fetched,
        )
        for transfer in transfers
    )
    step = next(step for name, step in chosen.next_steps.items() if name in names or len(chosen.next_steps) == 1)
    return DownloadSummary(archives=summaries, next_step=step.on(root))


def _chosen(dataset: str, parts: Sequence[str]) -> tuple[Dataset, list[str]]:
    if dataset not in DATASETS:
        raise SettingsError(f"`dataset` {dataset}: is not known. Known datasets are {', '.join(DATASETS)}.")
    chosen = DATASETS[dataset]
    for part in parts:
        if part not in chosen.parts:
            raise SettingsError(f"`parts` {part}: {dataset} has no such part. Its parts are {','.join(chosen.parts)}.")
    return chosen, [part for part in chosen.parts if part in parts or not parts]


def _transfer(archive: Archive, root: Path, base_url: str | None) -> _ArchiveTransfer:
    path = root / archive.name
    url = None if base_url is None else f"{base_url.rstrip('/')}/{archive.path}"
    return _ArchiveTransfer(archive=archive, url=url, path=path, into=root / archive.into, receipt=root / f".{archive.name}.json")


def _find_finished(transfers: Sequence[_ArchiveTransfer], *, quiet: bool) -> None:
    """Mark archives as finished if all files of their receipts exist, with the right bytes."""
    for transfer in transfers:
        transfer.members = _read_receipt(transfer)
    known = [transfer for transfer in transfers if transfer.members]
    with Progress("Checking files", total=sum(len(transfer.members) for transfer in known), unit="files", quiet=quiet) as progress:

        def check(transfer: _ArchiveTransfer, stop: threading.Event) -> None:
            for member in transfer.members:
                if stop.is_set():
                    raise FetchCancelledError
                if not is_complete(transfer.into, member):
                    return
                progress.advance(1)
            transfer.finished = True

        _in_parallel(check, known)


def _read_receipt(transfer: _ArchiveTransfer) -> tuple[ArchiveMember, ...]:
    """The files that an archive held; none if it was never unpacked, or its receipt is damaged."""
    if not transfer.receipt.is_file():
        return ()
    try:
        content = read_versioned_json(transfer.receipt, what="receipt of a download", format_version=FORMAT_VERSION)
        return tuple(ArchiveMember(name=str(name), size=int(size), crc32=int(crc32)) for name, size, crc32 in content["files"])
    except (CapstreamError, KeyError, TypeError, ValueError):
        return ()  # the archive is unpacked again


def _check_available(transfers: Sequence[_ArchiveTransfer], dataset: str, chosen: Dataset) -> None:
    by_hand = [transfer for transfer in transfers if transfer.url is None and not transfer.path.is_file()]
    if by_hand:
        names = " and ".join(transfer.archive.name for transfer in by_hand)
        raise InputError(
            f"{names}: {dataset} may not be redistributed, so there is no URL to fetch it from. Request it at {chosen.page}, download {names} "
            f"into {by_hand[0].path.parent}, and run the same command again: it checks and unpacks them. To fetch it from a server of your own, set "
            "`base_url`."
        )


def _check_disk(transfers: Sequence[_ArchiveTransfer], root: Path) -> None:
    """Refuse a download for which the disk has too little space.

    Raises:
        ResourceError: Names the bytes that have to be fetched and unpacked, and the free space.
    """
    fetch = sum(transfer.bytes_to_fetch or 0 for transfer in transfers)
    files = sum(transfer.bytes_to_unpack for transfer in transfers)
    free = free_bytes(root)
    if transfers and fetch + files + SPARE_BYTES > free:
        raise ResourceError(
            f"{root}: not enough space: {fetch / GB:.2f} GB still have to be fetched and {files / GB:.2f} GB unpacked, but only "
            f"{free / GB:.2f} GB are free. Free some space, choose another `root`, or "
            "select fewer `parts` at a time. The archive of an unpacked part may be deleted."
        )


def _bytes_of(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _list_members(transfers: Iterable[_ArchiveTransfer]) -> None:
    for transfer in transfers:
        transfer.members = list_members(transfer.path, at_most_bytes=int(transfer.archive.unpacked * ALLOWANCE), at_most_members=MAX_MEMBERS)


def _fetch(transfers: Sequence[_ArchiveTransfer], page: str, *, quiet: bool) -> None:
    """Fetch and check every archive; only a complete one gets its final name."""
    sizes = [size for transfer in transfers if (size := transfer.bytes_to_fetch) is not None]
    total = round(sum(sizes) / 1e6) if len(sizes) == len(transfers) else None
    with Progress("Downloading", total=total, unit="MB", quiet=quiet) as progress:
        shown = _DownloadProgress(progress, {transfer.archive.name: _bytes_of(transfer.part) for transfer in transfers})

        def fetch(transfer: _ArchiveTransfer, stop: threading.Event) -> None:
            if transfer.path.is_file():
                _check_archive(transfer, transfer.path, stop)
                return
            _download(transfer, page, stop, lambda count: shown.add(transfer.archive, count))
            try:
                _check_archive(transfer, transfer.part, stop)
            except DamageError:
                for left in (transfer.part, state_path(transfer.part)):
                    left.unlink(missing_ok=True)
                raise
            with disk_errors(transfer.path, "root"):
                transfer.part.replace(transfer.path)
                state_path(transfer.part).unlink(missing_ok=True)
                sync_folder(transfer.path.parent)

        _in_parallel(fetch, transfers)


class _DownloadProgress:
    """One progress in megabytes for several archives. Its note has the percentage of the archive that got bytes last.

    Args:
        progress: What is advanced.
        present: How many bytes of each archive already exist.
    """

    def __init__(self, progress: Progress, present: dict[str, int]) -> None:
        self._progress = progress
        self._bytes = dict(present)
        self._arrived = self._shown = 0
        self._lock = threading.Lock()

    def add(self, archive: Archive, count: int) -> None:
        """Count bytes of an archive that have arrived."""
        with self._lock:
            self._bytes[archive.name] += count
            self._arrived += count
            now = round(self._arrived / 1e6)
            percentage = f" {100 * self._bytes[archive.name] // archive.size}%" if archive.size else ""
            self._progress.advance(now - self._shown, note=f"{archive.name}{percentage}")
            self._shown = now


def _download(transfer: _ArchiveTransfer, page: str, stop: threading.Event, arrived: Callable[[int], None]) -> None:
    assert transfer.url is not None
    by_hand = f"Or download {transfer.archive.name} yourself (see {page}), put it into {transfer.path.parent} and run the same command again."

    def count(arriving: int) -> None:
        transfer.fetched = max(transfer.fetched + arriving, 0)
        arrived(arriving)

    with disk_errors(transfer.path, "root"):
        resume_download(
            transfer.url,
            transfer.part,
            size=transfer.archive.size,
            max_bytes=MAX_ARCHIVE_BYTES,
            stop=stop,
            on_bytes=count,
            advice=by_hand,
            retry_advice=f"Run the same command again: it resumes where it stopped. {by_hand}",
        )


def _check_archive(transfer: _ArchiveTransfer, path: Path, stop: threading.Event) -> None:
    """Refuse an archive that is not the published one.

    Raises:
        DamageError: It has another size or MD5; names both.
    """
    published, size = transfer.archive, _bytes_of(path)
    advice = f"Delete it if it exists, and run the same command again. If you trust it, unpack it into {transfer.into} yourself."
    if published.size is not None and size != published.size:
        raise DamageError(f"{transfer.path}: has {size} bytes, but the published archive has {published.size}. {advice}")
    if published.md5 is None:
        return
    found = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            if stop.is_set():
                raise FetchCancelledError
            found.update(chunk)
    if found.hexdigest() != published.md5:
        raise DamageError(f"{transfer.path}: has the MD5 {found.hexdigest()}, but the published archive has {published.md5}. {advice}")


def _unpack(transfers: Sequence[_ArchiveTransfer], *, quiet: bool) -> None:
    """Write the files that are missing or incomplete, and then the receipt: it says that all of them are complete."""
    with Progress("Unpacking", total=sum(len(transfer.members) for transfer in transfers), unit="files", quiet=quiet) as progress:

        def unpack(transfer: _ArchiveTransfer, stop: threading.Event) -> None:
            transfer.written = unzip(transfer.path, transfer.members, transfer.into, done=progress.advance, stop=stop)
            if hasattr(os, "sync"):
                os.sync()
            files = [[member.name, member.size, member.crc32] for member in transfer.members]
            write_json(transfer.receipt, {"format_version": FORMAT_VERSION, "archive": transfer.archive.name, "files": files})

        _in_parallel(unpack, transfers)


def _in_parallel(work: Callable[[_ArchiveTransfer, threading.Event], None], transfers: Sequence[_ArchiveTransfer]) -> None:
    """Work on all archives at once. The first failure, or Ctrl-C, stops the others after the file or chunk in progress."""
    stop = threading.Event()
    with ThreadPoolExecutor(max(len(transfers), 1)) as pool:
        tasks = [pool.submit(work, transfer, stop) for transfer in transfers]
        try:
            wait(tasks, return_when=FIRST_EXCEPTION)
        finally:
            stop.set()
    problems = [problem for task in tasks if (problem := task.exception()) is not None]
    for problem in sorted(problems, key=lambda problem: isinstance(problem, FetchCancelledError)):
        raise problem
