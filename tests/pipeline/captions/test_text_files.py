from pathlib import Path

import pytest

from pipeline.captions import text_files
from pipeline.captions.records import CaptionFile
from pipeline.captions.text_files import read_folder, read_split_list, read_tokens, text_lines
from shards.errors import InputError


def texts(found: CaptionFile) -> dict[str, list[str]]:
    return {record.file_name: [caption.text for caption in record.captions] for record in found.splits.get(None, [])}


def reasons(found: CaptionFile) -> list[tuple[str, str]]:
    return [(reject.file, reject.reason) for reject in found.rejects.get(None, [])]


def test_a_token_file_gives_each_image_its_captions_in_the_files_order(tmp_path: Path) -> None:
    path = tmp_path / "Flickr8k.token.txt"
    path.write_bytes(b"\xef\xbb\xbfb.jpg#0\tA dog runs .\r\nb.jpg#1\tA #1 dog .\r\n\r\na.jpg.1#0\tTwo\ttabs .\r\nb.jpg#2\tLast .")
    found = read_tokens(path)
    assert texts(found) == {"b.jpg": ["A dog runs .", "A #1 dog .", "Last ."], "a.jpg.1": ["Two\ttabs ."]}
    assert [(record.image_id, [caption.id for caption in record.captions]) for record in found.splits[None]] == [(0, [0, 1, 3]), (1, [2])]
    assert reasons(found) == []


def test_unusable_lines_of_a_token_file_are_rejects(tmp_path: Path) -> None:
    path = tmp_path / "results.token"
    path.write_text("a.jpg#0\tFine\na.jpg#1\t \nb.jpg#0\t\nno caption here\n../c.jpg#0\tOutside\n")
    found = read_tokens(path)
    assert texts(found) == {"a.jpg": ["Fine"]}
    wanted = [
        ("a.jpg", "empty_caption"),
        ("b.jpg", "empty_caption"),
        ("line 4", "malformed_row"),
        ("b.jpg", "no_captions"),
        ("../c.jpg", "path_escape"),
    ]
    assert reasons(found) == wanted


def test_a_wrong_encoding_is_an_error_that_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "latin.token"
    path.write_bytes("a.jpg#0\tFine\nb.jpg#0\tA café\n".encode("latin-1"))
    with pytest.raises(InputError, match=r"latin\.token: line 2 is not UTF-8 \(byte 0xe9\)"):
        read_tokens(path)


def test_a_line_or_file_beyond_its_limit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "long.txt"
    path.write_text("short\n" + "x" * 100)
    monkeypatch.setattr(text_files, "MAX_LINE_CHARACTERS", 50)
    with pytest.raises(InputError, match=r"long\.txt: line 2 has more than 50 characters"):
        list(text_lines(path))
    with pytest.raises(InputError, match=r"long\.txt: has 106 bytes, more than .*\(10\)"):
        list(text_lines(path, at_most=10))
    with pytest.raises(InputError, match=r"none\.txt: no such file"):
        list(text_lines(tmp_path / "none.txt"))


def test_a_split_list_names_an_image_on_each_line(tmp_path: Path) -> None:
    path = tmp_path / "Flickr_8k.trainImages.txt"
    path.write_text("b.jpg\r\n\na.jpg \n")
    assert read_split_list(path) == ["b.jpg", "a.jpg"]
    path.write_text("\n")
    with pytest.raises(InputError, match="lists no image"):
        read_split_list(path)


def test_a_folder_gives_every_image_the_lines_of_its_text_file(tmp_path: Path) -> None:
    (tmp_path / "sub/.hidden").mkdir(parents=True)
    for name in ("b.jpg", "a.PNG", "sub/c.d.jpeg", "mute.webp", "sub/.hidden/x.jpg", "._b.jpg", ".DS_Store", "notes.pdf"):
        (tmp_path / name).write_bytes(b"not looked at")
    for name, text in {
        "a.txt": "\ufeffOne\nTwo\n",
        "b.txt": "B \n\n",
        "sub/c.d.txt": "C",
        "alone.txt": "Of nothing",
        "sub/.hidden/x.txt": "X",
        "._b.txt": "\0",
    }.items():
        (tmp_path / name).write_text(text)
    found = read_folder(tmp_path)
    assert list(texts(found).items()) == [("a.PNG", ["One", "Two"]), ("b.jpg", ["B"]), ("sub/c.d.jpeg", ["C"])]
    hidden = [(name, "hidden_file") for name in ("._b.jpg", "._b.txt", "sub/.hidden")]
    assert reasons(found) == [("alone.txt", "caption_without_image"), *hidden, ("mute.webp", "no_captions")]


def test_a_folder_without_text_files_is_refused_and_links_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/a.txt").write_text("Secret")
    (tmp_path / "elsewhere/a.jpg").touch()
    (tmp_path / "images").mkdir()
    (tmp_path / "images/link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=r"images: is a folder without \.txt files"):
        read_folder(tmp_path / "images")
