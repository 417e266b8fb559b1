"""Datasets from where they are published -> their files below a folder: archives fetched, checked and unpacked.

Whatever stops it, the same command goes on: with the rest of an archive, with the files that are not there whole. A receipt beside the data
lists what an archive held, so that the archive itself may be deleted and the files can still be checked.
"""

import hashlib
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

from pipeline.datasets.catalogue import DATASETS, Archive, Dataset
from pipeline.datasets.unzip import Member, bytes_there, is_whole, unzip, zip_members
from pipeline.execution.progress import Progress
from shards.atomic import disk_errors, hold_lock, sync_folder, temporary_path
from shards.errors import CapstreamError, DamageError, InputError, ResourceError
from shards.fetch import FetchCancelledError
from shards.json_files import read_versioned_json, write_json
from shards.paths import free_bytes
from shards.resume import resume_download, state_path

FORMAT_VERSION = 1
CHUNK_BYTES = 1 << 20
MAX_MEMBERS = 500_000
# An archive whose size nobody has published is fetched up to this.
MAX_ARCHIVE_BYTES = 64 << 30
# What an archive may hold, in multiples of what it is known to hold about.
ALLOWANCE = 1.5
# Disk that stays free for everything else.
SPARE_BYTES = 200 << 20
GB = 1e9


@dataclass(frozen=True, kw_only=True)
class ArchiveSummary:
    """What was done for one archive; ``archive`` is its path, if it is (still) there."""

    name: str
    archive: Path | None
    into: Path
    files: int
    bytes: int
    written: int
    fetched: int


@dataclass(frozen=True, kw_only=True)
class DownloadSummary:
    """All archives of a download; ``next_step`` is what to run next, behind ``python cli.py``."""

    archives: tuple[ArchiveSummary, ...]
    next_step: str


@dataclass(kw_only=True, eq=False)
class _Job:
    """An archive on its way. ``members`` are known from the receipt, or once the archive is there."""

    archive: Archive
    url: str | None
    path: Path
    into: Path
    receipt: Path
    members: tuple[Member, ...] = ()
    finished: bool = False
    written: int = 0
    fetched: int = 0

    @property
    def part(self) -> Path:
        return temporary_path(self.path)

    @property
    def coming(self) -> int | None:
        """How many bytes of the archive have still to come; None where nobody has published its size."""
        if self.path.is_file():
            return 0
        return None if self.archive.size is None else max(self.archive.size - _bytes_of(self.part), 0)


def download(
    dataset: str, *, root: Path = Path("data"), parts: Sequence[str] = (), base_url: str | None = None, quiet: bool = True
) -> DownloadSummary:
    """Fetch, check and unpack a dataset's archives, several at a time.

    Args:
        dataset: One of :data:`pipeline.datasets.catalogue.DATASETS`.
        root: The folder for archives and files; an archive that lies there already, put by hand, is checked and taken.
        parts: Some of the dataset's parts; none are all.
        base_url: A mirror's address, in place of the publisher's.

    Raises:
        InputError: No such dataset, part or file; or a dataset that has to be asked for.
        DamageError: An archive is not what was published, or not one that may be unpacked.
        OccupiedError: Another process is downloading this dataset here.
        ResourceError: No network, disk full, not allowed.
    """
    chosen, names = _chosen(dataset, parts)
    base = base_url if base_url is not None else chosen.base_url
    jobs = [_job(chosen.parts[name], root, base) for name in names]
    with disk_errors(root, "root"):
        root.mkdir(parents=True, exist_ok=True)
    with hold_lock(root, dataset, "downloading"):
        _check_what_is_there(jobs, quiet=quiet)
        missing = [job for job in jobs if not job.finished]
        _check_can_be_had(missing, dataset, chosen)
        coming = [job for job in missing if not job.path.is_file()]
        _list_members(job for job in missing if job not in coming)
        _check_disk(missing, root)
        _fetch(missing, chosen.page, quiet=quiet)
        _list_members(coming)
        _check_disk(missing, root)
        _unpack(missing, quiet=quiet)
    summaries = tuple(
        ArchiveSummary(
            name=job.archive.name,
            archive=job.path if job.path.is_file() else None,
            into=job.into,
            files=len(job.members),
            bytes=sum(member.size for member in job.members),
            written=job.written,
            fetched=job.fetched,
        )
        for job in jobs
    )
    step = next(step for name, step in chosen.next_steps.items() if name in names or len(chosen.next_steps) == 1)
    return DownloadSummary(archives=summaries, next_step=step.on(root))


