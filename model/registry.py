"""Registries: the kinds of a thing by name, such as decoders or metrics.

An entry may be given as ``"package.module:attribute"``. It is then imported when it is first asked for, so that listing the names
costs nothing.
"""

import difflib
import importlib
from collections.abc import Iterator, Mapping
from typing import Generic, TypeVar, cast

T = TypeVar("T")


class Registry(Mapping[str, T], Generic[T]):
    """The kinds of a thing by name, in the order of registration.

    Args:
        what: What an entry is, in the singular, for error messages.
        entries: The first entries.

    >>> shapes = Registry[float]("shape", pi="math:pi")
    >>> shapes.register("one", 1.0)
    >>> list(shapes), shapes["one"], round(shapes["pi"], 2)
    (['pi', 'one'], 1.0, 3.14)
    """

    def __init__(self, what: str, **entries: T | str) -> None:
        self.what = what
        self._entries: dict[str, T | str] = {}
        for name, entry in entries.items():
            self.register(name, entry)

    def register(self, name: str, entry: T | str) -> None:
        """Add an entry, or the place to import it from.

        Raises:
            ValueError: The name is taken.
        """
        if name in self._entries:
            raise ValueError(f"{self.what} {name!r} is registered already")
        self._entries[name] = entry

    def unregister(self, name: str) -> None:
        """Remove an entry; KeyError if there is none."""
        del self._entries[name]

    def __getitem__(self, name: str) -> T:
        """The entry of this name, imported if need be.

        Raises:
            KeyError: There is none. :meth:`unknown` has a message for people.
        """
        entry = self._entries[name]
        if isinstance(entry, str):
            module, _, attribute = entry.partition(":")
            entry = cast("T", getattr(importlib.import_module(module), attribute))
            self._entries[name] = entry
        return entry

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def unknown(self, name: str) -> str:
        """A sentence or two about a name that is not registered.

        >>> Registry[float]("shape", circle="math:pi").unknown("circel")
        "There is no shape 'circel'. Did you mean circle? Choose one of: circle."
        """
        near = difflib.get_close_matches(name, self._entries, n=1)
        guess = f" Did you mean {near[0]}?" if near else ""
        return f"There is no {self.what} {name!r}.{guess} Choose one of: {', '.join(self._entries)}."
