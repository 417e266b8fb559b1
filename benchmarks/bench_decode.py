"""How fast are captions decoded from features?

Two ways take turns (A B A B ...) in one process, with greedy decoding and with a beam:

    ours       model.decoding.decode: all images of a batch together; rows that have ended leave the batch
    per image  a plain loop over images: the batch holds one image's hypotheses (greedy: one row, argmax)

Both follow the same rules (no word follows itself, never <unk>, a finished hypothesis leaves the beam), so that their captions can be compared
too. The report gives the share of equal captions. The captioner has the tutorial's sizes and COCO's 9,956 words. It is trained for some steps
on real captions with random features, so that captions have realistic lengths.

The limit is the vocabulary's matrix product in float32, the precision of decoding. It is timed alone, for the rows that were decoded.

    python -m benchmarks.bench_decode --out benchmarks/results
"""

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable, Sequence
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.generated import WORDS, synchronized, train_a_little
from benchmarks.machine import machine, machine_line, table, write_report
from benchmarks.workload import say
from model.captioner import Captioner
from model.decoders.lstm import LSTMDecoder
from model.decoding import Decoding, decode
from model.vocabulary import END, PAD, SPECIAL, START, UNK, Vocabulary
from pipeline.captions.english import tokenize
from pipeline.execution.devices import pick_device
from pipeline.runs.run import Run, open_run
from shards.caption_table import table_from_records

LONGEST = 20
CAPTIONS = Path("../shared/data/coco-captions/captions_val2017.json")


@torch.inference_mode()
def one_image(captioner: Captioner, features: Tensor, vocabulary: Vocabulary, beam: int) -> list[str]:
    """The best caption of one image, features (positions, dim), by a plain beam search."""
    end = vocabulary.id(END)
    never = [vocabulary.id(word) for word in (PAD, START, UNK)]
    state = captioner.first_state(features[None])
    words: list[list[int]] = [[]]
    last = torch.tensor([vocabulary.id(START)], device=features.device)
    scores = torch.zeros(1, device=features.device)
    finished: list[tuple[float, list[int]]] = []
    for _ in range(LONGEST):
        logits, state = captioner.decoding_step(last, state)
        logits[:, never] = -torch.inf
        for row, sentence in enumerate(words):
            if sentence:
                logits[row, sentence[-1]] = -torch.inf
        totals = scores[:, None] + torch.log_softmax(logits, dim=1)
        best, places = totals.flatten().topk(beam - len(finished))
        rows, chosen = places // len(vocabulary), places % len(vocabulary)
        going = []
        for place, (row, word, score) in enumerate(zip(rows.tolist(), chosen.tolist(), best.tolist(), strict=True)):
            if word == end:
                finished.append((score, words[row]))
            else:
                going.append(place)
        if not going:
            words = []
            break
        words = [[*words[int(rows[place])], int(chosen[place])] for place in going]
        state = state.select(rows[going])
        last, scores = chosen[going], best[going]
    finished += list(zip(scores.tolist(), words, strict=False))
    return vocabulary.decode(max(finished)[1])


@torch.inference_mode()
def one_image_greedy(captioner: Captioner, features: Tensor, vocabulary: Vocabulary) -> list[str]:
    """The caption of one image, features (positions, dim), greedy search."""
    never = [vocabulary.id(word) for word in (PAD, START, UNK)]
    state = captioner.first_state(features[None])
    word, words = vocabulary.id(START), []
    for place in range(LONGEST):
        logits, state = captioner.decoding_step(torch.tensor([word], device=features.device), state)
        logits[:, never if place == 0 else [*never, word]] = -torch.inf
        word = int(logits.argmax())
        if word == vocabulary.id(END):
            break
        words.append(word)
    return vocabulary.decode(words)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Speed of decoding, compared with a loop over images.")
    parser.add_argument("--captions", type=Path, default=CAPTIONS, help="COCO caption file")
    parser.add_argument("--num-images", type=int, default=1024, help="images that ours decodes in each measurement")
    parser.add_argument("--loop-images", type=int, default=64, help="images that the loop decodes in each measurement")
    parser.add_argument("--batch-size", type=int, default=128, help="images per batch of ours")
    parser.add_argument("--train-steps", type=int, default=150, help="training steps of the captioner")
    parser.add_argument("--repeats", type=int, default=5, help="measurements of each way")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda ...")
    parser.add_argument("--out", type=Path, help="folder for the report")
    return parser.parse_args(argv)


def trained_run(settings: argparse.Namespace, folder: Path) -> tuple[Run, Tensor]:
    """A briefly trained run of the tutorial's sizes, and float16 features (images, dim) to decode."""
    captions = [annotation["caption"] for annotation in json.loads(settings.captions.read_text())["annotations"]]
    records = [
        (f"{row:09}", {"image_id": row, "file_name": f"{row}.jpg", "captions": [{"id": row, "text": text, "tokens": tokenize(text)}]})
        for row, text in enumerate(captions)
    ]
    content = table_from_records([records[start : start + 1000] for start in range(0, len(records), 1000)])
    features = train_a_little(folder, content, dim=2048, steps=settings.train_steps, device=settings.device)
    run = open_run(folder / "run", device=pick_device(settings.device))
    return run, torch.from_numpy(features[: settings.num_images, None])


