"""A small dataset without features, a web server for it, and an S3-compatible server, all on 127.0.0.1."""

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from PIL import Image

from pipeline.images.decode import Resize
from pipeline.sharding.config import ShardConfig
from pipeline.sharding.shard import write_shards
from pipeline.sharding.splits import SplitSummary
from shards.fetch import _file_system
from shards.paths import Location
from tests.local_server import LocalServer

SHARD_SIZE = 3
CONFIG = ShardConfig(resize=Resize(size=32), shard_size=SHARD_SIZE)


def draw(folder: Path, names: list[str]) -> None:
    """Write small images with these names, each of another colour and size, and a caption file with two captions per image."""
    for number, name in enumerate(names):
        path = folder / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40 + number, 30), (5 * number % 256, 90, 30)).save(path, "JPEG")
    annotation = {
        "images": [{"id": number, "file_name": name} for number, name in enumerate(names)],
        "annotations": [{"id": number, "image_id": number // 2, "caption": f"a colour {number}"} for number in range(2 * len(names))],
    }
    (folder / "c.json").write_text(json.dumps(annotation))


def shard(folder: Path, out: Location, *, images: Location | None = None, **options: Any) -> SplitSummary:
    """Write shards of three samples from the images of :func:`draw`; ``options`` are those of ``ShardConfig`` and of ``write_shards``."""
    settings = {field.name: options.pop(field.name) for field in fields(ShardConfig) if field.name in options}
    config = replace(CONFIG, **settings)
    return write_shards(images=images or folder / "images", captions=folder / "c.json", out=out, config=config, **options)


def contents(folder: Path) -> dict[str, bytes]:
    """The content of every file by name, including hidden files."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


class ImageServer(LocalServer):
    """A web server for a folder.

    Attributes:
        requests: Number of requests by method and path.
        broken: Paths that are answered with 500, and for how many more requests.
        forbidden: Paths that are answered with 403.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.requests: Counter[str] = Counter()
        self.broken: Counter[str] = Counter()
        self.forbidden: set[str] = set()
        super().__init__()

    @property
    def url(self) -> str:
        return f"{self.origin}/photos"

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        name = unquote(request.path).removeprefix("/photos/")
        with self.lock:
            self.requests[f"{request.command} {name}"] += 1
            broken = self.broken[name] > 0
            self.broken[name] -= broken
        path = self.root / name
        found = "?" not in request.path and path.is_file()
        status = 500 if broken else 403 if name in self.forbidden else 200 if found else 404
        content = path.read_bytes() if status == 200 else b""
        request.send_response(status)
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        if request.command == "GET":
            request.wfile.write(content)


@contextmanager
def s3_server() -> Iterator[str]:
    """The address of an S3-compatible server."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    yield "http://{}:{}".format(*server.get_host_and_port())
    server.stop()


@contextmanager
def s3_bucket(address: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, Any]]:
    """The URL of a new bucket in an S3 server and a boto3 client for it. The environment variables that a user would set are set."""
    import boto3

    monkeypatch.setenv("AWS_ENDPOINT_URL", address)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    client = boto3.client("s3")
    name = f"bucket-{len(client.list_buckets()['Buckets'])}"
    client.create_bucket(Bucket=name)
    _file_system.cache_clear()
    yield f"s3://{name}", client
    _file_system.cache_clear()


def objects(client: Any, url: str) -> dict[str, bytes]:
    """All objects below a URL in S3, by the rest of their key."""
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    found = client.list_objects_v2(Bucket=bucket, Prefix=prefix and prefix + "/").get("Contents", [])
    return {each["Key"].removeprefix(prefix + "/"): client.get_object(Bucket=bucket, Key=each["Key"])["Body"].read() for each in found}
