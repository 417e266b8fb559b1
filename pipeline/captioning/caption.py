"""Run + images -> captions, as the ``caption`` command gives them."""

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import asdict

from pipeline.captioning.captioner import CaptionerConfig, ImageCaptioner, ImageCaptions
from pipeline.execution.progress import Progress
from shards.json_files import readable_json


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


def lines(found: ImageCaptions, count: int, *, named: bool, as_json: bool) -> Iterator[str]:
    """The best ``count`` captions of an image as lines of output; nothing for a problem, unless as JSON.

    Args:
        named: Write the image's name before each caption.
        as_json: One line instead: ``{"image", "captions": [{"caption", "score"}, ...]}``, or ``{"image", "problem"}``.
    """
    if as_json:
        content = {"captions": [asdict(one) for one in found.captions[:count]]} if found.problem is None else {"problem": found.problem}
        yield readable_json({"image": found.name, **content})
        return
    for one in found.captions[:count]:
        yield (f"{found.name}: " if named else "") + one.caption + (f"  ({one.score:.2f})" if count > 1 else "")
