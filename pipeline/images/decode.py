"""Image files of any kind -> upright RGB pixels of the dataset's size. Sharding and captioning use the same functions."""

import contextlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from model.limits import FILTERS, MAX_SIDE, MIN_SIDE, RESIZE_MODES
from pipeline.execution.library_warnings import warnings_about
from pipeline.images.kinds import KINDS, MissingDecoderError, formats_of, missing_decoder
from shards.errors import CapstreamError, SettingsError

MAX_PIXELS = 120_000_000
MAX_FILE_BYTES = 512 << 20
ORIENTATION_TAG = 0x0112
# The operation that turns an image of each EXIF orientation upright (Exif 2.32, tag Orientation)
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
    """An image that cannot be used. ``reason`` is its class in ``rejects.jsonl``."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


MAX_JPEG_SIDE = 65_500  # libjpeg's JPEG_MAX_DIMENSION
# The padding's colour: ImageNet's mean, which normalisation turns into zeros like those of a convolution's padding
PADDING = (124, 116, 104)
# libjpeg decodes at 1/2, 1/4 or 1/8 if each side keeps at least this many times the pixels of the resized image. At 2 the result
# differs from a full decode by less than a second JPEG encoding changes (tests/pipeline/images/test_decode.py checks the bound).
SCALED_DECODE_MARGIN = 2
# A JPEG with one of these may need to be rotated, or may be several pictures of a phone in one file
NOT_PLAIN = (b"Exif\0\0", b"tiff:Orientation", b"MPF\0")


@dataclass(frozen=True, kw_only=True)
class Resize:
    """How images are resized.

    Attributes:
        size: A side in pixels; ``mode`` says which.
        mode: ``squash``: to size x size, whatever the aspect ratio (as in the tutorial). ``shortest``: the shorter side becomes
            ``size``, and the aspect ratio stays. ``pad``: the longer side becomes ``size``, and the rest of the square is filled with
            ``PADDING``. ``none``: the image is not resized, unless its shorter side is below ``size`` and is enlarged to it.
        filter: Pillow's resampling filter. All filters are antialiased.

    Raises:
        InputError: A value out of range; names the setting.
    """

    size: int = 256
    mode: str = "squash"
    filter: str = "lanczos"

    def __post_init__(self) -> None:
        if not MIN_SIDE <= self.size <= MAX_SIDE:
            raise SettingsError(f"`size` {self.size}: must be between {MIN_SIDE} and {MAX_SIDE} pixels.")
        if self.mode not in RESIZE_MODES:
            raise SettingsError(f"`mode` {self.mode}: must be one of {', '.join(RESIZE_MODES)}.")
        if self.filter not in FILTERS:
            raise SettingsError(f"`filter` {self.filter}: must be one of {', '.join(FILTERS)}.")

    def scaled(self, width: int, height: int) -> tuple[int, int]:
        """Width and height of a resized image, before :func:`decode_image` adds the padding.

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
class ShapeLimits:
    """Which images are too small or too narrow to be photographs, such as tracking pixels and rulers.

    Attributes:
        min_side: The least pixels of the shorter side.
        max_aspect: How many times longer than the shorter side the longer side may be.

    Raises:
        InputError: A value out of range; names the setting.
    """

    min_side: int = 8
    max_aspect: float = 20.0

    def __post_init__(self) -> None:
        if self.min_side < 1:
            raise SettingsError(f"`min_side` {self.min_side}: must be at least 1 pixel.")
        if not 1 <= self.max_aspect <= MAX_JPEG_SIDE:
            raise SettingsError(f"`max_aspect` {self.max_aspect}: must be between 1 and {MAX_JPEG_SIDE}.")

    def check(self, name: str, width: int, height: int) -> None:
        """Refuse an image outside the limits.

        Raises:
            ImageError: ``extreme_shape``.
        """
        short, long = sorted((width, height))
        if short < self.min_side:
            raise ImageError("extreme_shape", f"{name}: {width}x{height} pixels, and the shorter side must have {self.min_side} (`min_side`)")
        if long > self.max_aspect * short:
            message = f"{name}: {width}x{height} pixels, and the longer side may be {self.max_aspect:g} times the shorter one (`max_aspect`)"
            raise ImageError("extreme_shape", message)


