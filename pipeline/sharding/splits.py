"""Finished shards -> a split of a dataset, whoever made them: what they hold, ``rejects.jsonl``, and the entry in ``dataset.json``."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.images.decode import ImageError
from shards.atomic import hold_lock
from shards.dataset import DatasetFile, read_dataset_file
from shards.digests import file_sha256
from shards.errors import DamageError, InputError, MismatchError
from shards.layout import DATASET_FILE, REJECTS_FILE, records_path, sidecar_path, tar_path
from shards.output import Output
from shards.rejects import write_rejects
from shards.sidecar import Sidecar, read_sidecar, reject_lines, split_digest


@dataclass(frozen=True, kw_only=True)
class ShardSummary:
    """What a run did to one split, or to its share of one, which is then not committed yet."""

    shards: int
    kept: int
    images: int
    captions: int
    rejects: dict[str, int]
    digest: str
    committed: bool


class SourceImages:
    """What was read of a shard's photographs: the size of each, None for one that cannot be read, and a SHA-256 over all.

    That is over the SHA-256 of each file in order, zeros for one that cannot be read.
    """

    def __init__(self) -> None:
        self.sizes: list[int | None] = []
        self._hash = hashlib.sha256()

    def add(self, data: bytes | ImageError) -> None:
        """Add the next photograph's bytes."""
        self.sizes.append(len(data) if isinstance(data, bytes) else None)
        self._hash.update(hashlib.sha256(data).digest() if isinstance(data, bytes) else bytes(32))

    def digest(self) -> str:
        return self._hash.hexdigest()


def whole_sidecar(output: Output, tar: Path) -> Sidecar | None:
    """The sidecar of a shard that is whole to the last byte, records beside it too, or None. In S3 the tar's mark stands for its bytes."""
    output.fetch([sidecar_path(tar).name])
    try:
        sidecar = read_sidecar(sidecar_path(tar))
        if output.url is not None:
            whole = output.stat(tar.name) == (sidecar.tar_bytes, sidecar.tar_sha256)
        else:
            whole = tar.stat().st_size == sidecar.tar_bytes and file_sha256(tar) == sidecar.tar_sha256
            whole = whole and (sidecar.records is None or file_sha256(records_path(tar)) == sidecar.records.sha256)
    except (InputError, DamageError, MismatchError, OSError):
        return None
    return sidecar if whole else None


def differences(there: dict[str, Any], now: dict[str, Any]) -> str:
    """What two configs or plans do not have in common, in words; nothing if they are the same."""
    there, now = _flat(there), _flat(now)
    return "; ".join(f"{key} is {there.get(key)!r} there, {now.get(key)!r} now" for key in {**there, **now} if there.get(key) != now.get(key))


def _flat(content: dict[str, Any]) -> dict[str, Any]:
    """Nested dictionaries as one, with dotted names."""
    flat: dict[str, Any] = {}
    for key, value in content.items():
        flat |= {f"{key}.{name}": inner for name, inner in _flat(value).items()} if isinstance(value, dict) else {key: value}
    return flat


def summary_of(sidecars: Sequence[Sidecar], *, kept: int, committed: bool) -> ShardSummary:
    """The counts of a split's shards, or of some of them."""
    reasons = Counter(reject.reason for sidecar in sidecars for reject in sidecar.rejects)
    return ShardSummary(
        shards=len(sidecars),
        kept=kept,
        images=sum(len(sidecar.samples) for sidecar in sidecars),
        captions=sum(sample.captions for sidecar in sidecars for sample in sidecar.samples),
        rejects=dict(sorted(reasons.items())),
        digest=split_digest(sidecars),
        committed=committed,
    )


def commit_split(
    output: Output, split: str, config: dict[str, Any], plan: dict[str, Any], summary: ShardSummary, sidecars: Sequence[Sidecar]
) -> None:
    """All shards are there: write ``rejects.jsonl``, and the split into ``dataset.json`` if any image is usable.

    Args:
        config: Of the dataset.
        plan: What ``dataset.json`` is to say of the split, beside the numbers.
        sidecars: Of all its shards, in order; ``summary`` is of these.
    """
    out = output.folder
    with hold_lock(out, "dataset", f"finishing a split of {out.name}"):
        output.fetch([DATASET_FILE])  # another split may be in it by now
        known = read_dataset_file(out).splits if (out / DATASET_FILE).is_file() else {}
        entry = {
            **plan,
            "shards": summary.shards,
            "images": summary.images,
            "captions": summary.captions,
            "rejects": summary.rejects,
            "versions": sidecars[0].versions,
            "digest": summary.digest,
        }
        splits = {**known, split: entry} if summary.images else known
        gather_rejects(output, split, sidecars)
        if summary.images and known.get(split) != entry:
            DatasetFile(config=config, splits=dict(sorted(splits.items()))).write(out)
            output.upload(DATASET_FILE)


def gather_rejects(output: Output, split: str, sidecars: Sequence[Sidecar]) -> None:
    """Gather ``rejects.jsonl`` from this split's sidecars and those of the splits that are there already."""
    out = output.folder
    known = read_dataset_file(out).splits if (out / DATASET_FILE).is_file() else {}
    lines = []
    for name in sorted({*known, split}):
        of_split = sidecars
        if name != split:
            paths = [sidecar_path(tar_path(out, name, known[name], index)) for index in range(known[name]["shards"])]
            output.fetch(path.name for path in paths)
            of_split = [read_sidecar(path) for path in paths]
        lines += reject_lines(name, of_split)
    output.fetch([REJECTS_FILE])
    if write_rejects(out, lines):
        output.upload(REJECTS_FILE)
