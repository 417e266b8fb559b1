import dataclasses
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import h5py
import numpy as np
import pytest

from shards.caption_table import CaptionTable, table_from_records
from shards.errors import DamageError, InputError, MismatchError
from shards.feature_writer import FeatureChunk, write_features
from shards.features import check_same_network, open_features
from tests.provenances import provenance


def table(first: int, images: int) -> CaptionTable:
    def record(i: int) -> dict[str, object]:
        captions = [{"id": 10 * i + c, "text": f"Bild {i} ✓ {c}", "tokens": ["bild", str(i), "✓"][: c + 1]} for c in range(1 + i % 3)]
        return {"image_id": 100 + i, "file_name": f"ordner/{i}.jpg", "captions": captions}

    return table_from_records([[(f"{i:09d}", record(i)) for i in range(first, first + images)]])


def features(images: int, dim: int = 8) -> "np.ndarray[tuple[int, ...], np.dtype[np.float16]]":
    return np.random.default_rng(images).standard_normal((images, 1, 1, dim)).astype(np.float16)


def whole(images: int, dim: int = 8) -> Callable[[], Iterable[FeatureChunk]]:
    return lambda: [(features(images, dim), table(0, images))]


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    rows = features(7)
    counts = write_features(tmp_path / "a.h5", lambda: [(rows[:3], table(0, 3)), (rows[3:], table(3, 4))], shape=(1, 8), provenance=provenance())
    assert counts == (7, len(table(0, 7).texts))
    opened = open_features(tmp_path / "a.h5")
    np.testing.assert_array_equal(opened.features, rows)
    assert opened.provenance == provenance()
    assert opened.table.texts == table(0, 7).texts
    assert opened.table.reference_texts() == table(0, 7).reference_texts()
    with h5py.File(tmp_path / "a.h5") as file:
        assert file["features"].chunks is None
        assert file["features"].dtype == np.float16


def test_the_same_chunks_make_the_same_bytes_and_the_same_table_as_one_chunk(tmp_path: Path) -> None:
    rows = features(9)
    chunks = [(rows[:4], table(0, 4)), (rows[4:], table(4, 5))]
    write_features(tmp_path / "a.h5", lambda: chunks, shape=(1, 8), provenance=provenance())
    time.sleep(1.1)  # HDF5 can write times, in seconds, into a file
    write_features(tmp_path / "b.h5", lambda: chunks, shape=(1, 8), provenance=provenance())
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()
    opened, at_once = open_features(tmp_path / "a.h5"), table(0, 9)
    np.testing.assert_array_equal(opened.features, rows)
    assert opened.table.shard_images.tolist() == [4, 5]
    for column in dataclasses.fields(at_once):
        if column.name != "shard_images":
            np.testing.assert_array_equal(getattr(opened.table, column.name), getattr(at_once, column.name))


def test_features_that_do_not_fit_their_captions_are_refused_and_nothing_is_left(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"features of shape \(3, 1, 1, 8\), but expected .* \(4, 1, 1, 8\)"):
        write_features(tmp_path / "a.h5", lambda: [(features(3), table(0, 4))], shape=(1, 8), provenance=provenance())
    assert not list(tmp_path.iterdir())


def test_every_flipped_byte_of_the_data_is_detected(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    write_features(path, whole(40, 64), shape=(1, 64), provenance=provenance())
    good = path.read_bytes()
    with h5py.File(path) as file:
        spans = [(d.id.get_offset(), d.nbytes) for d in (file["features"], file["captions/tokens"], file["captions/offsets"], file["image_ids"])]
    rng = np.random.default_rng(0)
    for offset, size in spans:
        for place in rng.integers(offset, offset + size, 8):
            bad = bytearray(good)
            bad[place] ^= 1 << int(rng.integers(8))
            path.write_bytes(bytes(bad))
            with pytest.raises(DamageError, match=r"a\.h5"):
                open_features(path)


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.99])
def test_a_truncated_file_is_damaged(tmp_path: Path, keep: float) -> None:
    path = tmp_path / "a.h5"
    write_features(path, whole(40, 64), shape=(1, 64), provenance=provenance())
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
    with pytest.raises(DamageError, match=r"a\.h5"):
        open_features(path)


def test_a_link_out_of_the_file_is_refused(tmp_path: Path) -> None:
    for name in ("a", "other"):
        write_features(tmp_path / f"{name}.h5", whole(3), shape=(1, 8), provenance=provenance())
    with h5py.File(tmp_path / "a.h5", "a") as file:
        del file["features"]
        file["features"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "/features")
    with pytest.raises(DamageError, match="link"):
        open_features(tmp_path / "a.h5")


def test_other_hdf5_and_missing_files_are_named(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "strange.h5", "w") as file:
        file["x"] = [1]
    with pytest.raises(InputError, match="not a feature file"):
        open_features(tmp_path / "strange.h5")
    with pytest.raises(InputError, match=r"no split 'none' \(available: strange\)"):
        open_features(tmp_path / "none.h5")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="cache-features"):
        open_features(tmp_path / "empty" / "none.h5")


def test_features_of_other_weights_are_not_comparable(tmp_path: Path) -> None:
    write_features(tmp_path / "a.h5", whole(3), shape=(1, 8), provenance=provenance(weights_sha256="a" * 64))
    write_features(tmp_path / "b.h5", whole(3), shape=(1, 8), provenance=provenance(weights_sha256="b" * 64))
    with pytest.raises(MismatchError, match=f"{'a' * 64}.*{'b' * 64}"):
        check_same_network(open_features(tmp_path / "a.h5"), open_features(tmp_path / "b.h5"))


def test_the_mean_view_averages_the_views_and_keeps_a_single_one(tmp_path: Path) -> None:
    rows = np.array([[[[1, 2]], [[3, 4]]], [[[0, 1]], [[1, 0]]], [[[8, 8]], [[8, 16]]]], np.float16)
    two = dataclasses.replace(provenance(), views=("center", "center-flipped"))
    write_features(tmp_path / "a.h5", lambda: [(rows, table(0, 3))], shape=(1, 2), provenance=two)
    file = open_features(tmp_path / "a.h5")
    assert file.mean_view().tolist() == [[[2, 3]], [[0.5, 0.5]], [[8, 12]]]
    assert file.mean_view(1, 2).tolist() == [[[0.5, 0.5]]]
    write_features(tmp_path / "b.h5", lambda: [(rows[:, :1], table(0, 3))], shape=(1, 2), provenance=provenance())
    np.testing.assert_array_equal(open_features(tmp_path / "b.h5").mean_view(), rows[:, 0])
