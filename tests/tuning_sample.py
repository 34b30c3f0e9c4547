"""Results of a tuning as `mindie-cache tune` would write them, made up: for the tests of the report."""

import copy
import math
import random
import zlib

from html_tree import tree
from PIL import Image, ImageDraw

from mindie_cache.calibration.tuning.report import write_report

STEPS, SHIFT, HELD_OUT = 30, 3.0, 8
SUBJECTS = ("a red fox", "an old boat", "a street", "a dancer", "two cats", "a lighthouse", "a field of wheat", "a train")
PLACES = ("in the snow", "on a lake at dawn", "at night in the rain", "on a bright stage", "under a table", "in a storm")
METHODS = {  # PSNR at two times faster, and what each further doubling takes from it
    "plan": (58.7, 16.0),
    "seacache": (52.4, 13.5),
    "taylorseer": (50.1, 14.0),
    "magcache": (47.6, 12.5),
    "easycache": (46.2, 11.0),
    "teacache": (44.0, 9.0),
    "dit_block_cache": (41.3, 7.5),
}
SHARES = (0.67, 0.5, 0.4, 0.33, 0.27, 0.2)


def results(**changes):
    """Plain JSON. `changes` replace keys at the top."""
    chance = random.Random(7)
    found = [_candidate(method, share, "search", chance) for method in METHODS for share in SHARES]
    finalists = [("plan", 0.5), ("plan", 0.4), ("seacache", 0.5), ("taylorseer", 0.5)]
    held_out = [_candidate(method, share, "held out", chance) for method, share in finalists]
    held_out[0]["on_front"] = held_out[1]["on_front"] = True
    document = {
        "kind": "mindie_cache tuning",
        "version": 1,
        "command": "mindie-cache tune --target-speedup 2 --prompts prompts.txt --out out/tune",
        "date": "2026-11-21",
        "environment": {"mindie_cache": "0.1.0", "torch": "2.13.0", "diffusers": "0.42.1", "device": "cpu", "threads": "1"},
        "model": {"target": "testbed", "steps": STEPS, "shift": SHIFT, "guidance": 2.0, "blocks": 8},
        "goal": {"kind": "speedup", "value": 2.0},
        "met": True,
        "prompts": _prompts(),
        "uncached": {"seconds": 0.612, "sigmas": sigmas()},
        "candidates": [*found, *held_out],
        "chosen": len(found),
        "why": [
            "plan, 15 of 30 has the least mean error of the 4 settings that reach a speed-up of 2 on 8 held-out prompts.",
            "The next best, seacache, half of the calls: 1.93x, error 6.1e-05.",
        ],
        "warnings": ["The speed was measured on a machine with other work, so times vary by about 3 %."],
        "plan": {"front": [_budget(budget) for budget in range(4, 26)]},
        "stages": [
            {"title": "uncached generations", "seconds": 7.4, "generations": 12},
            {"title": "plan", "seconds": 0.21, "generations": 0},
            {"title": "other methods", "seconds": 64.8, "generations": 156},
            {"title": "held-out prompts", "seconds": 11.9, "generations": 32},
        ],
    }
    return {**copy.deepcopy(document), **changes}


def bare(**changes):
    """No more than has to be there."""
    candidate = {"title": "plan, 3 of 4", "method": "plan", "stage": "held out", **changes}
    return {"kind": "mindie_cache tuning", "candidates": [candidate]}


def held_out(document):
    return [one for one in document["candidates"] if one["stage"] == "held out"]


def written(folder, document):
    """The report, with its pictures, written and read back."""
    write_report(document, save_pictures(folder / "pictures", document), folder / "report.html")
    return tree((folder / "report.html").read_text(encoding="utf-8"))


def sigmas():
    even = [1 - step / STEPS for step in range(STEPS + 1)]
    return [SHIFT * level / (1 + (SHIFT - 1) * level) for level in even]


def _schedule(method, count, branch):
    """A plan is sparse early and dense late, with both ends; what else there is has even gaps."""
    if method == "plan":
        places = {round((STEPS - 1) * math.sqrt(i / (count - 1))) for i in range(count)}
        more = [step for step in range(STEPS - 1, 0, -1) if step not in places]
        return sorted(places | set(more[: count - len(places)]))
    shift = int(method == "taylorseer" and branch == "uncond")
    return sorted({0, STEPS - 1, *range(2 + shift, STEPS, round(STEPS / count))})


