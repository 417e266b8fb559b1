import os
import stat
import struct
import subprocess
import sys
import tempfile
import warnings
import zipfile
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.datasets.unzip import ArchiveMember, is_complete, list_members, unzip
from shards.errors import DamageError, ResourceError
from tests import ROOT


def make_zip(path: Path, files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as file:
        for name, content in files.items():
            file.writestr(name, content)
    return path


def listed(archive: Path, *, at_most_bytes: int = 10**6, at_most_members: int = 100) -> tuple[ArchiveMember, ...]:
    return list_members(archive, at_most_bytes=at_most_bytes, at_most_members=at_most_members)


def test_members_are_written_with_folders_and_what_is_complete_is_kept(tmp_path: Path) -> None:
    files = {"a/b/one.txt": b"1" * 5000, "two.txt": b"", "a/three.txt": os.urandom(3000)}
    archive = make_zip(tmp_path / "a.zip", files)
    members, into = listed(archive), tmp_path / "out"
    assert unzip(archive, members, into) == 3
    assert {path.relative_to(into).as_posix(): path.read_bytes() for path in into.rglob("*") if path.is_file()} == files
    times = {path: path.stat().st_mtime_ns for path in into.rglob("*.txt")}
    (into / "a/three.txt").write_bytes(bytes(3000))  # the right size, other bytes
    assert unzip(archive, members, into) == 1
    assert (into / "a/three.txt").read_bytes() == files["a/three.txt"]
    assert [path.stat().st_mtime_ns for path in times if path.name != "three.txt"] == [
        time for path, time in times.items() if path.name != "three.txt"
    ]


def test_metadata_of_macos_is_ignored(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "a.zip", {"a.jpg": b"1", "__MACOSX/._a.jpg": b"2"})
    assert [member.name for member in listed(archive)] == ["a.jpg"]


@pytest.mark.parametrize("name", ["../up", "a/../../up", "/etc/absolute", "C:/windows", "a\\..\\up", "\\\\host\\share", ".", "./."])
def test_an_archive_with_a_name_that_leads_out_of_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    archive = make_zip(tmp_path / "a.zip", {"good": b"1", name: b"2"})
    with pytest.raises(DamageError, match=r"a\.zip: the member .* leads out of the folder, or is not a plain name\. Nothing was unpacked"):
        listed(archive)


@given(st.text(alphabet="./\\a:\0 ", min_size=1, max_size=12))
def test_no_accepted_name_ever_leaves_the_folder(name: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        archive, info = Path(folder) / "a.zip", zipfile.ZipInfo("x")
        info.filename = name  # ZipInfo itself would normalise the name
        with zipfile.ZipFile(archive, "w") as file:
            file.writestr(info, b"1")
        try:
            members = listed(archive)
        except DamageError:
            return
        into = Path(folder, "out").resolve()
        for member in members:
            assert (into / member.name).resolve().is_relative_to(into)
            assert (into / member.name).resolve() != into


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR])
def test_links_and_devices_are_refused(tmp_path: Path, kind: int) -> None:
    info = zipfile.ZipInfo("link")
    info.create_system, info.external_attr = 3, (kind | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr(info, "/etc/passwd")
    with pytest.raises(DamageError, match="'link' is a link or a device"):
        listed(tmp_path / "a.zip")


def test_a_zip_bomb_is_refused_by_the_sizes_that_it_lists(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "a.zip", {"a": bytes(3 << 20)})
    assert archive.stat().st_size < 10_000
    with pytest.raises(DamageError, match=r"lists 1 files with 3,145,728 bytes unpacked, more than its limits \(100 and 1,000,000\)"):
        listed(archive)
    with pytest.raises(DamageError, match="lists 3 files"):
        listed(make_zip(tmp_path / "b.zip", dict.fromkeys("abc", b"")), at_most_members=2)


def test_a_zip_bomb_that_lists_too_small_sizes_writes_no_more_than_it_lists(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "a.zip", {"a": bytes(3 << 20)})
    raw = bytearray(archive.read_bytes())
    entry = raw.index(b"PK\1\2")
    raw[entry + 24 : entry + 28] = struct.pack("<I", 1000)  # uncompressed size, APPNOTE 4.3.12
    archive.write_bytes(raw)
    (member,) = listed(archive)
    with pytest.raises(DamageError, match=r"the member 'a' is damaged \(Bad CRC-32"):
        unzip(archive, [member], tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())
    raw[entry + 16 : entry + 20] = struct.pack("<I", zlib.crc32(bytes(1000)))  # and a checksum to go with it
    archive.write_bytes(raw)
    unzip(archive, listed(archive), tmp_path / "out")
    assert (tmp_path / "out/a").read_bytes() == bytes(1000)


def test_repeated_names_and_passwords_are_refused(tmp_path: Path) -> None:
    with warnings.catch_warnings(), zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        warnings.simplefilter("ignore")
        file.writestr("a", "1")
        file.writestr("a", "2")
    with pytest.raises(DamageError, match="'a' is listed twice"):
        listed(tmp_path / "a.zip")
    raw = bytearray(make_zip(tmp_path / "b.zip", {"a": b"1"}).read_bytes())
    raw[raw.index(b"PK\1\2") + 8] |= 1
    (tmp_path / "b.zip").write_bytes(raw)
    with pytest.raises(DamageError, match="'a' is encrypted"):
        listed(tmp_path / "b.zip")
    with pytest.raises(DamageError, match=r"unsupported method \(12\)"):
        listed(make_zip(tmp_path / "c.zip", {"a": b"1"}, zipfile.ZIP_BZIP2))


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", b"PK\5\6" + bytes(10)])
def test_a_file_that_is_not_a_zip_archive_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(DamageError, match=r"a\.zip: not a complete ZIP archive"):
        listed(tmp_path / "a.zip")


def test_a_flipped_bit_in_a_member_is_detected_and_the_member_is_not_written(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "a.zip", {"a": b"1" * 100, "b": os.urandom(2000)}, zipfile.ZIP_STORED)
    raw = bytearray(archive.read_bytes())
    raw[1200] ^= 1
    archive.write_bytes(raw)
    with pytest.raises(DamageError, match=r"the member 'b' is damaged .*Delete the archive"):
        unzip(archive, listed(archive), tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a"]


def test_a_full_disk_is_an_error_and_the_next_run_resumes(tmp_path: Path) -> None:
    """With RLIMIT_FSIZE the operating system refuses to write a file beyond this size."""
    archive = make_zip(tmp_path / "a.zip", {"a": os.urandom(10_000), "b": os.urandom(300_000)})
    code = (
        "import resource, signal, sys\nfrom pathlib import Path\nfrom pipeline.datasets.unzip import unzip, list_members\n"
        "from shards.errors import ResourceError\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\narchive, into = map(Path, sys.argv[1:])\n"
        "try: unzip(archive, list_members(archive, at_most_bytes=10**6, at_most_members=9), into)\n"
        "except ResourceError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code, archive, tmp_path / "out"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"{tmp_path / 'out/b'}: no space left")
    assert "choose another `root`" in done.stdout
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a"]
    assert unzip(archive, listed(archive), tmp_path / "out") == 1


def test_a_folder_in_place_of_a_file_is_named(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "a.zip", {"a": b"1"})
    (tmp_path / "out/a").mkdir(parents=True)
    assert not is_complete(tmp_path / "out", listed(archive)[0])
    with pytest.raises(ResourceError, match=r"out/a: cannot be written, a folder is in the way"):
        unzip(archive, listed(archive), tmp_path / "out")
