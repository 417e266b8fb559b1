"""Features -> captions: greedy and beam search, diverse beams, sampling; batched, pure functions of a captioner.

Rows that have ended cost nothing more. What is decoded together does not change what is decoded, but for rounding in the network's sums:
images share nothing, and each draws its own random numbers.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from model.decoder import Decoder, Speaker, State
from model.vocabulary import END, PAD, START, UNK, Vocabulary

MAX_WORDS = 20
MIN_TEMPERATURE, MAX_TEMPERATURE = 1e-3, 1e3
MAX_DIVERSITY, MAX_LENGTH_PENALTY = 1e3, 10.0
MAX_HYPOTHESES, MAX_MAX_WORDS = 4096, 1000


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How captions are made; the default is greedy.

    Attributes:
        beam: Hypotheses that are followed at a time, in each group; 1 is greedy.
        length_penalty: A finished hypothesis counts by its log-probability over ((5 + words) / 6) to this power (Wu et al., 2016,
            "Google's neural machine translation system", equation 14); 0: by the log-probability alone, which favours short captions.
        block_ngrams: No sequence of so many words comes twice in a caption; 0: any may. A word never follows itself.
        groups: Groups of ``beam`` hypotheses that avoid each other's words (Vijayakumar et al., 2018, "Diverse beam search").
        diversity: What a word's log-probability loses for each hypothesis of an earlier group that took it at the same place.
        samples: Draw so many captions instead of searching; 0: search.
        temperature: Of sampling: logits are divided by it.
        top_k, top_p: Of sampling: only the so many likeliest words, or the fewest whose probabilities reach ``top_p`` (Holtzman et al.,
            2020, "The curious case of neural text degeneration"); 0 and 1: all words.
        seed: Of sampling.
        max_words: A caption that has not ended is cut here.
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
                f"of an image at most {MAX_HYPOTHESES} captions of at most {MAX_MAX_WORDS} words are followed"
            )
        if not MIN_TEMPERATURE <= self.temperature <= MAX_TEMPERATURE:
            raise ValueError(f"temperature is {self.temperature}, it must lie between {MIN_TEMPERATURE:g} and {MAX_TEMPERATURE:g}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}, it must be greater than 0 and at most 1")
        for name, most in (("diversity", MAX_DIVERSITY), ("length_penalty", MAX_LENGTH_PENALTY)):
            if not 0 <= getattr(self, name) <= most:
                raise ValueError(f"{name} is {getattr(self, name)}, it must lie between 0 and {most:g}")
        if self.samples and (self.beam > 1 or self.groups > 1):
            raise ValueError(f"samples is {self.samples} and beam {self.beam}, groups {self.groups}: captions are drawn or searched for, not both")
        if not self.samples and (self.temperature != 1 or self.top_k or self.top_p != 1):
            raise ValueError("temperature, top_k and top_p are for samples, and samples is 0")

    @property
    def hypotheses(self) -> int:
        """How many captions of an image are followed at a time, which is the most that there will be."""
        return self.samples or self.beam * self.groups


@dataclass(frozen=True, kw_only=True)
class Hypothesis:
    """A caption and its log-probability in nats, over the length penalty where there is one."""

    words: tuple[str, ...]
    score: float


def decode(
    captioner: Speaker, features: Tensor, vocabulary: Vocabulary, decoding: Decoding, *, numbers: Sequence[int] | None = None
) -> list[list[Hypothesis]]:
    """Captions of a batch of images.

    Args:
        captioner: A captioner or an ensemble, in eval mode.
        features: float (images, feature_dim) on the captioner's device.
        numbers: Each image's number among all that are captioned, for sampling: its random numbers are drawn from (seed, number). By
            default they are counted from 0.

    Returns:
        For each image, at least one hypothesis, the best first; of a search they differ, of sampling some may be the same.

    Raises:
        ValueError: The captioner is in training mode, or its scores are not finite.
    """
    if captioner.training:
        raise ValueError("decoding needs the captioner in eval mode: single images would be normalised by themselves")
    if not len(features):
        return []
    with torch.inference_mode():
        if decoding.samples:
            return _sampled(captioner, features, vocabulary, decoding, range(len(features)) if numbers is None else numbers)
        return _searched(captioner, features, vocabulary, decoding)


def greedy(captioner: Speaker, features: Tensor, vocabulary: Vocabulary, *, max_words: int = MAX_WORDS) -> list[list[str]]:
    """The likeliest word at every step: for each image its words.

    Raises:
        ValueError: As :func:`decode`.
    """
    found = decode(captioner, features, vocabulary, Decoding(max_words=max_words))
    return [list(hypotheses[0].words) for hypotheses in found]


class _Rows:
    """Hypotheses under way: their words so far, their scores, and the decoder's state for each.

    Attributes:
        images: int64 (rows,): whose hypothesis a row is.
        words: int64 (rows, words so far).
        scores: float64 (rows,).
    """

    def __init__(self, captioner: Speaker, features: Tensor, vocabulary: Vocabulary, copies: int) -> None:
        self.captioner = captioner
        self.images = torch.arange(len(features), device=features.device).repeat_interleave(copies)
        # (any, images, any) -> (any, images * copies, any)
        self.state: State = tuple(part.repeat_interleave(copies, dim=1) for part in captioner.first_state(features))
        self.last = torch.full_like(self.images, vocabulary.id(START))
        self.words = self.images.new_empty((len(self.images), 0))
        self.scores = torch.zeros(len(self.images), dtype=torch.float64, device=features.device)
        self._forbidden = torch.tensor(vocabulary.encode([PAD, START, UNK]), device=features.device)

    def log_probabilities(self, block_ngrams: int, temperature: float = 1.0) -> Tensor:
        """float32 (rows, vocabulary_size) of the next word; -inf for what must not follow."""
        logits, self.state = self.captioner.decoding_step(self.last, self.state)
        logits = logits.float().index_fill_(1, self._forbidden, -torch.inf)
        if self.words.shape[1]:
            logits.scatter_(1, self.last[:, None], -torch.inf)
        if block_ngrams > 1 and self.words.shape[1] >= block_ngrams:
            # (rows, places, block_ngrams): every sequence so far; what followed the words that stand last again is not to follow again
            windows = self.words.unfold(1, block_ngrams, 1)
            tail = self.words[:, self.words.shape[1] - block_ngrams + 1 :]
            again = (windows[:, :, :-1] == tail[:, None]).all(dim=2)
            rows, places = again.nonzero(as_tuple=True)
            logits[rows, windows[rows, places, -1]] = -torch.inf
        elif block_ngrams == 1 and self.words.shape[1]:
            logits.scatter_(1, self.words, -torch.inf)
        chances = (logits if temperature == 1 else logits / temperature).log_softmax(dim=1)
        if chances.isnan().any():
            raise ValueError("the captioner's scores are not finite: its weights are damaged, or its training has failed")
        return chances

    def follow(self, parents: Tensor, words: Tensor, scores: Tensor) -> None:
        """Go on with some rows, int64 (rows,), each with a word and its new score; a row may be followed several times, or not."""
        self.images, self.scores, self.last = self.images[parents], scores, words
        self.words = torch.cat([self.words[parents], words[:, None]], dim=1)
        self.state = tuple(part[:, parents] for part in self.state)


def _searched(captioner: Speaker, features: Tensor, vocabulary: Vocabulary, d: Decoding) -> list[list[Hypothesis]]:
    """Beam search. A hypothesis that ends leaves the beam, which goes on with as many fewer: so one of 1 is greedy.

    Rows stand in a grid of images x groups x beam; ``places`` says where each living row stands.
    """
    images, end, device = len(features), vocabulary.id(END), features.device
    ended: list[list[list[tuple[float, tuple[int, ...]]]]] = [[[] for _ in range(d.groups)] for _ in range(images)]
    rows = _Rows(captioner, features, vocabulary, d.groups)
    groups = torch.arange(d.groups, device=device).repeat(images)
    free = torch.full((images, d.groups), d.beam, device=device)
    for step in range(d.max_words + 1):
        if not len(rows.images):
            break
        if step == d.max_words:  # cut: unfinished hypotheses answer as they are
            for image, group, score, words in zip(*(t.tolist() for t in (rows.images, groups, rows.scores, rows.words)), strict=True):
                ended[image][group].append((score, tuple(words)))
            break
        chances = rows.log_probabilities(d.block_ngrams)
        taken = torch.zeros((images, chances.shape[1]), device=device)  # words of earlier groups at this place
        parents, words, scores, own = [], [], [], []
        for group in range(d.groups):
            mine = (groups == group).nonzero().squeeze(1)
            if not len(mine):
                continue
            found = _best_of_each_image(rows, mine, chances, taken if d.groups > 1 else None, free[:, group], d)
            parent, word, score = found
            finished = word == end
            for row, total in zip(parent[finished].tolist(), score[finished].tolist(), strict=True):
                ended[int(rows.images[row])][group].append((total, tuple(rows.words[row].tolist())))
            free[:, group] -= torch.bincount(rows.images[parent[finished]], minlength=images)
            taken.index_put_((rows.images[parent], word), torch.ones((), device=device), accumulate=True)
            going = ~finished
            parents.append(parent[going])
            words.append(word[going])
            scores.append(score[going])
            own.append(torch.full_like(word[going], group))
        rows.follow(torch.cat(parents), torch.cat(words), torch.cat(scores))
        groups = torch.cat(own)
    return [_ranked([h for group in of_image for h in group], vocabulary, d.length_penalty) for of_image in ended]


def _best_of_each_image(rows: _Rows, mine: Tensor, chances: Tensor, taken: Tensor | None, free: Tensor, d: Decoding) -> tuple[Tensor, Tensor, Tensor]:
    """The best continuations of one group's rows ``mine``, as many for each image as its beam has room for.

    Returns:
        The rows that they continue, their words and their scores (without what diversity took), each (continuations,).
    """
    images = rows.images[mine]
    own = chances[mine]
    judged = own if taken is None else own - d.diversity * taken[images]
    # No image takes more of one row than its whole beam: (rows, candidates)
    values, words = judged.topk(min(d.beam, judged.shape[1]), dim=1)
    total = rows.scores[mine, None] + values
    candidates = values.shape[1]
    # Candidates sorted by image, then by falling score; of each image the first so many are taken.
    flat_images = images[:, None].expand_as(total).flatten()
    order = total.flatten().argsort(descending=True, stable=True)
    order = order[flat_images[order].argsort(stable=True)]
    sorted_images = flat_images[order]
    begins = torch.searchsorted(sorted_images, sorted_images)
    rank = torch.arange(len(order), device=order.device) - begins
    order = order[(rank < free[sorted_images]) & total.flatten()[order].isfinite()]
    parent, word = mine[order // candidates], words.flatten()[order]
    return parent, word, rows.scores[parent] + chances[parent, word]


def _ranked(found: Sequence[tuple[float, tuple[int, ...]]], vocabulary: Vocabulary, length_penalty: float) -> list[Hypothesis]:
    weighed = [(score / ((5 + len(words)) / 6) ** length_penalty, words) for score, words in found]
    best = sorted(weighed, key=lambda item: (-item[0], item[1]))
    distinct = {words: score for score, words in reversed(best)}  # two groups may say the same
    return [Hypothesis(words=tuple(vocabulary.decode(words)), score=score) for score, words in best if distinct.pop(words, None) is not None]


def _sampled(captioner: Speaker, features: Tensor, vocabulary: Vocabulary, d: Decoding, numbers: Sequence[int]) -> list[list[Hypothesis]]:
    images, end, device = len(features), vocabulary.id(END), features.device
    rows = _Rows(captioner, features, vocabulary, d.samples)
    # (images * samples, max_words): each image's numbers are drawn from PCG64 seeded with (seed, number).
    draws = torch.from_numpy(np.concatenate([np.random.default_rng([d.seed, number]).random((d.samples, d.max_words)) for number in numbers])).to(
        device
    )
    sample = torch.arange(images * d.samples, device=device)
    found: dict[int, Hypothesis] = {}
    for step in range(d.max_words):
        chances = rows.log_probabilities(d.block_ngrams, d.temperature)
        words, logs = _sample_words(chances, draws[sample, step], d)
        scores = rows.scores + logs
        for place in (words == end).nonzero().squeeze(1).tolist():
            found[int(sample[place])] = Hypothesis(words=tuple(vocabulary.decode(rows.words[place].tolist())), score=float(scores[place]))
        going = (words != end).nonzero().squeeze(1)
        rows.follow(going, words[going], scores[going])
        sample = sample[going]
        if not len(sample):
            break
    for number, words_so_far, score in zip(sample.tolist(), rows.words.tolist(), rows.scores.tolist(), strict=True):
        found[number] = Hypothesis(words=tuple(vocabulary.decode(words_so_far)), score=score)
    drawn = [[found[image * d.samples + number] for number in range(d.samples)] for image in range(images)]
    return [sorted(of_image, key=lambda hypothesis: -hypothesis.score) for of_image in drawn]


def _sample_words(chances: Tensor, draws: Tensor, d: Decoding) -> tuple[Tensor, Tensor]:
    """Words by inverse transform sampling, int64 (rows,), and the log-probabilities that they were drawn with, float64 (rows,)."""
    logs, words = chances.double().sort(dim=1, descending=True, stable=True)
    shares = logs.exp()
    reached = shares.cumsum(dim=1)
    kept = reached - shares < d.top_p  # the likeliest word stays always
    if d.top_k:
        kept[:, d.top_k :] = False
    shares = torch.where(kept, shares, 0.0)
    reached = shares.cumsum(dim=1)
    place = torch.searchsorted(reached, draws[:, None] * reached[:, -1:], right=True).clamp_(max=chances.shape[1] - 1)
    place = torch.minimum(place, kept.sum(dim=1, keepdim=True) - 1)  # rounding may point behind the last one
    drawn = (shares.gather(1, place) / reached[:, -1:]).log()
    return words.gather(1, place).squeeze(1), drawn.squeeze(1)


@torch.no_grad()
def sample_captions(decoder: Decoder, images: Tensor, vocabulary: Vocabulary, *, max_words: int = MAX_WORDS) -> tuple[Tensor, Tensor]:
    """A caption for each image as training sees it, each word drawn from all that the decoder expects, by torch's own random numbers.

    :func:`decode` follows rules (no <unk>, no word twice in a row), and draws from what they leave; a policy gradient needs captions that have
    just the probabilities which the decoder gives them.

    Args:
        decoder: Dropout rests meanwhile.
        images: Projected images, float32 (rows, embedding_dim).

    Returns:
        (tokens, lengths): int64 (rows, longest), [<start>, w1, ..., wn, <end>, <pad>, ...], on the device, and int64 (rows,) on the CPU: n + 2,
        or n + 1 where ``max_words`` words have come without an end.
    """
    if not len(images):  # a process's share of a small batch
        return torch.full((0, 1), vocabulary.id(START), device=images.device), torch.zeros(0, dtype=torch.int64)
    end, training = vocabulary.id(END), decoder.training
    decoder.eval()
    _, state = decoder.decoding_step(images, (images.unsqueeze(0),))
    going = torch.arange(len(images), device=images.device)
    last = torch.full_like(going, vocabulary.id(START))
    tokens = torch.full((len(images), max_words + 2), vocabulary.id(PAD), device=images.device)
    tokens[:, 0] = last
    lengths = torch.full_like(going, max_words + 1)
    for place in range(1, max_words + 2):
        logits, state = decoder.decoding_step(decoder.embedding(last), state)
        last = torch.multinomial(logits.float().softmax(dim=1), 1).squeeze(1)
        if place > max_words:  # an end may still come, and nothing else
            at_end = going[last == end]
            tokens[at_end, place], lengths[at_end] = end, place + 1
            break
        tokens[going, place] = last
        ended = last == end
        lengths[going[ended]] = place + 1
        kept = (~ended).nonzero().squeeze(1)
        going, last, state = going[kept], last[kept], tuple(part[:, kept] for part in state)
        if not len(going):
            break
    decoder.train(training)
    lengths = lengths.cpu()
    return tokens[:, : int(lengths.max())], lengths


def sentence(words: Sequence[str]) -> str:
    """Tokens as one line of text, by NLTK's detokenizer: punctuation and contractions are joined again.

    >>> sentence(["a", "man", "'s", "dog", ",", "asleep", "."])
    "a man's dog, asleep."
    """
    from nltk.tokenize.treebank import TreebankWordDetokenizer

    text: str = TreebankWordDetokenizer().detokenize(words)
    return text


@dataclass(frozen=True, kw_only=True)
class ScoredCaption:
    """Another caption that decoding found, and its score (see :class:`model.decoding.Hypothesis`)."""

    caption: str
    score: float
