"""Any photograph a user has -> upright RGB pixels of the dataset's size. Used by sharding and by captioning alike."""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError, features

from shards.errors import CapstreamError

# Only what photographs come in: every decoder that is not opened is one that a hostile file cannot reach. JPEG includes the
# multi-picture files of phones (MPO).
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
MAX_PIXELS = 120_000_000
MAX_FILE_BYTES = 512 << 20
ORIENTATION_TAG = 0x0112


class ImageError(CapstreamError):
    """An image that cannot be used. ``reason`` is its class in the rejects report."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, kw_only=True)
class Resize:
    """How pixels get their size: ``squash`` to size x size whatever the aspect ratio (the tutorial's way), Lanczos."""

    size: int = 256
    mode: str = "squash"
    filter: str = "lanczos"


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


def decode_image(data: bytes, name: str) -> Image.Image:
    """Decode a whole image to upright RGB.

    EXIF orientation is applied; greyscale, palette and CMYK become RGB; transparency is laid on white; of an animation the
    first frame is taken.

    Args:
        data: The file's bytes, trusted in nothing.
        name: For messages.

    Raises:
        ImageError: ``not_an_image``, ``truncated`` (or otherwise damaged) or ``too_many_pixels``.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        if image.width * image.height > MAX_PIXELS:
            raise ImageError("too_many_pixels", f"{name}: {image.width}x{image.height} pixels, more than the limit of {MAX_PIXELS}")
        image.load()
        return _to_rgb(_upright(image))
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


def _upright(image: Image.Image) -> Image.Image:
    try:
        turned = image.getexif().get(ORIENTATION_TAG, 1) != 1
    except (SyntaxError, ValueError, KeyError, TypeError, OSError):
        return image  # damaged EXIF data says nothing about the orientation; the pixels are whole
    return ImageOps.exif_transpose(image) if turned else image


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


def resize_image(image: Image.Image, resize: Resize) -> Image.Image:
    """Give an upright RGB image the dataset's size."""
    return image.resize((resize.size, resize.size), Image.Resampling.LANCZOS)


def encode_jpeg(image: Image.Image, quality: int) -> bytes:
    """JPEG bytes, without metadata."""
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=quality)
    return buffer.getvalue()


def load_photograph(path: Path, resize: Resize) -> NDArray[np.uint8]:
    """A photograph as the network will see it before cropping: uint8 (size, size, 3).

    Raises:
        ImageError: The file is missing or is no usable image.
    """
    image = resize_image(decode_image(read_image_file(path), str(path)), resize)
    return np.asarray(image, dtype=np.uint8)
