"""What the reward of self-critical training costs: CIDEr-D over ids against pycocoevalcap's own scorer.

Both score the same candidates against the same references, with document frequencies that were counted before. pycocoevalcap is called
as self-critical code calls it: ids become strings, candidates and references are cut into n-grams anew for each batch. What a batch
costs is measured; counting the references, and pycocoevalcap's document frequencies, are not part of it and stand apart.

Images and references come from a COCO caption file, and again as part of a corpus that is grown to COCO's size by chains of words, in
which a word is followed by what follows it somewhere in the file, and one word in fifty by any.
"""

import argparse
import json
import statistics
import time
import tracemalloc
from collections import defaultdict
from collections.abc import Callable, Sequence
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from pycocoevalcap.cider.cider_scorer import CiderScorer, cook_refs

from benchmarks.machine import machine, machine_line, table, write_report
from benchmarks.workload import say
from model.cider_d import CiderD
from model.ptb import ptb_tokens

Captions = list[list[int]]
# Candidates stop here, as captions that are sampled do; grown references go on.
LONGEST = 20
LONGEST_REFERENCE = 50


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="CIDEr-D as a reward.", formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--captions", type=Path, required=True, help="a COCO caption file")
    parser.add_argument("--images", type=int, default=113_287, help="images of the grown corpus, the file's among them; 5 captions each")
    parser.add_argument("--batch-images", type=int, default=50, help="images of a batch")
    parser.add_argument("--samples", type=int, default=5, help="candidates for each image of a batch")
    parser.add_argument("--repeats", type=int, default=21, help="batches, each scored in both ways")
    parser.add_argument("--out", type=Path, default=None, help="folder for a dated JSON and Markdown report")
    return parser.parse_args(argv)


def caption_ids(path: Path) -> list[Captions]:
    """The ids, from 1, of each image's captions."""
    ids: dict[str, int] = {}
    groups: dict[int, Captions] = {}
    for annotation in json.loads(path.read_bytes())["annotations"]:
        words = [ids.setdefault(word, len(ids) + 1) for word in ptb_tokens(annotation["caption"])]
        groups.setdefault(annotation["image_id"], []).append(words)
    return list(groups.values())


def chained(groups: Sequence[Captions], captions: int, generator: np.random.Generator) -> Captions:
    """So many captions, in which a word follows the one before as it does somewhere in ``groups``; one in fifty follows any."""
    stream = np.array([word for group in groups for words in group for word in (0, *words)] + [0])  # 0 stands between captions
    places = np.argsort(stream[:-1], kind="stable")
    counts = np.bincount(stream[:-1])
    first = np.cumsum(counts) - counts
    words = np.zeros((captions, LONGEST_REFERENCE + 1), dtype=np.int64)
    for step in range(LONGEST_REFERENCE):
        now = words[:, step]
        drawn = first[now] + (generator.random(captions) * counts[now]).astype(np.int64)
        drawn = np.where(generator.random(captions) < 0.02, generator.integers(len(places), size=captions), drawn)
        words[:, step + 1] = np.where((now == 0) & (step > 0), 0, stream[places[drawn] + 1])
    made: Captions = [row[row > 0].tolist() for row in words]
    return made


def candidates_of(group: Captions, samples: int, words: int, generator: np.random.Generator) -> Captions:
    """References of an image with three of ten words exchanged."""
    made = []
    for _ in range(samples):
        caption = np.array(group[generator.integers(len(group))][:LONGEST])
        made.append(np.where(generator.random(len(caption)) < 0.3, generator.integers(1, words, len(caption)), caption).tolist())
    return made


class CountedScorer(CiderScorer):  # type: ignore[misc]
    """pycocoevalcap's scorer with document frequencies of a whole corpus, which it has no option for."""

    def __init__(self, frequencies: dict[tuple[str, ...], float], images: int) -> None:
        self._log_images = np.log(float(images))
        super().__init__()
        self.document_frequency = frequencies

    @property
    def ref_len(self) -> float:
        """Its logarithm of the number of images, which compute_cider would set to that of the batch."""
        return float(self._log_images)

    @ref_len.setter
    def ref_len(self, value: float | None) -> None:
        del value


def text(words: Sequence[int]) -> str:
    return " ".join(map(str, words))


def pycocoevalcap_scores(pairs: Sequence[tuple[list[int], Captions]], frequencies: dict[tuple[str, ...], float], images: int) -> list[float]:
    """The scores of candidates, each with the references of its image."""
    scorer = CountedScorer(frequencies, images)
    for words, references in pairs:
        scorer += (text(words), list(map(text, references)))
    scores: list[float] = scorer.compute_cider()
    return scores


def frequencies_of(groups: Sequence[Captions]) -> dict[tuple[str, ...], float]:
    """By n-gram, the number of images that have it in a reference, as pycocoevalcap counts them."""
    found: dict[tuple[str, ...], float] = defaultdict(float)
    for group in groups:
        for ngram in {ngram for counts in cook_refs(list(map(text, group))) for ngram in counts}:
            found[ngram] += 1
    return found


