"""Samples of a WebDataset tar that another program wrote, such as img2dataset. Nothing is unpacked, and nothing in the tar is trusted."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from pipeline.captions.languages import Language
from pipeline.captions.records import storable, unusable_caption
from pipeline.images.decode import MAX_FILE_BYTES, ImageError, Resize, decode_image
from pipeline.sharding.tar_members import TarContents, TarMember, read_member_bytes, read_members
from shards.errors import SettingsError
from shards.paths import IMAGE_SUFFIXES, is_inside
from shards.rejects import Reject
from shards.sidecar import key_number, text_number

MAX_TEXT_BYTES = 1 << 20
MAX_KEY_LENGTH = 200
MEMBER_NAME = re.compile(r"((?:.*/)?[^./]+)\.([^/]+)")  # as in webdataset: the key ends at the first dot of the last part
FIELD_NAMES = ("image", "caption")
IMAGE_ENDINGS = tuple(suffix[1:] for suffix in IMAGE_SUFFIXES)


@dataclass(frozen=True, kw_only=True)
class SampleFields:
    """Which members of a sample hold what.

    Attributes:
        image: The extension of the image, everything after the key's dot (``jpg``, ``input.jpg``); None: any of an image's extensions.
        caption: The extension of a text, or an extension and a path into its JSON (``json:captions.0.text``). None: ``txt``, or else
            ``json:caption``.

    Raises:
        SettingsError: An extension or a path is empty.
    """

    image: str | None = None
    caption: str | None = None

    def __post_init__(self) -> None:
        for name in FIELD_NAMES:
            value = getattr(self, name)
            if value is not None and not all(part and not part.startswith(".") for part in value.split(":", 1)):
                raise SettingsError(f"`field` {name}={value}: must be an extension without its dot, such as input.jpg or json:text.en.")
        if self.image is not None and ":" in self.image:
            raise SettingsError(f"`field` image={self.image}: must be an extension, such as image=input.jpg; images in JSON are not read.")


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


@dataclass(kw_only=True)
class _TarReader:
    """An open tar, its members, how its samples are read, and what could not be used."""

    tar: Path
    file: IO[bytes]
    rejects: list[Reject]
    contents: TarContents
    resize: Resize
    language: Language
    fields: SampleFields

    def read(self, member: TarMember, at_most: int = MAX_TEXT_BYTES) -> bytes:
        return read_member_bytes(self.file, self.contents.follow(member), at_most)


def external_samples(
    tar: Path, file: IO[bytes], resize: Resize, language: Language, fields: SampleFields, rejects: list[Reject]
) -> Iterator[ExternalSample]:
    """The usable samples of a tar, in the order of their first members. The members of a key are a sample, wherever in the tar they are.

    Args:
        tar: For messages.
        file: The open tar.
        resize: How the images were resized. Images of another size are rejected.
        language: How captions are split.
        fields: Which members hold image and caption.
        rejects: The other samples are added here.

    Raises:
        TarError: It is not a complete tar without compression, or exceeds a limit.
    """

    def reject(where: str, problem: ImageError) -> None:
        rejects.append(Reject(file=storable(f"{tar.name}: {where[:MAX_KEY_LENGTH]}"), reason=problem.reason, message=storable(str(problem))))

    contents = read_members(file)
    reader = _TarReader(tar=tar, file=file, rejects=rejects, contents=contents, resize=resize, language=language, fields=fields)
    samples: dict[str, dict[str, TarMember]] = {}
    for member in contents.members:
        match = MEMBER_NAME.fullmatch(member.name)
        if match is None:  # not of a sample, as for webdataset: README, ._dog.jpg
            continue
        parts, ending = samples.setdefault(match[1], {}), match[2].lower()
        if ending in parts:
            reject(member.name, ImageError("duplicate_member", f"{member.name}: the sample has a member of this name already; the first is kept"))
        parts.setdefault(ending, member)
    seen: set[int] = set()
    for key, parts in samples.items():
        try:
            if not usable_key(key):
                raise ImageError("unusable_key", f"{key[:MAX_KEY_LENGTH]}: the key leads out of the folder, is too long, or is not text")
            if key_number(key) in seen:
                raise ImageError("duplicate_image_id", f"{key}: an earlier sample has the same number; the first is kept")
            sample = _sample(reader, key, parts)
        except ImageError as problem:
            reject(key, problem)
            continue
        seen.add(key_number(key))
        yield sample
    if contents.trailing is not None:
        rejects.append(Reject(file=tar.name, reason="damaged_tar", message=f"{tar.name}: {contents.trailing}"))


def usable_key(key: str) -> bool:
    """Whether a sample may have this key: text of at most 200 characters that stays below the folder if it is taken for a path."""
    return len(key) <= MAX_KEY_LENGTH and key.isprintable() and storable(key) == key and is_inside(key)


def _sample(reader: _TarReader, key: str, parts: dict[str, TarMember]) -> ExternalSample:
    """A sample from its members by extension.

    Raises:
        ImageError: It cannot be used.
    """
    endings = IMAGE_ENDINGS if reader.fields.image is None else (reader.fields.image.lower(),)
    image = next((parts[ending] for ending in endings if ending in parts), None)
    if image is None:
        raise ImageError("no_image", f"{key}: has no image ({', '.join(f'.{ending}' for ending in endings)})")
    stored = reader.contents.follow(image)
    if stored.segments is not None:
        raise ImageError("sparse_image", f"{image.name}: is stored as a sparse file, without its holes. Make the tar again without --sparse")
    data = reader.read(image, MAX_FILE_BYTES)
    size = decode_image(data, image.name).image.size
    if not reader.resize.made(*size):
        raise ImageError(
            "other_size", f"{image.name}: has {size[0]}x{size[1]} pixels, which {reader.resize.mode} {reader.resize.size} does not produce"
        )
    metadata = _metadata(reader, parts)
    number = key_number(key)
    captions = [
        {"id": number if place == 0 else text_number(f"{key}#{place}"), "text": text, "tokens": reader.language.tokenize(text)}
        for place, text in enumerate(_captions(reader, key, parts, metadata))
    ]
    original = metadata.get("original_width"), metadata.get("original_height")
    width, height = original if all(type(side) is int and 0 < side < 1 << 31 for side in original) else size
    record = {"image_id": number, "file_name": image.name, "width": width, "height": height, "captions": captions}
    return ExternalSample(key=key, offset=stored.offset, image=data, record=record)


def _captions(reader: _TarReader, key: str, parts: dict[str, TarMember], metadata: dict[str, Any]) -> list[str]:
    """The captions of a sample, at least one.

    Raises:
        ImageError: There are none.
    """
    asked = reader.fields.caption
    if asked is None:
        found: Any = _text(reader, parts["txt"]) if "txt" in parts else metadata.get("caption")
        sought = f"neither {key}.txt nor caption in {key}.json has text"
    else:
        ending, has_path, path = asked.partition(":")
        sought = f"{key}.{ending} has no text" + (f" at {path}" if has_path else "")
        member = parts.get(ending.lower())
        if member is None:
            found = None
        elif has_path:
            found = _at(_json(reader, member), path)
        else:
            found = _text(reader, member)
    texts = [storable(text) for text in (found if isinstance(found, list) else [found]) if isinstance(text, str)]
    problems = [unusable_caption(text, f"{reader.tar.name}: {key}", f"{key}: caption {place}") for place, text in enumerate(texts, 1)]
    rejects = [problem for problem in problems if problem is not None]
    if len(rejects) == len(texts):
        telling = next((reject for reject in rejects if reject.reason != "empty_caption"), None)
        raise ImageError("no_captions", f"{key}: {sought}") if telling is None else ImageError(telling.reason, telling.message)
    reader.rejects += rejects
    return [text for text, problem in zip(texts, problems, strict=True) if problem is None]


def _metadata(reader: _TarReader, parts: dict[str, TarMember]) -> dict[str, Any]:
    """The object in a sample's JSON; empty if there is none."""
    content = _json(reader, parts["json"]) if "json" in parts else None
    return content if isinstance(content, dict) else {}


def _at(content: Any, path: str) -> Any:
    """What a path of names and list positions, joined by dots, leads to; None if it leads nowhere."""
    for step in path.split("."):
        if isinstance(content, dict):
            content = content.get(step)
        elif isinstance(content, list) and step.isdecimal() and int(step) < len(content):
            content = content[int(step)]
        else:
            return None
    return content


def _json(reader: _TarReader, member: TarMember) -> Any:
    try:
        return json.loads(reader.read(member))
    except (ValueError, RecursionError) as problem:
        raise ImageError("malformed_row", f"{member.name}: not JSON ({problem})") from None


def _text(reader: _TarReader, member: TarMember) -> str:
    try:
        return reader.read(member).decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        raise ImageError("malformed_row", f"{member.name}: not UTF-8 ({problem.reason})") from None
