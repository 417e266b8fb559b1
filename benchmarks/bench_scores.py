"""How often do the built-in tokenizer and the Stanford tokenizer agree, and how long does scoring take?

The tokenizers split the captions of a COCO file, and the same captions with random mistakes (an added mark, digit or abbreviation, a missing
space) that were not used for developing the rules. NLTK's word tokenizer splits them too, as the usual alternative. Then one human caption per
image is scored against the others. Needs Java.
"""

import argparse
import json
import random
import time
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import machine, machine_line, table, write_report
from model.intervals import mean_bounds, statistic_bounds
from model.metrics import bleu, bleu_of_counts, cider, corpus_scores, rouge_l
from model.ptb import PUNCTUATION, ptb_tokens
from pipeline.evaluation.java import java_tokens, meteor

INSERTED = [*"'\".,-/&()!?:;#$%*+=[]_0123456789 ’“”–…é½@", "'s", "n't", " -- ", "...", " 's", " (", "1/2", " St. "]
WORDS = ["Dr.", "12", "3rd", "$5", "a.m.", "T.V.", "o'clock", "50%"]


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Tokenizers and the time of scoring.", formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--captions", type=Path, required=True, help="COCO caption file")
    parser.add_argument("--karpathy", type=Path, default=None, help="another caption file, in Karpathy's format")
    parser.add_argument("--mistakes", type=int, default=20_000, help="number of captions with mistakes")
    parser.add_argument("--out", type=Path, default=None, help="folder for a dated JSON and Markdown report")
    return parser.parse_args(argv)


def with_mistakes(captions: Sequence[str], count: int) -> list[str]:
    """Captions with one or two random mistakes each."""
    draw = random.Random(11)
    made = []
    for _ in range(count):
        text = draw.choice(captions).strip()
        for _ in range(draw.choice((1, 1, 2))):
            kind, place = draw.random(), draw.randrange(len(text) + 1)
            if kind < 0.6:
                text = text[:place] + draw.choice(INSERTED) + text[place:]
            elif kind < 0.8 and " " in text:
                gap = draw.choice([i for i, sign in enumerate(text) if sign == " "])
                text = text[:gap] + draw.choice(INSERTED) + text[gap + 1 :]
            else:
                words = text.split(" ")
                which = draw.randrange(len(words))
                words[which] = draw.choice((words[which].upper(), words[which].title(), words[which] + draw.choice(".,'"), draw.choice(WORDS)))
                text = " ".join(words)
        made.append(text)
    return made


def nltk_tokens(text: str) -> list[str]:
    """Tokens of NLTK's word tokenizer in lower case, without the punctuation that the COCO evaluation drops."""
    from nltk.tokenize import NLTKWordTokenizer

    return [token for token in NLTKWordTokenizer().tokenize(text.lower().strip()) if token not in PUNCTUATION]


def agreement(name: str, captions: Sequence[str]) -> dict[str, Any]:
    """How many captions each tokenizer splits differently from the Stanford tokenizer, with examples."""
    stanford = java_tokens(captions)
    ours = [(text, ptb_tokens(text), there) for text, there in zip(captions, stanford, strict=True)]
    wrong = [{"caption": text, "built in": here, "Stanford": there} for text, here, there in ours if here != there]
    nltk = sum(nltk_tokens(text) != there for text, there in zip(captions, stanford, strict=True))
    return {"captions of": name, "captions": len(captions), "built in": len(wrong), "nltk": nltk, "examples": wrong[:20]}


def seconds(function: Callable[[], Any]) -> float:
    """Seconds of one call."""
    began = time.perf_counter()
    function()
    return round(time.perf_counter() - began, 2)


def costs(groups: Sequence[Sequence[str]]) -> dict[str, float]:
    """Seconds for each step of scoring one caption of each group against the others."""
    texts = [text for group in groups for text in group]
    tokens = [[ptb_tokens(text) for text in group] for group in groups]
    candidates, references = [group[0] for group in tokens], [group[1:] for group in tokens]
    counts = bleu(candidates, references).counts.astype(float)
    of_images = np.stack([metric(candidates, references).images for metric in (rouge_l, cider)], axis=1)
    joined = [" ".join(words) for words in candidates], [[" ".join(words) for words in group] for group in references]
    return {
        "built-in tokenizer, all captions": seconds(lambda: list(map(ptb_tokens, texts))),
        "Stanford tokenizer, all captions": seconds(lambda: java_tokens(texts)),
        "BLEU, ROUGE-L, CIDEr": seconds(lambda: corpus_scores(candidates, references)),
        "all intervals without Java": seconds(lambda: (statistic_bounds(counts, bleu_of_counts), mean_bounds(of_images))),
        "METEOR": seconds(lambda: meteor(*joined)),
    }


def markdown(report: dict[str, Any]) -> str:
    rows = [
        [
            found["captions of"],
            f"{found['captions']:,}",
            *(f"{found[way]} ({1 - found[way] / found['captions']:.3%} equal)" for way in ("built in", "nltk")),
        ]
        for found in report["agreement"]
    ]
    lines = [f"# Tokenizers and scores, {report['date']}", "", "Captions that are split differently by the Stanford tokenizer:", ""]
    lines += table(["Captions of", "Captions", "Built in", "NLTK's word tokenizer"], rows)
    lines += ["", f"Scoring {report['images']:,} images, in seconds of one call each:", ""]
    lines += table(["Step", "s"], [[step, f"{spent:.2f}"] for step, spent in report["seconds"].items()])
    return "\n".join([*lines, "", machine_line(report["machine"]), ""])


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the benchmark, print its tables, write them to ``--out``, and return the report."""
    s = parse(argv)
    groups: dict[int, list[str]] = {}
    for annotation in json.loads(s.captions.read_bytes())["annotations"]:
        groups.setdefault(annotation["image_id"], []).append(annotation["caption"])
    captions = [text for group in groups.values() for text in group]
    found = [agreement(s.captions.name, captions)]
    if s.karpathy is not None:
        images = json.loads(s.karpathy.read_bytes())["images"]
        found.append(agreement(s.karpathy.name, [sentence["raw"] for image in images for sentence in image["sentences"]]))
    found.append(agreement(f"{s.captions.name} with mistakes", with_mistakes(captions, s.mistakes)))
    spent = costs([group for group in groups.values() if len(group) > 1])
    report = {
        "agreement": found,
        "images": len(groups),
        "seconds": spent,
        "date": date.today().isoformat(),
        "machine": machine("numpy", "nltk", "pycocoevalcap"),
    }
    write_report(s.out, f"bench_scores-{report['date']}", report, markdown(report))
    return report


if __name__ == "__main__":
    main()
