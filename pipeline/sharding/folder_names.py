"""A file name of the captions -> the file in the images' folder, where the two write the name differently.

Names differ in the Unicode form of letters (macOS writes NFD), in upper and lower case, and in back-slashes of Windows. A file is found if it is
the only one that differs in no more than that; the exact name always comes first.
"""

import os
import unicodedata
from pathlib import Path, PurePosixPath

from shards.paths import same_name


class FolderNames:
    """The names in a folder and in those below it, listed when they are first needed.

    Args:
        folder: The images' folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._listed: dict[Path, dict[str, list[str]]] = {}

    def find(self, name: str) -> Path | None:
        """The file that a name means if there is no file of exactly this name; None if there is none, or more than one."""
        for variant in dict.fromkeys((name, name.replace("\\", "/"))):
            place: Path | None = self._folder
            for part in PurePosixPath(variant).parts:
                place = self._entry(place, part) if place is not None else None
            if place is not None and place.is_file():
                return place
        return None

    def explanation(self, name: str) -> str:
        """Why a name that :meth:`find` does not find may be missing: names that it may mean, or a folder where it exists. Empty if unknown."""
        path = PurePosixPath(name.replace("\\", "/"))
        same = self._entries(self._folder / path.parent).get(_folded(path.name), [])
        if len(same) > 1:
            return f"; {', '.join(same[:5])} differ from it in upper and lower case only: use the name of one of them"
        above = self._folder.absolute().parent
        return f"; {above / path} exists: give `images` {above}" if (above / path).is_file() else ""

    def _entry(self, folder: Path, part: str) -> Path | None:
        same = self._entries(folder).get(_folded(part), [])
        if part in same:
            return folder / part
        of_form = [each for each in same if same_name(each) == same_name(part)]
        chosen = of_form or same
        return folder / chosen[0] if len(chosen) == 1 else None

    def _entries(self, folder: Path) -> dict[str, list[str]]:
        if folder not in self._listed:
            entries: dict[str, list[str]] = {}
            try:
                for each in sorted(os.listdir(folder)):  # noqa: PTH208 - half of the time of iterdir
                    entries.setdefault(_folded(each), []).append(each)
            except (OSError, ValueError):
                entries = {}
            self._listed[folder] = entries
        return self._listed[folder]


def _folded(name: str) -> str:
    """The same for names that differ in their Unicode form, or in upper and lower case (Unicode Standard, section 3.13)."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
