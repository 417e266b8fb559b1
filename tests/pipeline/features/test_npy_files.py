"""Arrays from anywhere: which features belong to which image, and everything that is refused."""

import io
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.captions.records import ListedImage
from pipeline.features.npy_files import MAX_VECTOR_BYTES, open_npy, padded, read_half
from shards.errors import InputError

IMAGES = [ListedImage(image_id=100 + i, imgid=i, file_name=f"folder/photo.{i}.jpg") for i in range(3)]
VECTORS = np.arange(12, dtype=np.float32).reshape(3, 4) / 8


def read(path: Path, images: list[ListedImage] = IMAGES) -> dict[int, list[float]]:
    """By image id, its vector."""
    arrays, found = open_npy(path, images)
    rows = read_half(arrays, list(found.places.values()))
    assert all(len(row) == 1 for row in rows)
    return {image: row[0].astype(float).tolist() for image, row in zip(found.places, rows, strict=True)}


def npy_bytes(array: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def with_header(header: str) -> bytes:
    """An .npy file of 48 bytes with any header."""
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + bytes(48)


@pytest.mark.parametrize("stored", ["<f2", "<f4", "<f8", ">f4"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_a_matrixs_row_i_is_of_the_image_with_imgid_i(tmp_path: Path, stored: str, order: Any) -> None:
    np.save(tmp_path / "m.npy", np.asarray(VECTORS, dtype=stored, order=order))
    images = [ListedImage(image_id=7, imgid=2, file_name="b.jpg"), ListedImage(image_id=5, imgid=0, file_name="a.jpg")]
    assert read(tmp_path / "m.npy", images) == {7: [1.0, 1.125, 1.25, 1.375], 5: [0.0, 0.125, 0.25, 0.375]}
    arrays, found = open_npy(tmp_path / "m.npy", images)
    assert [(reject.file, reject.reason) for reject in found.unclaimed] == [("m.npy row 1", "features_without_image")]
    assert arrays.dtype() == {"<f2": "float16", "<f8": "float64"}.get(stored, "float32")


def test_imgids_outside_the_matrix_have_no_features(tmp_path: Path) -> None:
    np.save(tmp_path / "m.npy", VECTORS)
    images = [ListedImage(image_id=i, imgid=i, file_name="x") for i in (-1, 1, 3)]
    assert list(read(tmp_path / "m.npy", images)) == [1]


@pytest.mark.parametrize("name", ["photo.{i}", "photo.{i}.jpg", "{id}"])
@pytest.mark.parametrize("ending", [".npy", ".npz"])
@pytest.mark.parametrize("shape", [(4,), (1, 4)])
def test_a_folders_files_are_named_by_file_name_or_id(tmp_path: Path, name: str, ending: str, shape: tuple[int, ...]) -> None:
    for i, vector in enumerate(VECTORS):
        path = tmp_path / (name.format(i=i, id=100 + i) + ending)
        if ending == ".npy":
            np.save(path, vector.reshape(shape))
        else:
            np.savez_compressed(path, vector.reshape(shape))
    assert read(tmp_path) == {100 + i: vector.tolist() for i, vector in enumerate(VECTORS)}


def test_images_have_their_own_numbers_of_positions_in_a_folder_and_one_number_in_an_array(tmp_path: Path) -> None:
    regions = [np.arange(4.0 * count, dtype=np.float32).reshape(shape) for count, shape in ((3, (3, 4)), (4, (2, 2, 4)), (1, (4,)))]
    for number, own in enumerate(regions):
        np.savez_compressed(tmp_path / f"{100 + number}.npz", feat=own)
    arrays, found = open_npy(tmp_path, IMAGES)
    rows = read_half(arrays, list(found.places.values()))
    assert [row.tolist() for row in rows] == [own.reshape(-1, 4).tolist() for own in regions]
    together = padded(rows, 4)
    assert together.shape == (3, 4, 4)
    assert together[0].tolist() == [*regions[0].tolist(), [0.0] * 4]
    np.save(tmp_path / "all.npy", np.arange(24, dtype=np.float16).reshape(3, 2, 4))
    arrays, found = open_npy(tmp_path / "all.npy", IMAGES)
    (row,) = read_half(arrays, [1])
    assert row.tolist() == [[8, 9, 10, 11], [12, 13, 14, 15]]


def test_a_feature_that_is_lost_is_named_with_its_position(tmp_path: Path) -> None:
    np.save(tmp_path / "100.npy", np.array([[1.0, 2.0], [3.0, np.nan]]))
    arrays, found = open_npy(tmp_path, IMAGES)
    with pytest.raises(InputError, match=r"100\.npy, position 1: feature 1 is nan"):
        read_half(arrays, list(found.places.values()))


def test_files_of_a_folder_that_belong_to_no_image_are_said_and_not_read(tmp_path: Path) -> None:
    np.save(tmp_path / "101.npy", VECTORS[1])
    (tmp_path / "strange.npy").write_bytes(b"anything")
    (tmp_path / "._101.npy").write_bytes(b"of macOS")
    (tmp_path / "notes.txt").write_text("x")
    arrays, found = open_npy(tmp_path, IMAGES)
    assert list(found.places) == [101]
    assert [(reject.file, reject.reason) for reject in found.unclaimed] == [("._101.npy", "hidden_file"), ("strange.npy", "features_without_image")]
    assert "100" in arrays.missing(IMAGES[0])


def test_a_folders_digest_is_that_of_names_and_content(tmp_path: Path) -> None:
    def digest(folder: str, vectors: dict[str, Any]) -> str:
        (tmp_path / folder).mkdir()
        for name, vector in vectors.items():
            np.save(tmp_path / folder / name, vector)
        arrays, found = open_npy(tmp_path / folder, IMAGES)
        arrays.read(list(found.places.values()))
        return arrays.sha256()

    first = digest("a", {"100": VECTORS[0], "101": VECTORS[1]})
    assert digest("b", {"101": VECTORS[1], "100": VECTORS[0]}) == first
    assert digest("c", {"100": VECTORS[1], "101": VECTORS[0]}) != first
    assert digest("d", {"100": VECTORS[0]}) != first


class Payload:
    """What a pickle would run."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return Path.touch, (Path("ran"),)  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (npy_bytes(np.array([Payload()] * 3, dtype=object)), "Python objects"),
        (pickle.dumps(Payload()), "not an .npy file"),
        (b"", "not an .npy file"),
        (b"\x93NUMPY\x01\x00\xff", "not an .npy file"),
        (with_header("{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }")[:-1], r"\(3, 4\) has 48 bytes, there are 47"),
        (with_header("{'descr': '<f4', 'fortran_order': False, 'shape': (10000000000000, 4), }"), "160,000,000,000,000 bytes, there are 48"),
        (with_header("{'descr': '<f4', 'fortran_order': False, 'shape': (-3, -4), }"), "it holds no features"),
        (with_header("{'descr': '<f4', 'fortran_order': False, 'shape': (10**99, 4), }"), "not an .npy file"),
        (with_header("(" * 60_000), "not an .npy file"),
        (npy_bytes(np.zeros((3, 4), np.int64)), "type int64, accepted are float16, float32, float64"),
        (npy_bytes(np.zeros((3, 4), np.complex64)), "type complex64"),
        (npy_bytes(np.zeros((3, 4), [("a", "<f4")])), "accepted are float16"),
        (npy_bytes(np.zeros((3, 2, 2, 4), np.float32)), r"has the shape \(3, 2, 2, 4\)\. An array \(images, dim\) or \(images, positions, dim\)"),
        (npy_bytes(np.zeros(4, np.float32)), r"has the shape \(4,\)"),
        (npy_bytes(np.zeros((0, 4), np.float32)), "it holds no features"),
        (npy_bytes(np.zeros((1, 100_000), np.float16)), "100,000 features per position, more than the limit of 65,536"),
    ],
)
def test_a_matrix_that_is_none_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, says: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m.npy").write_bytes(content)
    with pytest.raises(InputError, match=rf"m\.npy: .*{says}"):
        open_npy(tmp_path / "m.npy", IMAGES)
    assert not Path("ran").exists()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ((1, 2, np.nan), r"m\.npy: row 1: feature 2 is nan"),
        ((2, 0, -np.inf), r"m\.npy: row 2: feature 0 is -inf"),
        ((0, 3, 65_520), r"m\.npy: row 0: feature 3 is 65520, the largest; .* largest value is 65504\. Divide"),
        ((0, slice(None), 1e-9), r"m\.npy: row 0: feature 0 is 1e-09, .* become 0\. Multiply"),
    ],
)
def test_features_that_float16_cannot_hold_are_refused_with_row_and_value(tmp_path: Path, change: tuple[Any, Any, float], says: str) -> None:
    matrix = VECTORS.copy()
    matrix[change[0], change[1]] = change[2]
    np.save(tmp_path / "m.npy", matrix)
    with pytest.raises(InputError, match=says):
        read(tmp_path / "m.npy")


def test_the_largest_and_smallest_numbers_of_float16_are_kept_and_others_rounded_to_the_nearest(tmp_path: Path) -> None:
    np.save(tmp_path / "m.npy", np.array([[65_519, 2**-24, 1 + 2**-11, 1 + 3 * 2**-11], [0, 0, 0, 0], [-65_504, 1e-9, 1, 1]]))
    # Halfway between two numbers the one whose last bit is 0 is taken (IEEE 754).
    assert read(tmp_path / "m.npy") == {100: [65_504, 2**-24, 1, 1 + 2**-9], 101: [0, 0, 0, 0], 102: [-65_504, 0, 1, 1]}


def zip_bytes(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


VECTOR = npy_bytes(VECTORS[0])


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({}, "holds no .npy or .npz file"),
        ({"other.npy": VECTOR}, r"none of its 1 files has the name of an image in the split file \(other.npy"),
        ({"100.npy": npy_bytes(np.zeros((1025, 4), np.float32))}, r"100\.npy: 1,025 positions, more than the limit of 1,024"),
        ({"100.npy": npy_bytes(np.zeros((2, 2, 2, 4), np.float32))}, r"100\.npy: has the shape \(2, 2, 2, 4\), but \(dim,\), \(positions, dim\) or"),
        ({"100.npy": VECTOR, "101.npy": npy_bytes(np.zeros(5, np.float32))}, r"101\.npy: has 5 features, 100\.npy has 4"),
        ({"100.npy": VECTOR, "photo.0.npy": VECTOR}, r"photo\.0\.npy: folder/photo\.0\.jpg has features in 100\.npy too"),
        ({"100.npy": VECTOR, "100.npz": zip_bytes({"a.npy": VECTOR})}, r"100\.npz: folder/photo\.0\.jpg has features in 100\.npy too"),
        ({"100.npz": zip_bytes({"feat.npy": VECTOR, "boxes.npy": VECTOR})}, r"100\.npz: holds 2 arrays \(feat\.npy, boxes\.npy\)"),
        ({"100.npz": zip_bytes({})}, r"100\.npz: holds 0 arrays"),
        ({"100.npz": zip_bytes({"a.npy": bytes(MAX_VECTOR_BYTES + 1)})}, r"100\.npz: holds more than 16,777,216 bytes"),
        ({"100.npz": zip_bytes({"a.npy": npy_bytes(np.array([Payload()]))})}, r"100\.npz: holds Python objects"),
        ({"100.npz": zip_bytes({"a.npy": VECTOR})[:-9]}, r"100\.npz: not an \.npz file"),
        ({"100.npy": VECTOR, "101.npz": zip_bytes({"a.npy": VECTOR})[:80]}, r"101\.npz: not an \.npz file, or damaged"),
        ({"100.npy": VECTOR, "101.npy": VECTOR[:-8]}, r"101\.npy: damaged: an array of the shape \(4,\) has 16 bytes, there are 8"),
        (
            {"100.npy": VECTOR, "101.npz": zip_bytes({"a.npy": npy_bytes(np.zeros((0, 2048), np.float32))})},
            r"101\.npz: has the shape \(0, 2048\): it holds no features\. Compute .* or delete the file",
        ),
        ({"100.npy": bytes(MAX_VECTOR_BYTES + 1)}, r"100\.npy: 16,777,217 bytes"),
        ({"100.npy": npy_bytes(np.array([1, np.nan], np.float32))}, r"100\.npy: feature 1 is nan"),
    ],
)
def test_a_folder_that_cannot_be_used_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, bytes], says: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "f").mkdir()
    for name, content in files.items():
        (tmp_path / "f" / name).write_bytes(content)
    with pytest.raises(InputError, match=says):
        read(tmp_path / "f")
    assert not Path("ran").exists()


def test_a_file_that_two_images_could_own_is_refused_unless_the_whole_name_says_which(tmp_path: Path) -> None:
    images = [ListedImage(image_id=2, imgid=0, file_name="1.jpg"), ListedImage(image_id=1, imgid=1, file_name="2.jpg")]
    np.save(tmp_path / "1.npy", VECTORS[0])
    with pytest.raises(InputError, match=r"1\.npy: may belong to 1\.jpg \(id 2\) or 2\.jpg \(id 1\)"):
        open_npy(tmp_path, images)
    (tmp_path / "1.npy").rename(tmp_path / "1.jpg.npy")
    assert read(tmp_path, images) == {2: VECTORS[0].tolist()}


def test_a_place_that_is_not_there_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.npy: no such file or folder"):
        open_npy(tmp_path / "none.npy", IMAGES)
