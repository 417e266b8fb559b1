"""Features -> captions: batched, pure functions of a captioner."""

import torch
from torch import Tensor

from model.decoder import Captioner
from model.vocabulary import END, PAD, START, UNK, Vocabulary

MAX_WORDS = 20


@torch.inference_mode()
def greedy(captioner: Captioner, features: Tensor, vocabulary: Vocabulary, *, max_words: int = MAX_WORDS) -> list[list[str]]:
    """The likeliest word at every step, for a batch of images.

    The image's step predicts <start>, which is forced and not counted; <pad>, <start> and <unk> are never chosen; a row
    ends at <end>, and then costs nothing more.

    Args:
        captioner: In eval mode.
        features: float (images, feature_dim) on the captioner's device.
        max_words: A caption that has not ended is cut here.

    Returns:
        For each image its words.
    """
    if captioner.training:
        raise ValueError("decoding needs the captioner in eval mode: single images would be normalised by themselves")
    captions: list[list[int]] = [[] for _ in range(len(features))]
    if not captions:
        return []
    decoder = captioner.decoder
    forbidden = torch.tensor(vocabulary.encode([PAD, START, UNK]), device=features.device)
    end = vocabulary.id(END)
    _, state = decoder.decoding_step(captioner.projection(features.float()), None)
    rows = torch.arange(len(features), device=features.device)
    words = torch.full_like(rows, vocabulary.id(START))
    for _ in range(max_words):
        logits, state = decoder.decoding_step(decoder.embedding(words), state)
        words = logits.index_fill_(1, forbidden, -torch.inf).argmax(dim=1)
        going = words != end
        words, rows = words[going], rows[going]
        state = (state[0][:, going], state[1][:, going])
        for row, word in zip(rows.tolist(), words.tolist(), strict=True):
            captions[row].append(word)
        if not len(rows):
            break
    return [vocabulary.decode(caption) for caption in captions]


def sentence(words: list[str]) -> str:
    """Tokens as one line of text, by NLTK's detokenizer: punctuation and contractions are joined again.

    >>> sentence(["a", "man", "'s", "dog", ",", "asleep", "."])
    "a man's dog, asleep."
    """
    from nltk.tokenize.treebank import TreebankWordDetokenizer

    text: str = TreebankWordDetokenizer().detokenize(words)
    return text
