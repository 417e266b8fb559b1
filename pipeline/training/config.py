"""What a training is given besides its settings: the data, and the machine that it runs on."""

from dataclasses import dataclass
from pathlib import Path

from shards.mirror import DEFAULT_CACHE_BYTES


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The data to train on.

    Attributes:
        features, shards: A folder of feature files, or a shard dataset. A new run needs exactly one; a resumed run by default uses its own.
        vocab: A vocabulary file; by default the vocabulary is built from the training captions.
        backbone, weights: With ``shards``: the frozen backbone, and its weights.
        shard_cache, shard_cache_bytes: The local cache for the remote shards of a resumed run, and its size, as for
            :func:`shards.remote.localize`.
    """

    features: Path | None = None
    shards: Path | None = None
    vocab: Path | None = None
    backbone: str | None = None
    weights: str | None = None
    shard_cache: Path | None = None
    shard_cache_bytes: int = DEFAULT_CACHE_BYTES


@dataclass(frozen=True, kw_only=True)
class RuntimeConfig:
    """The machine that a training runs on, and its terminal.

    Attributes:
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1`` ...
        workers: Threads that decode images; by default one per core. The batches do not depend on it.
        feature_memory_bytes: Cached features that need more memory are read from their file while they are needed; by default half of the
            available memory. The batches do not depend on it.
        quiet: Show no progress bars.
    """

    device: str = "auto"
    workers: int | None = None
    feature_memory_bytes: int | None = None
    quiet: bool = True
