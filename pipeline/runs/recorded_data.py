"""The data that a run was trained on, as its config records them: what to use where a command is given none."""

from pathlib import Path

from pipeline.runs.run import RunConfig
from shards.errors import InputError
from shards.mirror import DEFAULT_CACHE_BYTES
from shards.remote import localize


def recorded_data(run: Path, config: RunConfig, *, cache: Path | None = None, cache_bytes: int = DEFAULT_CACHE_BYTES) -> Path:
    """The folder of features or shards that a run was trained on: ``config.source`` says which. Remote shards are mirrored in the cache.

    Args:
        run: The run's folder, for messages.
        config: Its config.
        cache, cache_bytes: As for :func:`shards.remote.localize`.

    Raises:
        InputError: They are no longer there.
        ResourceError: Remote shards cannot be fetched.
    """
    folder = localize(config.data if "://" in config.data else Path(config.data), cache=cache, cache_bytes=cache_bytes)
    if not folder.is_dir():
        raise InputError(f"{run}: its {config.source} in {config.data} are no longer there. Give `{config.source}`, the folder where they are now.")
    return folder
