"""A real web server on 127.0.0.1 that supports range requests, and misbehaves as a test requires."""

import contextlib
import re
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler

from tests.local_server import LocalServer


class RangeServer(LocalServer):
    """Serves files by path, with ETags and ranges (RFC 9110).

    Attributes:
        files: Content by path. Changing a file changes its ETag.
        received: (path, Range header or None) of each request, in order.
        truncated: Paths whose response ends after a number of bytes, and for how many more requests.
        status: Paths that are answered with a status instead of the file.
        slow: Seconds between two chunks of 64 KB.
        ranges: Whether ranges are supported; otherwise every response is the complete file.
        etags: Whether responses have ETags.
        modified: The Last-Modified date, sent with complete files only.
        ignores_if_range: Whether a range of the new file is sent although If-Range names the old one.
        barrier: If set, each response waits at it for others to be in progress.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.received: list[tuple[str, str | None]] = []
        self.truncated: dict[str, tuple[int, int]] = {}
        self.status: dict[str, int] = {}
        self.slow = 0.0
        self.ranges = self.etags = True
        self.modified: str | None = None
        self.ignores_if_range = False
        self.barrier: threading.Barrier | None = None
        self.closing = threading.Event()
        super().__init__()

    @property
    def url(self) -> str:
        return self.origin

    def requests(self, path: str) -> list[str | None]:
        return [requested for name, requested in self.received if name == path]

    def counts(self) -> Counter[str]:
        return Counter(name for name, _ in self.received)

    def close(self) -> None:
        self.closing.set()
        super().close()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        path, requested = request.path, request.headers.get("Range")
        with self.lock:
            self.received.append((path, requested))
            length, times = self.truncated.get(path, (0, 0))
            if times:
                self.truncated[path] = (length, times - 1)
        if self.barrier is not None:
            with contextlib.suppress(threading.BrokenBarrierError):
                self.barrier.wait()
        if path in self.status or path not in self.files:
            request.send_error(self.status.get(path, 404))
            return
        content = self.files[path]
        etag = f'"{hash(content):x}"' if self.etags else None
        start = 0
        if requested is not None and self.ranges and (self.ignores_if_range or request.headers.get("If-Range") == etag):
            match = re.fullmatch(r"bytes=(\d+)-", requested)
            assert match
            start = int(match[1])
            if start >= len(content):
                request.send_error(416)
                return
            request.send_response(206)
            request.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            request.send_response(200)
            if self.modified is not None:
                request.send_header("Last-Modified", self.modified)
        request.send_header("Content-Length", str(len(content) - start))
        if etag is not None:
            request.send_header("ETag", etag)
        request.end_headers()
        self._send(request, content[start : start + length] if times else content[start:])

    def _send(self, request: BaseHTTPRequestHandler, content: bytes) -> None:
        try:
            for start in range(0, len(content), 1 << 16):
                request.wfile.write(content[start : start + (1 << 16)])
                if self.slow and self.closing.wait(self.slow):
                    return
        except (BrokenPipeError, ConnectionResetError):
            pass  # the client was killed


@contextlib.contextmanager
def range_server() -> Iterator[RangeServer]:
    server = RangeServer()
    try:
        yield server
    finally:
        server.close()
