import hashlib
import io
import json
import tarfile
import zlib
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from shards.tar import write_tar

RECORDS = st.lists(st.tuples(st.binary(max_size=1500), st.lists(st.text(max_size=20), max_size=3)), max_size=12)


def by_tarfile(records: list[tuple[str, bytes, dict[str, Any]]]) -> bytes:
    """The same tar, written by the standard library."""
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for key, jpeg, record in records:
            text = json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode()
            for ending, data in (("jpg", jpeg), ("json", text)):
                info = tarfile.TarInfo(f"{key}.{ending}")
                info.size, info.mode, info.uname, info.gname = len(data), 0o644, "capstream", "capstream"
                tar.addfile(info, io.BytesIO(data))
    return target.getvalue()


@settings(max_examples=100, deadline=None)
@given(contents=RECORDS)
def test_tars_equal_those_of_the_standard_library_and_members_are_at_the_listed_offsets(
    contents: list[tuple[bytes, list[str]]], tmp_path_factory: Any
) -> None:
    path: Path = tmp_path_factory.mktemp("tar") / "x.tar"
    records = [(f"{index:09d}", jpeg, {"captions": captions}) for index, (jpeg, captions) in enumerate(contents)]
    samples, size, sha256 = write_tar(path, records)
    written = path.read_bytes()
    assert written == by_tarfile(records)
    assert (size, sha256) == (len(written), hashlib.sha256(written).hexdigest())
    for sample, (key, jpeg, record) in zip(samples, records, strict=True):
        assert (sample.key, sample.captions) == (key, len(record["captions"]))
        assert written[sample.jpg.offset : sample.jpg.offset + sample.jpg.size] == jpeg
        assert json.loads(written[sample.json.offset : sample.json.offset + sample.json.size]) == record
        assert sample.jpg.crc32 == zlib.crc32(jpeg)
