"""Self-critical training: captions are drawn from the model, and those that score higher than the others of their image become likelier.

Rennie et al., 2017, "Self-critical sequence training for image captioning", with CIDEr-D as the reward and the mean of the other samples
as the baseline (Luo, 2020, "A better variant of self-critical sequence training"). The end of a caption is a word of the reward: without
it captions end anywhere ("a man riding a wave on a").

What it trades: captions are drawn without dropout and without gradients, word after word, and then go through the LSTM once more, all
places at once: the second pass costs less than keeping the first one's gradients.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.captioner import Captioner
from model.cider_d import CiderD
from model.decoding import MAX_WORDS, sample_captions
from model.ptb import ptb_tokens
from model.vocabulary import END, PAD, START, Vocabulary
from pipeline.backbone.precision import decoder_autocast
from pipeline.loading.batches import CaptionBatch
from pipeline.loading.training_data import FeatureExtractor
from pipeline.training.distributed import ProcessGroup
from shards.caption_table import CaptionTable

DROPPED = -1


class Reward:
    """CIDEr-D of drawn captions against the captions of their images, whose document frequencies are those of the whole split.

    Captions and references are compared as they are scored: as PTB tokens, without punctuation; and both end with <end>.

    Args:
        table: The split.
        vocabulary: Of the ids that are drawn.
    """

    def __init__(self, table: CaptionTable, vocabulary: Vocabulary) -> None:
        ids = {word: number for number, word in enumerate(vocabulary.words)}
        silent = {PAD, START, *(word for word in vocabulary.words[4:] if not ptb_tokens(word))}
        # int64 (vocabulary_size,): what a drawn word counts as
        self._counts_as = np.array([DROPPED if word in silent else number for number, word in enumerate(vocabulary.words)])
        tokens: list[int] = []
        offsets = [0]
        for text in table.texts:
            tokens.extend(ids.setdefault(token, len(ids)) for token in ptb_tokens(text))
            tokens.append(ids[END])
            offsets.append(len(tokens))
        self._cider = CiderD(np.array(tokens, np.int64), np.array(offsets, np.int64), table.image_rows.astype(np.int64), table.images)

    def __call__(self, tokens: NDArray[np.int64], lengths: NDArray[np.int64], images: NDArray[np.int64]) -> NDArray[np.float64]:
        """Scores on a scale of 0 to 10, float64 (captions,).

        Args:
            tokens: int64 (captions, longest), [<start>, w1, ..., wn, <end>, <pad>, ...].
            lengths: int64 (captions,).
            images: int64 (captions,): the table's row of each caption's image.
        """
        words = self._counts_as[tokens]
        words[np.arange(words.shape[1]) >= lengths[:, None]] = DROPPED
        left_out = words == DROPPED
        # What is left moves together, to the front.
        words = np.take_along_axis(words, np.argsort(left_out, axis=1, kind="stable"), axis=1)
        return self._cider.score(words, (~left_out).sum(axis=1), images)


def advantages(rewards: NDArray[np.float64]) -> NDArray[np.float64]:
    """How much better each caption is than the mean of the others of its image, float64 (images, samples), both ways.

    >>> advantages(np.array([[3.0, 1.0, 2.0]])).tolist()
    [[1.5, -1.5, 0.0]]
    """
    samples = rewards.shape[1]
    gains: NDArray[np.float64] = (rewards - rewards.mean(axis=1, keepdims=True)) * samples / (samples - 1)
    return gains


@dataclass(frozen=True)
class SelfCriticalStep:
    """Forward and backward of one batch's images: gradients of minus the expected reward, over all processes, in the parameters.

    Args:
        captioner, model, features_of, precision, processes: As for :class:`pipeline.training.cross_entropy.CrossEntropyStep`.
        table, reward: The split that is trained on, and its reward.
        vocabulary: Of the captioner.
        samples: Captions that are drawn of each image.
    """

    captioner: Captioner
    model: torch.nn.Module
    features_of: FeatureExtractor
    precision: str
    processes: ProcessGroup
    table: CaptionTable
    reward: Reward
    vocabulary: Vocabulary
    samples: int

    def __call__(self, batch: CaptionBatch) -> Tensor:
        """Minus the mean CIDEr-D of the drawn captions: the part of this process, float32 (); the parts of all processes add up to it."""
        images = self.captioner.projection(self.features_of(batch))
        units = len(images)
        rows = np.zeros(units, np.int64)
        rows[batch.unit_rows.cpu().numpy()] = self.table.image_rows[batch.captions.numpy()]
        owners = torch.arange(units, device=images.device).repeat_interleave(self.samples)
        with decoder_autocast(self.precision, images.device):
            tokens, lengths = sample_captions(self.captioner.decoder, images.detach()[owners], self.vocabulary, max_words=MAX_WORDS)
        rewards = self.reward(tokens.cpu().numpy(), lengths.numpy(), rows[owners.cpu().numpy()]).reshape(units, self.samples)
        gains = torch.from_numpy(advantages(rewards).reshape(-1).astype(np.float32))
        longest_first = lengths.argsort(descending=True, stable=True)
        # Of each caption all but <start> counts.
        drawn, everyone = self.processes.sum(float((lengths - 1).sum()), float(len(lengths)))
        there = longest_first.to(images.device)
        with decoder_autocast(self.precision, images.device):
            loss = self.model(images, owners[there], tokens[there], lengths[longest_first], weights=gains.to(images.device)[there])
        # DistributedDataParallel takes the mean over processes, and a sum is wanted.
        (loss * (self.processes.size / drawn)).backward()
        return torch.tensor(-rewards.sum() / everyone, dtype=torch.float32, device=images.device)
