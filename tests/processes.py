"""Python processes that tests kill, limit or run several of, without the seconds that importing PyTorch takes.

They are forked from multiprocessing's fork server, which has imported :mod:`tests.preloaded` once per test session. Each is a
process of its own with its own memory, signals, limits and exit code; what differs from ``python -c`` is where the imports come from.
The fork server also serves the worker processes of the pipeline under test.
"""

import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import traceback
from multiprocessing import forkserver, reduction
from types import TracebackType
from typing import IO, Any

from pipeline.execution.executors import START_METHOD
from tests import ROOT

CONTEXT: Any = multiprocessing.get_context(START_METHOD)


def start_fork_server() -> None:
    """Start the fork server and its imports in the background, unless it runs already."""
    if START_METHOD == "forkserver":
        multiprocessing.set_forkserver_preload(["tests.preloaded"])
        forkserver.ensure_running()


class _Descriptor:
    """A file descriptor that is duplicated into the process it is sent to."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __reduce__(self) -> tuple[Any, ...]:
        return _received, (reduction.DupFd(self.number),)


def _received(duplicate: Any) -> _Descriptor:
    return _Descriptor(duplicate.detach())


def _execute(code: str, arguments: list[str], environment: dict[str, str], streams: list[_Descriptor], own_group: bool) -> None:
    if own_group:
        os.setsid()
    for number, stream in enumerate(streams):
        os.dup2(stream.number, number)
        os.close(stream.number)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115 - multiprocessing has closed it
    # The fork server's own streams know whether its standard output, perhaps a file, could be sought.
    sys.stdout, sys.stderr = (
        open(stream.fileno(), "w", encoding="utf-8", errors=stream.errors, closefd=False)  # noqa: SIM115
        for stream in (sys.stdout, sys.stderr)
    )
    sys.argv = ["-c", *arguments]
    os.chdir(ROOT)
    os.environ.clear()
    os.environ.update(environment)
    try:
        exec(code, {"__name__": "__main__"})
    except KeyboardInterrupt:
        traceback.print_exc()
        sys.stderr.flush()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)  # as python ends
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


class PythonProcess:
    """A running process. Attributes and methods are those of :class:`subprocess.Popen` in text mode.

    Attributes:
        stdin, stdout: Pipes, if it was started with ``pipes=True``. Otherwise the standard input is empty, and :meth:`communicate`
            returns what was printed.
    """

    def __init__(self, code: str, *arguments: object, own_group: bool, pipes: bool, environment: dict[str, str]) -> None:
        self.args = code
        self.stdin: IO[str] | None = None
        self.stdout: IO[str] | None = None
        self._printed = [tempfile.TemporaryFile("w+", encoding="utf-8", errors="surrogateescape") for _ in range(2)]  # noqa: SIM115
        theirs = [os.open(os.devnull, os.O_RDONLY), *(os.dup(file.fileno()) for file in self._printed)]
        if pipes:
            for number in (0, 1):
                os.close(theirs[number])
            theirs[0], write = os.pipe()
            read, theirs[1] = os.pipe()
            self.stdin, self.stdout = os.fdopen(write, "w", buffering=1), os.fdopen(read)
        words, streams = [str(argument) for argument in arguments], [_Descriptor(number) for number in theirs]
        self._process = CONTEXT.Process(target=_execute, args=(code, words, environment, streams, own_group))
        try:
            self._process.start()
        finally:
            for number in theirs:
                os.close(number)
        self.pid = self._process.pid or 0

    @property
    def returncode(self) -> int | None:
        code: int | None = self._process.exitcode
        return code

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return self.returncode

    def communicate(self, text: str | None = None, timeout: float | None = None) -> tuple[str, str]:
        """Wait for the end; what was printed to standard output and standard error."""
        if self.stdin is not None:
            self.stdin.write(text or "")
            self.stdin.close()
        rest = self.stdout.read() if self.stdout is not None else ""
        self.wait(timeout)
        output, errors = (self._read(file) for file in self._printed)
        return rest + output, errors

    def _read(self, file: IO[str]) -> str:
        file.seek(0)
        return file.read()

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def __enter__(self) -> "PythonProcess":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None) -> None:
        if error is not None:
            self.kill()
        self.wait()


def start_python(
    code: str, *arguments: object, own_group: bool = False, pipes: bool = False, environment: dict[str, str] | None = None
) -> PythonProcess:
    """Start ``python -c CODE ARGUMENTS`` in the project's folder, with this process's environment.

    Args:
        own_group: Lead a process group, as what a terminal starts does.
        pipes: Connect ``stdin`` and ``stdout`` to pipes.
        environment: All environment variables; this process's by default.
    """
    return PythonProcess(code, *arguments, own_group=own_group, pipes=pipes, environment=dict(os.environ if environment is None else environment))


def run_python(
    code: str, *arguments: object, check: bool = False, environment: dict[str, str] | None = None, timeout: float = 300
) -> "subprocess.CompletedProcess[str]":
    """Run what :func:`start_python` starts to its end.

    Args:
        check: Fail if the exit code is not 0.
    """
    process = start_python(code, *arguments, environment=environment)
    try:
        output, errors = process.communicate(timeout=timeout)
    except BaseException:
        process.kill()
        raise
    assert not check or process.returncode == 0, errors
    return subprocess.CompletedProcess(code, process.returncode or 0, output, errors)
