"""The machine that a benchmark ran on, and its report."""

import platform
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from pipeline.execution.executors import default_workers
from shards.atomic import committed_file
from shards.json_files import write_json
from shards.versions import library_versions


def machine(*packages: str) -> dict[str, Any]:
    """Processor, cores, Python, and the versions of ``packages``."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    flags = {flag for line in lines if line.startswith("flags") for flag in line.split()}
    vectors = [name for name in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if name in flags]
    return {
        "cpu": names[0] if names else platform.processor() or platform.machine(),
        "vectors": " ".join(vectors) or "unknown",
        "cores": default_workers(),
        "python": platform.python_version(),
        **library_versions(*packages),
    }


def machine_line(content: dict[str, Any]) -> str:
    """The last line of a report."""
    return "Machine: " + "; ".join(f"{name} {value}" for name, value in content.items()) + "."


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    """A Markdown table."""
    header = list(header)
    return [f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows)]


def spread(values: Sequence[float], form: str = ",.1f") -> str:
    """Median (min to max)."""
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def device_name(device: torch.device) -> str:
    """The model of a GPU, or ``cpu``."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def write_report(folder: Path | None, name: str, report: dict[str, Any], text: str) -> None:
    """Print a report, and write NAME.json and NAME.md into ``folder`` if there is one."""
    print(text)
    if folder is not None:
        write_json(folder / f"{name}.json", report)
        with committed_file(folder / f"{name}.md") as file:
            file.write(text.encode())
