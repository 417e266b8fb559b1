"""Public datasets: where their archives are published, what these hold, and what to run next.

This module uses the standard library alone, because the doctor command reads it on broken installations too.
"""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Archive:
    """A ZIP archive of a dataset.

    Attributes:
        path: Its path below the dataset's base URL.
        into: The folder that it is unpacked into, relative to the root.
        unpacked: About how many bytes it has unpacked.
        size: The archive's size in bytes, if it is known.
        md5: The archive's MD5 (hex), if it is known.
    """

    path: str
    into: str = ""
    unpacked: int
    size: int | None = None
    md5: str | None = None

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]


@dataclass(frozen=True, kw_only=True)
class NextStep:
    """A command to run after a download, and what it reads.

    Attributes:
        command: What follows ``python cli.py``; ``{root}`` stands for the root folder.
        images: Folders of images, relative to the root.
        captions: The captions file, relative to the root. None if the command only downloads more.
    """

    command: str
    images: tuple[str, ...] = ()
    captions: str | None = None

    def on(self, root: Path) -> str:
        """The command with this root folder."""
        return self.command.format(root=root)

    def possible(self, root: Path) -> bool:
        """Whether the images and captions that it reads exist."""
        return self.captions is not None and (root / self.captions).is_file() and all((root / folder).is_dir() for folder in self.images)


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Where a dataset is published.

    Attributes:
        base_url: The URL that the archives' paths are relative to. None if the publisher has to be asked first.
        page: The dataset's web page.
        parts: The archives by the names of the dataset's parts.
        next_steps: What to run next, by part. The first part that was downloaded and has a command decides.
    """

    base_url: str | None
    page: str
    parts: dict[str, Archive]
    next_steps: dict[str, NextStep]


def _coco(year: int, annotations: tuple[int, str], train: tuple[int, str], val: tuple[int, str]) -> Dataset:
    def archive(folder: str, name: str, known: tuple[int, str], unpacked: float) -> Archive:
        return Archive(path=f"{folder}/{name}{year}.zip", size=known[0], md5=known[1], unpacked=int(known[0] * unpacked))

    def shard(split: str) -> NextStep:
        images, captions = f"{split}{year}", f"annotations/captions_{split}{year}.json"
        command = f"shard --images {{root}}/{images} --captions {{root}}/{captions} --out {{root}}/shards --split {split}"
        return NextStep(command=command, images=(images,), captions=captions)

    return Dataset(
        base_url="http://images.cocodataset.org",
        page="https://cocodataset.org/#download",
        parts={
            "annotations": archive("annotations", "annotations_trainval", annotations, 3.6),
            "train": archive("zips", "train", train, 1.01),
            "val": archive("zips", "val", val, 1.01),
        },
        next_steps={
            "train": shard("train"),
            "val": shard("val"),
            "annotations": NextStep(command=f"download coco{year} --root {{root}} --parts train,val"),
        },
    )


# COCO's page does not give the sizes and MD5 sums of its archives: docs/getting-data.md says where they are from.
DATASETS: dict[str, Dataset] = {
    "coco2014": _coco(
        2014,
        annotations=(252_872_794, "0a379cfc70b0e71301e0f377548639bd"),
        train=(13_510_573_713, "0da8c0bd3d6becc4dcb32757491aca88"),
        val=(6_645_013_297, "a3d79f5ed8d289b7a7554ce06a5782b3"),
    ),
    "coco2017": _coco(
        2017,
        annotations=(252_907_541, "f4bbac642086de4f52a3fdda2de5fa2c"),
        train=(19_336_861_798, "cced6f7f71b7629ddf16f17bbcfab6b2"),
        val=(815_585_330, "442b8da7639aecaf257c1dceb8ba8c80"),
    ),
    "flickr8k": Dataset(
        base_url=None,
        page="https://forms.illinois.edu/sec/1713398",
        parts={
            "images": Archive(path="Flickr8k_Dataset.zip", into="flickr8k", unpacked=1_200_000_000),
            "annotations": Archive(path="Flickr8k_text.zip", into="flickr8k", unpacked=20_000_000),
        },
        next_steps={
            "images": NextStep(
                command="shard --images {root}/flickr8k/Flicker8k_Dataset --captions {root}/flickr8k/Flickr8k.token.txt --out {root}/flickr8k-shards",
                images=("flickr8k/Flicker8k_Dataset",),
                captions="flickr8k/Flickr8k.token.txt",
            )
        },
    ),
    "karpathy-splits": Dataset(
        base_url="https://cs.stanford.edu/people/karpathy/deepimagesent",
        page="https://cs.stanford.edu/people/karpathy/deepimagesent/",
        parts={"annotations": Archive(path="caption_datasets.zip", into="karpathy", size=36_745_453, unpacked=220_000_000)},
        next_steps={
            "annotations": NextStep(
                command="shard --images {root} --captions {root}/karpathy/dataset_coco.json --out {root}/shards",
                images=("train2014", "val2014"),
                captions="karpathy/dataset_coco.json",
            )
        },
    ),
}
