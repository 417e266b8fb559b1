"""What needs Java: the Stanford PTB tokenizer, METEOR and SPICE, from the jars in pycocoevalcap's package.

Each runs as a program of its own, with a time limit and without a shell. Nothing is downloaded: pycocoevalcap's own SPICE class would
download CoreNLP, so it is not used. A program that is missing, fails or hangs raises a :class:`JavaError` with a one-line message.
"""

import contextlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from subprocess import PIPE

import numpy as np
from numpy.typing import NDArray

from model.ptb import PUNCTUATION
from pipeline.evaluation.measurement import MetricUnavailableError

TOKENIZER_JAR, METEOR_JAR, SPICE_JAR = "tokenizer/stanford-corenlp-3.4.1.jar", "meteor/meteor-1.5.jar", "spice/spice-1.0.jar"
METEOR_DATA = "meteor/data/paraphrase-en.gz"
# SPICE parses with CoreNLP 3.6.0 (https://nlp.stanford.edu/software/stanford-corenlp-full-2015-12-09.zip), which pycocoevalcap omits.
SPICE_LIBRARIES = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")
NEEDS = {
    "tokenizer": (TOKENIZER_JAR,),
    "METEOR": (METEOR_JAR, METEOR_DATA),
    "SPICE": (SPICE_JAR, *(f"spice/lib/{name}" for name in SPICE_LIBRARIES)),
}
SECONDS = 300.0  # METEOR loads its tables in 5 s on an idle machine
SECONDS_PER_CAPTION = {"tokenizer": 0.01, "METEOR": 0.1, "SPICE": 1.0}
# METEOR writes and reads numbers in Java's default locale, and fails where that has decimal commas.
_LOCALE = {"language": "en", "country": "US", "script": "", "variant": "", "extensions": ""}
_PROPERTIES = ("-Dfile.encoding=UTF-8", *(f"-Duser.{part}{category}={value}" for part, value in _LOCALE.items() for category in ("", ".format")))
# Java reads the options in this variable after those of the command line, and in JAVA_TOOL_OPTIONS and JDK_JAVA_OPTIONS before.
_LATE_OPTIONS = "_JAVA_OPTIONS"
# Columns of the statistics of a METEOR segment
_CAPTION_WORDS, _REFERENCE_WORDS, _CHUNKS, _CAPTION_MATCHES, _REFERENCE_MATCHES = 0, 1, 20, 21, 22


Sums = Callable[[NDArray[np.float64]], NDArray[np.float64]]


class JavaError(MetricUnavailableError):
    """Java or a jar is missing, or a program failed or gave no usable answer."""


@dataclass(frozen=True, kw_only=True)
class Meteor:
    """METEOR 1.5 (Denkowski and Lavie, 2014).

    Attributes:
        corpus: The score of the summed statistics of all images, which is not the mean of the images' scores.
        images: float64 (images,): the score of each image.
        resampled: float64 (sums,): the corpus score of each requested sum of statistics.
    """

    corpus: float
    images: NDArray[np.float64]
    resampled: NDArray[np.float64]


def find_java() -> str | None:
    """The java program in ``JAVA_HOME``, or else on the ``PATH``."""
    home = os.environ.get("JAVA_HOME")
    return (shutil.which("java", path=str(Path(home) / "bin")) if home else None) or shutil.which("java")


def require(*files: str, what: str) -> tuple[str, Path]:
    """The java program and the folder of pycocoevalcap.

    Args:
        files: Required files, relative to that folder.
        what: What needs them, for the message.

    Raises:
        JavaError: Java or a file is missing.
    """
    java = find_java()
    if java is None:
        raise JavaError(f"{what}: there is no java on the PATH or in JAVA_HOME. Install a Java runtime to use it.")
    folder = package_folder()
    missing = [str(folder / name) for name in files if not (folder / name).is_file()]
    if missing:
        raise JavaError(f"{what}: missing {' and '.join(missing)}. Put {'this file' if len(missing) == 1 else 'these files'} there to use it.")
    return java, folder


def package_folder() -> Path:
    """The folder of pycocoevalcap and its jars, found without importing it."""
    specification = importlib.util.find_spec("pycocoevalcap")
    assert specification is not None, "pycocoevalcap is a dependency"
    return Path(next(iter(specification.submodule_search_locations or ())))


def java_command(java: str) -> list[str]:
    """The start of a command that runs Java with UTF-8 and the locale en_US, whatever the system's settings."""
    return [java, *_PROPERTIES]