def _chosen(dataset: str, parts: Sequence[str]) -> tuple[Dataset, list[str]]:
    if dataset not in DATASETS:
        raise InputError(f"{dataset}: no dataset of this name is known. There are {', '.join(DATASETS)}.")
    chosen = DATASETS[dataset]
    for part in parts:
        if part not in chosen.parts:
            raise InputError(f"--parts {part}: {dataset} has no such part. It has {','.join(chosen.parts)}.")
    return chosen, [part for part in chosen.parts if part in parts or not parts]


def _job(archive: Archive, root: Path, base_url: str | None) -> _Job:
    path = root / archive.name
    url = None if base_url is None else f"{base_url.rstrip('/')}/{archive.path}"
    return _Job(archive=archive, url=url, path=path, into=root / archive.into, receipt=root / f".{archive.name}.json")


def _check_what_is_there(jobs: Sequence[_Job], *, quiet: bool) -> None:
    """Finished are those whose receipt lists files that are all there whole."""
    for job in jobs:
        job.members = _read_receipt(job)
    known = [job for job in jobs if job.members]
    with Progress("Checking files", total=sum(len(job.members) for job in known), unit="files", quiet=quiet) as progress:

        def check(job: _Job, stop: threading.Event) -> None:
            for member in job.members:
                if stop.is_set():
                    raise FetchCancelledError
                if not is_whole(job.into, member):
                    return
                progress.advance(1)
            job.finished = True

        _together(check, known)


def _read_receipt(job: _Job) -> tuple[Member, ...]:
    """The files that an archive held; none where it was never unpacked, or the receipt is not one."""
    if not job.receipt.is_file():
        return ()
    try:
        content = read_versioned_json(job.receipt, what="receipt of a download", format_version=FORMAT_VERSION)
        return tuple(Member(name=str(name), size=int(size), crc32=int(crc32)) for name, size, crc32 in content["files"])
    except (CapstreamError, KeyError, TypeError, ValueError):
        return ()  # all of it can be had from the archive again


def _check_can_be_had(jobs: Sequence[_Job], dataset: str, chosen: Dataset) -> None:
    by_hand = [job for job in jobs if job.url is None and not job.path.is_file()]
    if by_hand:
        names = " and ".join(job.archive.name for job in by_hand)
        raise InputError(
            f"{names}: {dataset} may not be passed on, so it is not fetched from here. Ask for it at {chosen.page}, put {names} into "
            f"{by_hand[0].path.parent} as the answer's links give them, and run the same command again: it checks and unpacks them. "
            "From a place of your own it is fetched with --base-url."
        )


def _check_disk(jobs: Sequence[_Job], root: Path) -> None:
    """Refuse what would not fit: what has still to come, and what has still to be unpacked.

    Raises:
        ResourceError: Names both, and the free space.
    """
    fetch = sum(job.coming or 0 for job in jobs)
    files = sum(sum(m.size for m in job.members) - bytes_there(job.into, job.members) if job.members else job.archive.unpacked for job in jobs)
    free = free_bytes(root)
    if jobs and fetch + files + SPARE_BYTES > free:
        raise ResourceError(
            f"{root}: not enough space: {fetch / GB:.2f} GB have still to come and {files / GB:.2f} GB to be unpacked, {free / GB:.2f} GB are free. "
            "Free some, choose another --root, or take fewer --parts at a time; of a part that is unpacked the archive may be deleted."
        )


