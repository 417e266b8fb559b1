"""Source images at URLs, from a real web server on 127.0.0.1."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.images.decode import ImageError
from pipeline.sharding.source_images import check_source_images, read_source_images, source_image_sizes
from shards import fetch
from shards.errors import InputError, ResourceError
from tests.servers import ImageServer, contents, draw, shard

NAMES = ["a.jpg", "sub dir/b #1.jpg", "c%20d?.jpg", "é.jpg", "e.jpg"]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawn")
    draw(folder, NAMES)
    return folder


@pytest.fixture
def server(drawn: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ImageServer]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(fetch, "BACKOFF_SECONDS", (0.01, 0.01, 0.01))
    server = ImageServer(drawn / "images")
    yield server
    server.close()


def test_images_at_a_url_give_the_same_shards_as_those_in_a_folder(server: ImageServer, drawn: Path, tmp_path: Path) -> None:
    shard(drawn, tmp_path / "local")
    assert shard(drawn, tmp_path / "remote", images=server.url + "/").rejects == {}
    assert contents(tmp_path / "remote") == contents(tmp_path / "local")
    assert server.requests == {f"GET {name}": 1 for name in NAMES}


def test_a_second_run_asks_for_sizes_and_fetches_no_image(server: ImageServer, drawn: Path, tmp_path: Path) -> None:
    shard(drawn, tmp_path / "out", images=server.url)
    server.requests.clear()
    assert shard(drawn, tmp_path / "out", images=server.url).kept == 2
    assert server.requests == {f"HEAD {name}": 1 for name in NAMES}
    server.requests.clear()
    assert shard(drawn, tmp_path / "out", images=server.url, check_sources=True).kept == 2
    assert {name.split()[0] for name in server.requests} == {"HEAD", "GET"}


def test_an_added_or_changed_image_rewrites_its_shard(tmp_path: Path, server: ImageServer) -> None:
    draw(tmp_path, ["0.jpg", "1.jpg", "2.jpg", "3.jpg"])
    late = (tmp_path / "images/3.jpg").rename(tmp_path / "late.jpg")
    moving = ImageServer(tmp_path / "images")
    assert shard(tmp_path, tmp_path / "out", images=moving.url).rejects == {"missing_file": 1}
    assert shard(tmp_path, tmp_path / "out", images=moving.url).kept == 2
    late.rename(tmp_path / "images/3.jpg")
    again = shard(tmp_path, tmp_path / "out", images=moving.url)
    assert (again.kept, again.images, again.rejects) == (1, 4, {})
    moving.close()


def test_images_that_are_missing_forbidden_too_large_or_always_fail_are_rejects(
    server: ImageServer, drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    annotation = json.loads((drawn / "c.json").read_text())
    annotation["images"][0]["file_name"] = "gone.jpg"
    (tmp_path / "c.json").write_text(json.dumps(annotation))
    server.forbidden.add(NAMES[1])
    server.broken[NAMES[2]] = 100
    size = (drawn / "images" / NAMES[4]).stat().st_size
    monkeypatch.setattr("pipeline.sharding.source_images.MAX_FILE_BYTES", size - 1)
    names = [image["file_name"] for image in annotation["images"]]
    found = list(read_source_images(server.url, [names[0], names[1], names[2], names[4]]))
    assert [each.reason for each in found if isinstance(each, ImageError)] == ["missing_file", "unreadable_file", "unreadable_file", "too_large"]
    assert "gone.jpg: no such file" in str(found[0])
    assert f"more than the limit of {size - 1} bytes" in str(found[3])
    monkeypatch.undo()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(fetch, "BACKOFF_SECONDS", (0.01, 0.01, 0.01))
    summary = shard(tmp_path, tmp_path / "out", images=server.url)
    assert summary.rejects == {"missing_file": 1, "unreadable_file": 2}
    lines = [json.loads(line) for line in (tmp_path / "out/rejects.jsonl").read_text().splitlines()]
    assert lines[0]["file"] == "gone.jpg"
    with pytest.raises(InputError, match="`max_rejects` allows 0"):
        shard(tmp_path, tmp_path / "few", images=server.url, max_rejects=0.1)


def test_a_temporary_error_is_retried(server: ImageServer, drawn: Path, tmp_path: Path) -> None:
    server.broken["a.jpg"] = 3
    assert shard(drawn, tmp_path / "out", images=server.url).rejects == {}
    assert server.requests["GET a.jpg"] == 4


def test_an_unreachable_server_stops_the_run_and_rejects_nothing(server: ImageServer, drawn: Path, tmp_path: Path) -> None:
    server.close()
    with pytest.raises(ResourceError, match=r"/photos/\S+: could not be fetched in 4 attempts"):
        shard(drawn, tmp_path / "out", images=server.url)
    assert not list((tmp_path / "out").glob("[!.]*"))


def test_sizes_are_those_of_the_files(server: ImageServer, drawn: Path) -> None:
    wanted = [(drawn / "images" / name).stat().st_size for name in NAMES]
    assert source_image_sizes(server.url, [*NAMES, "none.jpg"]) == [*wanted, None]
    assert source_image_sizes(drawn / "images", [*NAMES, "none.jpg", "n\0"]) == [*wanted, None, None]


@pytest.mark.parametrize(
    ("place", "says"),
    [
        ("https://host/photos?x=1", "without [?] and #"),
        ("http://", "names no host"),
        ("gopher://host/photos", "gopher:// cannot be read"),
        ("/no/such/folder", "no such folder"),
    ],
)
def test_a_place_that_cannot_hold_images_is_refused(place: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        check_source_images(place)
