"""The demo's results as plain text: the table, the pattern of every setting, how to read them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from mindie_cache import Report
from mindie_cache.demo.runner import Outcome

HEADS = ("setting", "computed", "speed-up", "PSNR dB", "SSIM", "accuracy", "kept")
LEGEND = """\
computed  matrix-product operations done, as a share of those of the uncached run: comparable between methods
speed-up  median over the repetitions of uncached seconds (mean of a run before and one after) / seconds
PSNR SSIM likeness to the uncached video of the same seed, mean over the videos; PSNR "same" is bit-identical
accuracy  videos that show the prompt's colour, shape and direction, as read from their pixels
kept      peak size of the features kept for one batch of prompts"""


def marks(report: Report) -> dict[str, str]:
    """For each branch one mark a step: # computed, . reused, a blank where the cache was not called."""
    patterns: dict[str, str] = {}
    for branch in dict.fromkeys(record.branch for record in report.steps):
        seen = {record.step: "." if record.reused else "#" for record in report.steps if record.branch == branch}
        patterns[branch] = "".join(seen.get(step, " ") for step in range(max(seen) + 1))
    return patterns


def decibels(values: Sequence[float], unit: str = "") -> str:
    """The mean of some PSNRs with its `unit`, or "same" where a video is identical to its reference."""
    mean = statistics.fmean(values)
    return "same" if math.isinf(mean) else f"{mean:.1f}{unit}"


def table(outcomes: Sequence[Outcome]) -> str:
    """One line a setting; the first one is the reference."""
    rows = [HEADS]
    for index, outcome in enumerate(outcomes):
        likeness = (decibels(outcome.psnr), f"{statistics.fmean(outcome.ssim):.4f}") if index else ("-", "-")
        kept = f"{outcome.bytes_peak / 2**20:.1f} MiB" if outcome.bytes_peak else "-"
        rows.append(
            (
                outcome.setting.name,
                f"{outcome.share:.0%}",
                f"{outcome.speedup:.2f}x",
                *likeness,
                f"{outcome.accuracy:.0%}",
                kept,
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADS))]
    lines = [
        "  ".join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def patterns(outcomes: Sequence[Outcome]) -> str:
    """What each cache did at each step of the first repetition, in the first branch."""
    lines = ["steps of one run, # computed and . reused (a nested cache is not asked where the outer one reuses):"]
    width = max(len(outcome.setting.name) for outcome in outcomes)
    for outcome in outcomes:
        for report in outcome.reports:
            name = outcome.setting.name if report is outcome.reports[0] else ""
            pattern = next(iter(marks(report).values()), report.note)
            lines.append(f"  {name:<{width}}  {pattern}  {report.unit}s")
    return "\n".join(lines) if len(lines) > 1 else ""


def summary(outcomes: Sequence[Outcome]) -> str:
    """Everything the demo prints about its measurements."""
    notes = [f"note: {outcome.setting.name}: {note}" for outcome in outcomes for note in outcome.notes]
    return "\n\n".join(part for part in (table(outcomes), LEGEND, patterns(outcomes), "\n".join(notes)) if part)
