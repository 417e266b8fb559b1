import io
import re
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from pipeline.captioning.inputs import image_bytes, named_images
from pipeline.images.decode import ImageError
from shards import fetch as fetch_module
from shards.errors import InputError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.jpg", "a.PNG", "notes.txt", "deep/er/c.webp", "space and ümlaut.jpeg", "odd[1].jpg"):
        path = tmp_path / "photographs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return tmp_path / "photographs"


def names(*arguments: object, lines: str = "") -> list[str]:
    return named_images([str(argument) for argument in arguments], io.StringIO(lines))


def test_a_folder_gives_all_photographs_below_it_in_order(folder: Path) -> None:
    assert names(folder) == [str(folder / name) for name in ("a.PNG", "b.jpg", "deep/er/c.webp", "odd[1].jpg", "space and ümlaut.jpeg")]


def test_hidden_images_of_a_folder_are_counted_and_left_out_unless_they_are_named(folder: Path) -> None:
    before, hidden = names(folder), [folder / "._b.jpg", folder / "deep/.thumbnails/c.webp"]
    (folder / "deep/.thumbnails").mkdir()
    for path in (*hidden, folder / ".DS_Store"):
        path.write_bytes(b"x")
    said: list[str] = []
    assert named_images([str(folder), str(folder / "d*")], [], said.append) == [*before, str(folder / "deep/er/c.webp")]
    assert said == [f"Left out 2 hidden images ({hidden[0]}, ...)."]
    assert names(hidden[0]) == names(folder / ".*.jpg") == [str(hidden[0])]
    assert names(hidden[1].parent) == [str(hidden[1])]  # the folder was named
    for name in before:
        Path(name).unlink()
    with pytest.raises(InputError, match=r"no images in this folder .*\. Left out 2 hidden images \("):
        names(folder)


def test_patterns_are_expanded_and_a_file_whose_name_looks_like_one_is_itself(folder: Path) -> None:
    assert names(folder / "*.jp*g") == [str(folder / name) for name in ("b.jpg", "odd[1].jpg", "space and ümlaut.jpeg")]
    assert names(folder / "**" / "*.webp") == [str(folder / "deep/er/c.webp")]
    assert names(folder / "d*") == [str(folder / "deep/er/c.webp")]
    assert names(folder / "odd[1].jpg") == [str(folder / "odd[1].jpg")]


def test_what_a_pattern_matches_twice_over_is_given_once(folder: Path) -> None:
    (folder / "notes.txt").unlink()
    assert names(folder / "**") == names(folder)
    assert names(folder / "**" / "c.webp", folder / "deep") == [str(folder / "deep/er/c.webp")] * 2  # two arguments


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b.jpg", "x" * 300 + "/b.jpg", "\udcff.jpg"], ids=["long", "NUL", "long folder", "not UTF-8"])
def test_a_name_that_no_file_can_have_is_one_photograph_that_cannot_be_read(folder: Path, name: str) -> None:
    assert names(folder / "b.jpg", "-", lines=name) == [str(folder / "b.jpg"), name]
    with pytest.raises(ImageError):
        image_bytes(name)
    for pattern in (f"{name}/*", f"{name}*"):
        with pytest.raises(InputError, match="no file matches this pattern"):
            names("-", lines=pattern)


def test_files_and_urls_stay_as_they_were_named_even_if_they_are_missing(folder: Path) -> None:
    given = [str(folder / "notes.txt"), "https://example.org/a*b.jpg", str(folder / "none.jpg"), str(folder / "notes.txt")]
    assert names(*given) == given


def test_a_list_on_standard_input_is_read_in_its_place(folder: Path) -> None:
    lines = f"{folder / 'b.jpg'}\r\n\n{folder / '*.PNG'}\nhttps://example.org/x.jpg"
    found = [str(folder / "b.jpg"), str(folder / "a.PNG"), "https://example.org/x.jpg"]
    assert names("first.jpg", "-", "last.jpg", lines=lines) == ["first.jpg", *found, "last.jpg"]


def test_what_gives_no_photograph_is_refused_by_name(folder: Path) -> None:
    (folder / "empty").mkdir()
    with pytest.raises(InputError, match=r"empty: no images in this folder"):
        names(folder / "empty")
    with pytest.raises(InputError, match=r"\*\.tiff: no file matches"):
        names(folder / "*.tiff")
    with pytest.raises(InputError, match="No images given"):
        names("-", lines="\n\n")


def test_what_is_no_url_is_one_photograph_that_cannot_be_read() -> None:
    assert names("http://[") == ["http://["]
    with pytest.raises(ImageError, match=re.escape("http://[: not a URL")):
        image_bytes("http://[")


@pytest.fixture
def served(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(fetch_module, "BACKOFF_SECONDS", (0.01,))
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_url_gives_the_bytes_that_its_server_sends(served: str, folder: Path) -> None:
    assert image_bytes(f"{served}/deep/er/c.webp") == (folder / "deep/er/c.webp").read_bytes()


def test_a_url_that_fails_or_sends_too_much_says_so(served: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ImageError, match=r"none\.jpg: no such file"):
        image_bytes(f"{served}/none.jpg")
    with pytest.raises(ImageError, match=r"could not be fetched in 2 attempts .* credentials\.$"):
        image_bytes("http://127.0.0.1:9/dead.jpg")
    monkeypatch.setattr("pipeline.captioning.inputs.MAX_DOWNLOAD_BYTES", 4)
    with pytest.raises(ImageError, match="more than the 4 bytes"):
        image_bytes(f"{served}/b.jpg")
