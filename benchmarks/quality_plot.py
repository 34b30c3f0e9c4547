"""The table and the plot of `quality.py`, from its rows."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HEADS = ("method", "knob", "work", "speed-up", "PSNR dB", "SSIM", "accuracy", "kept MiB")


def likeness(row: dict[str, Any]) -> float:
    """Mean PSNR in dB; a video that is identical counts as 100 dB."""
    return statistics.fmean([min(value, 100.0) for value in row["psnr"]])


def write_table(rows: Sequence[dict[str, Any]], path: Path) -> str:
    """Markdown: one line a setting, methods in their order, gentle to strong."""
    lines = ["| " + " | ".join(HEADS) + " |", "|---|---|" + "---:|" * (len(HEADS) - 2)]
    for row in rows:
        cells = (
            row["name"],
            row["knob"],
            f"{row['share']:.0%}",
            f"{row['speedup']:.2f}x",
            f"{likeness(row):.1f}" if likeness(row) < 100 else "same",
            f"{statistics.fmean(row['ssim']):.4f}",
            f"{statistics.fmean(row['right']):.0%}",
            f"{row['bytes_peak'] / 2**20:.1f}" if row["bytes_peak"] else "-",
        )
        lines.append("| " + " | ".join(cells) + " |")
    text = "\n".join(lines)
    path.write_text(text + "\n")
    return text


def _named(lines: dict[str, list[tuple[float, float]]], most: int) -> list[str]:
    """The lines worth a colour: those that are furthest above the others' median at the same share of work."""

    def height(points: list[tuple[float, float]], share: float) -> float | None:
        for (left, low), (right, high) in itertools.pairwise(points):
            if left <= share <= right:
                return low + (high - low) * (share - left) / max(right - left, 1e-9)
        return None

    lead: dict[str, list[float]] = {name: [] for name in lines}
    for share in (0.28, 0.34, 0.42, 0.5, 0.58, 0.66):
        here = {name: at for name, points in lines.items() if (at := height(points, share)) is not None}
        middle = statistics.median(here.values()) if here else 0.0
        for name, at in here.items():
            lead[name].append(at - middle)
    found = sorted([name for name in lines if lead[name]], key=lambda name: -statistics.fmean(lead[name]))
    return found[:most]


def write_plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Quality against the share of the work, and against measured time: a line a method. The best of this package (solid)
    and of other libraries (dashed) have a colour, the others are grey."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = sorted([row for row in rows if not math.isinf(row["psnr"][0])], key=lambda row: row["share"])
    lines: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        lines.setdefault(row["name"], []).append((row["share"], likeness(row)))
    theirs = {name for name in lines if name.startswith(("diffusers ", "cache-dit "))}
    ours = {name: points for name, points in lines.items() if name not in theirs and name != "fewer steps"}
    coloured = _named(ours, 8), _named({name: lines[name] for name in theirs}, 6)
    figure, axes = plt.subplots(1, 2, figsize=(15, 8.5), sharey=True)
    colours, markers = plt.get_cmap("tab10").colors, "os^vDP*X"
    for name in lines:
        mine = [row for row in rows if row["name"] == name]
        style: dict[str, Any] = {"color": "0.82", "linewidth": 0.8, "zorder": 1}
        for index, group in enumerate(coloured):
            if name in group:
                place = group.index(name)
                style = {
                    "color": colours[place],
                    "marker": markers[place],
                    "linestyle": "-" if not index else "--",
                    "label": name,
                }
        if name == "fewer steps":
            style = {"color": "black", "linestyle": ":", "marker": ".", "label": name}
        axes[0].plot([row["share"] for row in mine], [likeness(row) for row in mine], **style)
        axes[1].plot([1 / row["speedup"] for row in mine], [likeness(row) for row in mine], **style)
    axes[0].set_xlabel("work: matrix-product operations, share of uncached")
    axes[1].set_xlabel("measured time, share of uncached (CPU)")
    axes[0].set_ylabel("PSNR against uncached, dB (mean over videos)")
    for axis in axes:
        axis.grid(alpha=0.3)
        axis.set_ylim(bottom=max(20.0, axis.get_ylim()[0]))
    figure.suptitle("Caching methods on the testbed: likeness to the uncached video at equal work (grey: the other methods)")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="lower center", ncols=4, fontsize=9)
    figure.tight_layout(rect=(0, 0.13, 1, 1))
    figure.savefig(path, dpi=110)
    plt.close(figure)
