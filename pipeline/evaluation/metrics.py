"""The metrics by name, in the order of the score file. A new metric is a function and a line in ``METRICS``.

A metric that is a mean over images only has to compute each image's score:

    def has_dog(captions: TokenizedCaptions) -> Measurement:
        return Measurement(images=np.array([float("dog" in tokens) for tokens in captions.candidates]))

    METRICS.register("has_dog", Metric(label="Names a dog", measure=has_dog, descriptive=True, share=True))
"""

from collections.abc import Callable, Iterable
from functools import partial

import numpy as np
from numpy.typing import NDArray

from model import metrics
from model.intervals import bounds, resampled_sums, statistic_bounds
from model.registry import Registry
from pipeline.evaluation import java
from pipeline.evaluation.measurement import Measurement, Metric, MetricUnavailableError, TokenizedCaptions


def _bleu(n: int) -> Callable[[TokenizedCaptions], Measurement]:
    def measure(captions: TokenizedCaptions) -> Measurement:
        corpus, images, low, high = captions.once(_all_bleu)
        return Measurement(images=images[n - 1], value=corpus[n - 1], bounds=(low[n - 1], high[n - 1]))

    return measure


def _all_bleu(captions: TokenizedCaptions) -> tuple[tuple[float, ...], NDArray[np.float64], list[float], list[float]]:
    found = metrics.bleu(captions.candidates, captions.references)
    low, high = statistic_bounds(found.counts.astype(np.float64), metrics.bleu_of_counts, seed=captions.seed)
    return found.corpus, found.images, low.tolist(), high.tolist()


def _rouge_l(captions: TokenizedCaptions) -> Measurement:
    found = metrics.rouge_l(captions.candidates, captions.references)
    return Measurement(images=found.images, value=found.corpus)


def _cider(captions: TokenizedCaptions) -> Measurement:
    found = metrics.cider(captions.candidates, captions.references)
    return Measurement(images=found.images, value=found.corpus)


def _meteor(captions: TokenizedCaptions) -> Measurement:
    # METEOR's statistics are summed over the resampled images, the same as for the other scores; METEOR then scores the sums.
    found = java.meteor(*captions.joined(), partial(resampled_sums, seed=captions.seed))
    low, high = bounds(found.resampled[:, None])
    return Measurement(images=found.images, value=found.corpus, bounds=(float(low[0]), float(high[0])))


def _spice(captions: TokenizedCaptions) -> Measurement:
    images = java.spice(*captions.joined())
    missing = int((~np.isfinite(images)).sum())
    if missing == len(images):
        raise MetricUnavailableError("SPICE found nothing to compare in any image.")
    note = f"SPICE found nothing to compare in {missing} of {len(images)} images: its score is the mean over the other images."
    return Measurement(images=images, notes=(note,) if missing else ())


def _distinct(captions: TokenizedCaptions) -> Measurement:
    return Measurement(images=metrics.distinct(captions.candidates))


def _novel(captions: TokenizedCaptions) -> Measurement | None:
    return None if captions.training is None else Measurement(images=metrics.novel(captions.candidates, captions.training))


def _mean_length(captions: TokenizedCaptions) -> Measurement:
    return Measurement(images=metrics.lengths(captions.candidates))


def _bad_endings(captions: TokenizedCaptions) -> Measurement:
    return Measurement(images=metrics.bad_endings(captions.candidates))


METRICS: Registry[Metric] = Registry("metric")
for _n in range(1, metrics.MAX_N + 1):
    METRICS.register(f"bleu_{_n}", Metric(label=f"BLEU-{_n}", measure=_bleu(_n), mean=False))
METRICS.register("rouge_l", Metric(label="ROUGE-L", measure=_rouge_l))
METRICS.register("cider", Metric(label="CIDEr", measure=_cider))
METRICS.register("meteor", Metric(label="METEOR", measure=_meteor, mean=False, english=True, java_files=java.NEEDS["METEOR"]))
METRICS.register("spice", Metric(label="SPICE", measure=_spice, english=True, java_files=java.NEEDS["SPICE"]))
METRICS.register("distinct", Metric(label="Distinct captions", measure=_distinct, descriptive=True, share=True))
METRICS.register("novel", Metric(label="Novel captions", measure=_novel, descriptive=True, share=True))
METRICS.register("mean_length", Metric(label="Mean length in words", measure=_mean_length, descriptive=True))
METRICS.register("bad_endings", Metric(label="Bad endings", measure=_bad_endings, descriptive=True, share=True, english=True))


def display_order(names: Iterable[str]) -> list[str]:
    """Names of scores in the order of a report, each once: CIDEr, the other metrics, then names that are no metric's.

    >>> display_order(["clip_score", "bleu_4", "cider"])
    ['cider', 'bleu_4', 'clip_score']
    """
    given = dict.fromkeys(names)
    return list(dict.fromkeys([*(name for name in ("cider", *METRICS) if name in given), *given]))
