"""What a tuning leaves: best.yaml, plan.json, results.json, and the report that shows them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

from mindie_cache.calibration import files
from mindie_cache.calibration.search.pareto import front
from mindie_cache.calibration.search.scores import LATENTS
from mindie_cache.calibration.search.store import Evaluation
from mindie_cache.calibration.tuning.aim import SPEEDUP
from mindie_cache.calibration.tuning.frames import AMPLIFIED, FOLDER
from mindie_cache.calibration.tuning.ladders import Rung
from mindie_cache.calibration.tuning.report import write_report
from mindie_cache.calibration.tuning.task import Tuning
from mindie_cache.calibration.tuning.tuner import verified_plan
from mindie_cache.calibration.tuning.verify import Verified
from mindie_cache.doctor import NOT_INSTALLED, versions
from mindie_cache.methods.planned import PlanOptions

BEST, PLAN_FILE, RESULTS, REPORT = "best.yaml", "plan.json", "results.json", "report.html"
KIND = "mindie_cache tuning"


def write(tuning: Tuning, out: Path, command: str) -> list[Path]:
    """Write all files, each whole or not at all.

    Args:
        command: what was typed.
    """
    best, plan = tuning.verification.found[tuning.chosen].rung.config, verified_plan(tuning)
    if isinstance(best.options, PlanOptions) and plan is not None:  # so that a use elsewhere is noticed
        best = replace(best, options=replace(best.options, provenance=dict(plan.provenance)))
    files.write_text(out / BEST, best.to_yaml())
    written = [out / BEST]
    if plan is not None:
        plan.save(out / PLAN_FILE)
        written.append(out / PLAN_FILE)
    document = plain(tuning, command)
    files.write(out / RESULTS, document)
    pictures = {path.stem: path for path in (out / FOLDER).glob("*.png")}
    write_report(document, pictures, out / REPORT)
    return [*written, out / RESULTS, out / REPORT]


def plain(tuning: Tuning, command: str) -> dict[str, Any]:
    """Everything as plain data. Scores are as people read them: PSNR in dB is not negative."""
    task, verification = tuning.task, tuning.verification
    prompts = [{"text": t, "seed": s, "use": "recorded and searched"} for t, s in task.recorded]
    prompts += [{"text": t, "seed": s, "use": "held out"} for t, s in task.held_out]
    best = verification.found[tuning.chosen]
    candidates = [_tried(tuning, title) for title in tuning.outcomes if title not in verification.found]
    shown = _finalists(tuning)
    verified = [_verified(tuning, one, len(task.recorded), title in shown) for title, one in verification.found.items()]
    on_front = {verified[i]["title"] for i in front([(1 / c["speedup"], _worth(c, task.aim.kind)) for c in verified])}
    for one in verified:
        one["on_front"] = one["title"] in on_front
    candidates += verified
    chosen = next(i for i, one in enumerate(candidates) if one["title"] == tuning.chosen and one["stage"] == "held out")
    found = verified_plan(tuning)
    entries = [] if found is None else [{"budget": e.budget, **vars(e), "steps": list(e.steps)} for e in found.front]
    device = str(tuning.target.device)
    known = {name: version for name, version in versions().items() if version != NOT_INSTALLED}
    return {
        "kind": KIND,
        "version": 1,
        "command": command,
        "date": date.today().isoformat(),
        "environment": {**known, "device": device},
        "model": tuning.target.facts(),
        "goal": {"kind": task.aim.kind, "value": task.aim.value},
        "met": task.aim.reached(best.speedup, best.scores),
        "prompts": prompts,
        "uncached": {"seconds": _uncached_seconds(tuning), "sigmas": None if found is None else list(found.sigmas)},
        "candidates": candidates,
        "chosen": chosen,
        "why": why(tuning),
        "warnings": tuning.notes,
        "plan": None if found is None else {"front": entries},
        "stages": [vars(stage) for stage in tuning.stages],
    }


def summary(tuning: Tuning) -> str:
    """A table of the verified settings, the best one marked, and why it is."""
    rows = [("", "speed-up", "computed", "error", "PSNR dB", "setting")]
    aim = tuning.task.aim
    for one in sorted(tuning.verification.found.values(), key=lambda one: aim.rank(one.speedup, one.scores)):
        shown = _shown(one.scores)
        error, psnr = shown[LATENTS], shown.get("psnr")
        share = sum(entry.share for entry in one.entries) / len(one.entries)
        cells = (f"{one.speedup:.2f}x", f"{share:.0%}", "-" if error is None else f"{error:.2e}")
        mark = "*" if one.rung.title == tuning.chosen else ""
        rows.append((mark, *cells, "-" if psnr is None else f"{psnr:.1f}", one.rung.title))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]) - 1)]
    lines = ["  ".join([*[cell.rjust(width) for cell, width in zip(row, widths, strict=False)], row[-1]]) for row in rows]
    return "\n".join([*lines, "", *why(tuning), *tuning.notes])


def why(tuning: Tuning) -> list[str]:
    """Sentences about the choice."""
    aim, found = tuning.task.aim, tuning.verification.found
    best, count = found[tuning.chosen], len(found[tuning.chosen].entries)
    by_error = aim.kind == SPEEDUP
    reached = [one for one in found.values() if aim.reached(one.speedup, one.scores)]
    if not reached:
        nearest = "the fastest" if by_error else "the one with the least error"
        return [
            f"None of the {len(found)} settings that were run on {count} held-out prompts reaches {aim}. "
            f"{best.rung.title} is {nearest} of them.",
            *_limit(tuning),
        ]
    if best.speedup <= 1:
        return [
            f"Of what reaches {aim} on {count} held-out prompts nothing is faster than no cache. Ask for less, or use none."
        ]
    words = "the least mean error" if by_error else "the greatest speed-up"
    sentences = [
        f"{best.rung.title} has {words} of the {len(reached)} settings that reach {aim} on {count} held-out prompts."
    ]
    others = [one for one in reached if _family(one.rung) != _family(best.rung)]
    if others:
        second = min(others, key=lambda one: aim.rank(one.speedup, one.scores))
        text = f"The next best, {second.rung.title}: {second.speedup:.2f}x, error {second.scores[LATENTS]:.2e}."
        sentences.append(text)
    if any(_family(one.rung).startswith("plan") for one in reached) and not _family(best.rung).startswith("plan"):
        sentences.append("It was safer than the plan on these prompts.")
    return sentences


def _limit(tuning: Tuning) -> list[str]:
    """What no cache can change, if it is much."""
    profile = tuning.profile
    share = profile.outside_ms / profile.work.step
    best = tuning.verification.found[tuning.chosen]
    if tuning.task.aim.kind != SPEEDUP or share < 0.1 or best.speedup * share > 1:
        return []
    return [
        f"{share:.0%} of the time is outside of the model (text encoder, decoder, scheduler): no cache makes this more than "
        f"{1 / share:.1f}x faster."
    ]


def _finalists(tuning: Tuning) -> set[str]:
    """The best setting of each method: their schedules and pictures are shown."""
    aim, best = tuning.task.aim, dict[str, Verified]()
    for one in sorted(tuning.verification.found.values(), key=lambda one: aim.rank(one.speedup, one.scores)):
        best.setdefault(_family(one.rung), one)
    return {one.rung.title for one in best.values()}


def _family(rung: Rung) -> str:
    return rung.title.partition(",")[0]


def _tried(tuning: Tuning, title: str) -> dict[str, Any]:
    rung, outcome, estimate = tuning.outcomes[title]
    return {
        "title": title,
        "method": _family(rung),
        "config": rung.config.to_dict(),
        "stage": "search",
        "share": outcome.share,
        "seconds": outcome.seconds,
        "speedup": estimate,
        "estimate": estimate,
        "scores": _shown(outcome.scores),
        "prompts": [],
        "predicted": rung.predicted,
        "on_front": False,
        "notes": list(outcome.notes),
        "schedule": None,
        "pictures": [],
    }


def _verified(tuning: Tuning, one: Verified, first: int, is_shown: bool) -> dict[str, Any]:
    entries, rung = one.entries, one.rung
    tried = tuning.outcomes.get(rung.title)
    share = sum(entry.share for entry in entries) / len(entries)
    schedule = [{"branch": name, "computed": list(steps)} for name, steps in entries[0].schedule]
    pictures = []
    for entry in entries if is_shown else ():
        names = tuning.album.of(rung.config, entry.prompt)
        if names:
            pictures.append({"prompt": first + entry.prompt, **names, "amplified": AMPLIFIED})
    return {
        "title": rung.title,
        "method": _family(rung),
        "config": rung.config.to_dict(),
        "stage": "held out",
        "share": share,
        "seconds": one.seconds,
        "speedup": one.speedup,
        "estimate": tried[2] if tried else None,
        "scores": _shown(one.scores),
        "prompts": [_on_prompt(entry, first) for entry in entries],
        "predicted": rung.predicted,
        "notes": list(dict.fromkeys(note for entry in entries for note in entry.notes)),
        "schedule": schedule or None if is_shown else None,
        "pictures": pictures,
    }


def _on_prompt(entry: Evaluation, first: int) -> dict[str, Any]:
    return {
        "prompt": first + entry.prompt,
        "scores": _shown(entry.scores),
        "seconds": entry.seconds,
        "share": entry.share,
    }


def _shown(scores: Mapping[str, float | None]) -> dict[str, float | None]:
    """Errors as people know them: PSNR in dB, and SSIM."""
    back = {"psnr": lambda value: -value, "ssim": lambda value: 1 - value}
    known = {name: value if value is not None and math.isfinite(value) else None for name, value in scores.items()}
    return {name: value if value is None else back.get(name, float)(value) for name, value in known.items()}


def _worth(candidate: Mapping[str, Any], kind: str) -> float:
    psnr, error = candidate["scores"].get("psnr"), candidate["scores"].get(LATENTS)
    if kind == "min_psnr" and psnr is not None:
        return -psnr
    return math.inf if error is None else error


def _uncached_seconds(tuning: Tuning) -> float:
    evaluator = tuning.verification.evaluator
    prompts: Sequence[int] = sorted({e.prompt for one in tuning.verification.found.values() for e in one.entries})
    return sum(evaluator.uncached(prompt).seconds for prompt in prompts) / len(prompts)
