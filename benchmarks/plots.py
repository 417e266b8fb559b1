"""The suite's figures, one for each section."""

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from pipeline.images.figures import save_figure

NAMES = {"tutorial raw": "the tutorial", "ours raw": "raw shards", "ours cached": "cached features"}
COLOURS = {"tutorial raw": "#b0b0b0", "ours raw": "#6aa5d8", "ours cached": "#1b5e9e"}
OURS, OTHER = "#1b5e9e", "#b0b0b0"


def draw(section: str, found: dict[str, Any], path: Path) -> None:
    """Commit the figure of a section as a PNG."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    DRAWN[section](figure, found)
    save_figure(figure, path)


def raw_cached(figure: Figure, found: dict[str, Any]) -> None:
    """Hours per epoch, and hours after N epochs, with caching included."""
    bars, curves = figure.subplots(1, 2)
    hours = {way: seconds / 3600 for way, seconds in found["epoch_seconds"].items()}
    drawn = bars.barh([NAMES[way] for way in hours], list(hours.values()), color=[COLOURS[way] for way in hours])
    bars.bar_label(drawn, [f"{value:.3g} h" for value in hours.values()], padding=3)
    bars.set(xscale="log", xlabel="hours per epoch of COCO (log scale)", xlim=(min(hours.values()) / 2, max(hours.values()) * 6))
    bars.invert_yaxis()
    cache = statistics.median(found["caching"]["coco_seconds"]) / 3600
    for way, value in hours.items():
        start = cache if way == "ours cached" else 0
        curves.plot(range(11), [start + value * epochs for epochs in range(11)], color=COLOURS[way], label=NAMES[way], linewidth=2)
    curves.set(xlabel="epochs", ylabel="hours, with caching", xlim=(0, 10), ylim=(0, None))
    curves.legend()


def limits(figure: Figure, found: dict[str, Any]) -> None:
    """The share of its limit that each stage reaches."""
    axes = figure.subplots()
    names = [f"{stage['stage'].replace('`', '')}\nof {stage['limit']}" for stage in found["stages"]]
    shares = [100 * stage["share"] for stage in found["stages"]]
    axes.bar_label(axes.barh(names, shares, color=OURS), [f"{share:.0f}%" for share in shares], padding=3)
    axes.axvline(100, color="black", linewidth=0.8)
    axes.set(xlabel="share of the limit, percent", xlim=(0, 1.15 * max(100, *shares)))
    axes.tick_params(axis="y", labelsize=7)
    axes.invert_yaxis()


def peers(figure: Figure, found: dict[str, Any]) -> None:
    """Images/s of writing, loading and reading features."""
    for axes, kind in zip(figure.subplots(1, 3), ("writing", "loading", "features"), strict=True):
        rates = {way: statistics.median(values) for way, values in found[kind]["warm"].items()}
        order = sorted(rates, key=lambda way: -rates[way])
        drawn = axes.barh(order, [rates[way] for way in order], color=[OURS if way == "ours" else OTHER for way in order])
        axes.bar_label(drawn, [f"{rates[way]:,.0f}" for way in order], padding=3, fontsize=8)
        scale = {"xscale": "log", "xlim": (min(rates.values()) / 2, max(rates.values()) * 8)} if kind == "features" else {}
        axes.set(title=kind, xlabel="images/s" + (" (log scale)" if scale else ""), **scale)
        if not scale:
            axes.set_xlim(0, 1.3 * max(rates.values()))
        axes.tick_params(axis="y", labelsize=8)
        axes.invert_yaxis()


def growth(figure: Figure, found: dict[str, Any]) -> None:
    """Seconds and memory by the number of images."""
    time, memory = figure.subplots(1, 2)
    for stage in found["stages"]:
        time.plot(stage["images"], stage["seconds"], marker="o")
        memory.plot(stage["images"], [size / 1e6 for size in stage["memory_bytes"]], marker="o", label=stage["name"])
    time.set(xlabel="images", ylabel="seconds of the whole command", xlim=(0, None), ylim=(0, None))
    memory.set(xlabel="images", ylabel="MB, all processes together", xlim=(0, None), ylim=(0, None))
    figure.legend(loc="outside lower center", ncols=4, fontsize=8)


DRAWN: dict[str, Callable[[Figure, dict[str, Any]], None]] = {"raw-cached": raw_cached, "limits": limits, "peers": peers, "growth": growth}
