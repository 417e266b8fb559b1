"""Warnings and log records of other libraries, which would otherwise be written to standard error as they are.

Those about a file are gathered with the file's name (:func:`gathered_warnings`, :func:`warnings_about`). The command line prints all others as
notes (:func:`print_library_messages`), in its worker processes too. :func:`warnings.catch_warnings` is not safe in threads, and images are decoded
in threads; so there is one hook for the process, which asks each thread who receives its warnings.
"""

import contextlib
import logging
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.execution.messages import MessageSettings, print_note

# Python shows a warning once for each place in the code, but each file's is needed.
FILE_LIBRARIES = r"(PIL|pillow_heif|pipeline\.images)\b"
SHOWN = 3

_thread = threading.local()  # receiver: who gets this thread's warnings; gathered: those of the files in gathered_warnings()
_installing = threading.Lock()


class _Hook:
    """The process's hook: what showed warnings before it, and whether the others are printed as notes."""

    before: Callable[..., None] = warnings.showwarning
    prints_notes = False


def _show(message: Warning | str, category: type[Warning], filename: str, lineno: int, file: Any = None, line: str | None = None) -> None:
    receive: Callable[[type[Warning], str], None] | None = getattr(_thread, "receiver", None)
    if receive is not None:
        receive(category, _one_line(str(message)))
    elif _Hook.prints_notes and file is None:
        print_note(f"Warning: {_one_line(str(message))}")
    else:
        _Hook.before(message, category, filename, lineno, file, line)


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _install() -> None:
    if warnings.showwarning is _show:
        return
    with _installing:
        if warnings.showwarning is not _show:
            _Hook.before, warnings.showwarning = warnings.showwarning, _show
            warnings.filterwarnings("always", module=FILE_LIBRARIES)


@contextlib.contextmanager
def gathered_warnings() -> Iterator[dict[str, list[str]]]:
    """Gather the warnings about files that this thread reads in :func:`warnings_about`: texts by the file's name."""
    outer = getattr(_thread, "gathered", None)
    gathered: dict[str, list[str]] = {}
    _thread.gathered = gathered
    try:
        yield gathered
    finally:
        _thread.gathered = outer


@contextlib.contextmanager
def warnings_about(name: str, *, ignored: type[Warning]) -> Iterator[None]:
    """Libraries' warnings in this block, in this thread, are about the file ``name``. Without :func:`gathered_warnings` around it they are dropped.

    Args:
        name: The file's name.
        ignored: Warnings of this category are always dropped.
    """
    _install()
    gathered: dict[str, list[str]] | None = getattr(_thread, "gathered", None)

    def receive(category: type[Warning], text: str) -> None:
        if gathered is not None and not issubclass(category, ignored) and text not in gathered.setdefault(name, []):
            gathered[name].append(text)

    outer = getattr(_thread, "receiver", None)
    _thread.receiver = receive
    try:
        yield
    finally:
        _thread.receiver = outer


@dataclass(frozen=True, kw_only=True)
class FileWarnings:
    """How many files libraries warned about, and the first of them with the warnings."""

    files: int = 0
    examples: tuple[str, ...] = ()

    def add(self, gathered: Mapping[str, list[str]]) -> "FileWarnings":
        """These, and those of :func:`gathered_warnings`."""
        described = [f"{name}: {'; '.join(texts)}" for name, texts in gathered.items()]
        return self.join(FileWarnings(files=len(described), examples=tuple(described[:SHOWN])))

    def join(self, other: "FileWarnings") -> "FileWarnings":
        """These, and ``other``."""
        return FileWarnings(files=self.files + other.files, examples=(*self.examples, *other.examples)[:SHOWN])

    def print(self) -> None:
        """Print a note, if there are any."""
        if self.files:
            more = self.files - len(self.examples)
            which = " | ".join([*self.examples, *([f"and {more} more"] if more else [])])
            print_note(f"Pillow warned about {self.files} image{'s' if self.files > 1 else ''}, used nevertheless: {which}")


class _NoteHandler(logging.Handler):
    """Prints log records as notes."""

    def emit(self, record: logging.LogRecord) -> None:
        print_note(f"Warning: {_one_line(record.getMessage())}")


def print_library_messages() -> None:
    """From now on, print other libraries' warnings, and the log records that no handler of theirs takes, as notes of one line."""
    _Hook.prints_notes = True
    _install()
    logging.lastResort = _NoteHandler(logging.WARNING)
    threading.excepthook = _thread_failed


def _thread_failed(failed: threading.ExceptHookArgs) -> None:
    # A thread that keeps its exception, as TensorBoard's does, has an owner who raises it again
    if getattr(failed.thread, "exception", None) is failed.exc_value:
        return
    if MessageSettings.as_json:
        print_note("".join(traceback.format_exception(failed.exc_type, failed.exc_value, failed.exc_traceback)))
    else:
        threading.__excepthook__(failed)
