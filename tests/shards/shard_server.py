"""A web server for shards that misbehaves as a test requires, and helpers of the tests of remote shards."""

import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path

from shards.dataset import Split, open_split
from shards.remote import localize
from tests.local_server import LocalServer

LARGE = 10**9


class Server(LocalServer):
    """A web server for a folder that counts requests, and misbehaves as a test requires.

    Attributes:
        gets: Number of requests by name.
        truncated: Names whose response ends in the middle, and for how many more requests.
        longer: Names whose response has additional bytes, and no length in the header.
        hang: Names that stop in the middle until ``released`` is set.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.gets: Counter[str] = Counter()
        self.truncated: Counter[str] = Counter()
        self.longer: set[str] = set()
        self.hang: set[str] = set()
        self.released = threading.Event()
        super().__init__()

    @property
    def url(self) -> str:
        return f"{self.origin}/data/shards"

    def tar_gets(self) -> dict[str, int]:
        return {name: count for name, count in self.gets.items() if name.endswith(".tar")}

    def close(self) -> None:
        self.released.set()
        super().close()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        name = request.path.rpartition("/")[2]
        path = self.root / name
        with self.lock:
            self.gets[name] += 1
            truncate = self.truncated[name] > 0
            self.truncated[name] -= truncate
        if not path.is_file() or request.path != f"/data/shards/{name}":
            request.send_error(404)
            return
        content = path.read_bytes()
        request.send_response(200)
        if name in self.longer:
            content += bytes(10_000)
        else:
            request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        half = len(content) // 2
        request.wfile.write(content[:half])
        request.wfile.flush()
        if name in self.hang:
            self.released.wait(60)
        if not truncate:
            request.wfile.write(content[half:])


def opened(server: Server, cache: Path, cache_bytes: int = LARGE, split: str = "train") -> Split:
    return open_split(localize(server.url, cache=cache, cache_bytes=cache_bytes), split)


def tar_bytes(folder: Path) -> int:
    """Bytes of all tars on disk, complete or partial."""
    total = 0
    for pattern in ("*.tar", ".*.tar.tmp"):
        for path in folder.glob(pattern):
            try:
                total += path.stat().st_size
            except FileNotFoundError:
                continue
    return total


def largest(folder: Path) -> int:
    return max(tar.stat().st_size for tar in folder.glob("train-*.tar"))


def wait_until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.01)
