"""Kinds of images, and the decoders that may be missing."""

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

from pipeline.images.decode import ImageError, Resize, ShapeLimits, decode_image
from pipeline.images.kinds import heif_kind
from tests import ROOT

# Red at the left, blue at the right, wide: shows whether an image was turned
PIXELS = np.zeros((40, 80, 3), np.uint8)
PIXELS[:, :40, 0] = PIXELS[:, 40:, 2] = 255
WIDE = Image.fromarray(PIXELS)
# The header of a JPEG 2000 file, which is all that is read without a decoder
JPEG_2000 = b"\x00\x00\x00\x0cjP  \r\n\x87\n" + bytes(64)


def encoded(form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    WIDE.save(buffer, form, **options)
    return buffer.getvalue()


def turned() -> Image.Exif:
    """EXIF data that says: turn by 90 degrees clockwise."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def heif(**options: object) -> bytes:
    import pillow_heif

    buffer = io.BytesIO()
    pillow_heif.from_pillow(WIDE).save(buffer, quality=95, **options)
    return buffer.getvalue()


def colours(image: Image.Image) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The colours near the top left and the bottom right, as 0 or 1 per channel."""
    pixels = np.asarray(image)
    return tuple(int(value > 127) for value in pixels[4, 4]), tuple(int(value > 127) for value in pixels[-5, -5])


def test_heic_is_decoded_upright_at_any_size() -> None:
    pytest.importorskip("pillow_heif")
    data = heif()
    assert heif_kind(data) == "HEIC"
    found = decode_image(data, "a.heic", Resize(size=64))
    assert (found.width, found.height, found.image.size, found.as_stored) == (80, 40, (64, 64), False)
    assert colours(found.image) == ((1, 0, 0), (0, 0, 1))
    found = decode_image(heif(exif=turned().tobytes()), "a.heic")
    assert (found.width, found.height, found.image.size) == (40, 80, (40, 80))
    assert colours(found.image) == ((1, 0, 0), (0, 0, 1))


def test_avif_is_decoded_upright() -> None:
    if not features.check("avif"):
        Image.init()
        pytest.importorskip("pillow_avif")
    data = encoded("AVIF")
    assert heif_kind(data) == "AVIF"
    assert colours(decode_image(data, "a.avif").image) == ((1, 0, 0), (0, 0, 1))
    found = decode_image(encoded("AVIF", exif=turned().tobytes()), "a.avif")
    assert (found.width, found.height, found.image.size) == (40, 80, (40, 80))


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK", "I;16", "F", "RGBA", "1", "P"])
def test_tiff_of_every_usual_mode_is_decoded(mode: str) -> None:
    image = Image.fromarray(np.full((20, 30), 0.75, np.float32)) if mode == "F" else WIDE.convert("L") if mode == "I;16" else WIDE.convert(mode)
    image = Image.fromarray(np.asarray(image, np.uint16) * 257) if mode == "I;16" else image
    buffer = io.BytesIO()
    image.save(buffer, "TIFF")
    found = np.asarray(decode_image(buffer.getvalue(), "a.tif").image)
    assert found.shape == (image.height, image.width, 3)
    if mode == "F":
        assert abs(int(found[0, 0, 0]) - 191) <= 1
    elif mode in ("RGB", "RGBA", "CMYK", "P"):
        assert tuple(found[4, 4] > 127) == (True, False, False)


def test_tiff_is_turned_once() -> None:
    found = decode_image(encoded("TIFF", exif=turned()), "a.tif", Resize(size=32, mode="shortest"))
    assert (found.width, found.height, found.image.size) == (40, 80, (32, 64))
    assert colours(found.image) == ((1, 0, 0), (0, 0, 1))


def test_jpeg_2000_is_decoded_or_the_reject_says_what_pillow_lacks() -> None:
    if features.check("jpg_2000"):
        assert colours(decode_image(encoded("JPEG2000"), "a.jp2").image) == ((1, 0, 0), (0, 0, 1))
    else:
        with pytest.raises(ImageError, match=r"a\.jp2: a JPEG 2000 image, but Pillow was built without it: install libopenjp2-7-dev") as caught:
            decode_image(JPEG_2000, "a.jp2")
        assert caught.value.reason == "no_decoder"


def test_compressed_tiff_is_decoded_or_the_reject_says_what_pillow_lacks() -> None:
    """A TIFF whose compression is LZW: the header of an uncompressed one with another tag."""
    plain = encoded("TIFF")
    tag = (259).to_bytes(2, "little") + (3).to_bytes(2, "little") + (1).to_bytes(4, "little")
    assert plain.count(tag) == 1
    place = plain.index(tag) + len(tag)
    data = plain[:place] + (5).to_bytes(2, "little") + plain[place + 2 :]
    with pytest.raises(ImageError) as caught:
        decode_image(data, "a.tif")
    if features.check("libtiff"):
        assert caught.value.reason == "damaged_image"
    else:
        assert caught.value.reason == "no_decoder"
        assert "a compressed TIFF image, but Pillow was built without it: install libtiff-dev" in str(caught.value)


def test_without_their_packages_heic_and_avif_name_the_kind_and_the_extra(tmp_path: Path) -> None:
    (tmp_path / "pillow_heif.py").write_text("raise ImportError")
    (tmp_path / "pillow_avif.py").write_text("raise ImportError")
    program = f"""
import sys; sys.path.insert(0, {str(tmp_path)!r})
from PIL import features
features.check = lambda name: False
from pipeline.images.decode import ImageError, decode_image
for brands in (b"heic", b"mif1", b"mif1\\0\\0\\0\\0mif1heic", b"avif", b"mif1\\0\\0\\0\\0mif1avif"):
    try: decode_image((len(brands) + 8).to_bytes(4, "big") + b"ftyp" + brands + bytes(40), "a")
    except ImageError as error: print(error.reason, error)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    kinds = ["a HEIC", "a HEIF", "a HEIC", "an AVIF", "an AVIF"]
    for line, kind in zip(lines, kinds, strict=True):
        assert line.startswith(f"no_decoder a: {kind} image, which requires pillow-")
        assert line.endswith("pip install '.[heif]'")


@pytest.mark.parametrize("kind", ["heif", "tiff"])
def test_damaged_files_of_new_kinds_are_rejects(kind: str) -> None:
    if kind == "heif":
        pytest.importorskip("pillow_heif")
    data = heif() if kind == "heif" else encoded("TIFF")
    for end in range(16, len(data), max(1, len(data) // 40)):
        try:
            decode_image(data[:end], "cut")
        except ImageError as error:
            assert error.reason in ("truncated", "damaged_image", "not_an_image", "too_many_pixels")
    random = np.random.default_rng(0)
    for _ in range(60):
        damaged = bytearray(data)
        for place in random.integers(12, min(len(data), 600), 3):
            damaged[place] ^= int(random.integers(1, 256))
        try:
            decode_image(bytes(damaged), "flipped")
        except ImageError as error:
            assert error.reason in ("truncated", "damaged_image", "not_an_image", "too_many_pixels", "no_decoder")


def test_images_of_an_extreme_shape_are_refused_and_limits_change_that() -> None:
    def png(width: int, height: int) -> bytes:
        buffer = io.BytesIO()
        Image.new("RGB", (width, height)).save(buffer, "PNG")
        return buffer.getvalue()

    with pytest.raises(ImageError, match=r"dot\.png: 1x1 pixels, and the shorter side must have 8 \(`min_side`\)") as caught:
        decode_image(png(1, 1), "dot.png", Resize(), ShapeLimits())
    assert caught.value.reason == "extreme_shape"
    with pytest.raises(ImageError, match=r"20000x10 pixels, and the longer side may be 20 times the shorter one \(`max_aspect`\)") as caught:
        decode_image(png(20_000, 10), "ruler.png", Resize(), ShapeLimits())
    assert caught.value.reason == "extreme_shape"
    assert decode_image(png(1, 1), "dot.png", Resize(), ShapeLimits(min_side=1)).image.size == (256, 256)
    assert decode_image(png(20_000, 10), "ruler.png", Resize(), ShapeLimits(max_aspect=2000)).image.size == (256, 256)
    assert decode_image(png(160, 8), "narrow.png", Resize(), ShapeLimits()).width == 160
