"""A real web server on 127.0.0.1 that sends parts of files, and misbehaves where a test says so."""

import contextlib
import re
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler

from tests.local_server import LocalServer


class RangeServer(LocalServer):
    """Files by their paths, with ETags and ranges (RFC 9110).

    Attributes:
        files: What is sent; whoever changes one changes its ETag.
        asked: A (path, Range header or None) for each request, in order.
        cut: Paths whose answer ends after so many bytes, and how often still.
        status: Paths that are answered with a status instead.
        slow: Seconds between two pieces of 64 KB.
        ranges: Whether parts are sent; without, every answer is the whole file.
        etags: Whether states of files have names.
        modified: A date that goes with whole files alone.
        ignores_if_range: Parts of the new file are sent for the old one.
        meeting: Where each answer waits until as many are under way as it wants; broken if they never were.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.asked: list[tuple[str, str | None]] = []
        self.cut: dict[str, tuple[int, int]] = {}
        self.status: dict[str, int] = {}
        self.slow = 0.0
        self.ranges = self.etags = True
        self.modified: str | None = None
        self.ignores_if_range = False
        self.meeting: threading.Barrier | None = None
        self.closing = threading.Event()
        super().__init__()

    @property
    def url(self) -> str:
        return self.origin

    def requests(self, path: str) -> list[str | None]:
        return [asked for name, asked in self.asked if name == path]

    def counts(self) -> Counter[str]:
        return Counter(name for name, _ in self.asked)

    def close(self) -> None:
        self.closing.set()
        super().close()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        path, wanted = request.path, request.headers.get("Range")
        with self.lock:
            self.asked.append((path, wanted))
            cut, times = self.cut.get(path, (0, 0))
            if times:
                self.cut[path] = (cut, times - 1)
        if self.meeting is not None:
            with contextlib.suppress(threading.BrokenBarrierError):
                self.meeting.wait()
        if path in self.status or path not in self.files:
            request.send_error(self.status.get(path, 404))
            return
        content = self.files[path]
        etag = f'"{hash(content):x}"' if self.etags else None
        start = 0
        if wanted is not None and self.ranges and (self.ignores_if_range or request.headers.get("If-Range") == etag):
            match = re.fullmatch(r"bytes=(\d+)-", wanted)
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
        self._send(request, content[start : start + cut] if times else content[start:])

    def _send(self, request: BaseHTTPRequestHandler, content: bytes) -> None:
        try:
            for at in range(0, len(content), 1 << 16):
                request.wfile.write(content[at : at + (1 << 16)])
                if self.slow and self.closing.wait(self.slow):
                    return
        except (BrokenPipeError, ConnectionResetError):
            pass  # whoever asked was killed


@contextlib.contextmanager
def range_server() -> Iterator[RangeServer]:
    server = RangeServer()
    try:
        yield server
    finally:
        server.close()
