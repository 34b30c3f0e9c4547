"""The table and the plot of `quality.py`, from its rows."""

from __future__ import annotations

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


def write_plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Quality against the share of the work, and against measured time: a line a method."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = list(dict.fromkeys(row["name"] for row in rows if not math.isinf(row["psnr"][0])))
    colours = plt.get_cmap("tab20").colors
    markers = "os^vDP*X<>hd"
    figure, axes = plt.subplots(1, 2, figsize=(17, 8), sharey=True)
    for index, name in enumerate(names):
        mine = sorted([row for row in rows if row["name"] == name], key=lambda row: row["share"])
        style = {
            "color": colours[index % len(colours)],
            "marker": markers[index % len(markers)],
            "linestyle": "--" if name == "fewer steps" else "-",
            "label": name,
        }
        axes[0].plot([row["share"] for row in mine], [likeness(row) for row in mine], **style)
        axes[1].plot([1 / row["speedup"] for row in mine], [likeness(row) for row in mine], **style)
    axes[0].set_xlabel("work: matrix-product operations, share of uncached")
    axes[1].set_xlabel("measured time, share of uncached (CPU)")
    axes[0].set_ylabel("PSNR against uncached, dB (mean over videos)")
    for axis in axes:
        axis.grid(alpha=0.3)
    axes[1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=9)
    figure.suptitle("Caching methods on the testbed: likeness to the uncached video at equal work")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
