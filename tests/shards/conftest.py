"""Real servers on 127.0.0.1: a web server with shards, and an S3-compatible server."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from shards import fetch as fetch_module
from tests.conftest import Small, shard_small
from tests.servers import s3_server
from tests.shards.shard_server import Server


@pytest.fixture(scope="session")
def fine(small: Small, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small dataset in 18 train shards of two images, and a val shard."""
    folder = tmp_path_factory.mktemp("fine") / "shards"
    shard_small(small.source, folder, "train", shard_size=2)
    shard_small(small.source, folder, "val")
    return folder


@pytest.fixture
def server(fine: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(fetch_module, "BACKOFF_SECONDS", (0.01, 0.01, 0.01))
    server = Server(fine)
    yield server
    server.close()


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    with s3_server() as address:
        yield address
