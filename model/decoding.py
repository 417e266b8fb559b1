"""Features -> captions: greedy and beam search, diverse beam search, and sampling, in batches.

Finished hypotheses leave the batch and cost nothing more. Which images are decoded in one batch changes nothing but the rounding of sums:
images share no state, and each has its own random numbers.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from model.captioner import CaptionModel
from model.decoders.base import Decoder, DecoderState, ProjectedImages
from model.vocabulary import END, PAD, START, UNK, Vocabulary

MAX_WORDS = 20
MIN_TEMPERATURE, MAX_TEMPERATURE = 1e-3, 1e3
MAX_DIVERSITY, MAX_LENGTH_PENALTY = 1e3, 10.0
MAX_HYPOTHESES, MAX_MAX_WORDS = 4096, 1000


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How captions are decoded; the default is greedy search.

    Attributes:
        beam: Beam size of each group; 1 is greedy search.
        length_penalty: Finished hypotheses are ranked by their log-probability divided by ((5 + words) / 6) to this power (Wu et al.,
            2016, "Google's neural machine translation system", equation 14); 0 ranks by log-probability, which favours short captions.
        block_ngrams: No n-gram of this size appears twice in a caption; 0 allows repetition. A word never follows itself.
        groups: Groups of ``beam`` hypotheses that avoid each other's words (Vijayakumar et al., 2018, "Diverse beam search").
        diversity: Penalty on a word's log-probability for each hypothesis of an earlier group that chose it at the same position.
        samples: Number of captions to sample; 0 searches instead.
        temperature: Of sampling: logits are divided by it.
        top_k: Of sampling: keep only the K most likely words; 0 keeps all.
        top_p: Of sampling: keep only the most likely words whose probabilities add up to ``top_p`` (Holtzman et al., 2020, "The curious
            case of neural text degeneration"); 1 keeps all.
        seed: Of sampling.
        max_words: Captions are truncated to this many words.

    Raises:
        ValueError: An impossible value or combination.
    """

    beam: int = 1
    length_penalty: float = 0.0
    block_ngrams: int = 0
    groups: int = 1
    diversity: float = 0.5
    samples: int = 0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    max_words: int = MAX_WORDS

    def __post_init__(self) -> None:
        for name, least in (("beam", 1), ("groups", 1), ("max_words", 1), ("block_ngrams", 0), ("samples", 0), ("top_k", 0), ("seed", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}, it must be at least {least}")
        if self.hypotheses > MAX_HYPOTHESES or self.max_words > MAX_MAX_WORDS:
            raise ValueError(
                f"beam * groups is {self.beam * self.groups}, samples {self.samples}, max_words {self.max_words}: "
                f"at most {MAX_HYPOTHESES} hypotheses per image, of at most {MAX_MAX_WORDS} words, are allowed"
            )
        if not MIN_TEMPERATURE <= self.temperature <= MAX_TEMPERATURE:
            raise ValueError(f"temperature is {self.temperature}, it must lie between {MIN_TEMPERATURE:g} and {MAX_TEMPERATURE:g}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}, it must be greater than 0 and at most 1")
        for name, most in (("diversity", MAX_DIVERSITY), ("length_penalty", MAX_LENGTH_PENALTY)):
            if not 0 <= getattr(self, name) <= most:
                raise ValueError(f"{name} is {getattr(self, name)}, it must lie between 0 and {most:g}")
        if self.samples and (self.beam > 1 or self.groups > 1):
            raise ValueError(f"samples is {self.samples} and beam {self.beam}, groups {self.groups}: captions are either sampled or searched for")
        if not self.samples and (self.temperature != 1 or self.top_k or self.top_p != 1):
            raise ValueError("temperature, top_k and top_p need samples, which is 0")

    @property
    def hypotheses(self) -> int:
        """Number of hypotheses per image, which is also the largest number of captions."""
        return self.samples or self.beam * self.groups


@dataclass(frozen=True, kw_only=True)
class Hypothesis:
    """A caption as words, and its log-probability in nats, divided by the length penalty if there is one."""

    words: tuple[str, ...]
    score: float


@dataclass(frozen=True, kw_only=True)
class ScoredCaption:
    """A caption as text, and its score as in :class:`Hypothesis`."""

    caption: str
    score: float


def decode(
    model: CaptionModel,
    features: Tensor,
    vocabulary: Vocabulary,
    decoding: Decoding,
    *,
    mask: Tensor | None = None,
    numbers: Sequence[int] | None = None,
) -> list[list[Hypothesis]]:
    """Decode the captions of a batch of images.

    Args:
        model: A captioner or an ensemble, in eval mode.
        features: float (images, positions, feature_dim) on the model's device.
        mask: bool (images, positions): which positions are real and not padding; None: all of them.
        numbers: The number of each image in the whole dataset: sampling seeds its random numbers with (seed, number). Counts from 0 by
            default.

    Returns:
        For each image at least one hypothesis, the best first. A search returns distinct captions; samples may repeat.

    Raises:
        ValueError: The model is in training mode, or its scores contain NaN.
    """
    if model.training:
        raise ValueError("decoding needs the model in eval mode: in training mode, BatchNorm would normalise by the statistics of the batch")
    if not len(features):
        return []
    with torch.inference_mode():
        state, copies = model.first_state(features, mask), decoding.samples or decoding.groups
        rows = _Rows(model, state, len(features), vocabulary, copies, features.device)
        if decoding.samples:
            return _sample(rows, vocabulary, decoding, range(len(features)) if numbers is None else numbers)
        return _search(rows, vocabulary, decoding, images=len(features))


def greedy(
    model: CaptionModel, features: Tensor, vocabulary: Vocabulary, *, mask: Tensor | None = None, max_words: int = MAX_WORDS
) -> list[list[str]]:
    """Greedy captions: for each image the most likely word at every step.

    Raises:
        ValueError: As :func:`decode`.
    """
    found = decode(model, features, vocabulary, Decoding(max_words=max_words), mask=mask)
    return [list(hypotheses[0].words) for hypotheses in found]


class _Rows:
    """Unfinished hypotheses, one per row: their words so far, their scores, and the decoder's state.

    Attributes:
        images: int64 (rows,): the image of each row.
        words: int64 (rows, words so far).
        scores: float64 (rows,).
    """

    def __init__(self, model: CaptionModel, state: DecoderState, images: int, vocabulary: Vocabulary, copies: int, device: torch.device) -> None:
        self.model = model
        self.images = torch.arange(images, device=device).repeat_interleave(copies)
        self.state = state.select(self.images)
        self.last = torch.full_like(self.images, vocabulary.id(START))
        self.words = self.images.new_empty((len(self.images), 0))
        self.scores = torch.zeros(len(self.images), dtype=torch.float64, device=device)
        self._forbidden = torch.tensor(vocabulary.encode([PAD, START, UNK]), device=device)

    def log_probabilities(self, block_ngrams: int, temperature: float = 1.0) -> Tensor:
        """Log-probabilities of the next word, float32 (rows, vocabulary_size); -inf for words that are not allowed."""
        logits, self.state = self.model.decoding_step(self.last, self.state)
        logits = logits.float().index_fill_(1, self._forbidden, -torch.inf)
        if self.words.shape[1]:
            logits.scatter_(1, self.last[:, None], -torch.inf)
        if block_ngrams > 1 and self.words.shape[1] >= block_ngrams:
            # (rows, positions, block_ngrams): every n-gram so far. Where one begins with the latest words, its last word is not allowed again.
            windows = self.words.unfold(1, block_ngrams, 1)
            tail = self.words[:, self.words.shape[1] - block_ngrams + 1 :]
            again = (windows[:, :, :-1] == tail[:, None]).all(dim=2)
            rows, positions = again.nonzero(as_tuple=True)
            logits[rows, windows[rows, positions, -1]] = -torch.inf
        elif block_ngrams == 1 and self.words.shape[1]:
            logits.scatter_(1, self.words, -torch.inf)
        log_probabilities = (logits if temperature == 1 else logits / temperature).log_softmax(dim=1)
        if log_probabilities.isnan().any():
            raise ValueError("the model's scores contain NaN: its weights are damaged, or its training diverged")
        return log_probabilities

    def extend(self, parents: Tensor, words: Tensor, scores: Tensor) -> None:
        """Continue with some rows, int64 (selected,), each with a new word and score; a row may be selected several times, or not at all."""
        self.images, self.scores, self.last = self.images[parents], scores, words
        self.words = torch.cat([self.words[parents], words[:, None]], dim=1)
        self.state = self.state.select(parents)


def _search(rows: _Rows, vocabulary: Vocabulary, d: Decoding, *, images: int) -> list[list[Hypothesis]]:
    """Diverse beam search. A finished hypothesis leaves the beam, which shrinks by one: so a beam of 1 is greedy search."""
    end, device = vocabulary.id(END), rows.images.device
    ended: list[list[list[tuple[float, tuple[int, ...]]]]] = [[[] for _ in range(d.groups)] for _ in range(images)]
    groups = torch.arange(d.groups, device=device).repeat(images)
    free = torch.full((images, d.groups), d.beam, device=device)
    for step in range(d.max_words + 1):
        if not len(rows.images):
            break
        if step == d.max_words:  # truncate what is not finished
            for image, group, score, words in zip(*(t.tolist() for t in (rows.images, groups, rows.scores, rows.words)), strict=True):
                ended[image][group].append((score, tuple(words)))
            break
        log_probabilities = rows.log_probabilities(d.block_ngrams)
        taken = torch.zeros((images, log_probabilities.shape[1]), device=device)  # words that earlier groups chose at this position
        parents, words, scores, own = [], [], [], []
        for group in range(d.groups):
            mine = (groups == group).nonzero().squeeze(1)
            if not len(mine):
                continue
            found = _best_of_each_image(rows, mine, log_probabilities, taken if d.groups > 1 else None, free[:, group], d)
            parent, word, score = found
            finished = word == end
            for row, total in zip(parent[finished].tolist(), score[finished].tolist(), strict=True):
                ended[int(rows.images[row])][group].append((total, tuple(rows.words[row].tolist())))
            free[:, group] -= torch.bincount(rows.images[parent[finished]], minlength=images)
            taken.index_put_((rows.images[parent], word), torch.ones((), device=device), accumulate=True)
            unfinished = ~finished
            parents.append(parent[unfinished])
            words.append(word[unfinished])
            scores.append(score[unfinished])
            own.append(torch.full_like(word[unfinished], group))
        rows.extend(torch.cat(parents), torch.cat(words), torch.cat(scores))
        groups = torch.cat(own)
    return [_ranked([h for group in of_image for h in group], vocabulary, d.length_penalty) for of_image in ended]


def _best_of_each_image(
    rows: _Rows, mine: Tensor, log_probabilities: Tensor, taken: Tensor | None, free: Tensor, d: Decoding
) -> tuple[Tensor, Tensor, Tensor]:
    """The best continuations of one group's rows ``mine``, up to the free places in each image's beam.

    Returns:
        Their rows, words and scores (without the diversity penalty), each (continuations,).
    """
    images = rows.images[mine]
    own = log_probabilities[mine]
    judged = own if taken is None else own - d.diversity * taken[images]
    # More than ``beam`` continuations of one row can never be chosen: (rows, candidates)
    values, words = judged.topk(min(d.beam, judged.shape[1]), dim=1)
    total = rows.scores[mine, None] + values
    candidates = values.shape[1]
    # Candidates sorted by image, then by descending score; the first ``free`` of each image are taken.
    flat_images = images[:, None].expand_as(total).flatten()
    order = total.flatten().argsort(descending=True, stable=True)
    order = order[flat_images[order].argsort(stable=True)]
    sorted_images = flat_images[order]
    begins = torch.searchsorted(sorted_images, sorted_images)
    rank = torch.arange(len(order), device=order.device) - begins
    order = order[(rank < free[sorted_images]) & total.flatten()[order].isfinite()]
    parent, word = mine[order // candidates], words.flatten()[order]
    return parent, word, rows.scores[parent] + log_probabilities[parent, word]


def _ranked(found: Sequence[tuple[float, tuple[int, ...]]], vocabulary: Vocabulary, length_penalty: float) -> list[Hypothesis]:
    weighed = [(score / ((5 + len(words)) / 6) ** length_penalty, words) for score, words in found]
    best = sorted(weighed, key=lambda item: (-item[0], item[1]))
    distinct = {words: score for score, words in reversed(best)}  # two groups may find the same caption
    return [Hypothesis(words=tuple(vocabulary.decode(words)), score=score) for score, words in best if distinct.pop(words, None) is not None]


def _sample(rows: _Rows, vocabulary: Vocabulary, d: Decoding, numbers: Sequence[int]) -> list[list[Hypothesis]]:
    images, end, device = len(numbers), vocabulary.id(END), rows.images.device
    # (images * samples, max_words), from PCG64 seeded with (seed, number) for each image
    draws = torch.from_numpy(np.concatenate([np.random.default_rng([d.seed, number]).random((d.samples, d.max_words)) for number in numbers])).to(
        device
    )
    sample = torch.arange(images * d.samples, device=device)
    found: dict[int, Hypothesis] = {}
    for step in range(d.max_words):
        log_probabilities = rows.log_probabilities(d.block_ngrams, d.temperature)
        words, logs = _sample_words(log_probabilities, draws[sample, step], d)
        scores = rows.scores + logs
        for place in (words == end).nonzero().squeeze(1).tolist():
            found[int(sample[place])] = Hypothesis(words=tuple(vocabulary.decode(rows.words[place].tolist())), score=float(scores[place]))
        unfinished = (words != end).nonzero().squeeze(1)
        rows.extend(unfinished, words[unfinished], scores[unfinished])
        sample = sample[unfinished]
        if not len(sample):
            break
    for number, words_so_far, score in zip(sample.tolist(), rows.words.tolist(), rows.scores.tolist(), strict=True):
        found[number] = Hypothesis(words=tuple(vocabulary.decode(words_so_far)), score=score)
    captions = [[found[image * d.samples + number] for number in range(d.samples)] for image in range(images)]
    return [sorted(of_image, key=lambda hypothesis: -hypothesis.score) for of_image in captions]


def _sample_words(log_probabilities: Tensor, draws: Tensor, d: Decoding) -> tuple[Tensor, Tensor]:
    """Words by inverse transform sampling, int64 (rows,), and the log-probabilities they were sampled with, float64 (rows,)."""
    logs, words = log_probabilities.double().sort(dim=1, descending=True, stable=True)
    shares = logs.exp()
    reached = shares.cumsum(dim=1)
    kept = reached - shares < d.top_p  # the most likely word always stays
    if d.top_k:
        kept[:, d.top_k :] = False
    shares = torch.where(kept, shares, 0.0)
    reached = shares.cumsum(dim=1)
    place = torch.searchsorted(reached, draws[:, None] * reached[:, -1:], right=True).clamp_(max=log_probabilities.shape[1] - 1)
    place = torch.minimum(place, kept.sum(dim=1, keepdim=True) - 1)  # rounding may point past the last one
    sampled = (shares.gather(1, place) / reached[:, -1:]).log()
    return words.gather(1, place).squeeze(1), sampled.squeeze(1)


@torch.no_grad()
def sample_captions(
    decoder: Decoder, images: ProjectedImages, image_rows: Tensor, vocabulary: Vocabulary, *, max_words: int = MAX_WORDS
) -> tuple[Tensor, Tensor]:
    """Sample captions of some images from the decoder's full distribution, with torch's global random state.

    :func:`decode` rules out some words (<unk>, a word twice in a row) and samples from the rest. A policy gradient needs captions with exactly
    the probabilities that the decoder gives them.

    Args:
        decoder: Put into eval mode meanwhile, so that dropout is off.
        images: As :meth:`model.captioner.Captioner.project` returns them.
        image_rows: int64 (rows,): the image of each caption to sample.

    Returns:
        (tokens, lengths): int64 (rows, longest), [<start>, w1, ..., wn, <end>, <pad>, ...], on the device, and int64 (rows,) on the CPU: n + 2,
        or n + 1 if the caption was truncated to ``max_words`` words.
    """
    device = image_rows.device
    if not len(image_rows):  # a rank's slice of a small batch may be empty
        return torch.full((0, 1), vocabulary.id(START), device=device), torch.zeros(0, dtype=torch.int64)
    end, training = vocabulary.id(END), decoder.training
    decoder.eval()
    state = decoder.first_state(images).select(image_rows)
    unfinished = torch.arange(len(image_rows), device=device)
    last = torch.full_like(unfinished, vocabulary.id(START))
    tokens = torch.full((len(image_rows), max_words + 2), vocabulary.id(PAD), device=device)
    tokens[:, 0] = last
    lengths = torch.full_like(unfinished, max_words + 1)
    for position in range(1, max_words + 2):
        logits, state = decoder.decoding_step(last, state)
        last = torch.multinomial(logits.float().softmax(dim=1), 1).squeeze(1)
        if position > max_words:  # only <end> may still follow
            at_end = unfinished[last == end]
            tokens[at_end, position], lengths[at_end] = end, position + 1
            break
        tokens[unfinished, position] = last
        ended = last == end
        lengths[unfinished[ended]] = position + 1
        kept = (~ended).nonzero().squeeze(1)
        unfinished, last, state = unfinished[kept], last[kept], state.select(kept)
        if not len(unfinished):
            break
    decoder.train(training)
    lengths = lengths.cpu()
    return tokens[:, : int(lengths.max())], lengths
