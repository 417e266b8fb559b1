"""Warnings of Pillow and other libraries: gathered by file, counted, and never written to standard error as they are."""

import io
import json
import struct
import tarfile
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image

from pipeline.execution.library_warnings import FileWarnings, gathered_warnings, warnings_about
from pipeline.images.decode import decode_image
from tests.conftest import Small
from tests.processes import run_python

COMMAND = "import sys; from cli import cli; cli(sys.argv[1:])"
TWO_VALUES = "Metadata Warning, tag 274 had too many entries: 2, expected 1"


def jpeg_with_two_orientations() -> bytes:
    """A JPEG whose EXIF tag 274 (Orientation) has two values."""
    exif = b"Exif\0\0II*\0" + struct.pack("<IHHHIHHI", 8, 1, 274, 3, 2, 1, 1, 0)
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(buffer, "JPEG", exif=exif)
    return buffer.getvalue()


def large_png() -> bytes:
    """13,000 x 13,000 pixels of one bit, in 21 KB: more than Pillow's limit for a warning, and more than that of Capstream."""
    buffer = io.BytesIO()
    Image.new("1", (13_000, 13_000)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def noisy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of images that Pillow warns about, their captions, and a tar of them."""
    folder = tmp_path_factory.mktemp("noisy")
    (folder / "images").mkdir()
    for name, content in (("0.jpg", jpeg_with_two_orientations()), ("1.jpg", jpeg_with_two_orientations()), ("2.png", large_png())):
        (folder / "images" / name).write_bytes(content)
        (folder / "images" / name).with_suffix(".txt").write_text("A red square.")
    (folder / "tars").mkdir()
    with tarfile.open(folder / "tars" / "0.tar", "w") as tar:
        for path in sorted((folder / "images").iterdir()):
            tar.add(path, path.name)
    return folder


@pytest.mark.parametrize("log_json", [False, True])
@pytest.mark.parametrize("command", ["shard", "index", "caption"])
def test_warnings_about_images_are_one_note_that_names_the_files(small: Small, noisy: Path, tmp_path: Path, command: str, log_json: bool) -> None:
    images = noisy / "images"
    (tmp_path / "0.tar").write_bytes((noisy / "tars" / "0.tar").read_bytes())
    arguments = {
        "shard": ["--images", images, "--captions", images, "--out", tmp_path / "out", "--size", 32, "--shard-size", 1, "--workers", 2],
        "index": [tmp_path, "--resize", "none", "--size", 64, "--workers", 1],
        "caption": ["--run", small.run, images, "--device", "cpu"],
    }
    done = run_python(COMMAND, *(["--log-json"] if log_json else []), command, *arguments[command])
    texts = done.stderr.splitlines()
    if log_json:
        texts = [json.loads(line)["text"] for line in texts]  # nothing but JSON
    names = {"shard": ["0.jpg", "1.jpg"], "index": ["0.tar: 0.jpg", "0.tar: 1.jpg"], "caption": [str(images / "0.jpg"), str(images / "1.jpg")]}
    first, second = names[command]
    assert texts.count(f"Pillow warned about 2 images, used nevertheless: {first}: {TWO_VALUES} | {second}: {TWO_VALUES}") == 1
    assert len([text for text in texts if "Warning" in text]) == 1, done.stderr
    assert "too_many_pixels" in done.stderr or "13000x13000 pixels, more than the limit" in done.stderr


def test_threads_gather_their_own_warnings() -> None:
    data, together = jpeg_with_two_orientations(), threading.Barrier(4)

    def decode(name: str) -> dict[str, list[str]]:
        together.wait()
        found: dict[str, list[str]] = {}
        for _ in range(20):
            with gathered_warnings() as gathered:
                decode_image(data, name)
            found |= gathered
        return found

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(decode, "abcd")) == [{name: [TWO_VALUES]} for name in "abcd"]


def test_warnings_elsewhere_are_shown_as_before(recwarn: pytest.WarningsRecorder) -> None:
    with warnings_about("file", ignored=ResourceWarning):
        warnings.warn("inside", stacklevel=1)
    with pytest.warns(UserWarning, match="outside"):
        warnings.warn("outside", stacklevel=1)
    assert "inside" not in [str(warning.message) for warning in recwarn]


def test_many_warnings_are_counted_and_the_first_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    FileWarnings().print()
    FileWarnings().add({"a": ["x", "y"]}).join(FileWarnings().add({name: ["z"] for name in "bcde"})).print()
    assert capsys.readouterr().err == "Pillow warned about 5 images, used nevertheless: a: x; y | b: z | c: z | and 2 more\n"


OTHERS = """
import threading
import click
from cli import cli
from pipeline.execution.executors import run_tasks
from tests.noisy import warn
@click.command("noisy")
def noisy():
    warn(0)
    list(run_tasks(warn, [(1,), (2,)], workers=2))
    thread = threading.Thread(target=lambda: 1 / 0)
    thread.start()
    thread.join()
cli.commands = {"noisy": noisy}
cli(["--log-json", "noisy"])
"""


def test_other_warnings_log_records_and_errors_of_threads_are_notes_in_workers_too() -> None:
    done = run_python(OTHERS)
    assert done.returncode == 0
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert {line["kind"] for line in lines} == {"note"}
    texts = sorted(line["text"] for line in lines)
    assert "ZeroDivisionError" in texts[0]
    expected = [f"Warning: {text}" for number in range(3) for text in (f"record {number}", f"warning {number} of two lines")]
    assert texts[1:] == sorted(expected)
