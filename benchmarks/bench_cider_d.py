"""How long does the reward of self-critical training take? CIDEr-D over ids, compared with pycocoevalcap's scorer.

Both score the same candidates against the same references, with document frequencies that were counted before. pycocoevalcap is called as
self-critical code usually calls it: ids become strings, and the n-grams of candidates and references are extracted again for each batch. The
time of a batch is measured. Counting the references takes place before, and is reported separately; counting pycocoevalcap's document
frequencies is not reported.

The first corpus is a COCO caption file. The second adds generated captions up to COCO's size: each word is followed by a word that follows it
somewhere in the file, and one word in fifty by a random word.
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
# Candidates are truncated to this many words, as sampled captions are; generated references may be longer.
LONGEST = 20
LONGEST_REFERENCE = 50


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Speed of CIDEr-D as a reward.", formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--captions", type=Path, required=True, help="a COCO caption file")
    parser.add_argument("--num-images", type=int, default=113_287, help="images of the enlarged corpus, including the file's")
    parser.add_argument("--batch-images", type=int, default=50, help="images per batch")
    parser.add_argument("--samples", type=int, default=5, help="candidates per image")
    parser.add_argument("--repeats", type=int, default=21, help="timed batches, each scored in both ways")
    parser.add_argument("--out", type=Path, default=None, help="folder for a dated JSON and Markdown report")
    return parser.parse_args(argv)


def caption_ids(path: Path) -> list[Captions]:
    """Each image's captions as ids, which start at 1."""
    ids: dict[str, int] = {}
    groups: dict[int, Captions] = {}
    for annotation in json.loads(path.read_bytes())["annotations"]:
        words = [ids.setdefault(word, len(ids) + 1) for word in ptb_tokens(annotation["caption"])]
        groups.setdefault(annotation["image_id"], []).append(words)
    return list(groups.values())


def chained(groups: Sequence[Captions], captions: int, generator: np.random.Generator) -> Captions:
    """Generate captions in which each word follows its predecessor somewhere in ``groups``; one word in fifty is random."""
    stream = np.array([word for group in groups for words in group for word in (0, *words)] + [0])  # 0 separates captions
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
    """References of an image with 30% of their words replaced."""
    made = []
    for _ in range(samples):
        caption = np.array(group[generator.integers(len(group))][:LONGEST])
        made.append(np.where(generator.random(len(caption)) < 0.3, generator.integers(1, words, len(caption)), caption).tolist())
    return made


class CountedScorer(CiderScorer):  # type: ignore[misc]
    """pycocoevalcap's scorer with the document frequencies of a whole corpus, which it has no option for."""

    def __init__(self, frequencies: dict[tuple[str, ...], float], images: int) -> None:
        self._log_images = np.log(float(images))
        super().__init__()
        self.document_frequency = frequencies

    @property
    def ref_len(self) -> float:
        """The logarithm of the number of images, which compute_cider would set to that of the batch."""
        return float(self._log_images)

    @ref_len.setter
    def ref_len(self, value: float | None) -> None:
        del value


def text(words: Sequence[int]) -> str:
    return " ".join(map(str, words))


def pycocoevalcap_scores(pairs: Sequence[tuple[list[int], Captions]], frequencies: dict[tuple[str, ...], float], images: int) -> list[float]:
    """Score candidates, given with the references of their image."""
    scorer = CountedScorer(frequencies, images)
    for words, references in pairs:
        scorer += (text(words), list(map(text, references)))
    scores: list[float] = scorer.compute_cider()
    return scores


def frequencies_of(groups: Sequence[Captions]) -> dict[tuple[str, ...], float]:
    """By n-gram, the number of images with it in a reference, as pycocoevalcap counts them."""
    found: dict[tuple[str, ...], float] = defaultdict(float)
    for group in groups:
        for ngram in {ngram for counts in cook_refs(list(map(text, group))) for ngram in counts}:
            found[ngram] += 1
    return found


def seconds(function: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of one call, and its result."""
    began = time.perf_counter()
    result = function()
    return time.perf_counter() - began, result


def measure(name: str, groups: Sequence[Captions], own: int, s: argparse.Namespace) -> dict[str, Any]:
    """Score batches from the first ``own`` images with the document frequencies of all images."""
    captions = [words for group in groups for words in group]
    flat = np.array([word for words in captions for word in words], dtype=np.int32)
    offsets, rows = np.cumsum([0, *map(len, captions)]), np.repeat(np.arange(len(groups)), [len(group) for group in groups])
    say(f"{name}: counting {len(captions):,} captions")
    tracemalloc.start()
    making, scorer = seconds(lambda: CiderD(flat, offsets, rows, len(groups)))
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    frequencies = frequencies_of(groups)
    different = len(frequencies)  # before the scorer adds more
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
    header = ["References", "Captions of images", "Distinct n-grams", "Counting, s", "Memory after (peak while) counting, MB"]
    lines = [f"# CIDEr-D as a reward, {report['date']}", ""]
    lines += [f"{s['batch_images']} images with {s['samples']} candidates each per batch; medians (minima) of {s['repeats']} batches:", ""]
    lines += table([*header, "Ours, ms", "pycocoevalcap, ms", "Ratio", "Largest difference"], rows)
    return "\n".join([*lines, "", machine_line(report["machine"]), ""])


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the benchmark, print its table, write it to ``--out``, and return the report."""
    s = parse(argv)
    groups = caption_ids(s.captions)
    corpora = [measure(s.captions.name, groups, len(groups), s)]
    if s.num_images > len(groups):
        made = chained(groups, 5 * (s.num_images - len(groups)), np.random.default_rng(1))
        enlarged = [*groups, *(made[start : start + 5] for start in range(0, len(made), 5))]
        corpora.append(measure(f"{s.captions.name}, enlarged", enlarged, len(groups), s))
    report = {
        "corpora": corpora,
        "settings": {name: getattr(s, name) for name in ("num_images", "batch_images", "samples", "repeats")},
        "date": date.today().isoformat(),
        "machine": machine("numpy", "pycocoevalcap"),
    }
    write_report(s.out, f"bench_cider_d-{report['date']}", report, markdown(report))
    return report


if __name__ == "__main__":
    main()