def seconds(function: Callable[[], Any]) -> tuple[float, Any]:
    """Of one call, and its result."""
    began = time.perf_counter()
    result = function()
    return time.perf_counter() - began, result


def measure(name: str, groups: Sequence[Captions], own: int, s: argparse.Namespace) -> dict[str, Any]:
    """Batches of the first ``own`` images, with the document frequencies of all."""
    captions = [words for group in groups for words in group]
    flat = np.array([word for words in captions for word in words], dtype=np.int32)
    offsets, rows = np.cumsum([0, *map(len, captions)]), np.repeat(np.arange(len(groups)), [len(group) for group in groups])
    say(f"{name}: counting {len(captions):,} captions")
    tracemalloc.start()
    making, scorer = seconds(lambda: CiderD(flat, offsets, rows, len(groups)))
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    frequencies = frequencies_of(groups)
    different = len(frequencies)  # before the scorer puts others in
    generator = np.random.default_rng(0)
    spent: dict[str, list[float]] = {"ours": [], "pycocoevalcap": []}
    differences, means = [], []
    for repeat in range(-1, s.repeats):  # the first round warms up
        drawn = generator.permutation(own)[: s.batch_images].tolist()
        candidates = [words for image in drawn for words in candidates_of(groups[image], s.samples, int(flat.max()), generator)]
        images = np.repeat(drawn, s.samples)
        lengths = np.array([len(words) for words in candidates])
        tokens = np.zeros((len(candidates), LONGEST), dtype=np.int64)
        tokens[np.arange(LONGEST) < lengths[:, None]] = [word for words in candidates for word in words]
        pairs = [(words, groups[image]) for words, image in zip(candidates, images, strict=True)]
        ours, found = seconds(partial(scorer.score, tokens, lengths, images))
        theirs, expected = seconds(partial(pycocoevalcap_scores, pairs, frequencies, len(groups)))
        differences.append(float(np.abs(found - expected).max()))
        means.append(float(found.mean()))
        if repeat >= 0:
            spent["ours"].append(ours)
            spent["pycocoevalcap"].append(theirs)
    medians = {way: statistics.median(values) for way, values in spent.items()}
    return {
        "corpus": name,
        "images": len(groups),
        "captions": len(captions),
        "different n-grams": different,
        "seconds to count": making,
        "bytes kept": kept,
        "bytes at the peak": peak,
        "seconds": spent,
        "medians": medians,
        "ratio": medians["pycocoevalcap"] / medians["ours"],
        "largest difference": max(differences),
        "mean score": statistics.mean(means),
    }


def markdown(report: dict[str, Any]) -> str:
    s = report["settings"]
    rows = [
        [
            found["corpus"],
            f"{found['captions']:,} of {found['images']:,}",
            f"{found['different n-grams']:,}",
            f"{found['seconds to count']:.1f}",
            f"{found['bytes kept'] / 1e6:,.0f} ({found['bytes at the peak'] / 1e6:,.0f})",
            *(f"{1e3 * found['medians'][way]:.1f} ({1e3 * min(found['seconds'][way]):.1f})" for way in ("ours", "pycocoevalcap")),
            f"{found['ratio']:.0f}",
            f"{found['largest difference']:.0e}",
        ]
        for found in report["corpora"]
    ]
    header = ["References", "Captions of images", "Different n-grams", "Counting, s", "Memory after (in) counting, MB"]
    lines = [f"# CIDEr-D as a reward, {report['date']}", ""]
    lines += [f"{s['batch_images']} images with {s['samples']} candidates each a batch; medians (and least) of {s['repeats']} batches:", ""]
    lines += table([*header, "Ours, ms", "pycocoevalcap, ms", "Ratio", "Largest difference"], rows)
    return "\n".join([*lines, "", machine_line(report["machine"]), ""])


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the benchmark, print its table, write it where --out says, and return the report."""
    s = parse(argv)
    groups = caption_ids(s.captions)
    corpora = [measure(s.captions.name, groups, len(groups), s)]
    if s.images > len(groups):
        made = chained(groups, 5 * (s.images - len(groups)), np.random.default_rng(1))
        grown = [*groups, *(made[start : start + 5] for start in range(0, len(made), 5))]
        corpora.append(measure(f"{s.captions.name}, grown", grown, len(groups), s))
    report = {
        "corpora": corpora,
        "settings": {name: getattr(s, name) for name in ("images", "batch_images", "samples", "repeats")},
        "date": date.today().isoformat(),
        "machine": machine("numpy", "pycocoevalcap"),
    }
    write_report(s.out, f"bench_cider_d-{report['date']}", report, markdown(report))
    return report


if __name__ == "__main__":
    main()
