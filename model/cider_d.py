"""CIDEr-D of many captions at a time, over token ids: the reward of self-critical training.

The scores are those of pycocoevalcap's scorer (``cider/cider_scorer.py``; Vedantam et al., 2015, "CIDEr: Consensus-based image description
evaluation"), to 1e-9. What it trades: the references are counted once, when the scorer is made, and stay in memory as
sorted arrays; in return no caption, reference or word is visited in Python when captions are scored.

No n-gram is hashed. It is the pair of its first n - 1 words and its last word, both as numbers, and its own number is its place among
the sorted pairs of the references.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_N = 4
# The deviation of the gaussian length penalty, in bigrams.
SIGMA = 6.0
SCALE = 10.0

Integers = NDArray[np.integer[Any]]
Places = NDArray[np.intp]
Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class _Ngrams:
    """The references' n-grams of one length, and the references of each image that have them.

    Attributes:
        pairs: int64 (n-grams,), rising: (number of the first n - 1 words) * (distinct words) + (number of the last word).
        idf: float64 (n-grams + 1,): the weight of each; the last is that of all n-grams that no reference has.
        norms: float64 (references,): the length of each reference's vector.
        offsets: int64 (images + 1,): image i has the entries from ``offsets[i]`` to ``offsets[i + 1]`` of the following.
        numbers: Unsigned (entries,), rising within an image: an n-gram of one of its references.
        members: Unsigned (entries,): the place of that reference among the image's.
        counts: Unsigned (entries,): how often the reference has it.
    """

    pairs: NDArray[np.int64]
    idf: Floats
    norms: Floats
    offsets: Places
    numbers: Integers
    members: Integers
    counts: Integers

    def entries_of(self, rows: Integers, places: Places, numbers: Places) -> tuple[Places, Places]:
        """Which references of their images have the n-grams of candidates.

        Args:
            rows: Integers (batch images,), rising.
            places: Integers (n,): the image of each n-gram, as its place in ``rows``.
            numbers: Integers (n,): the n-grams; -1 is one that no reference has.

        Returns:
            (which, entries): integers (found,) each: the place of an n-gram in ``numbers``, and an entry that has it.
        """
        sizes = self.offsets[rows + 1] - self.offsets[rows]
        entries = _ranges(self.offsets[rows], sizes)
        # (entries,), rising: an n-gram of an image is one number
        there = np.repeat(np.arange(len(rows)), sizes) * len(self.pairs) + self.numbers[entries]
        which = np.flatnonzero(numbers >= 0)
        wanted = places[which] * len(self.pairs) + numbers[which]
        begins = np.searchsorted(there, wanted)
        found = np.searchsorted(there, wanted, side="right") - begins
        return np.repeat(which, found), entries[_ranges(begins, found)]


class CiderD:
    """Scores captions against references that were counted once.

    An n-gram weighs log(images / images that have it in a reference); one that no reference has weighs log(images). Ids are compared as
    they come: where the end of a caption is to count, references and candidates end with <end>.

    A reference takes 6 or 7 bytes for each of its n-grams, an n-gram 16. For references in COCO's number and length (566,000 captions of
    113,287 images, 19 million and 3.4 million of these) that is 0.19 GB, and 1 GB for the seconds in which they are counted
    (``benchmarks/bench_cider_d.py``).

    Args:
        references: Integers (tokens,): all references, one after the other.
        offsets: Integers (references + 1,): reference r is ``references[offsets[r]:offsets[r + 1]]``.
        image_rows: Integers (references,), rising: the image of each reference.
        images: How many images there are.

    Raises:
        ValueError: The arrays do not fit together.

    >>> scorer = CiderD(np.array([4, 5, 6, 4, 7, 8]), np.array([0, 3, 6]), np.array([0, 1]), images=2)
    >>> scorer.score(np.array([[4, 5, 6], [5, 6, 0], [9, 9, 9]]), np.array([3, 2, 3]), np.array([0, 0, 1])).round(3).tolist()
    [7.5, 4.209, 0.0]
    """

    def __init__(self, references: Integers, offsets: Integers, image_rows: Integers, images: int) -> None:
        # Products and differences of them are to come.
        offsets, image_rows = offsets.astype(np.int64), image_rows.astype(np.int64)
        _check_references(references, offsets, image_rows, images)
        self._lengths = np.diff(offsets)
        self._reference_offsets = np.searchsorted(image_rows, np.arange(images + 1))
        self._words, words = np.unique(references, return_inverse=True)
        self._ngrams: list[_Ngrams] = []
        owners, numbers = np.arange(len(image_rows)), np.zeros(len(image_rows), dtype=np.intp)
        for parents, last, counts in _count_ngrams(words, self._lengths):
            pairs, numbers = np.unique(numbers[parents] * len(self._words) + last, return_inverse=True)
            owners = owners[parents]
            # (entries,): by image, then n-gram, then reference
            order = np.argsort(image_rows[owners] * len(pairs) + numbers, kind="stable")
            sorted_rows, sorted_numbers = image_rows[owners[order]], numbers[order]
            first = np.ones(len(order), dtype=bool)
            first[1:] = (np.diff(sorted_rows) > 0) | (np.diff(sorted_numbers) > 0)
            idf = _idf(np.bincount(sorted_numbers[first], minlength=len(pairs) + 1), images)
            self._ngrams.append(
                _Ngrams(
                    pairs=pairs,
                    idf=idf,
                    norms=_norms(owners, counts * idf[numbers], len(image_rows)),
                    offsets=np.searchsorted(sorted_rows, np.arange(images + 1)),
                    numbers=_narrow(sorted_numbers),
                    members=_narrow(owners[order] - self._reference_offsets[sorted_rows]),
                    counts=_narrow(counts[order]),
                )
            )

    def score(self, tokens: Integers, lengths: Integers, images: Integers) -> Floats:
        """CIDEr-D of each candidate against the references of its image.

        Args:
            tokens: Integers (candidates, longest): each candidate's ids; what stands behind its length is not looked at.
            lengths: Integers (candidates,): how many ids each has; an empty candidate scores 0.
            images: Integers (candidates,): the image of each, in any order, as often as wanted.

        Returns:
            float64 (candidates,), between 0 and 10.

        Raises:
            ValueError: The arrays do not fit together, or an image has no reference.
        """
        lengths, images = lengths.astype(np.int64), images.astype(np.int64)
        self._check_candidates(tokens, lengths, images)
        words, places = np.unique(tokens[np.arange(tokens.shape[1]) < lengths[:, None]], return_inverse=True)
        word_numbers = _find(self._words, words)
        rows, image_places = np.unique(images, return_inverse=True)
        # (matches,): each candidate with each reference of its image
        against = self._reference_offsets[images + 1] - self._reference_offsets[images]
        first_match = np.cumsum(against) - against
        candidate_of = np.repeat(np.arange(len(lengths)), against)
        reference_of = _ranges(self._reference_offsets[images], against)
        cosines = np.zeros(len(candidate_of))
        owners, numbers = np.arange(len(lengths)), np.zeros(len(lengths), dtype=np.intp)
        for known, (parents, last, counts) in zip(self._ngrams, _count_ngrams(places, lengths), strict=True):
            owners = owners[parents]
            heads, tails = numbers[parents], word_numbers[last]
            numbers = _find(known.pairs, np.where((heads < 0) | (tails < 0), -1, heads * len(self._words) + tails))
            weights = known.idf[numbers]
            norms = _norms(owners, counts * weights, len(lengths))
            of, entries = known.entries_of(rows, image_places[owners], numbers)
            shared = np.minimum(counts[of], known.counts[entries]) * known.counts[entries] * weights[of] ** 2
            dots = np.bincount(first_match[owners[of]] + known.members[entries], shared, minlength=len(cosines))
            scales = norms[candidate_of] * known.norms[reference_of]
            cosines += np.divide(dots, scales, out=np.zeros(len(dots)), where=scales > 0)
        # The scorer's length of a caption is its number of bigrams.
        differences = np.maximum(lengths - 1, 0)[candidate_of] - np.maximum(self._lengths - 1, 0)[reference_of]
        cosines *= np.exp(-(differences**2) / (2 * SIGMA**2))
        return SCALE * np.bincount(candidate_of, cosines, minlength=len(lengths)) / (MAX_N * against)

    def _check_candidates(self, tokens: Integers, lengths: Integers, images: Integers) -> None:
        if tokens.ndim != 2 or lengths.shape != images.shape or lengths.shape != tokens.shape[:1]:
            raise ValueError(f"tokens {tokens.shape}, lengths {lengths.shape} and images {images.shape} are not (n, m), (n,) and (n,)")
        if ((lengths < 0) | (lengths > tokens.shape[1])).any():
            raise ValueError(f"lengths of {lengths.min()} to {lengths.max()}, and {tokens.shape[1]} ids are there")
        if ((images < 0) | (images >= len(self._reference_offsets) - 1)).any():
            raise ValueError(f"images {images.min()} to {images.max()}, and there are {len(self._reference_offsets) - 1}")
        alone = self._reference_offsets[images + 1] == self._reference_offsets[images]
        if alone.any():
            raise ValueError(f"image {images[alone][0]} has no reference, so that its captions cannot be scored")


def _check_references(references: Integers, offsets: Integers, image_rows: Integers, images: int) -> None:
    if not references.ndim == offsets.ndim == image_rows.ndim == 1:
        raise ValueError("references, offsets and image_rows are not of one dimension each")
    if len(offsets) != len(image_rows) + 1 or offsets[0] != 0 or offsets[-1] != len(references) or (offsets[1:] < offsets[:-1]).any():
        raise ValueError(f"offsets do not cut {len(references)} ids into {len(image_rows)} references")
    if images < 1 or (image_rows[1:] < image_rows[:-1]).any() or (len(image_rows) and not 0 <= image_rows[0] <= image_rows[-1] < images):
        raise ValueError(f"image_rows do not rise from 0 to {images - 1} at most")


def _count_ngrams(words: Places, lengths: Integers) -> Iterator[tuple[Places, Places, Places]]:
    """Count the n-grams of each caption, for n of 1 to ``MAX_N``.

    Args:
        words: Integers (words,): all captions, one after the other, as small numbers.
        lengths: Integers (captions,).

    Yields:
        For each n: of each n-gram of each caption (parent, last word, how often), in the order of captions. The parent is the place of its
        first n - 1 words among what was yielded before; at first, the caption.
    """
    distinct = int(words.max(initial=0)) + 1
    starts, parents = np.arange(len(words)), np.repeat(np.arange(len(lengths)), lengths)
    # (words,): words from each to the end of its caption
    remaining = np.repeat(np.cumsum(lengths), lengths) - starts
    for n in range(1, MAX_N + 1):
        kept = remaining[starts] >= n
        starts = starts[kept]
        ngrams, parents, counts = np.unique(parents[kept] * distinct + words[starts + n - 1], return_inverse=True, return_counts=True)
        yield *np.divmod(ngrams, distinct), counts


def _idf(frequencies: Places, images: int) -> Floats:
    """log(images) - log(frequency), as the scorer computes it; exactly 0 for what every image has, whatever the last bit of a logarithm."""
    return np.where(frequencies >= images, 0.0, np.log(float(images)) - np.log(np.maximum(frequencies, 1)))


def _norms(owners: Places, weights: Floats, captions: int) -> Floats:
    """float64 (captions,): the length of each caption's vector, whose ``weights`` belong to the captions ``owners``."""
    return np.sqrt(np.bincount(owners, weights**2, minlength=captions))


def _find(rising: Integers, wanted: Integers) -> Places:
    """The place of each of ``wanted`` in ``rising``; -1 where it is not there."""
    if not len(rising):
        return np.full(len(wanted), -1)
    places = np.minimum(np.searchsorted(rising, wanted), len(rising) - 1)
    return np.where(rising[places] == wanted, places, -1)


def _ranges(starts: Places, sizes: Places) -> Places:
    """``range(start, start + size)`` of each, one after the other.

    >>> _ranges(np.array([7, 2]), np.array([3, 2])).tolist()
    [7, 8, 9, 2, 3]
    """
    ends = np.cumsum(sizes)
    return np.repeat(starts - ends + sizes, sizes) + np.arange(ends[-1] if len(ends) else 0)


def _narrow(values: Places) -> Integers:
    """The same in the narrowest unsigned integers."""
    return values.astype(np.min_scalar_type(int(values.max(initial=0))))
