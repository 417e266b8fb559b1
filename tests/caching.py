"""``cache_features`` with the fields of its config as keyword arguments, which tests vary one at a time."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.execution.array_tasks import ArrayTask
from pipeline.execution.executors import Cluster
from pipeline.features import cache_features as module
from pipeline.features.cache_features import CacheConfig, CacheSummary
from shards.paths import Location


def cache_features(
    *,
    shards: Path,
    out: Location,
    cluster: Cluster | None = None,
    array_task: ArrayTask | None = None,
    report: Callable[[str], None] = lambda _: None,
    quiet: bool = True,
    **config: Any,
) -> list[CacheSummary]:
    """As :func:`pipeline.features.cache_features.cache_features`."""
    return module.cache_features(
        shards=shards, out=out, config=CacheConfig(**config), cluster=cluster, array_task=array_task, report=report, quiet=quiet
    )
