"""The tutorial's way of resizing, in one process from one folder into another. Runs in its own environment with stock Pillow.

    python tutorial_resize.py FROM TO COUNT

Prints the seconds of the loop. Imports nothing of Capstream.
"""

import sys
import time
from pathlib import Path

from PIL import Image


def main(source: str, target: str, count: str) -> None:
    names = sorted(path.name for path in Path(source).iterdir())[: int(count)]
    started = time.perf_counter()
    for name in names:
        with Path(source, name).open("rb") as file, Image.open(file) as image:
            image.resize((256, 256), Image.Resampling.LANCZOS).save(Path(target, name), image.format)
    print(time.perf_counter() - started)


if __name__ == "__main__":
    main(*sys.argv[1:])