def _bytes_of(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _list_members(jobs: Iterable[_Job]) -> None:
    for job in jobs:
        job.members = zip_members(job.path, at_most_bytes=int(job.archive.unpacked * ALLOWANCE), at_most_members=MAX_MEMBERS)


def _fetch(jobs: Sequence[_Job], page: str, *, quiet: bool) -> None:
    """Bring every archive under its final name, checked."""
    coming = [size for job in jobs if (size := job.coming) is not None]
    total = round(sum(coming) / 1e6) if len(coming) == len(jobs) else None
    with Progress("Downloading", total=total, unit="MB", quiet=quiet) as progress:
        shown = _Megabytes(progress, {job.archive.name: _bytes_of(job.part) for job in jobs})

        def bring(job: _Job, stop: threading.Event) -> None:
            if job.path.is_file():
                _check_archive(job, job.path, stop)
                return
            _download(job, page, stop, lambda count: shown.add(job.archive, count))
            try:
                _check_archive(job, job.part, stop)
            except DamageError:
                for left in (job.part, state_path(job.part)):
                    left.unlink(missing_ok=True)
                raise
            with disk_errors(job.path, "root"):
                job.part.replace(job.path)
                state_path(job.part).unlink(missing_ok=True)
                sync_folder(job.path.parent)

        _together(bring, jobs)


class _Megabytes:
    """Bytes of several archives -> one progress in megabytes, with each archive's share in the note."""

    def __init__(self, progress: Progress, had: dict[str, int]) -> None:
        self._progress = progress
        self._bytes = had
        self._arrived = self._shown = 0
        self._lock = threading.Lock()

    def add(self, archive: Archive, count: int) -> None:
        with self._lock:
            self._bytes[archive.name] += count
            self._arrived += count
            now = round(self._arrived / 1e6)
            share = f" {100 * self._bytes[archive.name] // archive.size}%" if archive.size else ""
            self._progress.advance(now - self._shown, note=f"{archive.name}{share}")
            self._shown = now


def _download(job: _Job, page: str, stop: threading.Event, arrived: Callable[[int], None]) -> None:
    assert job.url is not None
    by_hand = f"Or get {job.archive.name} elsewhere (its page: {page}), put it into {job.path.parent} and run the same command again."

    def count(arriving: int) -> None:
        job.fetched = max(job.fetched + arriving, 0)
        arrived(arriving)

    with disk_errors(job.path, "root"):
        resume_download(
            job.url,
            job.part,
            size=job.archive.size,
            max_bytes=MAX_ARCHIVE_BYTES,
            stop=stop,
            on_bytes=count,
            advice=by_hand,
            retry_advice=f"Run the same command again: it goes on where it stopped. {by_hand}",
        )


def _check_archive(job: _Job, path: Path, stop: threading.Event) -> None:
    """Refuse an archive that is not the one that was published.

    Raises:
        DamageError: Another size or MD5; names both.
    """
    wanted, size = job.archive, _bytes_of(path)
    advice = f"Delete it if it is there, and run the same command again. If you are sure of it, unpack it into {job.into} yourself."
    if wanted.size is not None and size != wanted.size:
        raise DamageError(f"{job.path}: has {size} bytes, it was published with {wanted.size}. {advice}")
    if wanted.md5 is None:
        return
    found = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            if stop.is_set():
                raise FetchCancelledError
            found.update(chunk)
    if found.hexdigest() != wanted.md5:
        raise DamageError(f"{job.path}: has the MD5 {found.hexdigest()}, it was published with {wanted.md5}. {advice}")


def _unpack(jobs: Sequence[_Job], *, quiet: bool) -> None:
    """Write what is not there whole, and then the receipt: it says that everything is."""
    with Progress("Unpacking", total=sum(len(job.members) for job in jobs), unit="files", quiet=quiet) as progress:

        def unpack(job: _Job, stop: threading.Event) -> None:
            job.written = unzip(job.path, job.members, job.into, done=progress.advance, stop=stop)
            if hasattr(os, "sync"):
                os.sync()
            files = [[member.name, member.size, member.crc32] for member in job.members]
            write_json(job.receipt, {"format_version": FORMAT_VERSION, "archive": job.archive.name, "files": files})

        _together(unpack, jobs)


def _together(work: Callable[[_Job, threading.Event], None], jobs: Sequence[_Job]) -> None:
    """Work on all archives at a time; the first that fails, or Ctrl-C, stops the others between two pieces."""
    stop = threading.Event()
    with ThreadPoolExecutor(max(len(jobs), 1)) as pool:
        tasks = [pool.submit(work, job, stop) for job in jobs]
        try:
            wait(tasks, return_when=FIRST_EXCEPTION)
        finally:
            stop.set()
    problems = [problem for task in tasks if (problem := task.exception()) is not None]
    for problem in sorted(problems, key=lambda problem: isinstance(problem, FetchCancelledError)):
        raise problem
