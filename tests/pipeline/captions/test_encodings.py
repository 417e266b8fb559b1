"""Text that is not UTF-8, and line ends."""

from pathlib import Path

import pytest

from pipeline.captions.encodings import guessed_encoding
from pipeline.captions.read import CaptionSource, read_captions
from shards.errors import InputError

TEXTS = {
    "cp949": "강아지가 잔디밭에서 뛰고 있다.",
    "cp932": "犬が芝生の上を走っている。",
    "gb18030": "两个人在海滩上散步,一辆红色的汽车停在路上。",
    "cp1252": "Un café à Paris près de la Seine – c’est l’été.",
}


def captions(path: Path, encoding: str | None = None) -> dict[str, list[str]]:
    found = read_captions(CaptionSource(paths=(path,), encoding=encoding))
    return {record.file_name: [each.text for each in record.captions] for records in found.splits.values() for record in records}


@pytest.mark.parametrize(("encoding", "text"), TEXTS.items())
def test_another_encoding_is_named_in_the_message_and_read_when_it_is_given(tmp_path: Path, encoding: str, text: str) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(f'image,caption\na.jpg,A dog.\nb.jpg,"{text}"\n'.encode(encoding))
    with pytest.raises(InputError, match=rf"a\.csv: line 3 is not UTF-8 \(byte 0x..\)\. It looks like {encoding} \(.*\): give `encoding` {encoding}"):
        captions(path)
    assert captions(path, encoding) == {"a.jpg": ["A dog."], "b.jpg": [text]}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.token.txt", "a.jpg#0\t{}\n"),
        ("a.jsonl", '{{"image": "a.jpg", "caption": "{}"}}\n'),
        ("a.json", '[{{"image": "a.jpg", "caption": "{}"}}]'),
        ("b.json", '{{"images": [{{"id": 1, "file_name": "a.jpg"}}],\n"annotations": [{{"id": 1, "image_id": 1, "caption": "{}"}}]}}'),
    ],
)
def test_every_format_of_text_has_an_encoding(tmp_path: Path, name: str, content: str) -> None:
    path = tmp_path / name
    path.write_bytes(content.format(TEXTS["cp949"]).encode("cp949"))
    with pytest.raises(InputError, match=rf"{name}: .*not UTF-8.*`encoding`"):
        captions(path)
    assert captions(path, "cp949") == {"a.jpg": [TEXTS["cp949"]]}


@pytest.mark.parametrize("mark", ["utf-16", "utf-16-le"])
def test_utf_16_is_read_when_it_is_given(tmp_path: Path, mark: str) -> None:
    path = tmp_path / "a.tsv"
    path.write_bytes("image\tcaption\na.jpg\t강아지\n".encode(mark))
    assert captions(path, mark) == {"a.jpg": ["강아지"]}
    if mark == "utf-16":
        with pytest.raises(InputError, match=r"a\.tsv: is UTF-16: give `encoding` utf-16"):
            captions(path)


def test_a_table_whose_header_is_not_utf_8_names_the_encoding(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes("사진,설명\n1.jpg,두 사람이 해변을 걷고 있습니다.\n".encode("cp949"))
    with pytest.raises(InputError, match=r"a\.csv: line 1 is not UTF-8 .*looks like cp949"):
        captions(path)
    with pytest.raises(InputError, match=r"a\.csv: a table of 2 columns, none of which has a usual name: 사진, 설명\. .*`column` image=NAME"):
        captions(path, "cp949")


def test_an_unknown_or_wrong_encoding_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"`encoding` klingon: there is no such encoding of text\. Usual ones are: utf-8, .*cp949"):
        CaptionSource(paths=(tmp_path,), encoding="klingon")
    with pytest.raises(InputError, match=r"`encoding` base64"):
        CaptionSource(paths=(tmp_path,), encoding="base64")
    (tmp_path / "a.csv").write_bytes(b"image,caption\na.jpg,caf\xe9\n")
    with pytest.raises(InputError, match=r"a\.csv: line 2 is not ASCII \(byte 0xe9\)\. Check `encoding`"):
        captions(tmp_path / "a.csv", "ascii")


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("cp949", "강아지"),
        ("cp949", "고양이 두 마리"),
        ("cp932", "いぬ"),
        ("cp932", "赤い車が止まっている。"),
        ("euc_jp", "犬が走っている。"),
        ("gb18030", "一只狗在草地上奔跑。"),
        ("big5", "一隻狗在草地上奔跑。"),
        ("cp1252", "Äpfel und Bälle auf der Straße"),
        ("cp1252", "El niño está en el jardín."),
        ("cp1251", "Собака бежит по траве."),
    ],
)
def test_a_few_words_tell_the_encoding(encoding: str, text: str) -> None:
    assert guessed_encoding(f"image,caption\na.jpg,{text}\n".encode(encoding)) == encoding


def test_bytes_of_no_usual_encoding_have_no_guess() -> None:
    assert guessed_encoding(bytes(range(128, 160)) * 3) is None


@pytest.mark.parametrize("end", ["\r", "\r\n", "\n"])
def test_every_kind_of_line_end_is_read(tmp_path: Path, end: str) -> None:
    lines = ["image,caption", 'a.jpg,"A dog, asleep."', f'b.jpg,"Two{end}lines"', "c.jpg,A cat."]
    (tmp_path / "a.csv").write_bytes(end.join(lines).encode() + end.encode())
    assert captions(tmp_path / "a.csv") == {"a.jpg": ["A dog, asleep."], "b.jpg": [f"Two{end}lines"], "c.jpg": ["A cat."]}
    (tmp_path / "a.token.txt").write_bytes(f"a.jpg#0\tA dog.{end}b.jpg#0\tA cat.{end}".encode())
    assert captions(tmp_path / "a.token.txt") == {"a.jpg": ["A dog."], "b.jpg": ["A cat."]}
    (tmp_path / "a.jsonl").write_bytes(end.join(['{"image": "a.jpg", "caption": "A dog."}', '{"image": "b.jpg", "caption": "A cat."}']).encode())
    assert captions(tmp_path / "a.jsonl") == {"a.jpg": ["A dog."], "b.jpg": ["A cat."]}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (
            "dog.jpg,A dog runs.\ncat.jpg,A cat.\n",
            r"a table without a header: its first line is already a row \(dog\.jpg, A dog runs\.\)\. Add a first",
        ),
        ("id;bild;text_de\n1;a.jpg;Ein Hund\n", r"a table of 3 columns, none of which has a usual name: id, bild, text_de"),
        ("image,words\na.jpg,A dog.\n", r"no column of images, or none of captions, has a usual name\. Its columns are: image, words"),
    ],
)
def test_a_table_without_a_header_or_with_unusual_columns_lists_what_was_found(tmp_path: Path, content: str, says: str) -> None:
    (tmp_path / "a.csv").write_text(content)
    with pytest.raises(InputError, match=rf"a\.csv: {says}"):
        captions(tmp_path / "a.csv")
