"""Finished shards, written here or elsewhere, become a split of a dataset: their counts, ``rejects.jsonl``, and the entry in ``dataset.json``."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.execution.library_warnings import FileWarnings
from shards.atomic import hold_lock, remove_leftovers
from shards.dataset import DatasetFile, read_dataset_file
from shards.digests import file_sha256
from shards.errors import DamageError, InputError, MismatchError
from shards.layout import DATASET_FILE, REJECTS_FILE, records_path, sidecar_path, tar_path
from shards.output import Output
from shards.rejects import write_rejects
from shards.sidecar import Sidecar, read_sidecar, reject_lines, split_digest


@dataclass(frozen=True, kw_only=True)
class SplitSummary:
    """What a run did to one split, or to the shards of one array task.

    Attributes:
        shards: The number of shards.
        kept: How many of them were up to date.
        rejects: How many images were rejected, by reason.
        digest: Identifies the content; as :func:`shards.sidecar.split_digest`.
        committed: Whether ``dataset.json`` has the split. An array task does not commit it.
        warnings: The images that were used despite a warning, in the shards that were written.
    """

    shards: int
    kept: int
    images: int
    captions: int
    rejects: dict[str, int]
    digest: str
    committed: bool
    warnings: FileWarnings


def intact_sidecar(output: Output, tar: Path) -> Sidecar | None:
    """The sidecar of a shard whose bytes are all as the sidecar says, its file of records included; else None.

    A tar in S3 is not read: its mark is compared.
    """
    output.fetch([sidecar_path(tar).name])
    try:
        sidecar = read_sidecar(sidecar_path(tar))
        if output.url is not None:
            intact = output.stat(tar.name) == (sidecar.tar_bytes, sidecar.tar_sha256)
        else:
            intact = tar.stat().st_size == sidecar.tar_bytes and file_sha256(tar) == sidecar.tar_sha256
            intact = intact and (sidecar.records is None or file_sha256(records_path(tar)) == sidecar.records.sha256)
    except (InputError, DamageError, MismatchError, OSError):
        return None
    return sidecar if intact else None


def differences(before: dict[str, Any], now: dict[str, Any]) -> str:
    """How two configs or plans differ, in words; empty if they are the same."""
    before, now = _flat(before), _flat(now)
    return "; ".join(f"{key} was {before.get(key)!r} and is {now.get(key)!r} now" for key in {**before, **now} if before.get(key) != now.get(key))


def _flat(content: dict[str, Any]) -> dict[str, Any]:
    """A nested dictionary as a flat one with dotted names."""
    flat: dict[str, Any] = {}
    for key, value in content.items():
        flat |= {f"{key}.{name}": inner for name, inner in _flat(value).items()} if isinstance(value, dict) else {key: value}
    return flat


def summary_of(sidecars: Sequence[Sidecar], *, kept: int, committed: bool, warnings: FileWarnings) -> SplitSummary:
    """The counts of a split's shards, or of some of them."""
    reasons = Counter(reject.reason for sidecar in sidecars for reject in sidecar.rejects)
    return SplitSummary(
        shards=len(sidecars),
        kept=kept,
        images=sum(len(sidecar.samples) for sidecar in sidecars),
        captions=sum(sample.captions for sidecar in sidecars for sample in sidecar.samples),
        rejects=dict(sorted(reasons.items())),
        digest=split_digest(sidecars),
        committed=committed,
        warnings=warnings,
    )


def commit_split(
    output: Output, split: str, config: dict[str, Any], plan: dict[str, Any], summary: SplitSummary, sidecars: Sequence[Sidecar]
) -> None:
    """Write ``rejects.jsonl`` and, if any image is usable, the split's entry in ``dataset.json``. All its shards are complete.

    Args:
        output: The dataset's folder.
        split: The split's name.
        config: The dataset's config.
        plan: What the entry says in addition to the counts.
        summary: The split's counts.
        sidecars: The sidecars of all its shards, in order.
    """
    out = output.folder
    with hold_lock(out, "dataset", f"finishing a split of {out.name}"):
        output.fetch([DATASET_FILE])  # another process may have added a split
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
        for name in (DATASET_FILE, REJECTS_FILE):
            remove_leftovers(out / name)  # they are not written again if they are up to date
        write_all_rejects(output, split, sidecars)
        if summary.images and known.get(split) != entry:
            DatasetFile(config=config, splits=dict(sorted(splits.items()))).write(out)
            output.upload(DATASET_FILE)


def write_all_rejects(output: Output, split: str, sidecars: Sequence[Sidecar]) -> None:
    """Write ``rejects.jsonl`` from this split's sidecars and from those of the splits that are in ``dataset.json``."""
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
