"""CIDEr-D of many captions at a time, over token ids: the reward of self-critical training.

The scores equal those of pycocoevalcap's scorer (``cider/cider_scorer.py``; Vedantam et al., 2015, "CIDEr: Consensus-based image description
evaluation") to 1e-9. The trade-off: the references are counted once, when the scorer is created, and stay in memory as sorted arrays; in
return, scoring loops over no caption, reference or word in Python.

N-grams are not hashed. An n-gram is the pair (number of its first n - 1 words, number of its last word), and its own number is its index among
the sorted pairs of the references.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_N = 4
# The standard deviation of the Gaussian length penalty, in bigrams.
SIGMA = 6.0
SCALE = 10.0

Integers = NDArray[np.integer[Any]]
Places = NDArray[np.intp]
Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class _Ngrams:
    """The references' n-grams of one length n, and which references contain them.

    Attributes:
        pairs: int64 (n-grams,), ascending: (number of the first n - 1 words) * (distinct words) + (number of the last word).
        idf: float64 (n-grams + 1,): the weight of each n-gram; the last one is for n-grams that are in no reference.
        norms: float64 (references,): the norm of each reference's vector.
        offsets: int64 (images + 1,): image i has the entries from ``offsets[i]`` to ``offsets[i + 1]`` in the following arrays.
        numbers: Unsigned (entries,), ascending within an image: an n-gram in one of its references.
        members: Unsigned (entries,): the index of that reference among the image's references.
        counts: Unsigned (entries,): how often the reference contains the n-gram.
    """

    pairs: NDArray[np.int64]
    idf: Floats
    norms: Floats
    offsets: Places
    numbers: Integers
    members: Integers
    counts: Integers

    def entries_of(self, rows: Integers, places: Places, numbers: Places) -> tuple[Places, Places]:
        """Find the candidates' n-grams in the references of their images.

        Args:
            rows: Integers (batch images,), ascending.
            places: Integers (n,): the image of each n-gram, as an index into ``rows``.
            numbers: Integers (n,): the n-grams; -1 for one that is in no reference.

        Returns:
            (which, entries): integers (found,) each: the index of an n-gram in ``numbers``, and an entry with this n-gram.
        """
        sizes = self.offsets[rows + 1] - self.offsets[rows]
        entries = _ranges(self.offsets[rows], sizes)
        # (entries,), ascending: image and n-gram as one number
        present = np.repeat(np.arange(len(rows)), sizes) * len(self.pairs) + self.numbers[entries]
        which = np.flatnonzero(numbers >= 0)
        wanted = places[which] * len(self.pairs) + numbers[which]
        begins = np.searchsorted(present, wanted)
        found = np.searchsorted(present, wanted, side="right") - begins
        return np.repeat(which, found), entries[_ranges(begins, found)]


class CiderD:
    """Scores captions against references that are counted once.

    The weight of an n-gram is log(images / images with it in a reference); for an n-gram in no reference it is log(images). All ids are
    compared: for the end of a caption to count, references and candidates must end with <end>.

    Memory: 6 or 7 bytes per n-gram of a reference, and 16 bytes per distinct n-gram. References of COCO's size (566,000 captions of 113,287
    images with 19 million n-grams, 3.4 million of them distinct) take 0.19 GB, and 1 GB for the seconds in which they are counted
    (``benchmarks/bench_cider_d.py``).

    Args:
        references: Integers (tokens,): all references, concatenated.
        offsets: Integers (references + 1,): reference r is ``references[offsets[r]:offsets[r + 1]]``.
        image_rows: Integers (references,), ascending: the image of each reference.
        images: The number of images.

    Raises:
        ValueError: The arrays do not match.

    >>> scorer = CiderD(np.array([4, 5, 6, 4, 7, 8]), np.array([0, 3, 6]), np.array([0, 1]), images=2)
    >>> scorer.score(np.array([[4, 5, 6], [5, 6, 0], [9, 9, 9]]), np.array([3, 2, 3]), np.array([0, 0, 1])).round(3).tolist()
    [7.5, 4.209, 0.0]
    """

    def __init__(self, references: Integers, offsets: Integers, image_rows: Integers, images: int) -> None:
        # Products and differences must not overflow.
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
            tokens: Integers (candidates, longest): each candidate's ids; ids beyond its length are ignored.
            lengths: Integers (candidates,): the number of ids of each candidate; an empty candidate scores 0.
            images: Integers (candidates,): each candidate's image, in any order; an image may occur more than once.

        Returns:
            float64 (candidates,), between 0 and 10.

        Raises:
            ValueError: The arrays do not match, or an image has no reference.
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
        # pycocoevalcap's scorer takes the number of bigrams as the length of a caption.
        differences = np.maximum(lengths - 1, 0)[candidate_of] - np.maximum(self._lengths - 1, 0)[reference_of]
        cosines *= np.exp(-(differences**2) / (2 * SIGMA**2))
        return SCALE * np.bincount(candidate_of, cosines, minlength=len(lengths)) / (MAX_N * against)

    def _check_candidates(self, tokens: Integers, lengths: Integers, images: Integers) -> None:
        if tokens.ndim != 2 or lengths.shape != images.shape or lengths.shape != tokens.shape[:1]:
            raise ValueError(f"tokens {tokens.shape}, lengths {lengths.shape} and images {images.shape} are not (n, m), (n,) and (n,)")
        if ((lengths < 0) | (lengths > tokens.shape[1])).any():
            raise ValueError(f"lengths from {lengths.min()} to {lengths.max()}: must be between 0 and the {tokens.shape[1]} ids of a row")
        if ((images < 0) | (images >= len(self._reference_offsets) - 1)).any():
            raise ValueError(f"images from {images.min()} to {images.max()}: must be between 0 and {len(self._reference_offsets) - 2}")
        alone = self._reference_offsets[images + 1] == self._reference_offsets[images]
        if alone.any():
            raise ValueError(f"image {images[alone][0]} has no reference: its captions cannot be scored")


def _check_references(references: Integers, offsets: Integers, image_rows: Integers, images: int) -> None:
    if not references.ndim == offsets.ndim == image_rows.ndim == 1:
        raise ValueError("references, offsets and image_rows must have one dimension each")
    if len(offsets) != len(image_rows) + 1 or offsets[0] != 0 or offsets[-1] != len(references) or (offsets[1:] < offsets[:-1]).any():
        raise ValueError(f"offsets do not split {len(references)} ids into {len(image_rows)} references")
    if images < 1 or (image_rows[1:] < image_rows[:-1]).any() or (len(image_rows) and not 0 <= image_rows[0] <= image_rows[-1] < images):
        raise ValueError(f"image_rows must be ascending and between 0 and {images - 1}")


def _count_ngrams(words: Places, lengths: Integers) -> Iterator[tuple[Places, Places, Places]]:
    """Count the n-grams of each caption, for n from 1 to ``MAX_N``.

    Args:
        words: Integers (words,): all captions, concatenated, as small numbers.
        lengths: Integers (captions,).

    Yields:
        For each n, three arrays with an element for each distinct n-gram of each caption, in the order of captions: parent, last word, count.
        The parent is the index of its first n - 1 words in the previously yielded arrays; for n = 1 it is the caption.
    """
    distinct = int(words.max(initial=0)) + 1
    starts, parents = np.arange(len(words)), np.repeat(np.arange(len(lengths)), lengths)
    # (words,): number of words from each one to the end of its caption
    remaining = np.repeat(np.cumsum(lengths), lengths) - starts
    for n in range(1, MAX_N + 1):
        kept = remaining[starts] >= n
        starts = starts[kept]
        ngrams, parents, counts = np.unique(parents[kept] * distinct + words[starts + n - 1], return_inverse=True, return_counts=True)
        yield *np.divmod(ngrams, distinct), counts


def _idf(frequencies: Places, images: int) -> Floats:
    """log(images) - log(frequency), as pycocoevalcap computes it; exactly 0 for an n-gram of every image, without rounding errors."""
    return np.where(frequencies >= images, 0.0, np.log(float(images)) - np.log(np.maximum(frequencies, 1)))


def _norms(owners: Places, weights: Floats, captions: int) -> Floats:
    """float64 (captions,): the norm of each caption's vector; ``owners`` has the caption of each of the ``weights``."""
    return np.sqrt(np.bincount(owners, weights**2, minlength=captions))


def _find(ascending: Integers, wanted: Integers) -> Places:
    """The index of each of ``wanted`` in ``ascending``; -1 where it does not occur."""
    if not len(ascending):
        return np.full(len(wanted), -1)
    places = np.minimum(np.searchsorted(ascending, wanted), len(ascending) - 1)
    return np.where(ascending[places] == wanted, places, -1)


def _ranges(starts: Places, sizes: Places) -> Places:
    """``range(start, start + size)`` for each start and size, concatenated.

    >>> _ranges(np.array([7, 2]), np.array([3, 2])).tolist()
    [7, 8, 9, 2, 3]
    """
    ends = np.cumsum(sizes)
    return np.repeat(starts - ends + sizes, sizes) + np.arange(ends[-1] if len(ends) else 0)


def _narrow(values: Places) -> Integers:
    """The same values in the narrowest unsigned integer dtype."""
    return values.astype(np.min_scalar_type(int(values.max(initial=0))))
