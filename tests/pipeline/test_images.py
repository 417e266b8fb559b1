import base64
import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, features

from pipeline import images
from pipeline.images import ImageError, Resize, decode_image, encode_jpeg, load_photograph, read_image_file


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=form, **options)
    return buffer.getvalue()


def halves() -> Image.Image:
    """Left half red, right half blue, 32 x 16."""
    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[:, :16, 0] = pixels[:, 16:, 2] = 255
    return Image.fromarray(pixels)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_comes_out_upright(orientation: int) -> None:
    # What a camera stores so that the given tag turns it back into `halves()`.
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Transpose members by value
    stored = halves() if orientation == 1 else halves().transpose(Image.Transpose(undo[orientation]))
    exif = Image.Exif()
    exif[images.ORIENTATION_TAG] = orientation
    upright = decode_image(encoded(stored, "JPEG", quality=95, exif=exif), "x.jpg").image
    assert upright.size == (32, 16)
    left, right = upright.getpixel((4, 8)), upright.getpixel((28, 8))
    assert isinstance(left, tuple)
    assert isinstance(right, tuple)
    assert left[0] > 200 > 60 > left[2]
    assert right[2] > 200 > 60 > right[0]


@pytest.mark.parametrize(
    ("mode", "form", "expected"),
    [
        ("L", "JPEG", (100, 100, 100)),
        ("CMYK", "JPEG", (155, 155, 155)),
        ("P", "PNG", (0, 0, 0)),
        ("1", "PNG", (255, 255, 255)),
        ("RGBA", "PNG", (255, 255, 255)),
        ("LA", "PNG", (255, 255, 255)),
        ("I;16", "PNG", (127, 127, 127)),
    ],
)
def test_every_colour_mode_becomes_rgb(mode: str, form: str, expected: tuple[int, int, int]) -> None:
    colour: object = {"L": 100, "CMYK": (100, 100, 100, 0), "P": 0, "1": 1, "RGBA": (9, 9, 9, 0), "LA": (9, 0)}.get(mode)
    image = Image.fromarray(np.full((8, 8), 32639, np.uint16)) if mode == "I;16" else Image.new(mode, (8, 8), colour)  # type: ignore[arg-type]
    decoded = decode_image(encoded(image, form), "x").image
    assert decoded.mode == "RGB"
    assert decoded.getpixel((4, 4)) == pytest.approx(expected, abs=3)


def test_half_transparent_pixels_are_laid_on_white() -> None:
    decoded = decode_image(encoded(Image.new("RGBA", (4, 4), (0, 0, 0, 128)), "PNG"), "x").image
    assert decoded.getpixel((1, 1)) == pytest.approx((127, 127, 127), abs=1)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9, 0.99])
def test_a_truncated_jpeg_is_refused(share: float) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    data = encode_jpeg(noise, 95)
    with pytest.raises(ImageError) as caught:
        decode_image(data[: int(len(data) * share)], "cut.jpg")
    assert caught.value.reason == "truncated"
    assert "cut.jpg" in str(caught.value)


def test_webp_is_read_or_its_absence_is_explained() -> None:
    data = base64.b64decode("UklGRiIAAABXRUJQVlA4IBYAAAAwAQCdASoBAAEADsD+JaQAA3AAAAAA")
    if features.check("webp"):
        assert decode_image(data, "x.webp").image.size == (1, 1)
    else:
        with pytest.raises(ImageError, match="libwebp-dev"):
            decode_image(data, "x.webp")


def test_html_named_jpg_is_no_image() -> None:
    with pytest.raises(ImageError) as caught:
        decode_image(b"<!doctype html><p>404", "page.jpg")
    assert caught.value.reason == "not_an_image"


def test_a_decompression_bomb_is_refused_before_its_pixels_are_made() -> None:
    side = 40_000
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunks = b"".join(struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in ((b"IHDR", header), (b"IDAT", b"")))
    with pytest.raises(ImageError) as caught:
        decode_image(b"\x89PNG\r\n\x1a\n" + chunks, "bomb.png")
    assert caught.value.reason == "too_many_pixels"


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_damaged_images_never_raise_anything_but_image_errors(data: st.DataObject) -> None:
    form = data.draw(st.sampled_from(["JPEG", "PNG", "GIF", "BMP"]))
    content = bytearray(encoded(halves(), form))
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        assert decode_image(bytes(content[: data.draw(st.integers(0, len(content)))]), "x").image.mode == "RGB"
    except ImageError as error:
        assert error.reason


def test_missing_files_and_folders_have_their_reason(tmp_path: Path) -> None:
    for path, reason in ((tmp_path / "none.jpg", "missing_file"), (tmp_path, "unreadable_file")):
        with pytest.raises(ImageError) as caught:
            read_image_file(path)
        assert caught.value.reason == reason


def test_a_photograph_is_squashed_to_the_square(tmp_path: Path) -> None:
    path = tmp_path / "ünï cöde.png"
    halves().save(path)
    pixels = load_photograph(path, Resize(size=24))
    assert pixels.shape == (24, 24, 3)
    assert pixels[12, 2, 0] > 250
    assert pixels[12, 21, 2] > 250
