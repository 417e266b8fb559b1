"""A web server on 127.0.0.1 that answers as the Hugging Face Hub does about one public dataset."""

import json
import re
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from urllib.parse import unquote, urlsplit

from tests.local_server import LocalServer

SHA = "0123456789abcdef0123456789abcdef01234567"


class HubServer(LocalServer):
    """Serves a folder as the main branch of a dataset.

    Attributes:
        dataset: OWNER/NAME.
        requests: Method and path of each request for a file, with its range.
        failing: How many more requests for files are answered with 503.
    """

    def __init__(self, dataset: str, folder: Path) -> None:
        self.dataset, self.folder = dataset, folder
        self.requests: list[str] = []
        self.failing = 0
        super().__init__()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        path = unquote(urlsplit(request.path).path)
        api, files = f"/api/datasets/{self.dataset}", f"/datasets/{self.dataset}/resolve/"
        if path.startswith(files):
            self._send_file(request, path[len(files) :].partition("/")[2])
        elif path == api or path.startswith(f"{api}/revision/"):
            self._send_json(request, {"id": self.dataset, "_id": "0", "sha": SHA, "private": False, "gated": False, "tags": [], "siblings": []})
        elif path.startswith(f"{api}/tree/"):
            below = path[len(f"{api}/tree/") :].partition("/")[2]
            found = (self.folder / below).rglob("*") if "recursive=true" in request.path.lower() else (self.folder / below).iterdir()
            self._send_json(request, [self._entry(each) for each in sorted(found)])
        else:
            self._refuse(request, 404, "RepoNotFound")

    def _entry(self, path: Path) -> dict[str, object]:
        kind = "directory" if path.is_dir() else "file"
        size = 0 if path.is_dir() else path.stat().st_size
        return {"type": kind, "oid": SHA, "size": size, "path": path.relative_to(self.folder).as_posix()}

    def _send_json(self, request: BaseHTTPRequestHandler, content: object) -> None:
        body = json.dumps(content).encode()
        request.send_response(200)
        request.send_header("Content-Type", "application/json")
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(body)

    def _send_file(self, request: BaseHTTPRequestHandler, name: str) -> None:
        wanted = request.headers.get("Range")
        with self.lock:
            self.requests.append(f"{request.command} {name} {wanted}")
            fails = self.failing > 0
            self.failing -= fails
        if fails:
            self._refuse(request, 503, "Unavailable")
            return
        path = self.folder / name
        if not path.is_file():
            self._refuse(request, 404, "EntryNotFound")
            return
        content = path.read_bytes()
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", wanted or "")
        start, end = (int(match[1]), min(int(match[2]) + 1, len(content))) if match else (0, len(content))
        request.send_response(206 if match else 200)
        if match:
            request.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(content)}")
        request.send_header("Content-Length", str(end - start))
        request.send_header("ETag", f'"{SHA}"')
        request.send_header("X-Repo-Commit", SHA)
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(content[start:end])

    def _refuse(self, request: BaseHTTPRequestHandler, status: int, code: str) -> None:
        request.send_response(status)
        request.send_header("X-Error-Code", code)
        request.send_header("Content-Length", "0")
        request.end_headers()
