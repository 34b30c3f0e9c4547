"""Draws a preset into a file: its curve above, the computed steps below. Needs matplotlib (`mindie_cache[plot]`)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mindie_cache.errors import ConfigError
from mindie_cache.presets.preset import Preset
from mindie_cache.presets.text import POLYNOMIAL_RANGE, known_plans, polynomial

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot(preset: Preset, path: Path, steps: int | None = None) -> None:
    """Write a picture of `preset`: ratios, polynomial or code book, and the plan for `steps` (the preset's, if None).

    Raises:
        ConfigError: matplotlib is missing, there is nothing to draw, or the form of the file is not known.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ConfigError("--plot needs matplotlib, which is not installed. Run: pip install 'mindie_cache[plot]'") from None
    plans = known_plans(preset, steps)
    curve = any(name in preset.settings for name in ("cond_ratios", "coefficients", "codebook"))
    if not curve and not plans:
        raise ConfigError(
            f"Preset {preset.name!r} of {preset.method} has no curve, and no computed steps are known beforehand. "
            "Say --steps N, or choose another preset."
        )
    figure = Figure(figsize=(9, 1.6 * bool(plans) + 3.2 * curve + 0.6), layout="constrained")
    heights = [3.2] * curve + [1.3] * bool(plans)
    axes = figure.subplots(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
    figure.suptitle(f"{preset.method}  {preset.name}" + (f"  ({preset.made_for})" if str(preset.made_for) else ""))
    if curve:
        _curve(axes[0], preset)
    if plans:
        _plans(axes[-1], plans, steps or preset.made_for.steps or 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        figure.savefig(path, dpi=120)
    except ValueError as error:
        raise ConfigError(f"--plot {path}: {error}. Name a .png file.") from None


def _curve(axes: Axes, preset: Preset) -> None:
    settings = preset.settings
    if "coefficients" in settings:
        values = polynomial(settings["coefficients"], 301)
        points = [POLYNOMIAL_RANGE * index / 300 for index in range(301)]
        axes.plot(points, values, color="0.7", label="p(d) as published")
        axes.plot(points, [max(0.0, value) for value in values], label="as used, never below 0")
        threshold = settings.get("threshold", max(values))
        top = max(1.5 * threshold, min(1.1 * max(values), 10 * threshold))
        axes.set_ylim(-top / 4, top)
        if "threshold" in settings:
            axes.axhline(settings["threshold"], color="C3", linestyle=":", label=f"threshold {settings['threshold']:g}")
        axes.set(xlabel="d, relative change of the signal", ylabel="p(d)")
    elif "codebook" in settings:
        edges = [0.0, *[below for below, _ in settings["codebook"]]]
        distances = [*[steps for _, steps in settings["codebook"]], settings["otherwise"]]
        axes.step([*edges, edges[-1] * 1.3], [*distances, distances[-1]], where="post", label="code book")
        axes.set(xlabel="rate of change", ylabel="steps to the next computed one")
    else:
        for name in ("cond_ratios", "uncond_ratios"):
            if name in settings:
                axes.plot(settings[name], marker=".", label=name)
        axes.axhline(1.0, color="0.7", linewidth=0.8)
        axes.set(xlabel=f"step of {len(settings['cond_ratios'])}", ylabel="|residual| / |residual before|")
    axes.legend()


def _plans(axes: Axes, plans: dict[str, frozenset[int]], steps: int) -> None:
    for row, computed in enumerate(plans.values()):
        for step in range(steps):
            axes.barh(row, 0.9, left=step - 0.45, height=0.7, color="C0" if step in computed else "0.88")
    axes.set_yticks(range(len(plans)), [f"{branch}: {len(computed)}" for branch, computed in plans.items()])
    axes.set(xlim=(-1, steps), xlabel=f"step of {steps}; dark: computed")
    axes.invert_yaxis()