def java_environment() -> dict[str, str]:
    """The environment of a Java process, whose options do not change what :func:`java_command` sets."""
    late = os.environ.get(_LATE_OPTIONS)
    return {**os.environ, **({_LATE_OPTIONS: " ".join((late, *_PROPERTIES))} if late else {})}


def time_limit(what: str, captions: int) -> float:
    """Seconds after which a program is considered to hang."""
    return SECONDS + SECONDS_PER_CAPTION[what] * captions


def java_tokens(texts: Sequence[str], *, seconds: float | None = None) -> list[list[str]]:
    """Tokens from the Stanford tokenizer, called as pycocoevalcap calls it, without the punctuation that pycocoevalcap drops.

    The tokenizer sees all texts as one stream: whether a text's last full stop belongs to an initial can depend on the next text's first word.

    Raises:
        JavaError: Java or a jar is missing, or the tokenizer failed.
    """
    java, folder = require(*NEEDS["tokenizer"], what="The Java tokenizer")
    lines = [" ".join(text.splitlines()) for text in texts]
    command = [*java_command(java), "-cp", str(folder / TOKENIZER_JAR), "edu.stanford.nlp.process.PTBTokenizer"]
    command += ["-preserveLines", "-lowerCase", "-encoding", "UTF-8"]
    output = _run(command, "The Java tokenizer", "\n".join(lines), seconds or time_limit("tokenizer", len(lines)))
    answers = output.split("\n")
    if len(answers) < len(lines):
        raise JavaError(f"The Java tokenizer returned {len(answers)} lines for {len(lines)} captions.")
    return [[token for token in line.rstrip().split(" ") if token and token not in PUNCTUATION] for line in answers[: len(lines)]]


def _run(command: Sequence[str], what: str, text: str = "", seconds: float = SECONDS, folder: Path | None = None) -> str:
    try:
        environment = java_environment()
        with subprocess.Popen(  # noqa: S603 - no shell
            command, stdin=PIPE, stdout=PIPE, stderr=PIPE, cwd=folder, env=environment, start_new_session=True
        ) as process:
            try:
                output, errors = process.communicate(text.encode("utf-8", "replace"), timeout=seconds)
            except BaseException:
                _kill(process)
                raise
    except subprocess.TimeoutExpired:
        raise JavaError(f"{what} did not answer within {seconds:.0f} s and was stopped.") from None
    except OSError as error:
        raise JavaError(f"{what} could not be started ({error.strerror}: {command[0]}).") from None
    if process.returncode != 0:
        raise JavaError(f"{what} failed (exit code {process.returncode}){_last_line(errors)}.")
    return output.decode("utf-8", "replace")


def _kill(process: "subprocess.Popen[bytes]") -> None:
    """Kill a program and its children: java may be a script that starts the real one."""
    if process.poll() is not None:  # the system may have reused its number
        return
    if os.name == "posix":
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()


def _last_line(errors: bytes) -> str:
    lines = errors.decode("utf-8", "replace").strip().splitlines()
    return f": {lines[-1].strip()[:200]}" if lines else ""


def meteor(captions: Sequence[str], references: Sequence[Sequence[str]], sums_of: Sums | None = None, *, seconds: float | None = None) -> Meteor:
    """METEOR from its jar, called as pycocoevalcap calls it.

    Args:
        captions: For each image, its caption's tokens, joined by spaces.
        references: For each image, its references' tokens, each joined by spaces.
        sums_of: Computes sums, float64 (sums, 23), from the images' statistics, float64 (images, 23); their corpus scores are returned too.

    Raises:
        JavaError: Java or a file is missing, or METEOR failed.
    """
    java, folder = require(*NEEDS["METEOR"], what="METEOR")
    command = [*java_command(java), "-jar", "-Xmx2G", str(folder / METEOR_JAR), "-", "-", "-stdio", "-l", "en", "-norm"]
    with _Conversation(command, "METEOR", seconds or time_limit("METEOR", len(captions))) as jar:
        asked = [" ||| ".join(("SCORE", *map(_plain, group), _plain(caption))) for caption, group in zip(captions, references, strict=True)]
        answers = jar.ask(asked, len(asked))
        # (images, 23) counts. They are additive with one exception: a caption equal to its reference has one chunk, which counts as none.
        counts = _table(answers)
        same = (counts[:, _CAPTION_MATCHES] == counts[:, _CAPTION_WORDS]) & (counts[:, _REFERENCE_MATCHES] == counts[:, _REFERENCE_WORDS])
        additive = counts.copy()
        additive[same & (counts[:, _CHUNKS] == 1), _CHUNKS] = 0
        images = jar.ask([" ||| ".join(("EVAL", *answers))], len(answers) + 1)
        sums = additive[:0] if sums_of is None else sums_of(additive)
        resampled = jar.ask([" ||| ".join(("EVAL", *(" ".join(map(repr, row)) for row in sums.tolist())))], len(sums) + 1) if len(sums) else [""]
    try:
        scores = np.array(list(map(float, images)))
        return Meteor(corpus=float(scores[-1]), images=scores[:-1], resampled=np.array(list(map(float, resampled[:-1]))))
    except ValueError:
        raise JavaError("METEOR's answer is not a list of numbers.") from None


