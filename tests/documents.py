"""The code blocks of the documentation, and the files that its readers have.

A block is indented by four spaces, or fenced with its language. A block without a language whose first line begins with one of
:data:`COMMANDS` holds commands. A comment directly before a block excludes it from execution and gives the reason::

    <!-- not run: downloads 19 GB -->

If the line before a block ends with a file name in backticks and a colon, the block is the content of this file.
A comment at the top of a document lists the files that its reader already has::

    <!-- the reader has: data/shards, runs/first -->
"""

import io
import json
import re
import shutil
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]
import torch
from click.testing import CliRunner
from PIL import Image

from cli import cli
from model.torchvision_loading import torchvision_models
from tests import ROOT

DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/*.md"))]
COMMANDS = ("python ", "torchrun ", "make ", "pip ", ".venv/bin/", "find ", "cat ", "CAPSTREAM_", ". ")
MY_PHOTOS = [f"my-photos/{name}.jpg" for name in ("garden", "beach", "street", "kitchen")]
PHOTOS = ("holiday.jpg", "photos/a.jpg", "photos/b.jpg", *MY_PHOTOS)
NOT_RUN = re.compile(r"<!-- not run: (.+?) -->")
FILE = re.compile(r"`([\w.-]+)`:$")
HAS = re.compile(r"<!-- the reader has: (.+?) -->")


@dataclass(frozen=True)
class Block:
    """One code block.

    Attributes:
        line: The number of its first line.
        language: The language of a fenced block, or an empty string.
        not_run: Why the block is not executed, or None.
        file: The name of the file whose content it is, or None.
    """

    document: Path
    line: int
    text: str
    language: str
    not_run: str | None
    file: str | None

    def __str__(self) -> str:
        return f"{self.document.name}:{self.line}"

    @property
    def commands(self) -> list[str]:
        """The command lines, with continuation lines joined."""
        joined = self.text.replace("\\\n", " ")
        return [line.strip() for line in joined.splitlines() if line.strip() and not line.lstrip().startswith("#")]

    @property
    def is_commands(self) -> bool:
        return not self.language and self.file is None and self.text.startswith(COMMANDS)


def blocks(document: Path) -> Iterator[Block]:
    """All code blocks of a document in order."""
    lines = document.read_text().splitlines()
    number, before = 0, ""  # before: the last line that is not empty
    while number < len(lines):
        line, start = lines[number], number + 1
        fenced = line.startswith("```")
        held = []
        if fenced:
            number += 1
            while not lines[number].startswith("```"):
                held.append(lines[number])
                number += 1
        elif line.startswith("    ") and (not lines[number - 1].strip() or lines[number - 1].endswith("-->")):
            while number < len(lines) and (lines[number].startswith("    ") or not lines[number].strip()):
                held.append(lines[number][4:])
                number += 1
            number -= 1
        if held:
            not_run, file = NOT_RUN.search(before), FILE.search(before)
            yield Block(
                document=document,
                line=start,
                text="\n".join(held).strip("\n"),
                language=line[3:].strip() if fenced else "",
                not_run=not_run[1] if not_run else None,
                file=file[1] if file else None,
            )
        if line.strip():
            before = line
        number += 1


def reader_has(document: Path) -> list[str]:
    """The files and folders that the reader has before a document's first command."""
    found = HAS.search(document.read_text())
    return [name.strip() for name in found[1].split(",")] if found else []


def prepare(base: Path) -> None:
    """Make everything that readers of any document have, at the documented paths: small datasets of drawn images, features and runs."""
    run("synth", base / "drawn", "--images", 20, "--seed", 3, "--workers", 1)
    for split in ("train", "val"):
        content = json.loads((base / f"drawn/captions_{split}.json").read_text())
        for image in content["images"]:
            old, image["file_name"] = image["file_name"], f"COCO_{split}2014_{image['id']:012d}.jpg"
            place = base / f"data/{split}2014" / image["file_name"]
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(base / "drawn/images" / old, place)
        target = base / f"data/annotations/captions_{split}2014.json"
        target.parent.mkdir(exist_ok=True)
        target.write_text(json.dumps(content))
        run("shard", "--images", place.parent, "--captions", target, "--out", base / "data/shards", "--split", split, "--workers", 1)
    (base / "my-photos").mkdir()
    (base / "photos").mkdir()
    pictures = sorted((base / "data/train2014").iterdir())
    for name, picture in zip(PHOTOS, pictures, strict=False):
        shutil.copyfile(picture, base / name)
    run("vocab", "--shards", base / "data/shards", "--out", base / "data/vocab.json")
    run("cache-features", "--shards", base / "data/shards", "--out", base / "data/features", "--backbone", "squeezenet1_1", "--weights", "random")
    for name in ("first", "second"):
        folder, options = base / "runs" / name, ("--hidden-dim", 32, "--epochs", 1)
        run("train", "--features", base / "data/features", "--vocab", base / "data/vocab.json", "--out", folder, *options)
        run("evaluate", "--run", folder, "--features", base / "data/features", "--no-java")
    other_forms(base)
    tars(base)


def other_forms(base: Path) -> None:
    """Copy the images to Flickr8k's folder; write the captions as Karpathy file, token file with split lists, CSV and JSON lines; write features."""
    images: list[dict[str, Any]] = []
    for split in ("train", "val"):
        content = json.loads((base / f"data/annotations/captions_{split}2014.json").read_text())
        for image in content["images"]:
            sentences = [{"raw": a["caption"]} for a in content["annotations"] if a["image_id"] == image["id"]]
            folder, number = f"{split}2014", len(images)
            images.append({"filename": image["file_name"], "filepath": folder, "imgid": number, "split": split, "sentences": sentences})
    (base / "data/dataset_coco.json").write_text(json.dumps({"images": [*images[:-1], {**images[-1], "split": "test"}]}))
    for folder in ("data/Flickr8k", "data/photos"):
        (base / folder).mkdir()
        for image in images:
            shutil.copyfile(base / "data" / image["filepath"] / image["filename"], base / folder / image["filename"])
            if folder == "data/photos":
                del image["filepath"]
    (base / "dataset_flickr8k.json").write_text(json.dumps({"images": images}))
    lines = [f"{image['filename']}#{n}\t{sentence['raw']}\n" for image in images for n, sentence in enumerate(image["sentences"])]
    (base / "Flickr8k.token.txt").write_text("".join(lines))
    for name, part in (("train", images[:-4]), ("dev", images[-4:-2]), ("test", images[-2:])):
        (base / f"Flickr_8k.{name}Images.txt").write_text("".join(f"{image['filename']}\n" for image in part))
    (base / "photos.csv").write_text("image,caption\n" + "".join(f"{image['filename']},a drawing\n" for image in images))
    (base / "korean.csv").write_bytes(("image,caption\n" + "".join(f"{image['filename']},그림\n" for image in images)).encode("cp949"))
    (base / "more.jsonl").write_text("".join(json.dumps({"image": i["filename"], "caption": "shapes in colours"}) + "\n" for i in images))
    rows = [
        {"image": {"bytes": (base / "data/photos" / i["filename"]).read_bytes(), "path": i["filename"]}, "caption": ["a drawing"]} for i in images
    ]
    (base / "data/hub").mkdir()
    for number in range(2):
        pq.write_table(pa.Table.from_pylist(rows[number::2]), base / f"data/hub/train-{number:05d}-of-00002.parquet")
    np.save(base / "features.npy", np.random.default_rng(0).random((len(images), 2048), dtype=np.float32).astype(np.float16))


def tars(base: Path) -> None:
    """Write tars in img2dataset's form: a JPEG of 256 x 256 pixels, a caption and a JSON file per key."""
    pictures = sorted((base / "data/train2014").iterdir())
    for folder in ("data/cc3m", "data/two-splits"):
        (base / folder).mkdir()
        for shard in (0, 330):
            with tarfile.open(base / folder / f"{shard:05d}.tar", "w") as tar:
                for number, picture in enumerate(pictures[:4]):
                    jpeg = io.BytesIO()
                    Image.open(picture).convert("RGB").resize((256, 256)).save(jpeg, "JPEG")
                    for ending, data in (("jpg", jpeg.getvalue()), ("txt", b"shapes in colours"), ("json", b"{}")):
                        member = tarfile.TarInfo(f"{shard:05d}{number:04d}.{ending}")
                        member.size = len(data)
                        tar.addfile(member, io.BytesIO(data))


def prepare_weights(home: Path) -> None:
    """Write a ResNet-152 with random weights under the name of the published file in torch's download cache."""
    folder = home / "hub/checkpoints"
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    # Without zero-initialised residual branches, the random activations would overflow.
    torch.save(torchvision_models().resnet152(zero_init_residual=True).state_dict(), folder / "resnet152-394f9c45.pth")


def run(*arguments: object) -> None:
    """Run a command that must succeed."""
    done = CliRunner().invoke(cli, [str(argument) for argument in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
