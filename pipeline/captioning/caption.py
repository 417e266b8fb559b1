"""Run + images -> captions, as the ``caption`` command gives them."""

from collections.abc import Callable, Generator, Sequence
from dataclasses import asdict
from typing import Any

from pipeline.captioning.captioner import CaptionerConfig, ImageCaptioner, ImageCaptions
from pipeline.execution.progress import Progress


def caption_images(
    config: CaptionerConfig, images: Sequence[str], *, quiet: bool = True, report: Callable[[str], None] = lambda _: None
) -> Generator[ImageCaptions, None, None]:
    """Caption images with progress, in the order given. An image that cannot be read gets a ``problem`` instead of captions.

    Args:
        config: Which run captions, and how.
        images: Files and URLs, as :func:`pipeline.captioning.inputs.named_images` gives them.
        report: As for :class:`~pipeline.captioning.captioner.ImageCaptioner`.

    Raises:
        InputError, DamageError, MismatchError, ResourceError: The run or its backbone cannot be opened.
    """
    captioner = ImageCaptioner(config, expected_images=len(images), report=report)
    with Progress("Captioning", total=len(images), unit="images", quiet=quiet) as progress:
        captioner.open_backbone()
        failed = 0
        for found in captioner.caption(images):
            failed += found.problem is not None
            progress.advance(1, note=f"{failed} failed" if failed else "")
            yield found


def lines(found: ImageCaptions, count: int, *, named: bool) -> list[str]:
    """The best ``count`` captions of an image as lines of output; none for a problem.

    Args:
        named: Write the image's name before each caption.
    """
    name = f"{found.name}: " if named else ""
    return [f"{name}{one.caption}" + (f"  ({one.score:.2f})" if count > 1 else "") for one in found.captions[:count]]


def json_line(found: ImageCaptions, count: int) -> dict[str, Any]:
    """As :func:`lines`, for JSON: ``{"image", "captions": [{"caption", "score"}, ...]}``, or ``{"image", "problem"}``."""
    content = {"captions": [asdict(one) for one in found.captions[:count]]} if found.problem is None else {"problem": found.problem}
    return {"image": found.name, **content}
