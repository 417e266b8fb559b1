import base64
import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, features

from pipeline.images import decode as images
from pipeline.images.decode import ImageError, Resize, decode_image, decode_pixels, encode_jpeg, load_image, read_image_file, stored_jpeg
from shards.errors import InputError


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


def test_half_transparent_pixels_are_blended_with_white() -> None:
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


def test_html_named_jpg_is_not_an_image() -> None:
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


def test_an_image_is_squashed_to_the_square(tmp_path: Path) -> None:
    path = tmp_path / "ünï cöde.png"
    halves().save(path)
    pixels = load_image(path, Resize(size=24))
    assert pixels.shape == (24, 24, 3)
    assert pixels[12, 2, 0] > 250
    assert pixels[12, 21, 2] > 250


@pytest.mark.parametrize(
    ("mode", "size"), [("squash", (100, 100)), ("shortest", (133, 100)), ("pad", (100, 100)), ("none", (640, 480))]
)  # of 640 x 480, computed by hand
def test_each_mode_gives_its_size(mode: str, size: tuple[int, int]) -> None:
    resize = Resize(size=100, mode=mode)
    for original, wanted in (((640, 480), size), ((480, 640), size[::-1])):
        decoded = decode_image(encoded(Image.new("RGB", original, "white"), "JPEG"), "x", resize)
        assert decoded.image.size == wanted
        assert (decoded.width, decoded.height) == original
        assert resize.made(*wanted)
    assert not resize.made(99, 640)


def test_a_padded_image_is_centred_on_grey() -> None:
    pixels = np.asarray(decode_image(encoded(Image.new("RGB", (40, 20), "white"), "PNG"), "x", Resize(size=20, mode="pad")).image)
    assert pixels.shape == (20, 20, 3)
    assert (pixels[5:15] == 255).all()
    assert (pixels[:5] == images.PADDING).all()
    assert (pixels[15:] == images.PADDING).all()


def test_mode_none_enlarges_images_below_the_size() -> None:
    assert decode_image(encoded(halves(), "PNG"), "x", Resize(size=24, mode="none")).image.size == (48, 24)
    assert decode_image(encoded(halves(), "PNG"), "x", Resize(size=16, mode="none")).image.size == (32, 16)


