import shutil
from pathlib import Path

import pytest

from shards.paths import free_bytes, is_inside


@pytest.mark.parametrize("name", ["/etc/passwd", "../x", "a/../../x", "C:\\x", "\\\\host\\x", "a\\..\\..\\x", "a\0b"])
def test_names_that_leave_the_folder_are_detected(name: str) -> None:
    assert not is_inside(name)


@pytest.mark.parametrize("name", ["a.jpg", "sub/a.b.c.jpg", "..a/b..jpg", "ü/ß.jpg"])
def test_names_with_dots_and_slashes_inside_are_fine(name: str) -> None:
    assert is_inside(name)


def test_free_space_of_a_folder_that_does_not_exist_yet(tmp_path: Path) -> None:
    total = shutil.disk_usage(tmp_path).total
    assert 0 < free_bytes(tmp_path / "not/yet") <= total
