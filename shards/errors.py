"""What can go wrong, as a tree. Every message names the file, the value and the next step.

CapstreamError
├── InputError       the user's input is missing, malformed or impossible
│   └── SettingsError    settings that are impossible, or do not go together, whatever the files contain: wrong usage
├── DamageError      a file that Capstream wrote fails its own checks (truncated, flipped bits, hostile content)
├── MismatchError    two intact artefacts that do not belong together
├── OccupiedError    the output folder holds something else, or another process is writing to it
├── ResourceError    the machine refuses: disk full, no permission, no network
│   └── NoSpaceError     a disk is full
└── ReportedElsewhereError  another process of the same training reports the error
"""

from pathlib import Path
from typing import Literal

# What to do about a damaged sample.
OnError = Literal["fail", "skip"]


class CapstreamError(Exception):
    """Base of all expected failures: the command line prints the message and exits with 1."""


class InputError(CapstreamError):
    """The user's input is missing, malformed or impossible."""


class SettingsError(InputError):
    """A setting is impossible, or does not go with another one, whatever the files contain: wrong usage, for which the command line exits with 2."""


class DamageError(CapstreamError):
    """An artefact is damaged: its content is not what was committed."""


class MismatchError(CapstreamError):
    """Two artefacts were not made from the same source; the message names both sides."""


class OccupiedError(CapstreamError):
    """The output is in use, by other content or by another process."""


class ResourceError(CapstreamError):
    """The machine refuses: disk, permissions, network or memory."""


class NoSpaceError(ResourceError):
    """A disk is full.

    Args:
        path: The file or folder that was being written.
        reason: The operating system's words.
        advice: The next step.
    """

    def __init__(self, path: Path, reason: str | None, advice: str) -> None:
        super().__init__(f"{path}: no space left ({reason}). {advice}")
        self.path, self.reason = path, reason


class ReportedElsewhereError(CapstreamError):
    """Another process of the same training reports the error; this process only ends."""


def first_line(error: Exception) -> str:
    r"""The first line of another library's error, at most 200 characters; the name of its type if it has no message.

    >>> first_line(ValueError("no such device\nstack: ..."))
    'no such device'
    """
    return next(iter(str(error).splitlines()), type(error).__name__)[:200]
