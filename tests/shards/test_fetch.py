from pathlib import Path

import pytest

from shards.errors import InputError
from shards.fetch import download, split_url


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("http://[", "not a URL"),
        ("https://[::1/a.jpg", "not a URL"),
        ("http://host:99999/a.jpg", "not a URL"),
        ("http:///a.jpg", "names no host or bucket"),
        ("https://", "names no host or bucket"),
        ("s3:///key", "names no host or bucket"),
        ("nonsense://host/a.jpg", "Supported are http, https, s3"),
        ("ftp://host/a.jpg", "Supported are http, https, s3"),  # fsspec knows it, and wants more than a URL
        ("simplecache::http://host/a.jpg", "Supported are http, https, s3"),
    ],
)
def test_unsupported_urls_are_refused_at_once(tmp_path: Path, url: str, says: str) -> None:
    with pytest.raises(InputError, match=says) as refused:
        download(url, tmp_path / "file", max_bytes=10)
    assert str(refused.value).startswith(f"{url}: ")


@pytest.mark.parametrize("url", ["http://host:8000/a%20b.jpg?size=[1]", "https://[::1]:80/a.jpg", "s3://bucket/a:b", "file:///a.jpg"])
def test_unusual_urls_are_urls(url: str) -> None:
    assert split_url(url).geturl() == url


def test_a_file_at_a_url_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "a b").write_bytes(b"123")
    download(f"file://{tmp_path}/a b", tmp_path / "copy", max_bytes=3)
    assert (tmp_path / "copy").read_bytes() == b"123"
