"""How often the built-in tokenizer and the Stanford one agree, and what scores cost.

Captions of a COCO file as they are; the same with mistakes put in (a mark, a digit, an abbreviation, a space gone), which nobody looked
at while the rules were made; NLTK's word tokenizer on the same, which is the alternative at hand. Then one human caption of each image
is scored against the others. Needs Java.
"""

import argparse
import json
import random
import time
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks.machine import machine, machine_line, table, write_report
from model.intervals import mean_bounds, statistic_bounds
from model.metrics import bleu_of_counts, score_captions
from model.ptb import PUNCTUATION, ptb_tokens
from pipeline.evaluation.java import java_tokens, meteor

PUT_IN = [*"'\".,-/&()!?:;#$%*+=[]_0123456789 ’“”–…é½@", "'s", "n't", " -- ", "...", " 's", " (", "1/2", " St. "]
WORDS = ["Dr.", "12", "3rd", "$5", "a.m.", "T.V.", "o'clock", "50%"]


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Tokenizers and scores.", formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--captions", type=Path, required=True, help="a COCO caption file")
    parser.add_argument("--karpathy", type=Path, default=None, help="another file, in Karpathy's form")
    parser.add_argument("--mistakes", type=int, default=20_000, help="captions with mistakes put in")
    parser.add_argument("--out", type=Path, default=None, help="folder for a dated JSON and Markdown report")
    return parser.parse_args(argv)


def with_mistakes(captions: Sequence[str], count: int) -> list[str]:
    """Captions with one or two mistakes each."""
    draw = random.Random(11)
    made = []
    for _ in range(count):
        text = draw.choice(captions).strip()
        for _ in range(draw.choice((1, 1, 2))):
            kind, place = draw.random(), draw.randrange(len(text) + 1)
            if kind < 0.6:
                text = text[:place] + draw.choice(PUT_IN) + text[place:]
            elif kind < 0.8 and " " in text:
                gap = draw.choice([i for i, sign in enumerate(text) if sign == " "])
                text = text[:gap] + draw.choice(PUT_IN) + text[gap + 1 :]
            else:
                words = text.split(" ")
                which = draw.randrange(len(words))
                words[which] = draw.choice((words[which].upper(), words[which].title(), words[which] + draw.choice(".,'"), draw.choice(WORDS)))
                text = " ".join(words)
        made.append(text)
    return made


def nltk_tokens(text: str) -> list[str]:
    """NLTK's word tokenizer, lower-cased, without the same punctuation."""
    from nltk.tokenize import NLTKWordTokenizer

    return [token for token in NLTKWordTokenizer().tokenize(text.lower().strip()) if token not in PUNCTUATION]


def agreement(name: str, captions: Sequence[str]) -> dict[str, Any]:
    """How many captions each tokenizer splits otherwise than the Stanford one, and examples."""
    stanford = java_tokens(captions)
    ours = [(text, ptb_tokens(text), there) for text, there in zip(captions, stanford, strict=True)]
    wrong = [{"caption": text, "built in": here, "Stanford": there} for text, here, there in ours if here != there]
    nltk = sum(nltk_tokens(text) != there for text, there in zip(captions, stanford, strict=True))
    return {"captions of": name, "captions": len(captions), "built in": len(wrong), "nltk": nltk, "examples": wrong[:20]}


def seconds(function: Callable[[], Any]) -> float:
    """Of one call."""
    began = time.perf_counter()
    function()
    return round(time.perf_counter() - began, 2)


def costs(groups: Sequence[Sequence[str]]) -> dict[str, float]:
    """Seconds for each step of scoring one caption of each group against the others."""
    texts = [text for group in groups for text in group]
    tokens = [[ptb_tokens(text) for text in group] for group in groups]
    candidates, references = [group[0] for group in tokens], [group[1:] for group in tokens]
    scored = score_captions(candidates, references)
    values = scored.bleu_counts.astype(float)
    joined = [" ".join(words) for words in candidates], [[" ".join(words) for words in group] for group in references]
    return {
        "built-in tokenizer, all captions": seconds(lambda: list(map(ptb_tokens, texts))),
        "Stanford tokenizer, all captions": seconds(lambda: java_tokens(texts)),
        "BLEU, ROUGE-L, CIDEr": seconds(lambda: score_captions(candidates, references)),
        "all intervals without Java": seconds(lambda: (statistic_bounds(values, bleu_of_counts), mean_bounds(values[:, :6]))),
        "METEOR": seconds(lambda: meteor(*joined)),
    }


def markdown(report: dict[str, Any]) -> str:
    rows = [
        [
            found["captions of"],
            f"{found['captions']:,}",
            *(f"{found[way]} ({1 - found[way] / found['captions']:.3%} alike)" for way in ("built in", "nltk")),
        ]
        for found in report["agreement"]
    ]
    lines = [f"# Tokenizers and scores, {report['date']}", "", "Captions that are split otherwise than by the Stanford tokenizer:", ""]
    lines += table(["Captions of", "Captions", "Built in", "NLTK's word tokenizer"], rows)
    lines += ["", f"Scoring {report['images']:,} images, seconds, one call each:", ""]
    lines += table(["Step", "s"], [[step, f"{spent:.2f}"] for step, spent in report["seconds"].items()])
    return "\n".join([*lines, "", machine_line(report["machine"]), ""])


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the benchmark, print its tables, write them where --out says, and return the report."""
    s = parse(argv)
    groups: dict[int, list[str]] = {}
    for annotation in json.loads(s.captions.read_bytes())["annotations"]:
        groups.setdefault(annotation["image_id"], []).append(annotation["caption"])
    captions = [text for group in groups.values() for text in group]
    found = [agreement(s.captions.name, captions)]
    if s.karpathy is not None:
        images = json.loads(s.karpathy.read_bytes())["images"]
        found.append(agreement(s.karpathy.name, [sentence["raw"] for image in images for sentence in image["sentences"]]))
    found.append(agreement(f"{s.captions.name}, with mistakes put in", with_mistakes(captions, s.mistakes)))
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