@dataclass(frozen=True, kw_only=True)
class DecodedImage:
    """A decoded image.

    Attributes:
        image: Upright RGB in the requested size.
        width, height: The size of the upright original in pixels.
        as_stored: Whether the file is a JPEG that any reader decodes to exactly these pixels.
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


def decode_image(data: bytes, name: str, resize: Resize | None = None, shape: ShapeLimits | None = None) -> DecodedImage:
    """Decode an image to upright RGB, in its own size or resized.

    EXIF orientation is applied. Greyscale, palette and CMYK are converted to RGB. Transparent images are put on a white background. The first
    frame of an animation is used. A JPEG several times larger than the resized image is decoded at 1/2, 1/4 or 1/8.

    Args:
        data: The file's bytes, which may be damaged or hostile.
        name: For messages.
        resize: The requested size; None keeps the image's own.
        shape: Refuse images outside these limits.

    Raises:
        ImageError: ``not_an_image``, ``no_decoder``, ``truncated`` (or otherwise damaged), ``too_many_pixels`` or ``extreme_shape``. Pillow's
            warnings about a usable image can be gathered: :func:`pipeline.execution.library_warnings.gathered_warnings`.
    """
    # Pillow warns of large images below MAX_PIXELS already
    with _image_errors(name), warnings_about(name, ignored=Image.DecompressionBombWarning):
        stored = _decode_plain_jpeg(data, resize) or _decode(data, name, resize)
        image, width, height = stored.image, stored.width, stored.height
        if shape is not None:
            shape.check(name, width, height)
        size = resize.scaled(width, height) if resize is not None else (width, height)
        if size != (width, height) and resize is not None:
            _check_pixels(name, (width, height), size)
            image = image.resize(size, Image.Resampling[resize.filter.upper()], box=stored.box)
        if image.mode != "RGB":
            image = image.convert("RGB")
        if stored.orientation in UPRIGHT:
            image = image.transpose(UPRIGHT[stored.orientation])
        if stored.orientation >= 5:  # stored on its side
            width, height = height, width
        as_stored = stored.rgb_jpeg and stored.orientation == 1 and image.size == (width, height)
        if resize is not None and resize.mode == "pad":
            image = _padded(image, resize.size)
        return DecodedImage(image=image, width=width, height=height, as_stored=as_stored)


def plain_jpeg(data: bytes) -> bool:
    """Whether bytes look like a JPEG that needs no rotation, judged by the segments before its first scan.

    A segment is 0xFF, a marker, and a length of two bytes that includes itself (ITU-T T.81, annex B). If the segments are malformed, all
    bytes are searched.
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
        data: The file's bytes.
        name: For messages.
        scratch: uint8 (bytes,) to decode into if the pixels fit.

    Raises:
        ImageError: As :func:`decode_image`.
    """
    if plain_jpeg(data):
        with contextlib.suppress(ValueError):  # decode_image raises an error with a reason
            height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
            if colours == "YCbCr" and width * height <= MAX_PIXELS:
                fits = scratch is not None and width * height * 3 <= len(scratch)
                pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(data, "RGB", buffer=scratch if fits else None)
                return pixels
    return np.array(decode_image(data, name).image, dtype=np.uint8)


@dataclass(frozen=True, kw_only=True)
class _StoredPixels:
    """Pixels as a file stores them.

    Attributes:
        image: RGB or RGBX; may be decoded at a fraction of ``width`` and ``height``.
        orientation: EXIF orientation, 1 to 8.
        rgb_jpeg: Whether the file is a JPEG in RGB.
        box: The part of ``image`` to use (left, top, right, bottom); None for all.
    """

    image: Image.Image
    width: int
    height: int
    orientation: int
    rgb_jpeg: bool
    box: tuple[float, float, float, float] | None = None


def _decode_plain_jpeg(data: bytes, resize: Resize | None) -> _StoredPixels | None:
    """Decode the usual image, an undamaged JPEG without orientation, with libjpeg-turbo: the same pixels in a tenth less time.

    None for everything else, which :func:`_decode` decodes or refuses with a reason.
    """
    if not plain_jpeg(data):
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        scaled = resize.scaled(width, height) if resize is not None else (width, height)
        fraction = min(width // (SCALED_DECODE_MARGIN * scaled[0]), height // (SCALED_DECODE_MARGIN * scaled[1]))
        if colours != "YCbCr" or width * height > MAX_PIXELS or fraction >= 2:
            return None
        pixels = simplejpeg.decode_jpeg(data, "RGBX")  # four bytes per pixel as in Pillow, so that nothing is copied
    except ValueError:
        return None
    image = Image.frombuffer("RGBX", (width, height), pixels, "raw", "RGBX", 0, 1)
    return _StoredPixels(image=image, width=width, height=height, orientation=1, rgb_jpeg=True)


def _decode(data: bytes, name: str, resize: Resize | None) -> _StoredPixels:
    opened = Image.open(io.BytesIO(data), formats=formats_of(data))
    width, height = opened.size
    size = resize.scaled(width, height) if resize is not None else opened.size
    _check_pixels(name, opened.size, opened.size)
    orientation = 1 if opened.format == "TIFF" else _orientation(opened)  # Pillow turns TIFF images itself
    rgb_jpeg = (opened.format, opened.mode) == ("JPEG", "RGB")
    scaled = opened.draft(None, (SCALED_DECODE_MARGIN * size[0], SCALED_DECODE_MARGIN * size[1]))
    opened.load()
    # The last column of a scaled decode may be a partial one: the box says where the image ends
    box = scaled[1] if scaled else None
    return _StoredPixels(image=_to_rgb(opened), width=width, height=height, orientation=orientation, rgb_jpeg=rgb_jpeg, box=box)


def _check_pixels(name: str, original: tuple[int, int], size: tuple[int, int]) -> None:
    if size[0] * size[1] > MAX_PIXELS or (size != original and max(size) > MAX_JPEG_SIDE):
        becomes = f" would become {size[0]}x{size[1]}" if size != original else ""
        raise ImageError("too_many_pixels", f"{name}: {original[0]}x{original[1]} pixels{becomes}, more than the limit of {MAX_PIXELS}")


@contextlib.contextmanager
def _image_errors(name: str) -> Iterator[None]:
    try:
        yield
    except MissingDecoderError as error:
        raise ImageError("no_decoder", f"{name}: {error}") from None
    except UnidentifiedImageError:
        raise ImageError("not_an_image", f"{name}: not an image of a known format ({', '.join(KINDS)})") from None
    except Image.DecompressionBombError as error:
        raise ImageError("too_many_pixels", f"{name}: {error}") from None
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, TypeError, OverflowError) as error:
        # What Pillow's decoders raise for damaged files, according to their source. MemoryError and the like are not caught.
        if advice := missing_decoder(error):
            raise ImageError("no_decoder", f"{name}: {advice}") from None
        reason = "truncated" if "truncated" in str(error).lower() else "damaged_image"
        raise ImageError(reason, f"{name}: {reason.replace('_', ' ')} ({error})") from None


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8."""
    try:
        value = image.getexif().get(ORIENTATION_TAG, 1)
    except (SyntaxError, ValueError, KeyError, TypeError, OSError):
        return 1  # the EXIF data is damaged, the pixels are not
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode in ("I", "I;16", "I;16B", "F"):  # 16-bit or float greyscale, which Pillow's conversion would clip at 255
        values = np.nan_to_num(np.asarray(image, dtype=np.float64))
        largest = values.max(initial=0)
        scale = 255.0 if image.mode == "F" and largest <= 1 else 1.0 if largest <= 255 else 255 / 65535
        return Image.fromarray(np.clip(values * scale, 0, 255).astype(np.uint8)).convert("RGB")
    if "A" in image.getbands() or "transparency" in image.info:
        rgba = image.convert("RGBA")
        background = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(background, rgba).convert("RGB")
    return image.convert("RGB")


def _padded(image: Image.Image, side: int) -> Image.Image:
    square = Image.new("RGB", (side, side), PADDING)
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def encode_jpeg(image: Image.Image, quality: int) -> bytes:
    """JPEG bytes, without metadata."""
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=quality, comment=b"")  # else Pillow copies the original's comment
    return buffer.getvalue()


def stored_jpeg(data: bytes, name: str, resize: Resize, quality: int, shape: ShapeLimits | None = None) -> tuple[bytes, int, int]:
    """An image file -> JPEG bytes in the dataset's size, and width and height of the upright original.

    With mode ``none``, an upright RGB JPEG of sufficient size is stored unchanged. It is decoded only to check it.

    Raises:
        ImageError: It cannot be used.
    """
    decoded = decode_image(data, name, resize, shape)
    jpeg = data if decoded.as_stored and resize.mode == "none" else encode_jpeg(decoded.image, quality)
    return jpeg, decoded.width, decoded.height


def load_image(path: Path, resize: Resize) -> NDArray[np.uint8]:
    """An image file resized, before any cropping: uint8 (height, width, 3).

    Raises:
        ImageError: The file is missing or cannot be used.
    """
    return np.array(decode_image(read_image_file(path), str(path), resize).image, dtype=np.uint8)
