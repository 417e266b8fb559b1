import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result

from pipeline.captions.read import CaptionSource, read_splits
from pipeline.datasets.scene_captions import CHINESE_WORDS, KOREAN_WORDS, WORDINGS, named_pairs, scene_captions
from pipeline.datasets.scenes import COLOURS, SHAPES, random_scene
from pipeline.datasets.synthetic import synthesize, synthetic_sample
from shards.errors import InputError, OccupiedError


def test_the_same_seed_draws_the_same_bytes_with_any_number_of_workers(tmp_path: Path) -> None:
    for name, seed, workers in (("a", 5, 1), ("b", 5, 2), ("c", 6, 1)):
        synthesize(tmp_path / name, images=60, seed=seed, workers=workers)
    files = {name: {p.relative_to(tmp_path / name): p.read_bytes() for p in (tmp_path / name).rglob("*") if p.is_file()} for name in "abc"}
    assert files["a"] == files["b"]
    assert files["a"] != files["c"]


def test_a_larger_dataset_contains_the_smaller_one_split_by_split(tmp_path: Path) -> None:
    for name, images in (("a", 20), ("b", 50)):
        synthesize(tmp_path / name, images=images)
    for split in ("train", "val"):
        few, many = (json.loads((tmp_path / name / f"captions_{split}.json").read_text()) for name in "ab")
        assert many["images"][: len(few["images"])] == few["images"]


def test_every_caption_is_worded_differently_and_names_every_group() -> None:
    for index in range(200):
        rng = np.random.default_rng(index)
        scene = random_scene(rng)
        captions = scene_captions(scene, rng)
        truth = {(group.colour, group.shape) for group in scene.groups}
        assert len(set(captions)) == 5
        for caption in captions:
            assert named_pairs([caption]) == truth, caption


def test_all_relations_shapes_colours_and_counts_occur() -> None:
    scenes = [random_scene(np.random.default_rng(index)) for index in range(500)]
    assert {scene.relation for scene in scenes} == {"alone", "above", "inside"}
    groups = [group for scene in scenes for group in scene.groups]
    assert {group.shape for group in groups} == set(SHAPES)
    assert {group.colour for group in groups} == set(COLOURS)
    assert {group.size for group in groups} == {"small", "large"}
    assert Counter(group.count for group in groups).keys() == {1, 2, 3, 4}


def test_sizes_vary_and_captions_are_a_coco_file(tmp_path: Path) -> None:
    synthesize(tmp_path / "d", images=30)
    captions = read_splits(CaptionSource(paths=(tmp_path / "d" / "captions_train.json",)))["train"]
    assert len(captions.records) == 27
    assert captions.rejects == ()
    assert all((tmp_path / "d" / "images" / r.file_name).is_file() and len(r.captions) == 5 for r in captions.records)
    assert len({synthetic_sample(0, index)[1] for index in range(10)}) > 5


def test_too_few_images_and_foreign_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="`images` 9"):
        synthesize(tmp_path / "x", images=9)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(OccupiedError, match=r"notes\.txt"):
        synthesize(tmp_path, images=10)


@pytest.mark.parametrize(("language", "words"), [("ko", KOREAN_WORDS), ("zh", CHINESE_WORDS)])
def test_captions_in_other_languages_describe_the_same_images_and_name_every_group(language: str, words: dict[str, str]) -> None:
    assert synthetic_sample(4, 2, language)[:2] == synthetic_sample(4, 2)[:2]
    for index in range(100):
        rng = np.random.default_rng(index)
        scene = random_scene(rng)
        captions = scene_captions(scene, rng, language)
        assert len(set(captions)) == 5
        named = {words[group.colour] for group in scene.groups} | {words[group.shape] for group in scene.groups}
        for caption in captions:
            assert {word for word in (*(words[c] for c in COLOURS), *(words[s] for s in SHAPES)) if word in caption} == named, caption


def test_the_command_offers_the_languages_of_the_scenes(run_cli: Callable[..., Result], tmp_path: Path) -> None:
    assert f"[{'|'.join(WORDINGS)}]" in run_cli("synth", "--help").output
    with pytest.raises(InputError, match="There is no language of the drawn scenes 'de'"):
        synthesize(tmp_path, images=10, language="de")
