"""Features that somebody has already, imported, trained on, and refused where they do not fit."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import Result

from model.networks import random_state
from pipeline.backbone.backbones import recorded_network
from pipeline.captions.english import tokenize
from pipeline.captions.read import CaptionSource
from pipeline.features.import_features import DeclaredNetwork, ImportSummary, declared_network, import_features
from pipeline.images.decode import Resize
from pipeline.sharding.config import ShardConfig
from pipeline.sharding.shard import write_shards
from shards.atomic import hold_lock
from shards.digests import file_sha256
from shards.errors import InputError, MismatchError, OccupiedError, SettingsError
from shards.features import open_features
from tests.caching import cache_features
from tests.conftest import Small

MATRIX = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)
WEIGHTS = "mobilenet_v2_tf2ptq-2d2ba5d1.pth"
Run = Callable[..., Result]


def image(imgid: int, split: str = "train", **more: Any) -> dict[str, Any]:
    sentences = [{"raw": f"A man's dog, number {imgid}."}, {"raw": f"dog {imgid}"}]
    return {"filename": f"{imgid}.jpg", "imgid": imgid, "split": split, "sentences": sentences} | more


def split_file(folder: Path, images: list[dict[str, Any]], name: str = "dataset.json") -> Path:
    (folder / name).write_text(json.dumps({"dataset": "tiny", "images": images}))
    return folder / name


TINY = [image(3), image(0, "val"), image(5), image(1, "restval"), image(2, "val"), image(4, "test")]


@pytest.fixture
def tiny(tmp_path: Path) -> Callable[..., ImportSummary]:
    """Import six vectors of four features, or others, into ``out``."""

    def run(images: list[dict[str, Any]] = TINY, matrix: Any = MATRIX, out: str = "out", restval: bool = True, **options: Any) -> ImportSummary:
        np.save(tmp_path / "features.npy", matrix)
        source = CaptionSource(paths=(split_file(tmp_path, images),), restval=restval)
        return import_features(npy=tmp_path / "features.npy", captions=source, out=tmp_path / out, declared=_declared(**options))

    return run


def _declared(**options: Any) -> DeclaredNetwork | None:
    return declared_network(**{**dict.fromkeys(("backbone", "weights", "size", "mode", "filter")), **options})


def reject_lines(out: Path) -> list[tuple[str, str, str]]:
    lines = map(json.loads, (out / "rejects.jsonl").read_text().splitlines())
    return [(line["split"], line["file"], line["reason"]) for line in lines]


def test_each_split_holds_its_images_in_order_with_their_rows_and_captions(tiny: Callable[..., ImportSummary], tmp_path: Path) -> None:
    summary = tiny()
    assert [(split.split, split.images, split.captions, split.kept) for split in summary.splits] == [
        ("train", 3, 6, False),
        ("val", 2, 4, False),
        ("test", 1, 2, False),
    ]
    assert (summary.dim, summary.rejects, summary.zeros) == (4, {}, 0)
    file = open_features(tmp_path / "out/train.h5")
    np.testing.assert_array_equal(file.features, MATRIX[[3, 5, 1]].astype(np.float16)[:, None, None])
    table = file.table
    assert table.keys == ("000000000", "000000001", "000000002")
    assert table.image_ids.tolist() == [3, 5, 1]
    assert table.file_names == ("3.jpg", "5.jpg", "1.jpg")
    assert table.image_rows.tolist() == [0, 0, 1, 1, 2, 2]
    # Without sentids captions are counted through the file, in which two images stand between the first two.
    assert table.caption_ids.tolist() == [0, 1, 4, 5, 6, 7]
    assert table.texts[:2] == ("A man's dog, number 3.", "dog 3")
    assert table.caption_tokens(0) == tokenize(table.texts[0]) == ["a", "man", "'s", "dog", ",", "number", "3", "."]
    np.testing.assert_array_equal(open_features(tmp_path / "out/val.h5").features, MATRIX[[0, 2]].astype(np.float16)[:, None, None])


def test_restval_can_stay_a_split_of_its_own(tiny: Callable[..., ImportSummary], tmp_path: Path) -> None:
    assert [split.split for split in tiny(restval=False).splits] == ["train", "val", "restval", "test"]
    assert open_features(tmp_path / "out/restval.h5").table.image_ids.tolist() == [1]
    assert open_features(tmp_path / "out/train.h5").table.image_ids.tolist() == [3, 5]


def test_images_stand_in_pieces_of_1000(tiny: Callable[..., ImportSummary], tmp_path: Path) -> None:
    count = 2005
    matrix = np.random.default_rng(1).standard_normal((count, 4))
    tiny([image(i) for i in range(count)], matrix)
    file = open_features(tmp_path / "out/train.h5")
    assert file.table.shard_images.tolist() == [1000, 1000, 5]
    assert file.table.keys[-1] == "000002004"
    np.testing.assert_array_equal(file.features, matrix.astype(np.float16)[:, None, None])


def test_captions_of_another_form_take_the_rows_in_the_order_of_their_images(tmp_path: Path) -> None:
    np.save(tmp_path / "features.npy", MATRIX)
    (tmp_path / "c.csv").write_text(
        "image,caption,split\nc.jpg,C,train\na.jpg,,val\nb.jpg,B,val\nc.jpg,More,train\nd.jpg,D,val\ne.jpg,E,val\nf.jpg,F,val\n"
    )
    source = CaptionSource(paths=(tmp_path / "c.csv",))
    import_features(npy=tmp_path / "features.npy", captions=source, out=tmp_path / "out")
    train, val = (open_features(tmp_path / "out" / f"{split}.h5") for split in ("train", "val"))
    np.testing.assert_array_equal(train.features[:, 0, 0], MATRIX[[0]].astype(np.float16))
    np.testing.assert_array_equal(val.features[:, 0, 0], MATRIX[2:].astype(np.float16))
    assert (train.table.texts, val.table.file_names) == (("C", "More"), ("b.jpg", "d.jpg", "e.jpg", "f.jpg"))
    with pytest.raises(InputError, match=r"c\.csv, .*c\.csv: give one `captions`"):
        import_features(npy=tmp_path / "features.npy", captions=CaptionSource(paths=source.paths * 2), out=tmp_path / "out")


def test_a_folder_gives_the_same_features_and_captions_as_a_matrix(tiny: Callable[..., ImportSummary], tmp_path: Path) -> None:
    tiny()
    folder = tmp_path / "vectors"
    folder.mkdir()
    for i, vector in enumerate(MATRIX):
        np.save(folder / f"{i}.npy", vector)
    import_features(npy=folder, captions=CaptionSource(paths=(tmp_path / "dataset.json",)), out=tmp_path / "other")
    np.save(folder / "0000.npy", MATRIX[0])  # of no image: the import stays the same
    again = import_features(npy=folder, captions=CaptionSource(paths=(tmp_path / "dataset.json",)), out=tmp_path / "other")
    assert all(split.kept for split in again.splits)
    assert reject_lines(tmp_path / "other") == [("", "0000.npy", "features_without_image")]
    for split in ("train", "val", "test"):
        first, second = (open_features(tmp_path / out / f"{split}.h5") for out in ("out", "other"))
        np.testing.assert_array_equal(first.features, second.features)
        assert (first.table.texts, first.table.file_names) == (second.table.texts, second.table.file_names)


def test_whatever_is_left_out_is_counted_and_has_a_line(run_cli: Run, tmp_path: Path) -> None:
    images = [image(0), image(9, "val"), image(1, "val"), image(0, "val"), image(2, sentences=[{"raw": " "}]), image(4, cocoid=400)]
    np.save(tmp_path / "f.npy", np.vstack([MATRIX[:4], np.zeros((1, 4)), MATRIX[5:]]))
    arguments = ["import-features", "--npy", tmp_path / "f.npy", "--captions", split_file(tmp_path, images), "--out", tmp_path / "out"]
    result = run_cli(*arguments)
    assert result.exit_code == 0, result.output
    assert reject_lines(tmp_path / "out") == [
        ("train", "2.jpg", "empty_caption"),
        ("train", "2.jpg", "no_captions"),
        ("val", "0.jpg", "duplicate_image_id"),
        ("val", "9.jpg", "missing_features"),
        ("", "f.npy row 3", "features_without_image"),
        ("", "f.npy row 5", "features_without_image"),
    ]
    counted = "Left out: 1 duplicate_image_id, 1 empty_caption, 2 features_without_image, 1 missing_features, 1 no_captions. Each has a line in"
    assert counted in result.stderr
    assert "the features of 1 images are all zeros" in result.stderr
    assert f"{tmp_path / 'out/train.h5'}: 2 images with 4 captions, 4 features each (imported)." in result.stdout
    assert result.stdout.splitlines()[-1] == f"Next: python cli.py train --features {tmp_path / 'out'} --out runs/first"
    assert open_features(tmp_path / "out/train.h5").table.image_ids.tolist() == [0, 400]


def test_a_split_file_of_other_images_is_refused_with_its_counts(tiny: Callable[..., ImportSummary], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"dataset\.json: none of its images could be used \(6 features_without_image, 2 missing_features\).*`npy`"):
        tiny([image(70), image(71, "val")])
    assert len(reject_lines(tmp_path / "out")) == 8
    assert not list((tmp_path / "out").glob("*.h5"))


def test_nothing_is_written_where_one_row_of_any_split_is_no_number(tiny: Callable[..., ImportSummary], tmp_path: Path) -> None:
    matrix = MATRIX.copy()
    matrix[4, 1] = np.nan  # the image of split test
    with pytest.raises(InputError, match=r"features\.npy: row 4: feature 1 is nan"):
        tiny(matrix=matrix)
    assert not (tmp_path / "out").exists()


# The same again, and other input


def test_the_same_import_again_keeps_what_is_there_and_makes_what_is_missing(tiny: Callable[..., ImportSummary], tmp_path: Path) -> None:
    tiny()
    out = tmp_path / "out"
    first = {path.name: path.read_bytes() for path in out.iterdir()}
    (out / "val.h5").unlink()
    (out / "rejects.jsonl").unlink()
    written = (out / "train.h5").stat().st_mtime_ns
    assert [(split.split, split.images, split.captions, split.kept) for split in tiny().splits] == [
        ("train", 3, 6, True),
        ("val", 2, 4, False),
        ("test", 1, 2, True),
    ]
    assert {path.name: path.read_bytes() for path in out.iterdir()} == first
    assert (out / "train.h5").stat().st_mtime_ns == written


def test_other_features_or_captions_in_the_same_folder_are_refused_with_both_digests(tiny: Callable[..., ImportSummary], tmp_path: Path) -> None:
    tiny()
    there = open_features(tmp_path / "out/test.h5").provenance
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    with pytest.raises(MismatchError, match=rf"test\.h5: holds other features: weights_sha256 is {there.weights_sha256}, not \w{{64}}"):
        tiny(matrix=MATRIX + 1)
    said = [image(4, "test", sentences=[{"raw": "another"}, {"raw": "text"}]), *TINY[:5]]
    with pytest.raises(MismatchError, match=rf"test\.h5: .*digest of features and captions is {there.split_digest}, not \w{{64}}"):
        tiny(said)
    with pytest.raises(MismatchError, match=r"test\.h5: not a split of this import \(which makes train, val\)"):
        tiny(TINY[:5])
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_a_folder_that_holds_something_else_or_is_being_written_to_is_refused(
    tiny: Callable[..., ImportSummary], small: Small, tmp_path: Path
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/thesis.doc").write_text("x")
    with pytest.raises(OccupiedError, match=r"thesis\.doc"):
        tiny(out="full")
    with hold_lock(tmp_path / "out", "cache", "caching"), pytest.raises(OccupiedError, match="another process is importing features here"):
        tiny()
    tiny()
    with pytest.raises(OccupiedError, match=r"other files than features \(rejects\.jsonl\)"):
        cache_features(shards=small.shards, out=tmp_path / "out", backbone="resnet18", weights="random", device="cpu")


# What network it was


def test_without_a_declaration_the_file_says_that_nobody_knows_the_network(tiny: Callable[..., ImportSummary], tmp_path: Path) -> None:
    tiny()
    provenance = open_features(tmp_path / "out/train.h5").provenance
    assert (provenance.backbone, provenance.weights, provenance.preprocessing) == ("imported", "imported", None)
    source = file_sha256(tmp_path / "features.npy")
    assert provenance.weights_sha256 == source
    assert provenance.arithmetic == {"imported_from": "features.npy", "imported_sha256": source, "imported_dtype": "float32"}
    assert recorded_network(provenance).preprocessing is None


def test_a_run_on_features_of_an_unknown_network_is_trained_and_scored_but_captions_no_photograph(run_cli: Run, small: Small, tmp_path: Path) -> None:
    np.save(tmp_path / "f.npy", np.random.default_rng(2).standard_normal((40, 8)))
    images = [image(i, "val" if i % 4 == 0 else "train") for i in range(40)]
    out, run = tmp_path / "features", tmp_path / "run"
    for step in (
        ["import-features", "--npy", tmp_path / "f.npy", "--captions", split_file(tmp_path, images), "--out", out],
        ["verify", out],
        ["train", "--features", out, "--out", run, "--min-count", 1, "--epochs", 1, "--embedding-dim", 8, "--hidden-dim", 8, "--batch-size", 16],
        ["train", "--out", run, "--resume", "--epochs", 2],
        ["evaluate", "--run", run, "--features", out, "--no-java"],
        ["curves", run, "--out", tmp_path / "c.png"],
        ["report", run, "--out", tmp_path / "r.html"],
    ):
        result = run_cli(*step)
        assert result.exit_code == 0, result.output
    photograph = small.source / "images/scene_000000.jpg"
    for step in (
        ["caption", "--run", run, photograph],
        ["caption", "--run", run, photograph, "--weights", tmp_path / "f.npy"],
        ["evaluate", "--run", run, "--shards", small.shards],
        ["train", "--out", run, "--resume", "--shards", small.shards],
    ):
        result = run_cli(*step)
        assert result.exit_code == 1, result.output
        assert "imported without declaring their network" in " ".join(result.stderr.split())
        assert "--backbone NAME --weights FILE" in " ".join(result.stderr.split())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"backbone": "resnet18"}, "give both, or omit both"),
        ({"weights": "IMAGENET1K_V1"}, "give both, or omit both"),
        ({"size": 256}, "give `backbone` and `weights` too"),
        ({"filter": "box"}, "give `backbone` and `weights` too"),
        ({"backbone": "resnet18", "weights": "random"}, "`weights` random"),
        ({"backbone": "resnet1888", "weights": "IMAGENET1K_V1"}, "no classification network of this name"),
        ({"backbone": "resnet18", "weights": "none.pth"}, "`weights` none.pth: neither a file nor published weights of resnet18"),
        ({"backbone": "resnet18", "weights": "IMAGENET1K_V1", "size": 200}, "`size` 200: these weights of resnet18 expect a crop of 224"),
        ({"backbone": "resnet18", "weights": "IMAGENET1K_V1", "mode": "stretch"}, "`mode` stretch"),
    ],
)
def test_a_declaration_that_says_too_little_or_nonsense_is_refused(
    tiny: Callable[..., ImportSummary], tmp_path: Path, options: dict[str, Any], says: str
) -> None:
    with pytest.raises(InputError, match=says):
        tiny(**options)
    assert not (tmp_path / "out").exists()


def test_a_network_that_gives_another_number_of_features_is_refused(data: Path, tiny: Callable[..., ImportSummary], tmp_path: Path) -> None:
    with pytest.raises(MismatchError, match=r"features\.npy: has 4 features per image, mobilenet_v2 has 1280"):
        tiny(backbone="mobilenet_v2", weights=str(data / "weights" / WEIGHTS))
    assert not (tmp_path / "out").exists()


def test_cached_features_of_real_photographs_come_back_as_those_of_the_same_network(data: Path, tmp_path: Path) -> None:
    captions = json.loads((data / "coco-cc/captions.json").read_text())
    texts: dict[int, list[dict[str, Any]]] = {}
    for annotation in captions["annotations"]:
        texts.setdefault(annotation["image_id"], []).append({"raw": annotation["caption"], "sentid": annotation["id"]})
    shards, weights = tmp_path / "shards", str(data / "weights" / WEIGHTS)
    resize = Resize(size=256, mode="shortest", filter="bilinear")
    source = data / "coco-cc"
    write_shards(images=source / "images", captions=source / "captions.json", out=shards, config=ShardConfig(resize=resize, limit=12))
    cache_features(shards=shards, out=tmp_path / "cached", backbone="mobilenet_v2", weights=weights, device="cpu", precision="fp32")
    cached = open_features(tmp_path / "cached/train.h5")
    np.save(tmp_path / "f.npy", np.asarray(cached.features[:, 0, 0], dtype=np.float32))
    images = [
        {"filename": name, "imgid": row, "cocoid": image_id, "split": "train", "sentences": texts[image_id]}
        for row, (name, image_id) in enumerate(zip(cached.table.file_names, cached.table.image_ids.tolist(), strict=True))
    ]
    import_features(
        npy=tmp_path / "f.npy",
        captions=CaptionSource(paths=(split_file(tmp_path, images),)),
        out=tmp_path / "imported",
        declared=DeclaredNetwork(backbone="mobilenet_v2", weights=weights, size=256, mode="shortest", filter="bilinear"),
    )
    imported = open_features(tmp_path / "imported/train.h5")
    assert imported.provenance.network() == cached.provenance.network()
    np.testing.assert_array_equal(imported.features, cached.features)
    assert imported.table.texts == cached.table.texts
    np.testing.assert_array_equal(imported.table.tokens, cached.table.tokens)
    np.testing.assert_array_equal(imported.table.caption_ids, cached.table.caption_ids)


def test_a_run_on_the_real_flickr8k_features_captions_a_real_photograph(data: Path, run_cli: Run, tmp_path: Path) -> None:
    source = data / "flickr8k-features"
    if not (source / "features.npy").is_file():
        pytest.skip(f"the Flickr8k features are not at {source}")
    everything = json.loads((source / "dataset_flickr8k.json").read_text())["images"]
    train, val = (([each for each in everything if each["split"] == split]) for split in ("train", "val"))
    out, run = tmp_path / "features", tmp_path / "run"
    declared = ["--backbone", "mobilenet_v2", "--weights", data / "weights" / WEIGHTS]
    chosen = split_file(tmp_path, train[:200] + val[:20])
    for step in (
        ["import-features", "--npy", source / "features.npy", "--captions", chosen, "--out", out, *declared],
        ["train", "--features", out, "--out", run, "--epochs", 2, "--embedding-dim", 32, "--hidden-dim", 64, "--lr", 0.01],
        ["evaluate", "--run", run, "--features", out, "--no-java"],
    ):
        result = run_cli(*step)
        assert result.exit_code == 0, result.output
    provenance = open_features(out / "train.h5").provenance
    preprocessing = recorded_network(provenance).declared_preprocessing()
    assert (preprocessing.size, preprocessing.crop, preprocessing.mode) == (224, 224, "squash")
    assert provenance.weights == str((data / "weights" / WEIGHTS).resolve())
    photograph = min((data / "coco-cc/images").iterdir())
    result = run_cli("caption", "--run", run, photograph, "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert set(tokenize(result.stdout)) & {"a", "man", "dog", "two", "the", "in"}


def test_regions_are_padded_and_counted_and_a_grid_may_have_a_network(tmp_path: Path) -> None:
    regions = {10: 3, 11: 1, 12: 5}
    captions = CaptionSource(paths=(split_file(tmp_path, [image(number) for number in regions]),))
    (tmp_path / "att").mkdir()
    for number, count in regions.items():
        np.savez(tmp_path / f"att/{number}.npz", feat=np.full((count, 512), number, np.float32))
    summary = import_features(npy=tmp_path / "att", captions=captions, out=tmp_path / "out")
    file = open_features(tmp_path / "out/train.h5")
    assert (summary.positions, file.features.shape, file.positions.tolist()) == (5, (3, 1, 5, 512), [3, 1, 5])
    assert file.features[:, 0, :, 0].tolist() == [[10, 10, 10, 0, 0], [11, 0, 0, 0, 0], [12] * 5]
    assert file.provenance.layout == "regions"
    torch.save(random_state("resnet18", seed=0), tmp_path / "resnet18.pth")
    declared = DeclaredNetwork(backbone="resnet18", weights=str(tmp_path / "resnet18.pth"))
    with pytest.raises(SettingsError, match="positions of a square grid, but these features have 1, 3, 5"):
        import_features(npy=tmp_path / "att", captions=captions, out=tmp_path / "declared", declared=declared)
    np.save(tmp_path / "grid.npy", np.ones((13, 4, 512), np.float32))
    import_features(npy=tmp_path / "grid.npy", captions=captions, out=tmp_path / "declared", declared=declared)
    assert open_features(tmp_path / "declared/train.h5").provenance.layout == "grid:2"
