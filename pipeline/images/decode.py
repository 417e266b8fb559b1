"""Any photograph a user has -> upright RGB pixels of the dataset's size. Used by sharding and by captioning alike."""

import contextlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError, features

from shards.errors import CapstreamError, InputError

# Only what photographs come in: every decoder that is not opened is one that a hostile file cannot reach. JPEG includes the
# multi-picture files of phones (MPO).
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
MAX_PIXELS = 120_000_000
MAX_FILE_BYTES = 512 << 20
ORIENTATION_TAG = 0x0112
# What turns an image of each EXIF orientation upright (Exif 2.32, tag Orientation).
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ImageError(CapstreamError):
    """An image that cannot be used. ``reason`` is its class in the rejects report."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


RESIZE_MODES = ("squash", "shortest", "pad", "none")
FILTERS = ("lanczos", "bicubic", "bilinear", "box")
MAX_SIZE = 4096
MAX_JPEG_SIDE = 65_500  # libjpeg's JPEG_MAX_DIMENSION
# What pads an image: ImageNet's mean colour, which normalisation turns into zeros, as a convolution's own padding.
PADDING = (124, 116, 104)
# libjpeg decodes to 1/2, 1/4 or 1/8 as long as this many times the wanted pixels are left for the filter, per side. At 2 the
# result differs from a full decode by what a second JPEG encoding changes anyway (tests/pipeline/images/test_decode.py holds the bound).
SCALED_DECODE_MARGIN = 2
# A JPEG with one of these may have to be turned, or be a phone's several pictures in one file.
NOT_PLAIN = (b"Exif\0\0", b"tiff:Orientation", b"MPF\0")


@dataclass(frozen=True, kw_only=True)
class Resize:
    """How pixels get their size.

    Attributes:
        size: A side in pixels, by ``mode``.
        mode: ``squash``: size x size whatever the aspect ratio (the tutorial's way); ``shortest``: the shorter side becomes
            ``size``, the aspect ratio stays; ``pad``: the longer side becomes ``size``, the rest of the square is filled with
            ``PADDING``; ``none``: pixels stay as they are, unless the shorter side is below ``size``, which then grows to it.
        filter: Pillow's resampling filter; all of them are antialiased.

    Raises:
        InputError: Impossible values; names the option.
    """

    size: int = 256
    mode: str = "squash"
    filter: str = "lanczos"

    def __post_init__(self) -> None:
        if not 16 <= self.size <= MAX_SIZE:
            raise InputError(f"--size {self.size}: must lie between 16 and {MAX_SIZE} pixels.")
        if self.mode not in RESIZE_MODES:
            raise InputError(f"--resize {self.mode}: must be one of {', '.join(RESIZE_MODES)}.")
        if self.filter not in FILTERS:
            raise InputError(f"--filter {self.filter}: must be one of {', '.join(FILTERS)}.")

    def scaled(self, width: int, height: int) -> tuple[int, int]:
        """Width and height that the filter gives to an image; :func:`decode_image` adds the padding.

        >>> Resize(size=256, mode="shortest").scaled(640, 480)
        (341, 256)
        >>> Resize(size=256, mode="pad").scaled(640, 480)
        (256, 192)
        """
        if self.mode == "squash":
            return self.size, self.size
        if self.mode == "none" and min(width, height) >= self.size:
            return width, height
        scale = self.size / (max if self.mode == "pad" else min)(width, height)
        return max(1, round(width * scale)), max(1, round(height * scale))

    def made(self, width: int, height: int) -> bool:
        """Whether a stored image can have this size."""
        if self.mode in ("squash", "pad"):
            return (width, height) == (self.size, self.size)
        return min(width, height) == self.size or (self.mode == "none" and min(width, height) > self.size)


@dataclass(frozen=True, kw_only=True)
class DecodedImage:
    """A whole photograph.

    Attributes:
        image: Upright RGB, of the size that was asked for.
        width, height: Of the upright original.
        as_stored: Whether the file is a JPEG that shows these very pixels to any reader.
    """

    image: Image.Image
    width: int
    height: int
    as_stored: bool


def read_image_file(path: Path) -> bytes:
    """The file's bytes.

    Raises:
        ImageError: ``missing_file``, ``unreadable_file`` or ``too_large``.
    """
    try:
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise ImageError("too_large", f"{path}: {size} bytes, more than the limit of {MAX_FILE_BYTES}")
        return path.read_bytes()
    except FileNotFoundError:
        raise ImageError("missing_file", f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise ImageError("unreadable_file", f"{path}: cannot be read ({error})") from None


def decode_image(data: bytes, name: str, resize: Resize | None = None) -> DecodedImage:
    """Decode a whole image to upright RGB, in its own size or resized.

    EXIF orientation is applied; greyscale, palette and CMYK become RGB; transparency is laid on white; of an animation the
    first frame is taken. A JPEG that is several times larger than what it is resized to is decoded at 1/2, 1/4 or 1/8.

    Args:
        data: The file's bytes, trusted in nothing.
        name: For messages.
        resize: The wanted size.

    Raises:
        ImageError: ``not_an_image``, ``truncated`` (or otherwise damaged) or ``too_many_pixels``.
    """
    with _image_errors(data, name):
        stored = _decode_plain_jpeg(data, resize) or _decode(data, name, resize)
        image, width, height = stored.image, stored.width, stored.height
        size = resize.scaled(width, height) if resize is not None else (width, height)
        if size != (width, height) and resize is not None:
            _check_pixels(name, (width, height), size)
            image = image.resize(size, Image.Resampling[resize.filter.upper()], box=stored.box)
        if image.mode != "RGB":
            image = image.convert("RGB")
        if stored.orientation in UPRIGHT:
            image = image.transpose(UPRIGHT[stored.orientation])
        if stored.orientation >= 5:  # it was lying on its side
            width, height = height, width
        as_stored = stored.rgb_jpeg and stored.orientation == 1 and image.size == (width, height)
        if resize is not None and resize.mode == "pad":
            image = _padded(image, resize.size)
        return DecodedImage(image=image, width=width, height=height, as_stored=as_stored)


def plain_jpeg(data: bytes) -> bool:
    """Whether bytes look like a JPEG whose pixels stand as they are to be seen, by the segments before its first scan.

    A segment is 0xFF, a marker, and a length of two bytes that counts itself (ITU-T T.81, annex B). Where they are not in order, all of
    the bytes are looked at.
    """
    if data[:2] != b"\xff\xd8":
        return False
    place = 2
    while data[place : place + 1] == b"\xff" and data[place + 1 : place + 2] != b"\xda":
        place += 2 + max(2, int.from_bytes(data[place + 2 : place + 4], "big"))
    end = place if data[place : place + 2] == b"\xff\xda" else len(data)
    return not any(data.find(mark, 0, end) >= 0 for mark in NOT_PLAIN)


def decode_pixels(data: bytes, name: str, scratch: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
    """The pixels of :func:`decode_image` without resizing, uint8 (height, width, 3).

    Args:
        scratch: uint8 (bytes,) to decode into where the pixels fit.

    Raises:
        ImageError: As :func:`decode_image`.
    """
    if plain_jpeg(data):
        with contextlib.suppress(ValueError):  # what libjpeg-turbo refuses, decode_image refuses with a reason
            height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
            if colours == "YCbCr" and width * height <= MAX_PIXELS:
                fits = scratch is not None and width * height * 3 <= len(scratch)
                pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(data, "RGB", buffer=scratch if fits else None)
                return pixels
    return np.array(decode_image(data, name).image, dtype=np.uint8)


@dataclass(frozen=True, kw_only=True)
class _Stored:
    """Pixels as they are stored: ``image`` RGB (or RGBX), perhaps at a fraction of width and height, of which ``box`` is what counts."""

    image: Image.Image
    width: int
    height: int
    orientation: int
    rgb_jpeg: bool
    box: tuple[float, float, float, float] | None = None


def _decode_plain_jpeg(data: bytes, resize: Resize | None) -> _Stored | None:
    """The usual photograph, an undamaged JPEG without orientation, by libjpeg-turbo itself: the same pixels a tenth sooner.

    None for everything else, of which :func:`_decode` has the details and the errors.
    """
    if not plain_jpeg(data):
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        scaled = resize.scaled(width, height) if resize is not None else (width, height)
        fraction = min(width // (SCALED_DECODE_MARGIN * scaled[0]), height // (SCALED_DECODE_MARGIN * scaled[1]))
        if colours != "YCbCr" or width * height > MAX_PIXELS or fraction >= 2:
            return None
        pixels = simplejpeg.decode_jpeg(data, "RGBX")  # four bytes a pixel, as Pillow has them: nothing is copied
    except ValueError:
        return None
    image = Image.frombuffer("RGBX", (width, height), pixels, "raw", "RGBX", 0, 1)
    return _Stored(image=image, width=width, height=height, orientation=1, rgb_jpeg=True)


def _decode(data: bytes, name: str, resize: Resize | None) -> _Stored:
    opened = Image.open(io.BytesIO(data), formats=FORMATS)
    width, height = opened.size
    size = resize.scaled(width, height) if resize is not None else opened.size
    _check_pixels(name, opened.size, opened.size)
    orientation = _orientation(opened)
    rgb_jpeg = (opened.format, opened.mode) == ("JPEG", "RGB")
    scaled = opened.draft(None, (SCALED_DECODE_MARGIN * size[0], SCALED_DECODE_MARGIN * size[1]))
    opened.load()
    # The last column of a scaled decode may stand for less than a whole one: its box says where the image ends.
    box = scaled[1] if scaled else None
    return _Stored(image=_to_rgb(opened), width=width, height=height, orientation=orientation, rgb_jpeg=rgb_jpeg, box=box)


def _check_pixels(name: str, original: tuple[int, int], size: tuple[int, int]) -> None:
    if size[0] * size[1] > MAX_PIXELS or (size != original and max(size) > MAX_JPEG_SIDE):
        becomes = f" would become {size[0]}x{size[1]}" if size != original else ""
        raise ImageError("too_many_pixels", f"{name}: {original[0]}x{original[1]} pixels{becomes}, more than the limit of {MAX_PIXELS}")


@contextlib.contextmanager
def _image_errors(data: bytes, name: str) -> Iterator[None]:
    try:
        yield
    except UnidentifiedImageError:
        if data[:4] == b"RIFF" and data[8:12] == b"WEBP" and not features.check("webp"):
            raise ImageError(
                "no_webp_support", f"{name}: a WebP image, which this Pillow was built without: install libwebp-dev, then make clean"
            ) from None
        kinds = ", ".join(FORMATS)
        raise ImageError("not_an_image", f"{name}: not an image of a known format ({kinds})") from None
    except Image.DecompressionBombError as error:
        raise ImageError("too_many_pixels", f"{name}: {error}") from None
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, TypeError, OverflowError) as error:
        # What Pillow's decoders raise for damaged files, by their source; MemoryError and the like stay loud.
        reason = "truncated" if "truncated" in str(error).lower() else "damaged_image"
        raise ImageError(reason, f"{name}: {reason.replace('_', ' ')} ({error})") from None


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8."""
    try:
        value = image.getexif().get(ORIENTATION_TAG, 1)
    except (SyntaxError, ValueError, KeyError, TypeError, OSError):
        return 1  # damaged EXIF data says nothing about the orientation; the pixels are whole
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode in ("I", "I;16", "I;16B", "F"):  # 16-bit greyscale: Pillow's own conversion would clip at 255
        values = np.asarray(image, dtype=np.float64)
        scale = 1.0 if values.max(initial=0) <= 255 else 255 / 65535
        return Image.fromarray(np.clip(values * scale, 0, 255).astype(np.uint8)).convert("RGB")
    if "A" in image.getbands() or "transparency" in image.info:
        rgba = image.convert("RGBA")
        ground = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(ground, rgba).convert("RGB")
    return image.convert("RGB")


def _padded(image: Image.Image, side: int) -> Image.Image:
    square = Image.new("RGB", (side, side), PADDING)
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def encode_jpeg(image: Image.Image, quality: int) -> bytes:
    """JPEG bytes, without metadata."""
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=quality, comment=b"")  # else Pillow hands the original's comment on
    return buffer.getvalue()


def stored_jpeg(data: bytes, name: str, resize: Resize, quality: int) -> tuple[bytes, int, int]:
    """A photograph's file -> JPEG bytes of the dataset's size, and width and height of the upright original.

    With mode ``none`` the file itself is taken, decoded for a check only, where it is an upright RGB JPEG of sufficient size.

    Raises:
        ImageError: It is no usable image.
    """
    decoded = decode_image(data, name, resize)
    jpeg = data if decoded.as_stored and resize.mode == "none" else encode_jpeg(decoded.image, quality)
    return jpeg, decoded.width, decoded.height


def load_photograph(path: Path, resize: Resize) -> NDArray[np.uint8]:
    """A photograph as the network will see it before cropping: uint8 (height, width, 3).

    Raises:
        ImageError: The file is missing or is no usable image.
    """
    return np.array(decode_image(read_image_file(path), str(path), resize).image, dtype=np.uint8)