def products_seconds(captioner: Captioner, rows: int, steps: int) -> float:
    """Seconds of the vocabulary's matrix product alone, for a batch of ``rows`` and ``steps`` steps."""
    assert isinstance(captioner.decoder, LSTMDecoder)
    weight = captioner.decoder.word_scores.output.weight
    hidden = torch.randn(rows, weight.shape[1], device=weight.device)
    with torch.inference_mode():
        began = synchronized(weight.device)
        for _ in range(steps):
            hidden @ weight.T
        return synchronized(weight.device) - began


def captions_of(run: Run, features: Tensor, batch_size: int, beam: int) -> list[list[str]]:
    """Ours: the best caption of each image; features are (images, dim)."""
    batches: tuple[Tensor, ...] = torch.split(features, batch_size)
    return [list(found[0].words) for batch in batches for found in decode(run.captioner, batch, run.vocabulary, Decoding(beam=beam))]


def measure(settings: argparse.Namespace, folder: Path) -> dict[str, Any]:
    run, features = trained_run(settings, folder)
    device = pick_device(settings.device)
    features = features.to(device)
    own = features[: settings.loop_images]

    ways: dict[str, Callable[[], list[list[str]]]] = {
        "ours, greedy": partial(captions_of, run, features, settings.batch_size, 1),
        "per image, greedy": lambda: [one_image_greedy(run.captioner, row, run.vocabulary) for row in own],
        "ours, beam 5": partial(captions_of, run, features, settings.batch_size, 5),
        "per image, beam 5": lambda: [one_image(run.captioner, row, run.vocabulary, 5) for row in own],
    }
    rates: dict[str, list[float]] = {name: [] for name in ways}
    found: dict[str, list[list[str]]] = {}
    products: list[float] = []
    for repeat in range(-1, settings.repeats):  # the first round warms up
        for name, way in ways.items():
            began = synchronized(device)
            found[name] = way()
            seconds = synchronized(device) - began
            if repeat >= 0:
                rates[name].append(len(found[name]) / seconds)
        words = sum(map(len, found["ours, beam 5"])) / len(features) + 1
        if repeat >= 0:
            products.append(settings.batch_size / (products_seconds(run.captioner, 5 * settings.batch_size, 10) / 10 * words))
            say(f"repeat {repeat + 1} of {settings.repeats}: " + ", ".join(f"{name} {values[-1]:,.0f}/s" for name, values in rates.items()))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    pairs = {kind: zip(found[f"ours, {kind}"], found[f"per image, {kind}"], strict=False) for kind in ("greedy", "beam 5")}
    same = {kind: float(np.mean([own == other for own, other in both])) for kind, both in pairs.items()}
    return {
        "rates": rates,
        "medians": medians,
        "ratios": {kind: medians[f"ours, {kind}"] / medians[f"per image, {kind}"] for kind in ("greedy", "beam 5")},
        "same_captions": same,
        "mean_words": {name: float(np.mean([len(words) for words in captions])) for name, captions in found.items()},
        "products_alone": statistics.median(products),
    }


def markdown(report: dict[str, Any]) -> str:
    rows = [
        [name, f"{report['medians'][name]:,.0f}", f"{min(rates):,.0f} to {max(rates):,.0f}", f"{report['mean_words'][name]:.1f}"]
        for name, rates in report["rates"].items()
    ]
    lines = [f"# Decoding, {report['date']}", "", *table(["Method", "captions/s", "range", "words per caption"], rows), ""]
    for kind, ratio in report["ratios"].items():
        same = report["same_captions"][kind]
        lines.append(f"{kind}: ours is {ratio:.1f} times as fast as the loop over images; {100 * same:.1f}% of the captions are equal.")
    lines += [f"The vocabulary's matrix product alone (float32, beam 5): {report['products_alone']:,.0f} captions/s.", ""]
    return "\n".join([*lines, machine_line(report["machine"]), ""])


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the benchmark, print its table, write it to ``--out``, and return the report."""
    settings = parse(argv)
    with tempfile.TemporaryDirectory(prefix="capstream-bench-") as folder:
        report = measure(settings, Path(folder))
    report |= {
        "date": date.today().isoformat(),
        "settings": {name: getattr(settings, name) for name in ("num_images", "loop_images", "batch_size", "train_steps", "repeats", "device")},
        "sizes": {"words": WORDS, "special": len(SPECIAL)},
        "machine": machine("torch", "numpy") | {"torch_threads": torch.get_num_threads()},
    }
    write_report(settings.out, f"bench_decode-{report['date']}", report, markdown(report))
    return report


if __name__ == "__main__":
    main()
