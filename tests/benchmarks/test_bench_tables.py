from pathlib import Path

import pytest

from benchmarks import bench_tables


@pytest.mark.parametrize("forms", [["one row group, no names"], pytest.param(list(bench_tables.FORMS), marks=pytest.mark.full)])
def test_forms_of_a_table_are_sharded_and_reported(tmp_path: Path, forms: list[str]) -> None:
    report = bench_tables.main(["--images", "3", "--forms", *forms, "--out", str(tmp_path), "--work", str(tmp_path)])
    assert [row["form"] for row in report["rows"]] == forms
    (text,) = tmp_path.glob("bench_tables-*.md")
    assert f"| {forms[-1]} | 3 |" in text.read_text()


@pytest.mark.full
@pytest.mark.parametrize("form", ["row groups of 100", "one row group, no names", "Arrow stream"])
def test_memory_stays_flat_over_a_table_that_is_larger(tmp_path: Path, form: str) -> None:
    report = bench_tables.main(["--images", "300", "1500", "--forms", form, "--work", str(tmp_path)])
    small, large = report["rows"]
    assert large["table_bytes"] - small["table_bytes"] > 250e6
    assert large["peak_bytes"] - small["peak_bytes"] < 60e6
