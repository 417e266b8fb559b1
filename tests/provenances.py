"""How a feature file of a test was made: tests say only what matters to them."""

from typing import Any

from shards.features import Provenance


def provenance(**different: Any) -> Provenance:
    """Pooled features of the center crop by a ResNet-18, except for what is different."""
    usual: dict[str, Any] = {
        "backbone": "resnet18",
        "weights": "random",
        "weights_sha256": "a" * 64,
        "preprocessing": {"size": 64, "crop": 56},
        "layout": "pooled",
        "mean_is_pooled": True,
        "views": ("center",),
        "precision": "fp32",
        "arithmetic": {"device": "cpu"},
        "split": "train",
        "language": "en",
        "split_digest": "d",
        "versions": {"torch": "2"},
    }
    return Provenance(**{**usual, **different})
