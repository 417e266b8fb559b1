"""Pillow alone: decoding, resizing and encoding from memory to memory, a pass for each request. Imports nothing that is slow to load.

    python -m benchmarks.bare_pillow FOLDER COUNT SIZE QUALITY

With SIZE 0 it only decodes.
"""

import io
import itertools
import sys
from pathlib import Path

from PIL import Image

from benchmarks.peer_ways import Pass, serve


def bare(folder: str, count: int, size: int, quality: int) -> Pass:
    data = [path.read_bytes() for path in sorted(Path(folder).iterdir())]
    sources = list(itertools.islice(itertools.cycle(data), count))

    def one_pass() -> int:
        for source in sources:
            image = Image.open(io.BytesIO(source)).convert("RGB")
            if size:
                image.resize((size, size), Image.Resampling.LANCZOS).save(io.BytesIO(), "JPEG", quality=quality)
        return count

    return one_pass


if __name__ == "__main__":
    given, *numbers = sys.argv[1:]
    serve(lambda: bare(given, *map(int, numbers)))
