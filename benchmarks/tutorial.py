"""The tutorial's way of training, as it is usually written, for comparison with ours.

The data are a folder of resized JPEGs with one item per caption. DataLoader workers decode and tokenize, and every step runs the frozen network.
"""

from collections.abc import Generator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.data import DataLoader, Dataset

from model.preprocessing import Preprocessing
from model.vocabulary import END, START, Vocabulary
from pipeline.sharding.read_samples import shard_samples
from shards.dataset import Split

EMBEDDING, HIDDEN, LEARNING_RATE, MIN_COUNT = 256, 512, 1e-3, 4  # the tutorial's
Steps = Generator[tuple[int, int], None, None]  # each next() trains one step and returns (images, captions)


def unpack(split: Split, folder: Path) -> list[tuple[str, str]]:
    """Write a split's resized JPEGs as plain files; return (file name, caption) pairs."""
    folder.mkdir()
    pairs: list[tuple[str, str]] = []
    for shard in split.shards:
        for sample, jpeg, record in shard_samples(shard):
            name = f"{sample.key}.jpg"
            (folder / name).write_bytes(jpeg)
            pairs.extend((name, caption["text"]) for caption in record["captions"])
    return pairs


class JpegFolder(Dataset[tuple[Tensor, Tensor]]):
    """Item c is caption c, tokenized, with its image: decoded, randomly cropped and flipped, normalized."""

    def __init__(self, folder: Path, captions: list[tuple[str, str]], vocabulary: Vocabulary, preprocessing: Preprocessing) -> None:
        self.folder, self.captions, self.vocabulary, self.crop = folder, captions, vocabulary, preprocessing.crop
        self.mean, self.std = (torch.tensor(values).view(3, 1, 1) for values in (preprocessing.mean, preprocessing.std))

    def __len__(self) -> int:
        return len(self.captions)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        from nltk.tokenize import word_tokenize

        name, caption = self.captions[index]
        with Image.open(self.folder / name) as file:
            pixels = torch.from_numpy(np.array(file.convert("RGB")))
        top, left = (int(torch.randint(side - self.crop + 1, ())) for side in pixels.shape[:2])
        pixels = pixels[top : top + self.crop, left : left + self.crop]
        if torch.rand(()) < 0.5:
            pixels = pixels.flip(1)
        image = (pixels.permute(2, 0, 1).contiguous().float() / 255 - self.mean) / self.std
        words = [START, *word_tokenize(caption.lower(), preserve_line=True), END]
        return image, torch.tensor([self.vocabulary.id(word) for word in words])


def collate(items: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor, list[int]]:
    """Longest caption first: float32 (captions, 3, crop, crop), int64 (captions, longest), lengths."""
    items.sort(key=lambda item: len(item[1]), reverse=True)
    tokens = nn.utils.rnn.pad_sequence([ids for _, ids in items], batch_first=True)
    return torch.stack([image for image, _ in items]), tokens, [len(ids) for _, ids in items]


def tutorial_loader(data: JpegFolder, *, batch_size: int, workers: int, seed: int) -> "DataLoader[tuple[Tensor, Tensor]]":
    """The tutorial's DataLoader: shuffled, full batches only."""
    shuffle = torch.Generator().manual_seed(seed)
    return DataLoader(data, batch_size, shuffle=True, num_workers=workers, collate_fn=collate, drop_last=True, generator=shuffle)


class TutorialCaptioner(nn.Module):
    """Linear + BatchNorm1d, and the LSTM over the image and the words."""

    def __init__(self, features: int, vocabulary: int) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(features, EMBEDDING), nn.BatchNorm1d(EMBEDDING, momentum=0.01)
        self.embedding, self.lstm = nn.Embedding(vocabulary, EMBEDDING), nn.LSTM(EMBEDDING, HIDDEN, batch_first=True)
        self.output = nn.Linear(HIDDEN, vocabulary)

    def forward(self, features: Tensor, tokens: Tensor, lengths: list[int]) -> Tensor:
        # (captions, 1 + longest, embedding): the image comes first; packing drops the last word.
        inputs = torch.cat([self.norm(self.linear(features)).unsqueeze(1), self.embedding(tokens)], dim=1)
        hidden, _ = self.lstm(pack_padded_sequence(inputs, lengths, batch_first=True))
        scores: Tensor = self.output(hidden.data)
        return scores


def tutorial_steps(
    data: JpegFolder,
    network: nn.Module,
    captioner: TutorialCaptioner,
    device: torch.device,
    *,
    batch_size: int,
    workers: int,
    seed: int,
) -> Steps:
    """Train epoch after epoch, without end."""
    loader = tutorial_loader(data, batch_size=batch_size, workers=workers, seed=seed)
    optimizer = torch.optim.Adam(captioner.parameters(), lr=LEARNING_RATE)
    criterion = nn.CrossEntropyLoss()
    while True:
        for images, tokens, lengths in loader:
            inputs, words = images.to(device), tokens.to(device)
            targets = pack_padded_sequence(words, lengths, batch_first=True).data
            with torch.no_grad():
                features = network(inputs)
            loss = criterion(captioner(features, words, lengths), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            yield len(images), len(lengths)
