"""File names that the captions and the disk write differently."""

import json
import unicodedata
from pathlib import Path

import pytest

from pipeline.captions.read import CaptionSource
from pipeline.images.decode import ImageError
from pipeline.sharding.config import ShardConfig
from pipeline.sharding.shard import write_splits
from pipeline.sharding.source_images import read_source_images, source_image_sizes
from tests.image_tables import picture
from tests.servers import ImageServer


def nfc(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def nfd(text: str) -> str:
    return unicodedata.normalize("NFD", text)


def reasons(found: list[bytes | ImageError]) -> list[str]:
    return [each.reason if isinstance(each, ImageError) else "found" for each in found]


@pytest.mark.parametrize(
    ("on_disk", "in_captions"),
    [
        (nfc("café/강아지.jpg"), nfd("café/강아지.jpg")),
        (nfd("café/강아지.jpg"), nfc("café/강아지.jpg")),
        ("Photos/Dog.JPG", "photos/dog.jpg"),
        ("a/b/dog.jpg", "a\\b\\dog.jpg"),
        (nfd("Ä/ÉTÉ.jpg"), nfc("ä\\été.jpg")),
    ],
)
def test_a_file_is_found_by_either_unicode_form_case_or_slash(tmp_path: Path, on_disk: str, in_captions: str) -> None:
    (tmp_path / on_disk).parent.mkdir(parents=True)
    (tmp_path / on_disk).write_bytes(b"image")
    assert list(read_source_images(tmp_path, [in_captions, on_disk, "none.jpg"]))[:2] == [b"image", b"image"]
    assert source_image_sizes(tmp_path, [in_captions, on_disk, "none.jpg"]) == [5, 5, None]


def test_the_exact_name_comes_first_and_two_other_names_are_not_guessed_between(tmp_path: Path) -> None:
    for name, content in (("dog.jpg", b"1"), ("Dog.jpg", b"2")):
        (tmp_path / name).write_bytes(content)
    if len(list(tmp_path.iterdir())) < 2:
        pytest.skip("this file system does not distinguish upper and lower case")
    exact, capital, neither = read_source_images(tmp_path, ["dog.jpg", "Dog.jpg", "DOG.jpg"])
    assert (exact, capital) == (b"1", b"2")
    assert isinstance(neither, ImageError)
    assert neither.reason == "missing_file"
    assert "Dog.jpg, dog.jpg differ from it in upper and lower case only" in str(neither)


def test_a_name_below_the_parent_of_the_folder_is_explained(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train/a.jpg").write_bytes(b"image")
    (missing,) = read_source_images(tmp_path / "train", ["train/a.jpg"])
    assert isinstance(missing, ImageError)
    assert f"{tmp_path}/train/a.jpg exists: give `images` {tmp_path}" in str(missing)


def test_names_do_not_lead_out_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    assert reasons(list(read_source_images(tmp_path / "images", ["..\\secret.jpg", "SECRET.jpg", "n\0"]))) == [
        "missing_file",
        "missing_file",
        "unreadable_file",
    ]


def test_a_file_at_a_url_is_found_by_either_unicode_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    (tmp_path / "sub").mkdir()
    (tmp_path / nfd("sub/é.jpg")).write_bytes(b"image")
    server = ImageServer(tmp_path)
    assert reasons(list(read_source_images(server.url, [nfc("sub\\é.jpg"), nfc("sub/é.jpg"), "none.jpg"]))) == ["found", "found", "missing_file"]
    assert source_image_sizes(server.url, [nfc("sub/é.jpg"), "none.jpg"]) == [5, None]
    server.close()


def test_absolute_names_below_the_folder_become_relative_and_others_are_explained(tmp_path: Path) -> None:
    images = tmp_path / "images"
    (images / "sub").mkdir(parents=True)
    (images / "sub/a.jpg").write_bytes(picture(1))
    (images / "b.jpg").write_bytes(picture(2))
    (tmp_path / "link").symlink_to(images)
    names = [f"{images}/sub/a.jpg", f"{tmp_path}/link/b.jpg", "/elsewhere/c.jpg", "C:\\photos\\d.jpg", f"{images}/../e.jpg"]
    lines = [json.dumps({"image": name, "caption": "a picture"}) for name in names]
    (tmp_path / "c.jsonl").write_text("\n".join(lines))
    source = CaptionSource(paths=(tmp_path / "c.jsonl",))
    done = write_splits(images=tmp_path / "link", captions=source, out=tmp_path / "out", config=ShardConfig())["train"]
    assert (done.images, done.rejects) == (2, {"path_escape": 3})
    rejects = [json.loads(line) for line in (tmp_path / "out/rejects.jsonl").read_text().splitlines()]
    assert {reject["file"] for reject in rejects} == set(names[2:])
    assert any("the file name is absolute, and not below the images' folder" in reject["message"] for reject in rejects)


def test_captions_that_write_one_name_in_two_forms_are_of_one_image(tmp_path: Path) -> None:
    (tmp_path / nfd("é.jpg")).write_bytes(picture(1))
    (tmp_path / "a.csv").write_text(f"image,caption\n{nfc('é.jpg')},one\n{nfd('é.jpg')},two\n")
    (tmp_path / "b.csv").write_text(f"image,caption\n{nfd('é.jpg')},three\n")
    (tmp_path / "list.txt").write_text(f"{nfd('é')}\n")
    source = CaptionSource(paths=(tmp_path / "a.csv", tmp_path / "b.csv"), split_lists=(("train", tmp_path / "list.txt"),))
    done = write_splits(images=tmp_path, captions=source, out=tmp_path / "out", config=ShardConfig())["train"]
    assert (done.images, done.captions, done.rejects) == (1, 3, {})


def test_rejects_keep_letters_of_every_script(tmp_path: Path) -> None:
    (tmp_path / "강아지.jpg").write_bytes(b"no image")
    (tmp_path / "a.jpg").write_bytes(picture(1))
    (tmp_path / "a.csv").write_text("image,caption\n강아지.jpg,one\na.jpg,two\nx\x1b[31m\u2028y.jpg,three\n")
    write_splits(images=tmp_path, captions=CaptionSource(paths=(tmp_path / "a.csv",)), out=tmp_path / "out", config=ShardConfig())
    text = (tmp_path / "out/rejects.jsonl").read_text()
    assert '"file": "강아지.jpg"' in text
    assert "\\u001b[31m\\u2028y.jpg" in text
    assert not set(text) & set("\x1b\u2028")
