"""A calibration for people: a short text, and curves as a picture. Measures nothing."""

from __future__ import annotations

import os
from collections.abc import Sequence

from mindie_cache.calibration.result import Calibration
from mindie_cache.errors import ConfigError

BARS = "▁▂▃▄▅▆▇█"


def summary(calibration: Calibration) -> str:
    """One line a branch: its ratios from the second step on as bars, their range, the mean deviation and distance."""
    width = max(len("branch"), *(len(branch) for branch in calibration.branches))
    steps = calibration.provenance.steps
    chart = max(len("|r| / |r of the step before|"), steps - 1)
    lines = [f"{'branch':<{width}}  {'|r| / |r of the step before|':<{chart}}  lowest  highest     std  1 - cos"]
    for branch, curves in calibration.branches.items():
        later = curves.ratios[1:]
        std, distance = (sum(values[1:]) / (steps - 1) for values in (curves.stds, curves.cosine_distances))
        bars = sparkline(later)
        lines.append(
            f"{branch:<{width}}  {bars:<{chart}}  {min(later):6.4f}  {max(later):7.4f}  {std:6.4f}  {distance:7.5f}"
        )
    return "\n".join(lines)


def sparkline(values: Sequence[float]) -> str:
    """One bar a value, from the lowest to the highest."""
    low, high = min(values), max(values)
    scale = (len(BARS) - 1) / (high - low) if high > low else 0.0
    return "".join([BARS[round((value - low) * scale)] for value in values])


def usage(calibration: Calibration, path: os.PathLike[str], format: str) -> str:  # noqa: A002
    """What to do with the file that was written."""
    if format == "lightx2v":
        return f"{os.fspath(path)}: merge its keys into the file that you give to LightX2V's --config_json"
    shift = calibration.provenance.sigma_shift
    options = {"preset": os.fspath(path)} if shift is None else {"preset": os.fspath(path), "sigma_shift": shift}
    methods = "magcache and ada_taylor" if calibration.signal is None else "magcache, ada_taylor and teacache"
    return (
        f"{os.fspath(path)} is a preset of {methods}:\n"
        f'  CacheConfig("magcache", blocks_count, {calibration.provenance.steps}, options={options})'
    )


def check_plot() -> None:
    """Raise ConfigError unless `plot` can work: before the run, not after it."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise ConfigError("A plot needs matplotlib. Install it: pip install 'mindie_cache[plot]'.") from None


def plot(calibration: Calibration, path: str | os.PathLike[str]) -> None:
    """Draw ratio (with a band of one standard deviation) and cosine distance of every branch over steps."""
    check_plot()
    from matplotlib.figure import Figure  # not pyplot, which keeps figures and looks for a display

    facts = calibration.provenance
    figure = Figure(figsize=(8, 6), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True)
    for branch, curves in calibration.branches.items():
        steps = range(1, facts.steps)
        ratios, stds = curves.ratios[1:], curves.stds[1:]
        (line,) = upper.plot(steps, ratios, label=branch)
        low, high = ([r + sign * s for r, s in zip(ratios, stds, strict=True)] for sign in (-1, 1))
        upper.fill_between(steps, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
        lower.plot(steps, curves.cosine_distances[1:], label=branch)
    upper.axhline(1.0, color="grey", linewidth=0.8)
    upper.set_ylabel("|r| / |r of the step before|\nmean over tokens, ± std")
    upper.set_title(f"{facts.model}: {facts.steps} steps, shift {facts.sigma_shift}, guidance {facts.guidance_scale}")
    lower.set_ylabel("1 - cosine, mean over tokens")
    lower.set_xlabel("denoising step")
    for axes in (upper, lower):
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=120, format="png")
