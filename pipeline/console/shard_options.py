"""The options for shards, which may be at a URL, and for the local cache of such shards."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from pipeline.console.options import PATH, grouped, location
from shards.paths import Location


@dataclass(frozen=True, kw_only=True)
class ShardCache:
    """The local cache of shards at a URL.

    Attributes:
        folder: Where it is.
        max_bytes: Maximum total size of the cached tars.
    """

    folder: Path
    max_bytes: int

    def local(self, shards: Location) -> Path:
        """The folder of a shard dataset; if it is at a URL, its mirror in the cache."""
        from shards.remote import localize

        return localize(shards, cache=self.folder, cache_bytes=self.max_bytes)

    def local_or_none(self, shards: Location | None) -> Path | None:
        """As :meth:`local`; None if there are no shards."""
        return self.local(shards) if shards is not None else None


def default_shard_cache() -> Path:
    """The default of ``--shard-cache``."""
    from shards.mirror import default_cache

    return default_cache()


def _shard_cache(shard_cache: Path, shard_cache_gb: float) -> ShardCache:
    return ShardCache(folder=shard_cache, max_bytes=int(shard_cache_gb * 1e9))


# The command gets a ShardCache as ``shard_cache``.
shard_cache_options = grouped(
    "shard_cache",
    _shard_cache,
    click.option(
        "--shard-cache",
        type=PATH,
        default=default_shard_cache,
        show_default="~/.cache/capstream",
        help="Local cache folder for shards at a URL.",
    ),
    click.option(
        "--shard-cache-gb",
        type=click.FloatRange(min=0, min_open=True),
        default=50.0,
        help="Maximum size of the shard cache in gigabytes. The least recently used shards are deleted first.",
    ),
)


def shards_options(help_text: str, *, required: bool = False, show_default: str | bool = True) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """``--shards``, and the options of the cache for shards at a URL."""
    shards = click.option("--shards", type=location, metavar="PATH|URL", required=required, default=None, show_default=show_default, help=help_text)
    return lambda function: shards(shard_cache_options(function))
