"""Versions of installed packages, recorded in every artefact. The standard library alone."""

import functools
from importlib.metadata import PackageNotFoundError, version


@functools.cache
def library_versions(*packages: str) -> dict[str, str]:
    """Installed versions of ``packages``, without those that are not installed."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
