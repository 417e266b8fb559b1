import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.digests import json_digest
from shards.errors import InputError
from shards.json_files import json_bytes, read_json

JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner))


@given(JSON)
def test_json_round_trip(content: object) -> None:
    assert json.loads(json_bytes(content)) == content
    assert json_digest(content) == json_digest(json.loads(json_bytes(content)))


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe{", b"[" * 100_000])
def test_invalid_json_is_an_error_that_names_the_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"bad\.json"):
        read_json(path, what="thing")
