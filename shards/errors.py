"""What can go wrong, as a tree. Every message names the file, the value and the next step.

CapstreamError
├── InputError       what the user gave is missing, malformed or makes no sense
├── DamageError      an artefact of ours fails its own checks (cut, flipped bits, hostile content)
├── MismatchError    two sound artefacts that do not belong together
├── OccupiedError    the output folder holds something else, or another process is writing to it
├── ResourceError    the machine refuses: disk full, no permission, no network
└── SaidElsewhereError  another process of the same training reports what went wrong
"""

from typing import Literal

# What is done about a damaged sample.
OnError = Literal["fail", "skip"]


class CapstreamError(Exception):
    """Base of all expected failures: the command line prints the message and exits with 1."""


class InputError(CapstreamError):
    """The user's input is missing, malformed or impossible."""


class DamageError(CapstreamError):
    """An artefact is damaged: what it holds is not what was committed."""


class MismatchError(CapstreamError):
    """Two artefacts were not made from the same thing; the message names both sides."""


class OccupiedError(CapstreamError):
    """The output is taken, by other content or by another process."""


class ResourceError(CapstreamError):
    """The machine refuses: disk, permissions, network or memory."""


class SaidElsewhereError(CapstreamError):
    """Another process of the same training reports what went wrong; this one only ends."""


def first_line(error: Exception) -> str:
    r"""The first line of another library's error, at most 200 characters; its type's name where it says nothing.

    >>> first_line(ValueError("no such device\nstack: ..."))
    'no such device'
    """
    return next(iter(str(error).splitlines()), type(error).__name__)[:200]
