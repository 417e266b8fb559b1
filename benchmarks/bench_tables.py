"""Does the memory of `shard` stay flat over a table of images, however large the table and its row groups are?

Tables of noise in JPEG, of the size of COCO's images, are written with the row groups that Hugging Face's `datasets` writes (100 rows); as one
row group, as pandas and Polars write tables of this size; and as an Arrow stream. Without names, the bytes are read twice, because they alone
tell images apart. Each is sharded by the whole command. Reported is the peak of all processes together, shared pages counted once, the peak of
the largest process, and the time per image, next to the same images in a folder.

    python -m benchmarks.bench_tables --images 1000 8000 --out benchmarks/results
"""

import argparse
import io
import json
import tempfile
from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.compute as pc  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]
from PIL import Image

from benchmarks.machine import machine, machine_line, table, write_report
from benchmarks.workload import run_command, say

FORMS = ("folder", "row groups of 100", "one row group", "one row group, no names", "Arrow stream")
WRITTEN_ROWS = 100


def jpegs(count: int) -> Iterator[bytes]:
    """Images of 640 x 480 pixels, about 160 KB each. Every one differs, and the pixels are those of 16 pictures."""
    random = np.random.default_rng(0)
    pictures = []
    for _ in range(16):
        small = Image.fromarray(random.integers(0, 256, (240, 320, 3), np.uint8))
        buffer = io.BytesIO()
        small.resize((640, 480)).save(buffer, "JPEG", quality=90)
        pictures.append(buffer.getvalue())
    for number in range(count):
        yield pictures[number % 16] + number.to_bytes(8, "big")  # bytes after the end of a JPEG are not decoded


def batches(count: int) -> Iterator[Any]:
    """Record batches as Hugging Face's datasets of captions have them."""
    rows = ({"image": {"bytes": data, "path": f"{number:08d}.jpg"}, "caption": [f"picture {number}"]} for number, data in enumerate(jpegs(count)))
    while held := [row for _, row in zip(range(WRITTEN_ROWS), rows, strict=False)]:
        yield pa.RecordBatch.from_pylist(held)


def write(form: str, count: int, folder: Path) -> tuple[int, list[object]]:
    """Write the images in one form; returns the number of bytes, and the options of ``shard`` that read it."""
    folder.mkdir()
    schema = next(batches(1)).schema
    if form == "folder":
        lines = []
        for number, data in enumerate(jpegs(count)):
            (folder / f"{number:08d}.jpg").write_bytes(data)
            lines.append(json.dumps({"image": f"{number:08d}.jpg", "caption": [f"picture {number}"]}))
        (folder / "captions.jsonl").write_text("\n".join(lines))
        return sum(path.stat().st_size for path in folder.iterdir()), ["--images", folder, "--captions", folder / "captions.jsonl"]
    path = folder / ("train-00000-of-00001.arrow" if form == "Arrow stream" else "train-00000-of-00001.parquet")
    if form == "Arrow stream":
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, schema) as writer:
            for batch in batches(count):
                writer.write_batch(batch)
    elif form.startswith("one row group"):
        whole = pa.Table.from_batches(list(batches(count)))
        if "no names" in form:
            whole = whole.set_column(0, "image", pc.struct_field(whole["image"], "bytes"))
        pq.write_table(whole, path, row_group_size=count)
    else:
        with pq.ParquetWriter(path, schema) as writer:
            for batch in batches(count):
                writer.write_batch(batch)
    return path.stat().st_size, ["--captions", path]


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the benchmark, print its table, write it to ``--out``, and return the report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--images", type=int, nargs="+", default=[1000, 5000], help="numbers of images")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--forms", nargs="+", default=list(FORMS))
    parser.add_argument("--work", type=Path, default=None, help="folder for temporary files")
    parser.add_argument("--out", type=Path, default=None, help="folder of the report")
    s = parser.parse_args(argv)
    rows: list[dict[str, Any]] = []
    for form in s.forms:
        for images in s.images:
            with tempfile.TemporaryDirectory(dir=s.work) as folder:
                size, options = write(form, images, Path(folder) / "data")
                usage = run_command("shard", *options, "--out", Path(folder) / "out", "--size", 64, "--workers", s.workers, watch=True)
                row = {"form": form, "images": images, "table_bytes": size, "seconds": usage.seconds}
                rows.append(row | {"together_bytes": usage.together_bytes, "peak_bytes": usage.peak_bytes})
                say(f"{form}, {images} images, {size / 1e6:.0f} MB: {usage.seconds:.1f} s, {(usage.together_bytes or 0) / 1e6:.0f} MB")
    today = date.today().isoformat()
    report = {"date": today, "machine": machine("pyarrow", "pillow-simd"), "workers": s.workers, "rows": rows}
    shown = [
        [
            row["form"],
            f"{row['images']:,}",
            f"{row['table_bytes'] / 1e6:,.0f}",
            f"{(row['together_bytes'] or 0) / 1e6:,.0f}",
            f"{row['peak_bytes'] / 1e6:,.0f}",
            f"{1e3 * row['seconds'] / row['images']:.2f}",
        ]
        for row in rows
    ]
    header = ["Form", "Images", "MB of images and captions", "MB of all processes", "MB of the largest process", "ms per image"]
    text = "\n".join(
        ["# Memory of `shard` over tables of images", "", f"{s.workers} workers. {machine_line(report['machine'])}", "", *table(header, shown), ""]
    )
    write_report(s.out, f"bench_tables-{today}", report, text)
    return report


if __name__ == "__main__":
    main()
