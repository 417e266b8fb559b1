import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from shards import fetch, resume
from shards.errors import DamageError, InputError, ResourceError
from shards.fetch import FetchCancelledError
from shards.resume import resume_download, state_path
from tests.range_server import RangeServer, range_server

LARGE = 10**9


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[RangeServer]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(fetch, "BACKOFF_SECONDS", (0.01, 0.01, 0.01))
    with range_server() as server:
        yield server


def test_a_file_is_downloaded_over_http_without_extra_packages(server: RangeServer, tmp_path: Path) -> None:
    content = server.files["/a"] = os.urandom(3_000_000)
    arrived: list[int] = []
    resume_download(f"{server.url}/a", tmp_path / "a", size=len(content), max_bytes=LARGE, on_bytes=arrived.append)
    assert (tmp_path / "a").read_bytes() == content
    assert sum(arrived) == len(content)


def test_a_broken_connection_is_resumed(server: RangeServer, tmp_path: Path) -> None:
    content = server.files["/a"] = os.urandom(300_000)
    server.truncated["/a"] = (100_000, 2)
    resume_download(f"{server.url}/a", tmp_path / "a", max_bytes=LARGE)
    assert (tmp_path / "a").read_bytes() == content
    assert server.requests("/a") == [None, "bytes=100000-", "bytes=200000-"]


def test_attempts_with_progress_are_unlimited_and_those_without_are_four(
    server: RangeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resume, "PROGRESS_BYTES", 10_000)
    content = server.files["/a"] = os.urandom(200_000)
    server.truncated["/a"] = (10_000, 15)
    resume_download(f"{server.url}/a", tmp_path / "a", max_bytes=LARGE)
    assert (tmp_path / "a").read_bytes() == content
    server.truncated["/b"], server.files["/b"] = (0, 100), content
    with pytest.raises(ResourceError, match=r"could not be fetched in 4 attempts \(it ended after 0 of 200000 bytes\)"):
        resume_download(f"{server.url}/b", tmp_path / "b", max_bytes=LARGE)


@pytest.mark.parametrize("ignores", [False, True])
def test_a_changed_file_is_downloaded_from_the_start_and_never_mixed(server: RangeServer, tmp_path: Path, ignores: bool) -> None:
    server.files["/a"] = bytes(300_000)
    server.truncated["/a"] = (100_000, 4)
    stop = threading.Event()
    with pytest.raises(FetchCancelledError):
        resume_download(f"{server.url}/a", tmp_path / "a", max_bytes=LARGE, stop=stop, on_bytes=lambda count: stop.set() if count > 0 else None)
    had = (tmp_path / "a").stat().st_size
    assert 0 < had <= 100_000
    content = server.files["/a"] = os.urandom(400_000)
    server.truncated.clear()
    server.ignores_if_range = ignores
    arrived = [had]
    resume_download(f"{server.url}/a", tmp_path / "a", max_bytes=LARGE, on_bytes=arrived.append)
    assert (tmp_path / "a").read_bytes() == content
    assert sum(arrived) == len(content)


def test_a_partial_file_without_a_validator_or_from_another_url_is_downloaded_again(server: RangeServer, tmp_path: Path) -> None:
    server.etags = False
    content = server.files["/a"] = os.urandom(300_000)
    server.truncated["/a"] = (100_000, 1)
    resume_download(f"{server.url}/a", tmp_path / "a", max_bytes=LARGE)
    assert (tmp_path / "a").read_bytes() == content
    assert server.requests("/a") == [None, None]
    (tmp_path / "b").write_bytes(b"what a stranger left")
    resume_download(f"{server.url}/a", tmp_path / "b", max_bytes=LARGE)
    assert (tmp_path / "b").read_bytes() == content
    (tmp_path / "a").write_bytes(content[:5])
    state_path(tmp_path / "a").write_text("{}")
    resume_download(f"{server.url}/a", tmp_path / "a", max_bytes=LARGE)
    assert (tmp_path / "a").read_bytes() == content


