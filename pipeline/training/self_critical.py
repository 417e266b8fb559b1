"""Self-critical training: sample captions from the model, and raise the probability of those that score above the others of their image.

Rennie et al., 2017, "Self-critical sequence training for image captioning", with CIDEr-D as the reward and the mean of the other samples
as the baseline (Luo, 2020, "A better variant of self-critical sequence training"). The reward counts the end token as a word: otherwise
captions end anywhere ("a man riding a wave on a").

Trade-off: captions are sampled word by word, without dropout and without gradients, and then go through the decoder a second time, all
positions at once. The second pass costs less than keeping the first one's gradients.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.captioner import Captioner
from model.cider_d import CiderD
from model.decoding import MAX_WORDS, sample_captions
from model.vocabulary import END, SPECIAL, Vocabulary
from pipeline.backbone.precision import decoder_autocast
from pipeline.captions.languages import language_rules
from pipeline.loading.batches import CaptionBatch
from pipeline.loading.training_data import FeatureExtractor
from pipeline.runs.train_config import TrainConfig
from pipeline.training.distributed import ProcessGroup
from shards.caption_table import CaptionTable

NOT_SCORED = -1


class Reward:
    """CIDEr-D of sampled captions against the captions of their images, with the document frequencies of the whole split.

    Both sides are compared as they are in evaluation: as PTB tokens in English, without punctuation. Both end with <end>.

    Args:
        table: The split.
        vocabulary: The captioner's vocabulary.
    """

    def __init__(self, table: CaptionTable, vocabulary: Vocabulary) -> None:
        self.table, self.vocabulary = table, vocabulary
        language = language_rules(vocabulary.language)
        scored = ["", "", *SPECIAL[2:], *map(language.scored_word, vocabulary.words[len(SPECIAL) :])]
        ids: dict[str, int] = {}
        # int64 (vocabulary_size,): the id under which each word is scored
        self._scored_ids = np.array([ids.setdefault(word, number) if word else NOT_SCORED for number, word in enumerate(scored)])
        tokens: list[int] = []
        offsets = [0]
        for text in table.texts:
            tokens.extend(ids.setdefault(token, len(vocabulary) + len(ids)) for token in language.scored(text))
            tokens.append(ids[END])
            offsets.append(len(tokens))
        self._cider = CiderD(np.array(tokens, np.int64), np.array(offsets, np.int64), table.image_rows.astype(np.int64), table.images)

    def __call__(self, tokens: NDArray[np.int64], lengths: NDArray[np.int64], images: NDArray[np.int64]) -> NDArray[np.float64]:
        """CIDEr-D on a scale of 0 to 10, float64 (captions,).

        Args:
            tokens: int64 (captions, longest), [<start>, w1, ..., wn, <end>, <pad>, ...].
            lengths: int64 (captions,), n + 2.
            images: int64 (captions,): the table's row of each caption's image.
        """
        words = self._scored_ids[tokens]
        words[np.arange(words.shape[1]) >= lengths[:, None]] = NOT_SCORED
        not_scored = words == NOT_SCORED
        # Move the scored words to the front of each row, in order.
        words = np.take_along_axis(words, np.argsort(not_scored, axis=1, kind="stable"), axis=1)
        return self._cider.score(words, (~not_scored).sum(axis=1), images)


def advantages(rewards: NDArray[np.float64]) -> NDArray[np.float64]:
    """Each caption's reward minus the mean reward of the other captions of its image; both are float64 (images, samples).

    >>> advantages(np.array([[3.0, 1.0, 2.0]])).tolist()
    [[1.5, -1.5, 0.0]]
    """
    samples = rewards.shape[1]
    result: NDArray[np.float64] = (rewards - rewards.mean(axis=1, keepdims=True)) * samples / (samples - 1)
    return result


@dataclass(frozen=True)
class SelfCriticalStep:
    """Forward and backward pass of one batch's images: the gradients of the negative expected reward, over all processes.

    Args:
        captioner, model, extract_features, processes: As for :class:`pipeline.training.cross_entropy.CrossEntropyStep`.
        settings: The settings ``precision``, and ``samples``: captions sampled per image.
        reward: The reward, with the split that is trained on and the captioner's vocabulary.
    """

    captioner: Captioner
    model: torch.nn.Module
    extract_features: FeatureExtractor
    settings: TrainConfig
    processes: ProcessGroup
    reward: Reward

    def __call__(self, batch: CaptionBatch) -> Tensor:
        """Compute the gradients; return this process's part of the negative mean CIDEr-D, float32 (). The parts of all processes add up to it."""
        features = self.extract_features(batch)
        units, samples, precision, device = len(features), self.settings.samples, self.settings.precision, features.device
        with decoder_autocast(precision, device):
            images = self.captioner.project(features, batch.mask)
        image_rows = np.zeros(units, np.int64)
        image_rows[batch.unit_rows.cpu().numpy()] = self.reward.table.image_rows[batch.captions.numpy()]
        owners = torch.arange(units, device=device).repeat_interleave(samples)  # (units * samples,): the unit of each sampled caption
        detached = replace(images, values=images.values.detach())
        with decoder_autocast(precision, device):
            tokens, lengths = sample_captions(self.captioner.decoder, detached, owners, self.reward.vocabulary, max_words=MAX_WORDS)
        rewards = self.reward(tokens.cpu().numpy(), lengths.numpy(), image_rows[owners.cpu().numpy()]).reshape(units, samples)
        weights = torch.from_numpy(advantages(rewards).reshape(-1).astype(np.float32)).to(device)
        # Every token of a caption except <start> counts.
        batch_tokens, batch_captions = self.processes.sum(float((lengths - 1).sum()), float(len(lengths)))
        by_length = lengths.argsort(descending=True, stable=True)
        order = by_length.to(device)
        with decoder_autocast(precision, device):
            loss = self.model(images, owners[order], tokens[order], lengths[by_length], weights=weights[order])
        # DistributedDataParallel averages gradients over the processes; the sum is needed here.
        (loss * (self.processes.world_size / batch_tokens)).backward()
        return torch.tensor(-rewards.sum() / batch_captions, dtype=torch.float32, device=device)
