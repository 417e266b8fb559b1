"""Code blocks of the documentation, and the folder in which they are run.

A block is indented by four spaces. Commands are blocks whose first line begins with one of :data:`COMMANDS`; other blocks show files or
layouts. A comment before a block says why it is not run::

    <!-- not run: downloads 19 GB -->

A block that is the content of a file follows a line that ends in the file's name in backticks and a colon: the reader writes it.
A comment in the document's head says what its reader has already: names of :data:`PREPARED`::

    <!-- the reader has: data/shards, runs/first -->
"""

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from click.testing import CliRunner

from cli import cli
from model.torchvision_loading import torchvision_models

ROOT = Path(__file__).parent.parent
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/*.md"))]
COMMANDS = ("python ", "torchrun ", "make ", "pip ", ".venv/bin/", "find ", "cat ", "export ", "CAPSTREAM_", "srun ", "sbatch ", "ray ", "git ", ". ")
NOT_RUN = re.compile(r"<!-- not run: (.+?) -->")
FILE = re.compile(r"`([\w.-]+)`:$")
HAS = re.compile(r"<!-- the reader has: (.+?) -->")


@dataclass(frozen=True)
class Block:
    """One code block.

    Attributes:
        line: Its first line's number.
        not_run: Why it is not run, if it is not.
        file: The name of the file that the sentence before says it is.
    """

    document: Path
    line: int
    text: str
    not_run: str | None
    file: str | None

    @property
    def commands(self) -> list[str]:
        """The command lines, continued ones joined."""
        joined = self.text.replace("\\\n", " ")
        return [line.strip() for line in joined.splitlines() if line.strip() and not line.lstrip().startswith("#")]

    @property
    def is_commands(self) -> bool:
        return self.text.startswith(COMMANDS)


def blocks(document: Path) -> Iterator[Block]:
    """All code blocks of a document, in order."""
    lines = [*document.read_text().splitlines(), ""]
    begun, held = 0, list[str]()
    reason: str | None = None
    file: str | None = None
    for number, line in enumerate(lines, 1):
        inside = line.startswith("    ") or (held and not line.strip() and number < len(lines) and lines[number].startswith("    "))
        if inside and (held or not lines[number - 2].strip()):
            begun = begun if held else number
            held.append(line[4:])
            continue
        if held:
            yield Block(document, begun, "\n".join(held).rstrip(), reason, file)
            held, reason, file = [], None, None
        if line.strip():
            reason = found[1] if (found := NOT_RUN.search(line)) else None
            file = found[1] if (found := FILE.search(line)) else None


def reader_has(document: Path) -> list[str]:
    """Names of what is there before a document's first command."""
    found = HAS.search(document.read_text())
    return [name.strip() for name in found[1].split(",")] if found else []


def prepare(base: Path) -> None:
    """Everything that readers of any document have: tiny, drawn, and in the places that the documents name."""
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
    pictures = sorted((base / "data/val2014").iterdir())
    for name in ("holiday.jpg", "photographs/a.jpg", "photographs/b.jpg"):
        (base / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(pictures[0], base / name)
    run("vocab", "--shards", base / "data/shards", "--out", base / "data/vocab.json")
    run("cache-features", "--shards", base / "data/shards", "--out", base / "data/features", "--backbone", "squeezenet1_1", "--weights", "random")
    for name in ("first", "second"):
        folder, options = base / "runs" / name, ("--hidden-dim", 32, "--epochs", 1)
        run("train", "--features", base / "data/features", "--vocab", base / "data/vocab.json", "--out", folder, *options)
        run("evaluate", "--run", folder, "--features", base / "data/features")
    karpathy(base)


def karpathy(base: Path) -> None:
    """``features.npy`` and ``dataset_flickr8k.json``: 20 images' features and captions, in Karpathy's form."""
    images: list[dict[str, object]] = []
    for split in ("train", "val"):
        content = json.loads((base / f"data/annotations/captions_{split}2014.json").read_text())
        for image in content["images"]:
            sentences = [{"raw": a["caption"]} for a in content["annotations"] if a["image_id"] == image["id"]]
            images.append({"filename": image["file_name"], "imgid": len(images), "split": split, "sentences": sentences})
    (base / "dataset_flickr8k.json").write_text(json.dumps({"images": images, "dataset": "flickr8k"}))
    np.save(base / "features.npy", np.random.default_rng(0).random((len(images), 2048), dtype=np.float32).astype(np.float16))


def prepare_weights(home: Path) -> None:
    """ResNet-152's published file, where torch keeps its downloads, with random weights in it."""
    folder = home / "hub/checkpoints"
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    # So many random blocks would overflow, unless each begins at nothing.
    torch.save(torchvision_models().resnet152(zero_init_residual=True).state_dict(), folder / "resnet152-394f9c45.pth")


def run(*arguments: object) -> None:
    """A command that has to go well."""
    done = CliRunner().invoke(cli, [str(argument) for argument in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
