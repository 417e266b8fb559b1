"""Text in encodings other than UTF-8: the lines of a file in a given encoding, and a guess for a file that is not UTF-8.

Nothing is decoded by a guess: several encodings may fit the same bytes, so the guess is only named in the message.
"""

import codecs
import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

from shards.errors import InputError, SettingsError

# The usual encodings of captions on Windows, and whose they are
ENCODINGS = {
    "cp949": "Korean, EUC-KR",
    "cp932": "Japanese, Shift-JIS",
    "euc_jp": "Japanese, EUC-JP",
    "gb18030": "simplified Chinese, GBK",
    "big5": "traditional Chinese",
    "cp1252": "Western European, Windows-1252",
    "cp1251": "Cyrillic, Windows-1251",
}
# (decoder, encoding, script, share of the letters): a few words are enough to know Korean by its syllables, and Japanese by hiragana. Only the
# two-byte characters of KS X 1001 count, because cp949's others look like Western letters.
TELLING_SCRIPTS = (
    ("euc_kr", "cp949", ("\uac00", "\ud7a3"), 0.9),
    ("cp932", "cp932", ("\u3041", "\u3096"), 0.2),
    ("euc_jp", "euc_jp", ("\u3041", "\u3096"), 0.2),
)
GUESS_BYTES = 1 << 18
SCANNED_BYTES = 16 << 20
LINE_END = re.compile(rb"\r\n|\r|\n")


def check_encoding(name: str) -> str:
    """Return ``name`` if Python can decode text with it.

    Raises:
        InputError: It cannot.
    """
    try:
        with contextlib.suppress(UnicodeError):
            b"text".decode(name)  # raises LookupError for what is no encoding of text
        codecs.getincrementaldecoder(name)
    except (LookupError, ValueError):
        known = ", ".join(["utf-8", "utf-16", *ENCODINGS])
        raise SettingsError(f"`encoding` {name}: there is no such encoding of text. Usual ones are: {known}.") from None
    return name


def guessed_encoding(data: bytes) -> str | None:
    """The most likely of ``ENCODINGS`` for bytes that are not UTF-8; None if none fits.

    Only lines with other than ASCII characters are looked at: names of files would make every encoding equally likely.
    """
    from charset_normalizer import from_bytes

    telling = b"\n".join(line for line in LINE_END.split(data) if not line.isascii())[:GUESS_BYTES]
    for decoder, encoding, script, share in TELLING_SCRIPTS:
        with contextlib.suppress(UnicodeDecodeError):
            letters = [each for each in telling.decode(decoder) if not each.isascii() and each.isalpha()]
            if letters and sum(script[0] <= each <= script[1] for each in letters) >= share * len(letters):
                return encoding
    best = from_bytes(telling, cp_isolation=list(ENCODINGS)).best()
    return best.encoding if best is not None and best.encoding in ENCODINGS else None


def not_utf8(path: Path, *, encoding: str | None = None) -> InputError:
    """The error about a file that cannot be decoded: which line, and how to read it."""
    with path.open("rb") as file:
        data = file.read(SCANNED_BYTES)
    where = _undecodable(data, encoding or "utf-8")
    if encoding is not None:
        return InputError(f"{path}: {where}. Check `encoding`.")
    guess = guessed_encoding(data)
    if guess is None:
        return InputError(f"{path}: {where}. Save the file as UTF-8, or give its `encoding`, for example `encoding` cp1252.")
    return InputError(f"{path}: {where}. It looks like {guess} ({ENCODINGS[guess]}): give `encoding` {guess}, or save it as UTF-8.")


def _undecodable(data: bytes, encoding: str) -> str:
    try:
        codecs.getincrementaldecoder(encoding)().decode(data)
    except UnicodeDecodeError as problem:
        line = len(LINE_END.findall(data, 0, problem.start)) + 1
        return f"line {line} is not {encoding.upper()} (byte 0x{data[problem.start]:02x})"
    except UnicodeError:
        pass
    return f"the text is not {encoding.upper()}"


def is_utf8(data: bytes) -> bool:
    """Whether bytes are the beginning of UTF-8 text."""
    try:
        codecs.getincrementaldecoder("utf-8")().decode(data)
    except UnicodeDecodeError:
        return False
    return True


def decoded_lines(path: Path, encoding: str | None, max_characters: int) -> Iterator[str]:
    """The lines of a text file with their ends, which may be LF, CR LF or CR, without a byte order mark.

    Args:
        encoding: UTF-8 by default.
        max_characters: Of a line.

    Raises:
        InputError: A line is too long or cannot be decoded.
        OSError: The file cannot be read.
    """
    try:
        with path.open(encoding=encoding or "utf-8", newline="") as file:
            number = 0
            while line := file.readline(max_characters + 1):
                number += 1
                if len(line) > max_characters:
                    raise InputError(f"{path}: line {number} has more than {max_characters} characters. Check that it is a captions file.")
                yield line.removeprefix("\ufeff") if number == 1 else line
    except UnicodeError:
        raise not_utf8(path, encoding=encoding) from None
