"""One run of the demo from its options to its files: pictures, animation, results.json."""

from __future__ import annotations

import json
import math
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from mindie_cache import ConfigError
from mindie_cache.demo.options import DemoOptions
from mindie_cache.demo.pictures import Row, animation, contact_sheet, save_animation
from mindie_cache.demo.plan import Setting
from mindie_cache.demo.runner import Batch, Outcome, compare, steps_total
from mindie_cache.demo.table import decibels, marks
from mindie_cache.doctor import machine, versions
from mindie_cache.testbed import TestbedTransformer

SHOWN = 6  # prompts in the pictures at most
SHEET, ANIMATION, RESULTS = "contact_sheet.png", "demo.gif", "results.json"


def run_demo(
    options: DemoOptions, model: TestbedTransformer, show: Callable[[Sequence[Outcome]], None] = lambda outcomes: None
) -> list[Outcome]:
    """Measure every setting on `model`, write the files to `options.out`, and return what was measured.

    `show` gets it before the files are written: a full disk loses no result.

    Raises:
        ConfigError: a configuration file is not valid or does not fit; the folder cannot be written.
    """
    settings = options.settings(model.config.blocks)
    batches = options.batches()
    _make(options.out)
    outcomes = _measured(model, settings, batches)
    show(outcomes)
    device = next(model.parameters()).device
    write_pictures(outcomes, batches[0].prompts[:SHOWN], options)
    text = json.dumps(document(outcomes, batches, options, device), indent=1, allow_nan=False)
    (options.out / RESULTS).write_text(text + "\n", encoding="utf-8")
    return outcomes


def _measured(model: TestbedTransformer, settings: Sequence[Setting], batches: Sequence[Batch]) -> list[Outcome]:
    """`compare` with a progress bar that names the setting under way."""
    shown = ""
    with tqdm(total=steps_total(settings, batches), unit="step", mininterval=0.5, dynamic_ncols=True) as bar:

        def on_step(name: str) -> None:
            nonlocal shown
            if name != shown:
                shown = name
                bar.set_description(name, refresh=False)
            bar.update()

        return compare(model, settings, batches, on_step)


def write_pictures(outcomes: Sequence[Outcome], prompts: Sequence[str], options: DemoOptions) -> None:
    """The contact sheet and the animation of the first batch's first videos."""
    rows = [_row(outcome, len(prompts), is_reference=outcome is outcomes[0]) for outcome in outcomes]
    title = f"Same prompts, same seeds, {options.steps_count} denoising steps: what caching saves, and what it changes"
    contact_sheet(rows, prompts, title).save(options.out / SHEET, optimize=True)
    save_animation(animation(rows, prompts), options.out / ANIMATION)


def document(
    outcomes: Sequence[Outcome], batches: Sequence[Batch], options: DemoOptions, device: torch.device
) -> dict[str, Any]:
    """Everything that was measured, as plain data. A PSNR of null is an infinite one: the videos are identical."""
    return {
        "versions": versions(),
        "machine": machine(),
        "device": str(device),
        "arguments": {
            "steps": options.steps_count,
            "seed": options.seed,
            "repeats": options.repeats_count,
            "prompts": list(options.prompts),
            "configs": [path.name for path in options.configs],
            "only_config": options.only_config,
            "quick": options.quick,
        },
        "batches": [asdict(batch) for batch in batches],
        "settings": [_entry(outcome) for outcome in outcomes],
    }


def _entry(outcome: Outcome) -> dict[str, Any]:
    return {
        "name": outcome.setting.name,
        "caption": outcome.setting.caption,
        "steps": outcome.setting.steps,
        "configs": [config.to_dict() for config in outcome.setting.configs],
        "share_computed": outcome.share,
        "share_computed_per_repetition": outcome.shares,
        "seconds": outcome.seconds,
        "speedup": outcome.speedup,
        "speedup_per_repetition": outcome.ratios,
        "psnr_db": _finite(statistics.fmean(outcome.psnr)),
        "psnr_db_per_video": [_finite(value) for value in outcome.psnr],
        "ssim": statistics.fmean(outcome.ssim),
        "ssim_per_video": outcome.ssim,
        "accuracy": outcome.accuracy,
        "right_per_video": outcome.right,
        "bytes_peak": outcome.bytes_peak,
        "caches": [
            {"method": report.method, "unit": report.unit, "calls": report.calls, "calls_reused": report.calls_reused}
            | {"steps": marks(report)}
            for report in outcome.reports
        ],
        "notes": outcome.notes,
    }


def _row(outcome: Outcome, count: int, *, is_reference: bool) -> Row:
    seconds = statistics.median(outcome.seconds) / max(1, len(outcome.psnr) // len(outcome.seconds))
    facts = f"{seconds:.2f} s a video" if is_reference else f"{outcome.speedup:.2f}x   {decibels(outcome.psnr, ' dB')}"
    return Row(outcome.setting.name, facts, outcome.setting.caption, outcome.videos[:count])


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _make(folder: Path) -> None:
    """Make sure, before anything is measured, that files can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigError(f"--out {folder}: cannot be written: {error.strerror}. Choose another folder.") from None