def test_a_server_without_ranges_sends_the_file_again(server: RangeServer, tmp_path: Path) -> None:
    server.ranges = False
    content = server.files["/a"] = os.urandom(300_000)
    server.truncated["/a"] = (100_000, 1)
    resume_download(f"{server.url}/a", tmp_path / "a", max_bytes=LARGE)
    assert (tmp_path / "a").read_bytes() == content


def test_a_complete_file_is_not_requested_and_a_too_long_one_is_downloaded_again(server: RangeServer, tmp_path: Path) -> None:
    content = server.files["/a"] = os.urandom(100_000)
    for _ in range(2):
        resume_download(f"{server.url}/a", tmp_path / "a", max_bytes=LARGE)
    assert len(server.received) == 1
    (tmp_path / "a").write_bytes(content + b"more")
    resume_download(f"{server.url}/a", tmp_path / "a", max_bytes=LARGE)
    assert (tmp_path / "a").read_bytes() == content
    assert server.requests("/a") == [None, "bytes=100004-", None]


def test_a_wrong_size_is_refused_before_the_download(server: RangeServer, tmp_path: Path) -> None:
    server.files["/a"] = bytes(100_000)
    with pytest.raises(DamageError, match=r"/a: has 100000 bytes, but should have 7\. Look elsewhere"):
        resume_download(f"{server.url}/a", tmp_path / "a", size=7, max_bytes=LARGE, advice="Look elsewhere.")
    with pytest.raises(DamageError, match="sends more than 1000 bytes"):
        resume_download(f"{server.url}/a", tmp_path / "a", max_bytes=1000)
    assert not (tmp_path / "a").read_bytes()


def test_a_complete_file_of_the_wrong_size_is_refused(server: RangeServer, tmp_path: Path) -> None:
    server.files["/a"] = bytes(100_000)
    resume_download(f"{server.url}/a", tmp_path / "a", max_bytes=LARGE)
    with pytest.raises(DamageError, match=r"/a: has 100000 bytes, but should have 7\."):
        resume_download(f"{server.url}/a", tmp_path / "a", size=7, max_bytes=LARGE)
    with pytest.raises(DamageError, match=r"/a: has 100000 bytes, more than 1000\."):
        resume_download(f"{server.url}/a", tmp_path / "a", max_bytes=1000)


def test_a_download_resumes_if_partial_responses_omit_the_date(server: RangeServer, tmp_path: Path) -> None:
    server.modified = "Tue, 24 Nov 2026 12:00:00 GMT"
    content = server.files["/a"] = os.urandom(200_000)
    server.truncated["/a"] = (50_000, 1)
    resume_download(f"{server.url}/a", tmp_path / "a", max_bytes=LARGE)
    assert (tmp_path / "a").read_bytes() == content
    assert server.requests("/a") == [None, "bytes=50000-"]


def test_attempts_end_when_the_download_is_cancelled(server: RangeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "BACKOFF_SECONDS", (60.0,))
    server.status["/a"] = 503
    stop = threading.Event()
    threading.Timer(0.2, stop.set).start()
    with pytest.raises(fetch.FetchCancelledError):
        resume_download(f"{server.url}/a", tmp_path / "a", max_bytes=LARGE, stop=stop)
    assert server.requests("/a") == [None]


@pytest.mark.parametrize(
    ("status", "error", "says", "requests"),
    [(404, InputError, "no such file", 1), (403, ResourceError, "not allowed", 1), (503, ResourceError, "in 4 attempts .*503", 4)],
)
def test_a_refused_request_is_an_error_that_names_the_url(
    server: RangeServer, tmp_path: Path, status: int, error: type[Exception], says: str, requests: int
) -> None:
    server.status["/a"] = status
    with pytest.raises(error, match=f"^{server.url}/a: .*{says}"):
        resume_download(f"{server.url}/a", tmp_path / "a", max_bytes=LARGE)
    assert len(server.received) == requests


@pytest.mark.parametrize("url", ["ftp://host/a", "file:///etc/passwd", "s3://bucket/a"])
def test_resumed_downloads_support_only_http(tmp_path: Path, url: str) -> None:
    with pytest.raises(InputError, match="only http:// and https:// are supported"):
        resume_download(url, tmp_path / "a", max_bytes=LARGE)