def _plain(text: str) -> str:
    """``text`` without the separator of METEOR's protocol."""
    return text.replace("|||", "").replace("  ", " ")


def _table(answers: Sequence[str]) -> NDArray[np.float64]:
    try:
        table = np.array([list(map(float, answer.split())) for answer in answers])
        if table.ndim != 2 or table.shape[1] <= _REFERENCE_MATCHES:
            raise ValueError("too few columns")
    except ValueError:
        raise JavaError("METEOR's statistics do not have the form of version 1.5.") from None
    return table


class _Conversation:
    """A program that answers lines with lines, killed when its time limit is reached."""

    def __init__(self, command: Sequence[str], what: str, seconds: float) -> None:
        self.command, self.what, self.seconds = command, what, seconds
        self.late = False

    def __enter__(self) -> "_Conversation":
        self.errors = tempfile.TemporaryFile()
        try:
            self.process = subprocess.Popen(  # noqa: S603 - no shell
                self.command, stdin=PIPE, stdout=PIPE, stderr=self.errors, env=java_environment(), start_new_session=True
            )
        except OSError as error:
            self.errors.close()
            raise JavaError(f"{self.what} could not be started ({error.strerror}: {self.command[0]}).") from None
        self.timer = threading.Timer(self.seconds, self._stop)
        self.timer.daemon = True
        self.timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.timer.cancel()
        _kill(self.process)
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):  # the program ended before it had read everything
                    stream.close()
        self.errors.close()

    def _stop(self) -> None:
        self.late = True
        _kill(self.process)

    def ask(self, lines: Sequence[str], answers: int) -> list[str]:
        """Write lines and read ``answers`` lines.

        Raises:
            JavaError: The program ended or hung.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        writer = threading.Thread(target=self._write, args=("".join(f"{line}\n" for line in lines).encode("utf-8", "replace"),), daemon=True)
        writer.start()
        found = []
        for _ in range(answers):
            line = self.process.stdout.readline()
            if not line:
                raise self._broken()
            found.append(line.decode("utf-8", "replace").strip())
        writer.join()
        return found

    def _write(self, data: bytes) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(data)
            self.process.stdin.flush()
        except (BrokenPipeError, ValueError):
            pass  # the program has ended; ask() reports it

    def _broken(self) -> JavaError:
        if self.late:
            return JavaError(f"{self.what} did not answer within {self.seconds:.0f} s and was stopped.")
        code = self.process.wait()
        self.errors.seek(0)
        return JavaError(f"{self.what} failed (exit code {code}){_last_line(self.errors.read())}.")


def spice(captions: Sequence[str], references: Sequence[Sequence[str]], *, seconds: float | None = None) -> NDArray[np.float64]:
    """SPICE 1.0 (Anderson et al., 2016) of each image, float64 (images,), from its jar; NaN where it finds nothing to compare.

    Raises:
        JavaError: Java, the jar or CoreNLP 3.6.0 is missing, or SPICE failed.
    """
    java, folder = require(*NEEDS["SPICE"], what="SPICE")
    with tempfile.TemporaryDirectory(prefix="capstream-spice-") as work:
        asked, answered = Path(work) / "in.json", Path(work) / "out.json"
        pairs = enumerate(zip(captions, references, strict=True))
        asked.write_text(json.dumps([{"image_id": index, "test": caption, "refs": list(group)} for index, (caption, group) in pairs]))
        command = [*java_command(java), "-jar", "-Xmx8G", str(folder / SPICE_JAR), str(asked), "-out", str(answered), "-subset", "-silent"]
        _run(command, "SPICE", seconds=seconds or time_limit("SPICE", len(captions)), folder=folder / "spice")
        try:
            found = {entry["image_id"]: entry["scores"]["All"]["f"] for entry in json.loads(answered.read_text())}
            return np.array([np.nan if found[index] is None else float(found[index]) for index in range(len(captions))])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise JavaError(f"SPICE's answer cannot be read ({error!r}).") from None
