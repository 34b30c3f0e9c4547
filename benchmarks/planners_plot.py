"""The picture of `planners.py`: PSNR against speed-up, a line a method."""

from __future__ import annotations

from pathlib import Path
from typing import Any

COLOURED = {
    "plan": ("C3", "o", "-"),
    "plan, 1 recorded": ("C3", "o", ":"),
    "plan without correction": ("C1", "s", "-"),
    "uniform, TaylorSeer-1": ("black", ".", "--"),
    "annealing, plan's executor": ("C0", "^", "-"),
    "annealing, TaylorSeer-1": ("C0", "^", ":"),
    "smallest largest gap, TaylorSeer-1": ("C2", "v", ":"),
    "smallest largest gap, reuse": ("C2", "v", "-"),
    "search of blocks and steps": ("C4", "D", "-"),
    "seacache, latents, line": ("C5", "P", "-"),
    "custom": ("C6", "X", "-"),
    "teacache": ("C8", "*", "-"),
}


def plot(rows: list[dict[str, Any]], steps: int, path: Path) -> None:
    """Coloured: the ways to plan, and the best known methods; grey: the other ones."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(10, 6.5))
    for name in dict.fromkeys(row["method"] for row in rows):
        points = sorted((steps / row["computed"], row["psnr"]) for row in rows if row["method"] == name)
        style: dict[str, Any] = {"color": "0.82", "linewidth": 0.8, "zorder": 1}
        if name in COLOURED:
            colour, marker, line = COLOURED[name]
            style = {"color": colour, "marker": marker, "linestyle": line, "label": name}
        axis.plot(*zip(*points, strict=True), **style)
    axis.set_xscale("log")
    ticks = (1.5, 2, 2.5, 3, 4, 5)
    axis.set_xticks(ticks, [f"{tick}x" for tick in ticks])
    axis.minorticks_off()
    axis.set_xlabel("speed-up: steps over computed steps")
    axis.set_ylabel("PSNR against uncached, dB (mean over prompts)")
    axis.set_title("Schedules at equal computed steps, on the testbed (grey: other caching methods of the library)")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
