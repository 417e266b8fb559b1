"""Tables that hold images, written by Hugging Face's ``datasets`` and by pyarrow."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]
from PIL import Image


def picture(number: int, size: tuple[int, int] = (40, 30)) -> bytes:
    """A JPEG that differs for each number."""
    pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


def image_rows(count: int, first: int = 0) -> dict[str, list[Any]]:
    """Columns as Hugging Face's tables of captions have them: an image with its name, and a list of captions."""
    numbers = range(first, first + count)
    return {
        "image": [{"bytes": picture(number), "path": f"{number}.jpg"} for number in numbers],
        "caption": [[f"picture {number}", f"again picture {number}"] for number in numbers],
    }


def write_table(path: Path, columns: dict[str, Any], **options: Any) -> Path:
    """Write a Parquet file with pyarrow."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, **options)
    return path
