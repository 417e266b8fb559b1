"""The parts of a feature file, and what joins them."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from pipeline.execution.array_tasks import ArrayTask
from pipeline.features import extraction_plan as stage
from pipeline.features.parts import check_every_shard_once, finished_parts, join_parts, part_name
from shards.dataset import Split, open_split
from shards.errors import DamageError, MismatchError
from shards.features import open_features
from shards.output import Output
from tests.caching import cache_features
from tests.servers import draw, shard

NAMES = [f"{number}.jpg" for number in range(9)]
NETWORK: dict[str, Any] = {"backbone": "squeezenet1_1", "weights": "random", "device": "cpu", "precision": "fp32"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three shards of three images, their parts by three tasks in ``out``, and a whole pass in ``whole``."""
    folder = tmp_path_factory.mktemp("made")
    draw(folder, NAMES)
    shard(folder, folder / "shards")
    for number in (2, 0, 1):
        (summary,) = cache_features(shards=folder / "shards", out=folder / "out", array_task=ArrayTask(task_id=number, num_tasks=3), **NETWORK)
        assert (summary.images, summary.committed) == (3, False)
    (folder / "whole").mkdir()
    shutil.copy(folder / "out/backbone.safetensors", folder / "whole")
    cache_features(shards=folder / "shards", out=folder / "whole", **NETWORK)
    return folder


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> tuple[Split, Path, Output]:
    """The split, a copy of the output, and the parts in it."""
    shutil.copytree(made / "out", tmp_path / "out")
    return open_split(made / "shards", "train"), tmp_path / "out", Output(folder=tmp_path / "out/.train.parts")


def test_parts_of_several_tasks_are_joined_without_any_network_to_the_bytes_of_one_pass(
    made: Path, copy: tuple[Split, Path, Output], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, out, _ = copy
    monkeypatch.setattr(stage, "choose_precision", None)  # a machine of another kind could not choose it
    (summary,) = cache_features(shards=made / "shards", out=out, **NETWORK)
    assert (summary.images, summary.committed) == (9, True)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == {path.name: path.read_bytes() for path in (made / "whole").iterdir()}


def test_the_last_run_makes_the_parts_that_a_task_left_out(made: Path, copy: tuple[Split, Path, Output]) -> None:
    _, out, parts = copy
    (parts.folder / part_name(1)).unlink()
    notes: list[str] = []
    cache_features(shards=made / "shards", out=out, report=notes.append, **NETWORK)
    assert (out / "train.h5").read_bytes() == (made / "whole/train.h5").read_bytes()
    (note,) = notes
    assert "will write" in note


def test_parts_made_in_another_way_are_said_and_made_again(made: Path, copy: tuple[Split, Path, Output]) -> None:
    _, out, parts = copy
    (parts.folder / part_name(2)).unlink()
    notes: list[str] = []
    cache_features(shards=made / "shards", out=out, report=notes.append, batch_size=2, **NETWORK)
    assert [note for note in notes if "2 parts of an earlier run are damaged or were made in another way" in note]
    assert open_features(out / "train.h5").provenance.arithmetic["images_per_pass"] == 2


def test_a_part_that_is_missing_or_damaged_means_that_not_all_are_finished(copy: tuple[Split, Path, Output]) -> None:
    split, _, parts = copy
    assert finished_parts(parts, split) is not None
    path = parts.folder / part_name(1)
    content = path.read_bytes()
    path.write_bytes(content[:-2000])
    assert finished_parts(parts, split) is None
    path.unlink()
    assert finished_parts(parts, split) is None


def test_a_join_names_what_is_missing_and_what_is_there_twice(copy: tuple[Split, Path, Output], tmp_path: Path) -> None:
    split, _, parts = copy
    found = finished_parts(parts, split)
    assert found is not None
    provenance, shape = found
    shutil.copy(parts.folder / part_name(0), parts.folder / part_name(1))
    with pytest.raises(DamageError, match=r"missing: train-000001\.tar; duplicate: train-000000\.tar\)\. Run the same command again"):
        join_parts(tmp_path / "train.h5", split, parts, shape=shape, provenance=provenance)
    (parts.folder / part_name(1)).unlink()
    with pytest.raises(DamageError, match=r"\(missing: train-000001\.tar\)"):
        join_parts(tmp_path / "train.h5", split, parts, shape=shape, provenance=provenance)
    assert not (tmp_path / "train.h5").exists()


def test_a_part_of_another_pass_is_not_joined(made: Path, copy: tuple[Split, Path, Output], tmp_path: Path) -> None:
    split, _, parts = copy
    found = finished_parts(parts, split)
    assert found is not None
    cache_features(shards=made / "shards", out=tmp_path / "other", array_task=ArrayTask(task_id=1, num_tasks=3), batch_size=1, **NETWORK)
    shutil.copy(tmp_path / "other/.train.parts" / part_name(1), parts.folder)
    assert finished_parts(parts, split) is None
    with pytest.raises(MismatchError, match=r"000001\.h5: was made in another way"):
        join_parts(tmp_path / "train.h5", split, parts, shape=found[1], provenance=found[0])


def test_every_kind_of_wrong_parts_is_named(made: Path) -> None:
    split = open_split(made / "shards", "train")
    keys = [tuple(sample.key for sample in each.sidecar.samples) for each in split.shards]
    right = [(part_name(index), keys[index]) for index in range(3)]
    check_every_shard_once(split, right, "here")
    for wrong, says in [
        ([], r"missing: train-000000\.tar, train-000001\.tar, train-000002\.tar"),
        (right[:2], r"missing: train-000002\.tar\)"),
        ([*right, right[1]], r"\(duplicate: train-000001\.tar"),
        ([*right, ("000003.h5", ("x",))], r"\(of no shard of this split: 000003\.h5"),
        ([("000000.h5", keys[0][:2]), *right[1:]], r"missing: train-000000\.tar; of no shard of this split: 000000\.h5"),
        ([right[1], right[0], right[2]], "out of order"),
    ]:
        with pytest.raises(DamageError, match=f"here: the parts are not split 'train' .*{says}"):
            check_every_shard_once(split, wrong, "here")
