"""Which kind of image bytes are, by their first bytes, and which of Pillow's decoders reads them.

A hostile file reaches only the decoder of the kind that it claims to be, and no kinds but these. Some decoders are optional: those of Pillow
depend on the libraries that it was built with, and HEIC and AVIF have packages of their own.
"""

import functools
import re

from PIL import Image, features

# JPEG includes the multi-picture files of phones (MPO)
PILLOW_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "JPEG2000")
KINDS = ("JPEG", "PNG", "WebP", "GIF", "BMP", "TIFF", "JPEG 2000", "HEIC", "HEIF", "AVIF")
# ISO/IEC 14496-12, section 4.3: a box "ftyp" with the major brand, a version, and compatible brands
HEIC_BRANDS = {b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"hevm", b"hevs"}
HEIF_BRANDS = {b"mif1", b"msf1", b"mif2"}
AVIF_BRANDS = {b"avif", b"avis"}
JPEG_2000 = (b"\x00\x00\x00\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51")
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
# The library without which Pillow lacks a decoder, by the name of the decoder in Pillow's errors
LIBRARIES = {"webp": ("WebP", "libwebp-dev"), "libtiff": ("compressed TIFF", "libtiff-dev"), "jpeg2k": ("JPEG 2000", "libopenjp2-7-dev")}
NOT_AVAILABLE = re.compile(r"decoder (\w+) not available")


class MissingDecoderError(Exception):
    """The decoder of this kind of image is not installed."""


def heif_kind(data: bytes) -> str | None:
    """``HEIC``, ``HEIF`` or ``AVIF`` if bytes begin as such a file; else None."""
    if data[4:8] != b"ftyp":
        return None
    size = min(int.from_bytes(data[:4], "big"), 256)
    brands = {data[8:12], *(data[place : place + 4] for place in range(16, size, 4))}
    if data[8:12] in AVIF_BRANDS or (data[8:12] in HEIF_BRANDS and brands & AVIF_BRANDS):
        return "AVIF"
    if data[8:12] in HEIC_BRANDS or (data[8:12] in HEIF_BRANDS and brands & HEIC_BRANDS):
        return "HEIC"
    return "HEIF" if data[8:12] in HEIF_BRANDS else None


def formats_of(data: bytes) -> tuple[str, ...]:
    """Pillow's names of the formats that may read bytes.

    Raises:
        MissingDecoderError: The decoder of their kind is not installed.
    """
    kind = heif_kind(data)
    if kind == "AVIF":
        if not _has_avif():
            raise MissingDecoderError("an AVIF image, which requires pillow-avif-plugin: pip install '.[heif]'")
        return ("AVIF",)
    if kind is not None:
        if not _has_heif():
            raise MissingDecoderError(f"a {kind} image, which requires pillow-heif: pip install '.[heif]'")
        return ("HEIF",)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP" and not features.check("webp"):
        raise MissingDecoderError(_without("webp"))
    if data.startswith(JPEG_2000) and not features.check("jpg_2000"):
        raise MissingDecoderError(_without("jpeg2k"))
    return PILLOW_FORMATS


def missing_decoder(error: Exception) -> str | None:
    """What to install, if an error of Pillow says that it has no decoder for the content of a file; else None."""
    match = NOT_AVAILABLE.search(str(error))
    return _without(match[1]) if match and match[1] in LIBRARIES else None


def _without(decoder: str) -> str:
    kind, library = LIBRARIES[decoder]
    return f"a {kind} image, but Pillow was built without it: install {library}, then run make clean; or replace pillow-simd by pillow"


@functools.cache
def _has_heif() -> bool:
    try:
        import pillow_heif
    except ImportError:
        return False
    pillow_heif.options.DECODE_THREADS = 1  # there is a process per core
    pillow_heif.register_heif_opener()
    return True


@functools.cache
def _has_avif() -> bool:
    if features.check("avif"):
        return True
    Image.init()  # Pillow's own plugin, which cannot decode here, would replace the other one later
    try:
        import pillow_avif  # noqa: F401 - registers itself
    except ImportError:
        return False
    return True
