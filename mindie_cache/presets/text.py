"""What `mindie-cache presets` prints: the table of presets, one preset in detail, both as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mindie_cache.errors import ConfigError, did_you_mean
from mindie_cache.presets.catalogue import PresetNotFound, all_presets, normal
from mindie_cache.presets.files import load_file
from mindie_cache.presets.plans import plan_for
from mindie_cache.presets.preset import Preset

POLYNOMIAL_RANGE = 0.3  # of the relative change of the signal from step to step
_LEVELS = "▁▂▃▄▅▆▇█"
_COLUMNS = ("method", "preset", "made for", "licence", "source")


def select(name: str | None, method: str | None) -> tuple[Preset, ...]:
    """The presets that `name` (a model, "model@variant" or a calibration file) and `method` leave; None leaves all.

    Raises:
        PresetNotFound: there is none of that name.
    """
    if name is None:
        return all_presets(method)
    if name.endswith(".json"):
        return (load_file(name, method or "ada_taylor"),)
    model, _, variant = name.partition("@")
    among = all_presets(method)
    found = [preset for preset in among if normal(preset.model) == normal(model)]
    if variant:
        found = [preset for preset in found if normal(preset.variant) == normal(variant)]
    if not found:
        names = {preset.name if variant else preset.model for preset in among}
        of = f" of {method}" if method else ""
        raise PresetNotFound(f"There is no preset{of} named {name!r}. {did_you_mean(name, names)}")
    return tuple(found)


def table(presets: Sequence[Preset]) -> str:
    """One line a preset, one paragraph a method."""
    rows = [(p.method, p.name, str(p.made_for) or "-", p.source.licence.partition(" (")[0], p.source.repo) for p in presets]
    widths = [max(len(row[column]) for row in (_COLUMNS, *rows)) for column in range(len(_COLUMNS))]
    lines, previous = [], _COLUMNS[0]
    for row in (_COLUMNS, *rows):
        if row[0] != previous:
            lines.append("")
        previous = row[0]
        lines.append("  ".join([cell.ljust(width) for cell, width in zip(row, widths, strict=True)]).rstrip())
    return "\n".join(lines)


def details(preset: Preset, steps: int | None = None) -> str:
    """Settings, curves, the plan for `steps` (the preset's, if None) and the provenance of one preset."""
    rows = [("made for", str(preset.made_for) or "not recorded")]
    for name, value in preset.settings.items():
        rows += _setting(name, value)
    if "coefficients" in preset.settings:
        curve = [max(0.0, value) for value in polynomial(preset.settings["coefficients"])]  # as the policy uses it
        rows.append((f"p(0..{POLYNOMIAL_RANGE})", f"{sparkline(curve)}  {min(curve):.3g} to {max(curve):.3g}"))
    rows += _plans(preset, steps)
    source = preset.source
    rows.append(("source", " ".join([part for part in (source.repo, source.path) if part])))
    rows += [(name, getattr(source, name)) for name in ("commit", "licence", "credit") if getattr(source, name)]
    rows += [("note", text) for text in (preset.note, *preset.mismatches(steps=steps)) if text]
    rows.append(("use", _usage(preset, steps)))
    width = max(len(name) for name, _ in rows)
    return "\n".join([f"{preset.method}  {preset.name}", *[f"  {name.ljust(width)}  {value}" for name, value in rows]])


def as_json(presets: Sequence[Preset], steps: int | None = None) -> str:
    """Everything about the presets, with the computed steps of a run of `steps`, where they are known beforehand."""
    entries = []
    for preset in presets:
        entry: dict[str, Any] = preset.to_dict()
        plans = known_plans(preset, steps)
        if plans:
            entry["computed_steps"] = {branch: sorted(plan) for branch, plan in plans.items()}
        entries.append(entry)
    return json.dumps(entries, indent=2, ensure_ascii=False)


def known_plans(preset: Preset, steps: int | None) -> dict[str, frozenset[int]]:
    """Computed steps by branch, one entry where branches agree; empty if they, or the number of steps, are not known."""
    try:
        plans = {branch: plan_for(preset, steps, branch) for branch in ("cond", "uncond")}
    except ConfigError:  # no number of steps, or one that a list of steps does not fit
        return {}
    known = {branch: plan for branch, plan in plans.items() if plan is not None}
    if preset.method == "cfg_cache":
        return {"uncond": known["uncond"]}
    if known and known["cond"] == known["uncond"]:
        return {"all branches": known["cond"]}
    return known


def sparkline(values: Sequence[float]) -> str:
    """The values as a row of small bars, from the smallest to the largest."""
    low, high = min(values), max(values)
    scale = (len(_LEVELS) - 1) / (high - low) if high > low else 0.0
    return "".join([_LEVELS[round((value - low) * scale)] for value in values])


def polynomial(coefficients: Sequence[float], points: int = 31) -> list[float]:
    """p(d) at evenly spaced d from 0 to `POLYNOMIAL_RANGE`; `coefficients` begin with the highest power."""
    values = []
    for index in range(points):
        value, d = 0.0, POLYNOMIAL_RANGE * index / (points - 1)
        for coefficient in coefficients:
            value = value * d + coefficient
        values.append(value)
    return values


def write_plot(presets: Sequence[Preset], path: Path, steps: int | None) -> None:
    """Draw the one preset that was chosen."""
    if len(presets) != 1:
        names = ", ".join([f"{preset.method} {preset.name}" for preset in presets[:8]])
        more = f" and {len(presets) - 8} more" if len(presets) > 8 else ""
        raise ConfigError(f"--plot draws one preset, but these are {len(presets)}: {names}{more}. Name one with --method.")
    from mindie_cache.presets.plot import plot

    plot(presets[0], path, steps)


def _setting(name: str, value: Any) -> list[tuple[str, str]]:
    if name.endswith("_ratios"):
        return [(name, f"{sparkline(value)}  {len(value)} entries, {min(value):g} to {max(value):g}")]
    if isinstance(value, tuple):
        return [(name, ", ".join([f"{' -> '.join(map(str, v))}" if isinstance(v, tuple) else str(v) for v in value]))]
    return [(name, str(value))]


def _plans(preset: Preset, steps: int | None) -> list[tuple[str, str]]:
    count = steps or preset.made_for.steps
    rows = []
    for branch, computed in known_plans(preset, steps).items():
        row = "".join(["#" if step in computed else "." for step in range(count or 0)])
        title = f"plan, {count} steps" + ("" if branch == "all branches" else f", {branch}")
        rows.append((title, f"{row}  {len(computed)} computed"))
    return rows


def _usage(preset: Preset, steps: int | None) -> str:
    from mindie_cache.recipes import METHODS

    count = steps or preset.made_for.steps or "steps_count"
    blocks = "1" if METHODS[preset.method].whole_forward else "blocks_count"
    if "preset" in METHODS[preset.method].options.__dataclass_fields__:
        name = preset.source.path if not preset.source.repo else preset.name
        return f'CacheConfig("{preset.method}", {blocks}, {count}, options={{"preset": "{name}"}})'
    blocks = "" if blocks == "1" or "blocks_count" in preset.settings else "blocks_count, "
    return f'presets.find("{preset.method}", "{preset.name}").config({blocks}steps_count={count})'
