"""Samples of a WebDataset tar that another program wrote, such as img2dataset. Nothing is unpacked, and nothing in the tar is trusted."""

import itertools
import json
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from pipeline.captions.languages import Language
from pipeline.captions.records import MAX_CAPTION_CHARACTERS, storable
from pipeline.images.decode import MAX_FILE_BYTES, ImageError, Resize, decode_image
from shards.paths import IMAGE_SUFFIXES
from shards.rejects import Reject

MAX_MEMBERS = 300_000
# For a header with all its extensions
MAX_HEADER_BYTES = 1 << 16
MAX_TEXT_BYTES = 1 << 20
KEY = re.compile(r"[0-9]{1,18}")  # as a number it is the image's id, which has 64 bits
MEMBER_NAME = re.compile(r"((?:.*/)?[^./]+)(\.[^/]+)")  # as in webdataset: the key ends at the first dot of the last part


class TarError(Exception):
    """A tar that cannot be used at all."""


@dataclass(frozen=True, kw_only=True)
class ExternalSample:
    """A usable sample of a tar.

    Attributes:
        offset: Where the image's bytes begin in the tar.
        record: The image's record, as in a shard.
    """

    key: str
    offset: int
    image: bytes
    record: dict[str, Any]


def external_samples(tar: Path, file: IO[bytes], resize: Resize, language: Language, rejects: list[Reject]) -> Iterator[ExternalSample]:
    """The usable samples of a tar in order. Consecutive members with one key are a sample.

    Args:
        tar: For messages.
        file: The open tar.
        resize: How the images were resized. Images of another size are rejected.
        language: How captions are split.
        rejects: The other samples are added here.

    Raises:
        TarError: It is not a complete tar without compression, or exceeds a limit.
    """
    named = ((match, member) for member in _members(file) if (match := MEMBER_NAME.fullmatch(member.name)))
    seen: set[int] = set()
    # All headers are read before any content, because both move the position in the file
    for key, group in itertools.groupby(list(named), key=lambda each: each[0][1]):
        parts: dict[str, tarfile.TarInfo] = {}
        for match, member in group:
            parts.setdefault(match[2].lower(), member)
        try:
            if not KEY.fullmatch(key):
                raise ImageError("key_is_no_number", f"{key[:100]}: the key of a sample must be a number of at most 18 digits")
            if int(key) in seen:
                raise ImageError("duplicate_image_id", f"{key}: an earlier sample has the same number; the first is kept")
            sample = _sample(file, key, parts, resize, language)
        except ImageError as problem:
            rejects.append(Reject(file=f"{tar.name}: {key[:100]}", reason=problem.reason, message=str(problem)))
            continue
        seen.add(int(key))
        yield sample


def _sample(file: IO[bytes], key: str, parts: dict[str, tarfile.TarInfo], resize: Resize, language: Language) -> ExternalSample:
    """A sample from its members by extension.

    Raises:
        ImageError: It cannot be used.
    """
    image = next((parts[ending] for ending in IMAGE_SUFFIXES if ending in parts), None)
    if image is None:
        raise ImageError("no_image", f"{key}: has no image ({', '.join(IMAGE_SUFFIXES)})")
    data = _content(file, image, MAX_FILE_BYTES)
    size = decode_image(data, image.name).image.size
    if not resize.made(*size):
        raise ImageError("other_size", f"{image.name}: has {size[0]}x{size[1]} pixels, which {resize.mode} {resize.size} does not produce")
    metadata = _metadata(file, parts)
    text = storable(_caption(file, parts, metadata))
    if not text.strip():
        raise ImageError("no_captions", f"{key}: neither {key}.txt nor caption in {key}.json has text")
    if len(text) > MAX_CAPTION_CHARACTERS:
        raise ImageError("caption_too_long", f"{key}: its caption has {len(text)} characters, more than the limit of {MAX_CAPTION_CHARACTERS}")
    original = metadata.get("original_width"), metadata.get("original_height")
    width, height = original if all(type(side) is int and 0 < side < 1 << 31 for side in original) else size
    captions = [{"id": int(key), "text": text, "tokens": language.tokenize(text)}]
    record = {"image_id": int(key), "file_name": image.name, "width": width, "height": height, "captions": captions}
    return ExternalSample(key=key, offset=image.offset_data, image=data, record=record)


class _HeaderReader:
    """A tar for the standard library's reader, which reads headers from it and no content. It limits the bytes of one read."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int) -> bytes:
        if size > MAX_HEADER_BYTES:
            raise TarError(f"a header of {size} bytes")
        return self._file.read(size)


def _members(file: IO[bytes]) -> Iterator[tarfile.TarInfo]:
    """The regular files of a tar that is complete up to its end mark. Links, folders and the like are ignored."""
    size = file.seek(0, 2)
    file.seek(0)
    last = -1
    try:
        with tarfile.open(fileobj=_HeaderReader(file), mode="r:") as tar:  # type: ignore[call-overload]
            for number, member in enumerate(tar):
                if number >= MAX_MEMBERS:
                    raise TarError(f"more than {MAX_MEMBERS} members")
                if not (last < member.offset and 0 <= member.size <= size - member.offset_data):
                    raise TarError(f"{member.name!r:.100} does not lie inside the file")
                last = member.offset
                if member.isreg() and not member.issparse():
                    yield member
            end = tar.offset
    except (tarfile.TarError, OSError, ValueError, OverflowError, EOFError) as problem:
        raise TarError(f"not a complete tar without compression ({problem})") from None
    file.seek(end)
    if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise TarError(f"has no end mark at byte {end}: it is truncated, or damaged there")


def _content(file: IO[bytes], member: tarfile.TarInfo, at_most: int) -> bytes:
    if member.size > at_most:
        raise ImageError("too_large", f"{member.name}: {member.size} bytes, more than the limit of {at_most}")
    file.seek(member.offset_data)
    return file.read(member.size)


def _metadata(file: IO[bytes], parts: dict[str, tarfile.TarInfo]) -> dict[str, Any]:
    """The object in a sample's JSON; empty if there is none."""
    if ".json" not in parts:
        return {}
    try:
        content = json.loads(_content(file, parts[".json"], MAX_TEXT_BYTES))
    except (ValueError, RecursionError) as problem:
        raise ImageError("malformed_row", f"{parts['.json'].name}: not JSON ({problem})") from None
    return content if isinstance(content, dict) else {}


def _caption(file: IO[bytes], parts: dict[str, tarfile.TarInfo], metadata: dict[str, Any]) -> str:
    """The text of a sample's ``.txt``, or ``caption`` of its JSON; empty if there is none."""
    if ".txt" not in parts:
        caption = metadata.get("caption")
        return caption if isinstance(caption, str) else ""
    try:
        return _content(file, parts[".txt"], MAX_TEXT_BYTES).decode("utf-8")
    except UnicodeDecodeError as problem:
        raise ImageError("malformed_row", f"{parts['.txt'].name}: not UTF-8 ({problem.reason})") from None