def save_pictures(folder, document, size=(96, 54)):
    """PNG files for every picture that the document names; returns name -> path."""
    shown = [row for one in document["candidates"] for row in one.get("pictures") or []]
    names = {row[kind] for row in shown for kind in ("uncached", "cached", "difference") if kind in row}
    folder.mkdir(parents=True, exist_ok=True)
    paths = {}
    for name in sorted(names):
        paths[name] = folder / f"{name}.png"
        _frame(name, size).save(paths[name])
    return paths


def _prompts():
    uses = ["recorded and searched"] * 2 + ["searched"] * 2 + ["held out"] * HELD_OUT
    texts = [f"{SUBJECTS[i % len(SUBJECTS)]} {PLACES[i % len(PLACES)]}, film grain, slow camera" for i in range(len(uses))]
    return [{"text": text, "seed": 100 + i, "use": use} for i, (text, use) in enumerate(zip(texts, uses, strict=True))]


def _candidate(method, share, stage, chance):
    best, slope = METHODS[method]
    doublings = math.log2(0.5 / share)
    psnr = best - slope * doublings + chance.uniform(-0.8, 0.8)
    held, count = stage == "held out", round(share * STEPS)
    title = f"plan, {count} of {STEPS}" if method == "plan" else f"{method}, {share:.0%} of the calls"
    first = 4
    spread = [chance.uniform(-6, 6) for _ in range(HELD_OUT)]
    mean = sum(spread) / HELD_OUT
    prompts = [_on_prompt(first + i, psnr + each - mean, share, chance) for i, each in enumerate(spread)]
    schedule = [{"branch": name, "computed": _schedule(method, count, name)} for name in ("cond", "uncond")]
    return {
        "title": title,
        "method": method,
        "config": _config(method, share),
        "stage": stage,
        "share": share,
        "seconds": 0.612 * share + 0.004,
        "speedup": 0.612 / (0.612 * share + 0.004) * (1 + chance.uniform(-0.02, 0.02)),
        "estimate": 1 / share,
        "scores": {name: sum(one["scores"][name] for one in prompts) / HELD_OUT for name in prompts[0]["scores"]},
        "prompts": prompts if held else [],
        "predicted": error(psnr + 2) if method == "plan" else None,
        "on_front": method == "plan" and not held,
        "notes": ["two prompts recomputed a step that was planned as reused"] if method == "taylorseer" and held else [],
        "schedule": schedule if held else None,
        "pictures": [_shown(first + i, method, count) for i in range(2)] if held else [],
    }


def _config(method, share):
    options = {"plan": "plan.json"} if method == "plan" else {"threshold": round(0.3 * (1 - share), 3)}
    return {"method": method, "blocks_count": 1, "steps_count": STEPS, "options": options}


def _on_prompt(prompt, psnr, share, chance):
    scores = {"latents": error(psnr), "psnr": psnr, "ssim": 1 - 10 ** (-psnr / 18)}
    return {"prompt": prompt, "scores": scores, "seconds": 0.612 * share * (1 + chance.uniform(0, 0.04)), "share": share}


def _shown(prompt, method, count):
    name = f"p{prompt}-{method}-{count}"
    return {
        "prompt": prompt,
        "uncached": f"p{prompt}-uncached",
        "cached": name,
        "difference": f"{name}-difference",
        "amplified": 8,
    }


def _budget(budget):
    predicted = error(60.5 - 16 * math.log2(15 / budget))
    return {
        "budget": budget,
        "steps": _schedule("plan", budget, "cond"),
        "gain": 1.0,
        "predicted": predicted,
        "verified": None,
    }


def error(psnr):
    """A relative squared error that goes with a PSNR."""
    return 10 ** (-psnr / 10) * 9.0


def _frame(name, size):
    """A disc, moved by what is cached; no two names have the same picture."""
    width, height = size
    dark, own = name.endswith("difference"), zlib.crc32(name.encode())
    prompt, move = int(name.split("-")[0][1:]), 0 if name.endswith("uncached") else 1 + own % 3
    image = Image.new("RGB", size, (0, 0, 0) if dark else (40 + 20 * prompt % 160, 90, 130))
    left, top = width // 3 + move, height // 4
    box = [left, top, left + height // 2, 3 * top]
    ImageDraw.Draw(image).ellipse(box, fill=None if dark else (230, 150, 60), outline=(90, 60, 30))
    image.putpixel((0, 0), (own & 255, own >> 8 & 255, own >> 16 & 255))
    return image
