"""How much memory is available, with and without a container's limit."""

import os
from pathlib import Path

import pytest

from pipeline.execution import memory


def test_available_memory_is_part_of_the_machines() -> None:
    assert 0 < memory.available_bytes() < os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize(("limit", "used", "left"), [("5000", "2000", 3000), ("5000", "6000", 0), ("max", "2000", 7168)])
def test_a_container_has_what_its_limit_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, used: str, left: int) -> None:
    for name, content in (("meminfo", "MemTotal: 9 kB\nMemAvailable: 7 kB\n"), ("memory.max", f"{limit}\n"), ("memory.current", f"{used}\n")):
        (tmp_path / name).write_text(content)
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    assert memory.available_bytes() == left


def test_a_system_that_does_not_tell_has_half_of_its_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "none")
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    assert memory.available_bytes() == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
