import re
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from pipeline.captions.formats import CAPTION_FORMATS, CaptionInput, described_formats, format_names, format_of
from shards.errors import InputError
from tests import ROOT


def test_every_format_is_named_in_the_documentation_the_help_and_the_description(run_cli: Callable[..., Result]) -> None:
    table = (ROOT / "docs/captions.md").read_text().partition("## Formats")[2].partition("\n## ")[0].lower()
    shown = re.sub(r"\s+", " ", run_cli("shard", "--help").output)
    assert format_names() in shown
    for name, each in CAPTION_FORMATS.items():
        assert name.lower() in table
        assert f"{name} ({each.description})" in described_formats()


@pytest.mark.parametrize(
    ("content", "name"),
    [
        ('{"images": [], "annotations": []}', "COCO"),
        ('{"images": [{"sentences": []}]}', "Karpathy"),
        ("a.jpg#0\tA dog.", "token file"),
        ("file|caption", "CSV"),
        ('{"image": "a.jpg", "caption": "A dog."}', "JSON Lines"),
        ("[]", "JSON list"),
        ("PAR1", "Parquet"),
    ],
)
def test_each_format_matches_its_files_and_no_others(tmp_path: Path, content: str, name: str) -> None:
    (tmp_path / "x").write_text(content)
    file = CaptionInput(path=tmp_path / "x")
    matching = [other for other, each in CAPTION_FORMATS.items() if each.matches(file)]
    assert matching == (["Karpathy", "COCO"] if name == "Karpathy" else [name])
    assert format_of(file) is CAPTION_FORMATS[name]


def test_json_lines_whose_first_line_is_longer_than_the_beginning_that_is_looked_at_are_recognised(tmp_path: Path) -> None:
    row = '{"image": "a.jpg", "caption": "A dog.", "embedding": "' + "0" * 200_000 + '"}'
    (tmp_path / "lines.jsonl").write_text(f"{row}\n{row}\n")
    assert format_of(CaptionInput(path=tmp_path / "lines.jsonl")) is CAPTION_FORMATS["JSON Lines"]
    document = '{"info": "' + "0" * 200_000 + '", "images": [], "annotations": []}'
    (tmp_path / "document.json").write_text(document)
    assert format_of(CaptionInput(path=tmp_path / "document.json")) is CAPTION_FORMATS["COCO"]


def test_a_folder_is_a_format_and_a_missing_file_is_an_error(tmp_path: Path) -> None:
    assert format_of(CaptionInput(path=tmp_path)) is CAPTION_FORMATS["folder"]
    with pytest.raises(InputError, match=r"none: no such file or folder of captions"):
        format_of(CaptionInput(path=tmp_path / "none"))
