import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from PIL import Image

from pipeline.captions.vocabulary import vocabulary_of
from pipeline.inspection.stats import THRESHOLDS, coverage, distribution, stats
from pipeline.sharding.shard import write_shards
from shards.caption_table import table_from_records, table_of_split
from shards.dataset import open_split
from shards.errors import DamageError, InputError
from shards.feature_writer import write_features
from shards.json_files import write_json
from tests.conftest import SMALL
from tests.provenances import provenance

Run = Callable[..., Result]
SIZES = [(320, 240), (320, 240), (240, 320), (100, 100)]
CAPTIONS = [["a dog"], ["a dog runs", "a cat"], ["a <end>"], ["a dog and a cat"]]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four images of three sizes with five captions, a missing image, an empty caption, and two captions without words."""
    folder = tmp_path_factory.mktemp("stats")
    images = [{"id": n, "file_name": f"{n}.png"} for n in range(5)]
    for n, size in enumerate(SIZES):
        Image.new("RGB", size).save(folder / f"{n}.png")
    texts = [(n, text) for n, group in enumerate(CAPTIONS) for text in group] + [(4, "gone"), (0, " "), (0, "..."), (1, "\u200b")]
    annotations = [{"id": n, "image_id": image, "caption": text} for n, (image, text) in enumerate(texts)]
    write_json(folder / "c.json", {"images": images, "annotations": annotations})
    write_shards(images=folder, captions=folder / "c.json", out=folder / "shards", split="train", config=replace(SMALL, shard_size=2))
    return folder / "shards"


def feature_file(path: Path, split: str = "val") -> Path:
    table = table_from_records(
        [[("0", {"image_id": 1, "file_name": "x", "captions": [{"id": 1, "text": "a dog", "tokens": ["a", "dog"]}]})]],
    )
    made = provenance(split=split)
    write_features(path, lambda: [(np.zeros((1, 1, 1, 4), np.float16), table)], shape=(1, 4), provenance=made)
    return path


def test_statistics_of_shards_equal_manual_counts(shards: Path) -> None:
    (found,) = stats(shards)
    assert (found.name, found.images, found.captions, found.tokens, found.distinct_words) == ("train", 4, 5, 16, 8)
    assert found.captions_per_image is not None
    assert found.captions_per_image.values == {1: 3, 2: 1}
    assert found.caption_lengths is not None
    assert found.caption_lengths.values == {2: 2, 3: 1, 4: 1, 5: 1}  # "<", "end" and ">" are tokens of their own
    assert (found.caption_lengths.mean, found.caption_lengths.median) == (3.2, 3.0)
    assert found.rejects == {"caption_without_words": 2, "empty_caption": 1, "missing_file": 1}
    assert found.sizes is not None
    assert (found.sizes.landscape, found.sizes.portrait, found.sizes.square) == (2, 1, 1)
    assert found.sizes.common == {"320x240": 2, "240x320": 1, "100x100": 1}
    assert (found.sizes.width.smallest, found.sizes.width.largest, found.sizes.width.values) == (100, 320, {100: 1, 240: 1, 320: 2})


def test_coverage_equals_that_of_the_vocabulary(shards: Path) -> None:
    table = table_of_split(open_split(shards, "train"))
    found = coverage(table)
    assert [one.min_count for one in found] == list(THRESHOLDS) == list(range(1, 11))
    for one in found[:4]:
        made = vocabulary_of(table, min_count=one.min_count)
        assert one.words == len(made.vocabulary)
        assert one.share == pytest.approx(made.coverage)
    assert (found[-1].words, found[-1].share) == (4, 0.0)  # where vocab refuses: no word occurs so often


def test_special_words_in_captions_are_never_covered() -> None:
    record = {"image_id": 1, "file_name": "x", "captions": [{"id": 1, "text": "", "tokens": ["<end>", "a", "a"]}]}
    found = coverage(table_from_records([[("0", record)]]))
    assert found[0].words == 5
    assert found[0].share == pytest.approx(2 / 3)


def test_statistics_of_feature_files_have_no_sizes(tmp_path: Path) -> None:
    feature_file(tmp_path / "val.h5")
    feature_file(tmp_path / "train.h5", "train")
    (tmp_path / "rejects.jsonl").write_text('{"split": "val", "file": "a", "reason": "missing_features", "message": "m"}\n' * 3)
    assert [(found.name, found.images, found.tokens, found.sizes, found.rejects) for found in stats(tmp_path)] == [
        ("train", 1, 2, None, {}),
        ("val", 1, 2, None, {"missing_features": 3}),
    ]
    assert [found.name for found in stats(tmp_path / "val.h5")] == ["val"]


@pytest.mark.parametrize("ending", ["png", "svg"])
def test_statistics_of_shards_and_features_are_plotted(shards: Path, tmp_path: Path, ending: str) -> None:
    feature_file(tmp_path / "val.h5")
    for place in (shards, tmp_path):
        out = tmp_path / "plots" / f"{place.name}.{ending}"
        stats(place, plot=out)
        assert out.stat().st_size > 5000
        if ending == "png":
            with Image.open(out) as image:
                assert image.size == (1200, 800)


def test_the_command_prints_lines_or_a_json_document(shards: Path, run_cli: Run, tmp_path: Path) -> None:
    result = run_cli("stats", shards, "--plot", tmp_path / "s.png")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[0] == "train: 4 images, 5 captions, 16 tokens, 8 distinct words"
    assert "left out            2 caption_without_words, 1 empty_caption, 1 missing_file" in result.stdout
    assert result.stdout.splitlines()[-1].startswith(f"Next: python cli.py vocab --shards {shards}")
    document: dict[str, Any] = json.loads(run_cli("stats", shards, "--json").stdout)
    assert document["of"] == str(shards)
    assert document["splits"][0]["sizes"]["common"] == {"320x240": 2, "240x320": 1, "100x100": 1}
    feature_file(tmp_path / "val.h5")
    assert f"train --features {tmp_path}" in run_cli("stats", tmp_path / "val.h5").output.splitlines()[-1]


@pytest.mark.parametrize("content", ["{", "[1]", '{"split": "val"}'])
def test_an_invalid_line_of_rejects_is_named(tmp_path: Path, content: str) -> None:
    feature_file(tmp_path / "val.h5")
    (tmp_path / "rejects.jsonl").write_text(f"{content}\n")
    with pytest.raises(DamageError, match=r"rejects\.jsonl: line 1 is not a reject"):
        stats(tmp_path)


def test_other_folders_and_other_extensions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a shard dataset"):
        stats(tmp_path)
    with pytest.raises(InputError, match=r"`plot` a\.txt: a figure is written as"):
        stats(tmp_path, plot=Path("a.txt"))
    with pytest.raises(InputError, match="holds no feature files"):
        stats(tmp_path / "none.h5")


def test_the_distribution_of_no_values_and_of_one_value() -> None:
    assert distribution(np.array([], np.int64)) is None
    assert str(distribution(np.array([5, 5]))) == "all 5"