@pytest.mark.parametrize("filter_", ["lanczos", "bicubic", "bilinear", "box"])
def test_every_filter_is_pillows(filter_: str) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8))
    ours = decode_image(encoded(noise, "PNG"), "x", Resize(size=16, filter=filter_)).image
    assert np.array_equal(np.asarray(ours), np.asarray(noise.resize((16, 16), Image.Resampling[filter_.upper()])))


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.parametrize("mode", ["squash", "shortest", "pad"])
def test_resizing_before_rotating_equals_rotating_before_resizing(orientation: int, mode: str) -> None:
    smooth = Image.fromarray(np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)).resize((90, 61), Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[images.ORIENTATION_TAG] = orientation
    data = encoded(smooth, "JPEG", exif=exif, quality=95)
    resize = Resize(size=32, mode=mode)
    turned = decode_image(encoded(decode_image(data, "x").image, "PNG"), "x", resize)
    ours = decode_image(data, "x", resize)
    assert (ours.width, ours.height) == (turned.width, turned.height)
    assert np.abs(np.asarray(ours.image, np.int16) - np.asarray(turned.image, np.int16)).max() <= 2


def test_an_image_too_long_for_jpeg_is_refused() -> None:
    thin = encoded(Image.new("RGB", (4000, 2)), "PNG")
    with pytest.raises(ImageError) as caught:
        decode_image(thin, "thin.png", Resize(size=256, mode="shortest"))
    assert caught.value.reason == "too_many_pixels"
    assert "512000x256" in str(caught.value)
    assert decode_image(thin, "thin.png", Resize(size=256, mode="pad")).image.size == (256, 256)


def psnr(first: Image.Image, second: Image.Image) -> float:
    """Peak signal-to-noise ratio of two images of 8 bits, in decibels."""
    difference = np.asarray(first, np.float64) - np.asarray(second, np.float64)
    return float(10 * np.log10(255**2 / max((difference**2).mean(), 1e-12)))


@pytest.mark.parametrize("mode", ["squash", "shortest", "pad"])
def test_scaled_decoding_of_real_photographs_stays_within_its_bound(data: Path, monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    """At least 40 dB on every photograph and 47 in the median: less than what storing them as JPEG of quality 95 changes."""
    photographs = [path.read_bytes() for path in sorted((data / "coco-cc" / "images").iterdir())]
    ratios, encoding = [], []
    for size in (32, 64, 100):
        resize = Resize(size=size, mode=mode)
        scaled = [decode_image(photograph, "x", resize).image for photograph in photographs]
        with monkeypatch.context() as patch:
            patch.setattr(images, "SCALED_DECODE_MARGIN", 10**6)
            full = [decode_image(photograph, "x", resize).image for photograph in photographs]
        ratios += [psnr(a, b) for a, b in zip(scaled, full, strict=True) if a.tobytes() != b.tobytes()]
        encoding += [psnr(decode_image(encode_jpeg(image, 95), "x").image, image) for image in full]
    assert len(ratios) > 250  # of 297: nearly all were decoded at a fraction
    assert min(ratios) >= 40
    assert np.median(ratios) >= 47 > np.median(encoding)


def test_plain_jpegs_have_the_pixels_that_pillow_gives_them(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photographs = [path.read_bytes() for path in sorted((data / "coco-cc" / "images").iterdir())]
    assert sum(images._decode_plain_jpeg(photograph, Resize()) is not None for photograph in photographs) > 90
    for resize in (None, Resize(), Resize(mode="pad"), Resize(size=64, mode="shortest")):
        ours = [decode_image(photograph, "x", resize) for photograph in photographs]
        with monkeypatch.context() as patch:
            patch.setattr(images, "_decode_plain_jpeg", lambda _data, _resize: None)
            pillows = [decode_image(photograph, "x", resize) for photograph in photographs]
        for one, other in zip(ours, pillows, strict=True):
            assert one.image.mode == other.image.mode == "RGB"
            assert one.image.tobytes() == other.image.tobytes()
            assert (one.width, one.height, one.as_stored) == (other.width, other.height, other.as_stored)


def test_stored_images_carry_no_metadata() -> None:
    exif = Image.Exif()
    exif[images.ORIENTATION_TAG] = 1
    exif[0x8298] = "somebody"
    data = encoded(halves(), "JPEG", comment=b"made by somebody", exif=exif, icc_profile=b"somebody's profile", dpi=(72, 72))
    jpeg, _, _ = stored_jpeg(data, "x", Resize(size=16), 95)
    assert b"somebody" in data
    assert b"somebody" not in jpeg


@pytest.mark.parametrize("bad", [{"size": 15}, {"size": 5000}, {"mode": "crop"}, {"filter": "nearest"}])
def test_impossible_sizes_are_refused_and_the_setting_is_named(bad: dict[str, Any]) -> None:
    setting = {"size": "`size`", "mode": "`mode`", "filter": "`filter`"}[next(iter(bad))]
    with pytest.raises(InputError, match=f"{setting} {next(iter(bad.values()))}"):
        Resize(**bad)


def test_pixels_of_real_photographs_are_those_of_the_general_decoder(data: Path) -> None:
    for path in sorted((data / "coco-cc" / "images").iterdir())[:30]:
        jpeg = path.read_bytes()
        np.testing.assert_array_equal(decode_pixels(jpeg, path.name), np.array(decode_image(jpeg, path.name).image))


def test_a_truncated_jpeg_is_refused_by_decode_pixels_too(data: Path) -> None:
    jpeg = next((data / "coco-cc" / "images").iterdir()).read_bytes()
    with pytest.raises(ImageError, match="cut"):
        decode_pixels(jpeg[: len(jpeg) // 2], "cut.jpg")
