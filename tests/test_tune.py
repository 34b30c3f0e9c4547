"""`mindie-cache tune` as a user runs it, and its parts beside brute force."""

from __future__ import annotations

import itertools
import json
import math
import random
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from processes import ranks

from mindie_cache import CacheConfig, CacheWarning, ConfigError, ParametersInvalid, enable_cache
from mindie_cache.calibration.planning import Plan
from mindie_cache.calibration.search.evaluator import key_of
from mindie_cache.calibration.search.made import fingerprint
from mindie_cache.calibration.search.profile import Profile, Stack
from mindie_cache.calibration.search.scores import mean
from mindie_cache.calibration.search.store import Evaluation
from mindie_cache.calibration.search.targets import TestbedTarget, UserTarget
from mindie_cache.calibration.tuning import prompts
from mindie_cache.calibration.tuning.aim import Aim
from mindie_cache.calibration.tuning.climb import Climb
from mindie_cache.calibration.tuning.frames import Album, strip
from mindie_cache.calibration.tuning.ladders import Ladder, Rung, evenly
from mindie_cache.calibration.tuning.verify import Verification
from mindie_cache.cli import main
from mindie_cache.testbed import load_testbed

TOY = Path(__file__).with_name("search_toy.py")
ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")
TEXTS = ["a", "bcd", "ef", "ghij", "k"]
FILES = {"best.yaml", "plan.json", "results.json", "report.html", "state", "pictures"}
SHORT = ["--methods", "plan", "uniform", "first_block", "--front", "1"]


@pytest.fixture
def tune(tmp_path, capsys):
    (tmp_path / "prompts.txt").write_text("\n".join(TEXTS))

    def run(*arguments, out=tmp_path / "out", model=TOY, steps="10"):
        common = ["--model", str(model), "--steps", steps, "--device", "cpu", "--out", str(out)]
        code = main(["tune", *common, "--prompts", str(tmp_path / "prompts.txt"), *arguments])
        results = out / "results.json"
        return code, capsys.readouterr(), json.loads(results.read_text()) if results.exists() else None

    run.out = tmp_path / "out"
    return run


def latents_with(asked, text, seed):
    target = UserTarget.load(TOY, 10, CPU)
    if asked is None:
        return target.generate(text, seed).latents
    with enable_cache(target.subject, asked, num_inference_steps=10) as handle:
        made = target.generate(text, seed).latents
        assert handle.report().share_computed < 1
    return made


def relative(made, exact):
    return float((made - exact).double().square().sum() / exact.double().square().sum())


def test_what_is_written_is_what_was_measured(tune):
    code, printed, results = tune(*SHORT, "--max-error", "1e-3")
    assert code == 0, printed.err
    assert {path.name for path in tune.out.iterdir()} == FILES
    best = results["candidates"][results["chosen"]]
    assert results["met"]
    assert best["scores"]["latents"] <= 1e-3
    assert best["stage"] == "held out"
    config = CacheConfig.from_yaml(tune.out / "best.yaml")
    written = config.to_dict()
    provenance = written["options"].pop("provenance", None)
    assert written == CacheConfig(**best["config"]).to_dict()
    assert provenance is None or provenance["prompts"] == TEXTS[:2]
    held_out = [(i, one) for i, one in enumerate(results["prompts"]) if one["use"] == "held out"]
    assert [one["text"] for _, one in held_out] == TEXTS[2:]
    for index, one in held_out:
        exact = latents_with(None, one["text"], one["seed"])
        again = relative(latents_with(str(tune.out / "best.yaml"), one["text"], one["seed"]), exact)
        written = next(entry for entry in best["prompts"] if entry["prompt"] == index)
        assert written["scores"]["latents"] == pytest.approx(again, rel=1e-4)
    computed = [branch["computed"] for branch in best["schedule"]]
    assert len(computed) == 1
    assert len(computed[0]) == pytest.approx(10 * best["share"])
    assert "* " in printed.out
    assert "held-out prompts" in printed.out


def test_the_plan_file_has_the_measured_errors(tune):
    _, _, results = tune("--methods", "plan", "--max-error", "1e-2", "--front", "2")
    plan = Plan.load(tune.out / "plan.json")
    measured = {
        c["title"]: c["scores"]["latents"]
        for c in results["candidates"]
        if c["stage"] == "held out" and "correction" not in c["title"]
    }
    verified = {f"plan, {entry.budget} of 10": entry.verified for entry in plan.front if entry.verified is not None}
    assert verified == pytest.approx(measured)
    assert len(verified) >= 2
    exact = latents_with(None, "xyz", 3)
    assert relative(latents_with(str(tune.out / "plan.json"), "xyz", 3), exact) < 0.1


def test_pictures_are_of_held_out_prompts(tune):
    _, _, results = tune(*SHORT, "--max-error", "1e-3")
    shown = [picture for one in results["candidates"] for picture in one["pictures"]]
    assert shown
    for picture in shown:
        assert results["prompts"][picture["prompt"]]["use"] == "held out"
        sizes = {
            Image.open(tune.out / "pictures" / f"{picture[name]}.png").size for name in ("uncached", "cached", "difference")
        }
        assert len(sizes) == 1
    code, _, results = tune(*SHORT, "--max-error", "1e-3", "--no-pictures", out=tune.out.with_name("bare"))
    assert code == 0
    assert not any(one["pictures"] for one in results["candidates"])
    assert "psnr" not in results["candidates"][0]["scores"]


def same(results):
    """What does not depend on how fast the machine was."""
    return [
        (c["title"], c["config"], c["stage"], c["scores"], c["share"])
        for c in results["candidates"]
        if c["config"]["method"] == "plan"
    ]


def test_an_interrupted_tuning_goes_on(tune, monkeypatch):
    arguments = ["--methods", "plan", "uniform", "--front", "0", "--max-error", "1e-4"]
    _, _, whole = tune(*arguments, out=tune.out.with_name("whole"))
    original, count, stops = UserTarget.generate, 0, {3, 9, 17}

    def generate_some(self, *args, **kwargs):
        nonlocal count
        count += 1
        if count in stops:
            raise KeyboardInterrupt
        return original(self, *args, **kwargs)

    monkeypatch.setattr(UserTarget, "generate", generate_some)
    for _ in stops:
        code, printed, results = tune(*arguments)
        assert (code, results) == (130, None)
        assert "the same command goes on" in printed.err
    code, _, results = tune(*arguments)
    assert code == 0
    assert {one[0]: one for one in same(results)}.keys() >= {results["candidates"][results["chosen"]]["title"]}
    done = count
    code, _, again = tune(*arguments)
    assert (code, count) == (0, done)  # nothing is done twice
    assert same(again) == same(results)
    by_title = {one[0]: one for one in same(whole)}
    shared = [one for one in same(results) if one[0] in by_title]
    assert shared
    assert all([one == by_title[one[0]] for one in shared if one[2] == by_title[one[0]][2]])


def test_another_target_starts_from_what_is_there(tune, monkeypatch):
    tune("--methods", "plan", "--front", "0", "--max-error", "1e-4")
    before = {path.name: path.read_bytes() for path in (tune.out / "state/search").glob("recording-*.json")}
    count, original = 0, UserTarget.generate

    def counted(self, *args, **kwargs):
        nonlocal count
        count += 1
        return original(self, *args, **kwargs)

    monkeypatch.setattr(UserTarget, "generate", counted)
    code, _, results = tune("--methods", "plan", "--front", "0", "--max-error", "1e-3")
    assert code == 0
    assert results["goal"] == {"kind": "max_error", "value": 1e-3}
    assert {path.name: path.read_bytes() for path in (tune.out / "state/search").glob("recording-*.json")} == before
    fresh = count
    code, printed, _ = tune("--methods", "plan", "--front", "0", "--min-psnr", "40")
    assert code == 0, printed.err
    count = 0
    tune("--methods", "plan", "--front", "0", "--max-error", "1e-3", out=tune.out.with_name("fresh"))
    assert fresh < count


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"gram": 3}', b'{"gram": [[1]], "sigmas": [1, 0]}'])
def test_damaged_state_is_refused_and_left_alone(tune, content):
    tune("--methods", "plan", "--front", "0")
    path = tune.out / "state/search/recording-1.json"
    path.write_bytes(content)
    code, printed, _ = tune("--methods", "plan", "--front", "0")
    assert code == 2
    assert "recording-1.json" in printed.err
    assert path.read_bytes() == content


def test_foreign_folders_are_refused_and_left_alone(tune, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/chapter.txt").write_text("mine")
    code, printed, _ = tune(out=tmp_path / "thesis")
    assert code == 2
    assert "holds no tuning (it has chapter.txt" in printed.err
    assert [path.name for path in (tmp_path / "thesis").iterdir()] == ["chapter.txt"]
    tune("--methods", "plan", "--front", "0")
    before = (tune.out / "best.yaml").read_bytes()
    code, printed, _ = tune("--methods", "plan", "--seed", "7")
    assert code == 2
    assert "holds another search: seeds" in printed.err
    assert (tune.out / "best.yaml").read_bytes() == before


def test_a_process_that_died_with_its_folder_just_made_is_gone_on_from(tune):
    (tune.out / "state/search").mkdir(parents=True)
    code, printed, results = tune("--methods", "plan", "--front", "0")
    assert code == 0, printed.err
    assert results["candidates"][results["chosen"]]["title"].startswith("plan")


def test_two_ranks_draw_the_same_picture_at_once(tmp_path, monkeypatch):
    both = threading.Barrier(2, timeout=30)

    def drawn_together(frames):
        both.wait()
        return strip(frames)

    monkeypatch.setattr("mindie_cache.calibration.tuning.frames.strip", drawn_together)
    made = SimpleNamespace(frames=torch.rand(1, 3, 8, 8, 3))
    config = CacheConfig(method="adastep", blocks_count=1, steps_count=10)
    with ThreadPoolExecutor(2) as pool:
        for one in [pool.submit(Album(tmp_path, 1).add, config, 0, made, made) for _ in range(2)]:
            one.result()
    assert {path.name for path in tmp_path.iterdir()} == {f"{name}.png" for name in Album.names(config, 0).values()}
    assert Image.open(tmp_path / "uncached-0.png").convert("RGB").tobytes() == strip(made.frames[0]).tobytes()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--target-speedup", "1"], "Ask for more than 1"),
        (["--target-speedup", "nan"], "speedup=nan is out of range"),
        (["--max-error", "-1"], "max_error=-1.0 is out of range"),
        (["--methods", "plann"], "Did you mean 'plan'"),
        (["--methods", "attention_cache"], "no method of --methods can be tried"),
        (["--recorded", "0"], "--recorded=0 is out of range"),
        (["--held-out", "1"], "--held-out=1 is out of range"),
        (["--held-out", "9"], "5 prompts are given, but 2 are recorded and 9 others"),
        (["--front", "-1"], "--front=-1 is out of range"),
        (["--budget-minutes", "-1"], "--budget-minutes=-1.0 is out of range"),
        (["--height", "64"], "--height is for a pipeline"),
        (["--score", "pnsr"], "Did you mean 'psnr'"),
        (["--device", "xpu"], "device='xpu' is not known"),
    ],
)
def test_wrong_arguments(tune, arguments, words):
    code, printed, results = tune(*arguments)
    assert (code, results) == (2, None)
    assert words in printed.err


def test_a_file_that_shows_no_steps_is_tuned_without_a_plan(tune, tmp_path):
    lines = TOY.read_text().replace(", on_step=None", "").replace("if on_step is not None", "if False")
    (tmp_path / "mine.py").write_text(lines)
    code, _, results = tune("--methods", "plan", "uniform", "--max-error", "1e-3", model=tmp_path / "mine.py")
    assert code == 0
    assert results["plan"] is None
    assert any(["shows no steps" in note for note in results["warnings"]])
    assert not (tune.out / "plan.json").exists()
    (tmp_path / "blind.py").write_text(lines.replace("def decode", "def _decode"))
    code, printed, _ = tune("--min-psnr", "30", model=tmp_path / "blind.py", out=tmp_path / "other")
    assert code == 2
    assert "--min-psnr needs frames" in printed.err


def test_when_time_is_over_what_is_there_is_verified(tune):
    code, _, results = tune("--budget-minutes", "0")
    assert code == 0
    assert any(["minutes were over" in note for note in results["warnings"]])
    assert all([len(one["prompts"]) == 2 for one in results["candidates"] if one["stage"] == "held out"])


def test_a_target_that_is_out_of_reach_is_said(tune):
    code, printed, results = tune("--methods", "uniform", "--max-error", "1e-30")
    assert code == 0
    assert not results["met"]
    assert "reaches an error of 1e-30" in printed.out


def test_min_psnr_is_of_decoded_frames(tune):
    code, _, results = tune("--methods", "uniform", "--min-psnr", "45", "--score", "search_toy:largest")
    assert code == 0
    best = results["candidates"][results["chosen"]]
    target = UserTarget.load(TOY, 10, CPU)
    values = []
    for entry in best["prompts"]:
        one = results["prompts"][entry["prompt"]]
        exact, made = (latents_with(a, one["text"], one["seed"]) for a in (None, str(tune.out / "best.yaml")))
        error = (target.module.decode(None, made) - target.module.decode(None, exact)).double().square().mean()
        values.append(float(error))
        assert entry["scores"]["search_toy:largest"] == pytest.approx(float((made - exact).abs().max()), rel=1e-3)
    assert best["scores"]["psnr"] == pytest.approx(-10 * math.log10(sum(values) / len(values)), abs=1e-3)
    assert best["scores"]["psnr"] >= 45


def test_two_ranks_find_the_same(tune, tmp_path):
    arguments = ["--methods", "plan", "uniform", "--front", "0", "--max-error", "1e-3"]
    _, _, alone = tune(*arguments)
    out = tmp_path / "ranks"
    common = ["--model", str(TOY), "--steps", "10", "--device", "cpu", "--prompts", str(tmp_path / "prompts.txt")]
    assert ranks(2, ["-m", "mindie_cache", "tune", "--out", str(out), *common, *arguments]) == [0, 0]
    together = json.loads((out / "results.json").read_text())
    titles = {one[0] for one in same(alone)} & {one[0] for one in same(together)}
    assert len(titles) >= 3
    by_title = {one[0]: one for one in same(alone)}
    assert all([one == by_title[one[0]] for one in same(together) if one[0] in titles and one[2] == by_title[one[0]][2]])


def test_a_sharded_model_is_tuned_as_one(tune, tmp_path):
    arguments = ["--methods", "plan", "first_block", "--front", "0", "--max-error", "1e-3"]
    _, _, alone = tune(*arguments)
    out, model = tmp_path / "sharded", TOY.with_name("sharded_toy.py")
    common = ["--steps", "10", "--device", "cpu", "--prompts", str(tmp_path / "prompts.txt"), "--sharded"]
    assert ranks(2, ["-m", "mindie_cache", "tune", "--model", str(model), "--out", str(out), *common, *arguments]) == [0, 0]
    found = {c["title"]: c for c in json.loads((out / "results.json").read_text())["candidates"]}
    shared = [c for c in alone["candidates"] if c["title"] in found and c["stage"] == found[c["title"]]["stage"]]
    assert {c["method"] for c in shared} >= {"plan", "first_block"}
    for one in shared:
        other = found[one["title"]]
        assert other["share"] == one["share"]  # ranks decide together, by all of the tokens
        assert other["scores"]["latents"] == pytest.approx(one["scores"]["latents"], rel=1e-3)


def test_one_process_is_no_sharded_model(tune):
    code, printed, _ = tune("--sharded")
    assert code == 2
    assert "Start them with torchrun" in printed.err


@pytest.mark.skipif(find_spec("diffusers") is None, reason="needs diffusers")
def test_a_pipeline(tmp_path, capsys):
    source = f"import sys\nsys.path.insert(0, {str(ROOT / 'examples')!r})\nfrom tiny_pipelines import TINY\n"
    source += "def load():\n    return TINY['flux'].build(), TINY['flux'].call()\n"
    (tmp_path / "mine.py").write_text(source)
    arguments = ["--model", f"{tmp_path / 'mine.py'}:load", "--steps", "8", "--held-out", "2", "--device", "cpu"]
    code = main(["tune", *arguments, "--methods", "plan", "uniform", "--max-error", "1e-2", "--out", str(tmp_path / "out")])
    assert code == 0, capsys.readouterr().err
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert results["met"]
    assert {c["scores"].keys() >= {"latents", "psnr"} for c in results["candidates"]} == {True}
    made_on = Plan.load(tmp_path / "out/plan.json").provenance
    assert (made_on["model"], made_on["scheduler"]) == ("FluxTransformer2DModel", "FlowMatchEulerDiscreteScheduler")
    assert made_on["prompts"] == [one["text"] for one in results["prompts"][:2]]
    sys.path.insert(0, str(ROOT / "examples"))
    from tiny_pipelines import TINY

    pipe = TINY["flux"].build()
    with enable_cache(pipe, str(tmp_path / "out/best.yaml")) as handle:
        pipe(**{**TINY["flux"].call(), "num_inference_steps": 8})
        best = results["candidates"][results["chosen"]]
        assert handle.report().share_computed == pytest.approx(best["share"])


def variant(tmp_path, *changes, name="mine.py"):
    """The toy, changed."""
    text = TOY.read_text()
    for before, after in changes:
        assert before in text
        text = text.replace(before, after)
    (tmp_path / name).write_text(text)
    return tmp_path / name


def test_what_gives_no_numbers_is_never_chosen(tune, tmp_path):
    """A model that breaks when few of its steps are computed, and one that is broken without a cache."""
    end = "    return latents\n\n\ndef sigmas"
    breaks = (end, end.replace("latents", "latents * (float('nan') if counted() else 1)"))
    counter = "def counted():\n    few = len(calls) < 6\n    calls.clear()\n    return few\n\n\ncalls = []\n\n\ndef build():"
    counts = ("        for block in self", "        calls.append(1)\n        for block in self")
    model = variant(tmp_path, breaks, counts, ("def build():", counter))
    code, _, results = tune("--methods", "plan", "uniform", "--target-speedup", "3", "--front", "1", model=model)
    assert code == 0
    best = results["candidates"][results["chosen"]]
    assert math.isfinite(best["scores"]["latents"])
    assert not results["met"]
    broken = variant(tmp_path, (end, end.replace("latents", "latents * float('nan')")), name="nan.py")
    code, printed, _ = tune("--methods", "uniform", model=broken, out=tmp_path / "broken")
    assert code == 2
    assert "without a cache" in printed.err


def test_another_model_in_the_same_folder_is_refused(tune, tmp_path):
    model = variant(tmp_path)
    tune("--methods", "uniform", "--front", "0", model=model)
    variant(tmp_path, ("torch.manual_seed(0)", "torch.manual_seed(1)"), name="weights.py")
    code, printed, _ = tune("--methods", "uniform", "--front", "0", model=tmp_path / "weights.py")
    assert code == 2
    assert "holds another search" in printed.err
    first, second = (UserTarget.load(path, 10, CPU) for path in (model, tmp_path / "weights.py"))
    assert fingerprint(first.subject) != fingerprint(second.subject)
    assert fingerprint(first.subject) == fingerprint(UserTarget.load(model, 10, CPU).subject)
    assert fingerprint(first.subject) != fingerprint(first.subject.bfloat16())


def test_a_loop_of_another_length_is_said(tune):
    for methods in (["plan", "uniform"], ["uniform"]):
        code, printed, _ = tune("--methods", *methods, steps="20", out=tune.out.with_name("-".join(methods)))
        assert code == 2
        assert "10 steps" in printed.err or "11 noise levels" in printed.err


def test_generations_that_cannot_be_repeated_are_refused(tune, tmp_path):
    model = variant(tmp_path, (".manual_seed(seed)", ".manual_seed(__import__('random').randrange(10**6))"))
    code, printed, _ = tune("--methods", "plan", model=model)
    assert code == 2
    assert "Draw all noise from the seed" in printed.err


def test_errors_in_a_users_file_are_his_own(tune, tmp_path):
    model = variant(tmp_path, ("    made.append(prompt)", "    raise ValueError('boom')"))
    with pytest.raises(ValueError, match="boom"):
        tune("--methods", "uniform", model=model)
    for change, words in ((".expand(-1, -1, 4, -1, 3)", "frames have the shape"), (".sigmoid()", "frames go from")):
        replaced = "" if change.startswith(".expand") else ".mul(300)"
        model = variant(tmp_path, (change, replaced))
        code, printed, _ = tune("--methods", "uniform", model=model, out=tmp_path / words)
        assert code == 2
        assert words in printed.err


@pytest.mark.skipif(find_spec("diffusers") is None, reason="needs diffusers")
def test_the_best_setting_says_when_it_is_used_on_something_else(tmp_path):
    sys.path.insert(0, str(ROOT / "examples"))
    from diffusers import FlowMatchEulerDiscreteScheduler
    from tiny_pipelines import TINY

    source = f"import sys\nsys.path.insert(0, {str(ROOT / 'examples')!r})\nfrom tiny_pipelines import TINY\n"
    (tmp_path / "mine.py").write_text(source + "def load():\n    return TINY['wan'].build(), TINY['wan'].call()\n")
    arguments = [
        "--model",
        f"{tmp_path / 'mine.py'}:load",
        "--steps",
        "8",
        "--held-out",
        "2",
        "--device",
        "cpu",
        "--front",
        "0",
    ]
    assert (
        main(["tune", *arguments, "--methods", "plan", "--front", "0", "--max-error", "0.1", "--out", str(tmp_path / "out")])
        == 0
    )
    pipe = TINY["wan"].build()
    with warnings.catch_warnings():
        warnings.simplefilter("error", CacheWarning)
        enable_cache(pipe, str(tmp_path / "out/best.yaml")).disable()
    pipe.scheduler = FlowMatchEulerDiscreteScheduler(shift=7.0)
    with pytest.warns(CacheWarning, match="does not fit"):
        enable_cache(pipe, str(tmp_path / "out/best.yaml"))


# parts


@pytest.mark.parametrize(
    ("aim", "better", "worse"),
    [
        (Aim("speedup", 2.0), (2.0, 0.1), (3.0, 0.2)),  # both reach it: less error
        (Aim("speedup", 2.0), (2.1, 9.0), (1.9, 0.1)),
        (Aim("speedup", 2.0), (1.9, 9.0), (1.8, 0.1)),  # neither: the faster one
        (Aim("max_error", 0.1), (3.0, 0.1), (2.0, 0.0)),
        (Aim("max_error", 0.1), (1.1, 0.1), (9.0, 0.2)),
        (Aim("max_error", 0.1), (1.0, 0.2), (9.0, 0.3)),
    ],
)
def test_the_aim_ranks(aim, better, worse):
    assert aim.rank(better[0], {"latents": better[1]}) < aim.rank(worse[0], {"latents": worse[1]})


class Fake:
    """An evaluator of settings whose share, time and error are given by the number of blocks that they leave out."""

    def __init__(self, shares, errors, prompts=2):
        self.shares, self.errors = shares, errors
        self.prompts, self.scores, self.progress, self.generations = (
            ["x"] * prompts,
            [SimpleNamespace(name="latents")],
            False,
            1,
        )
        self.profile = Profile((Stack("blocks", 0, 2),), (1.0, 1.0), 0.0, 0, 0.0, 0)
        self.run = []

    def several(self, pairs, bar=None):
        found = []
        for config, prompt in pairs:
            self.run.append(key_of(config, prompt))
            k = int(config.options.threshold)
            seconds = self.shares[k]
            found.append(
                Evaluation(
                    key_of(config, prompt), {}, prompt, {"latents": self.errors[k]}, self.shares[k], seconds, uncached=1.0
                )
            )
        return found


def ladder_of(count):
    return Ladder(
        "f",
        tuple(
            [
                Rung(f"f {k}", CacheConfig("first_block", 2, 10, options={"threshold": float(k)}).validated())
                for k in range(count)
            ]
        ),
    )


def monotone(count, seed):
    rng = random.Random(seed)
    shares = dict(enumerate(sorted([rng.uniform(0.1, 1.0) for _ in range(count)], reverse=True)))
    errors = dict(enumerate(sorted([rng.uniform(0.0, 1.0) for _ in range(count)])))
    return shares, errors


@pytest.mark.parametrize("seed", range(30))
def test_bisections_find_what_brute_force_finds(seed):
    count = 1 + seed % 13
    shares, errors = monotone(count, seed)
    fake = Fake(shares, errors)
    ladder = ladder_of(count)
    speedup = 1.2 + seed / 10
    found = Climb(fake, Aim("speedup", speedup)).candidates([ladder])["f"]
    reaching = [k for k in range(count) if 1 / shares[k] >= speedup]
    assert ladder.rungs[reaching[0] if reaching else count - 1] in found
    assert len(fake.run) <= math.ceil(math.log2(count + 1)) * 2
    error = seed / 30
    found = Climb(fake, Aim("max_error", error)).candidates([ladder])["f"]
    below = [k for k in range(count) if errors[k] <= error]
    assert ladder.rungs[below[-1] if below else 0] in found


@pytest.mark.parametrize("seed", range(20))
def test_verification_moves_to_the_best_rung(seed):
    shares, errors = monotone(9, seed)
    aim = Aim("speedup", 2.0) if seed % 2 else Aim("max_error", 0.5)
    ranks = {k: aim.rank(1 / shares[k], {"latents": errors[k]}) for k in range(9)}
    best = min(ranks, key=ranks.get)
    ladder = ladder_of(9)
    for first in range(max(0, best - 3), min(9, best + 4)):
        verification = Verification(Fake(shares, errors), aim, lambda rung, share: 1 / share)
        verification._knows = lambda rungs: True
        verification.run({"f": ladder.rungs[first]}, [ladder])
        assert verification.best().rung.title == f"f {best}"


def test_speedups_are_not_above_what_was_skipped():
    """A clock that runs wild, and settings that are known on fewer prompts than others."""
    shares, errors = {0: 0.5}, {0: 0.1}
    fake = Fake(shares, errors, prompts=4)
    slow = fake.several
    fake.several = lambda pairs, bar=None: [replace(entry, seconds=entry.seconds / 9) for entry in slow(pairs)]
    verification = Verification(fake, Aim("speedup", 2.5), lambda rung, share: 1 / share)
    verification._knows = lambda rungs: True
    verification.run({"f": ladder_of(1).rungs[0]}, [ladder_of(1)])
    assert verification.best().speedup == 2.0
    assert not Aim("speedup", 2.5).reached(2.0, verification.best().scores)


def test_settings_are_compared_on_the_same_prompts():
    over = []
    fake = Fake({0: 0.5, 1: 0.4}, {0: 0.1, 1: 0.1}, prompts=5)
    verification = Verification(fake, Aim("speedup", 2.0), lambda rung, share: 1 / share, lambda: bool(over))
    verification._knows = lambda rungs: True
    rungs = ladder_of(2).rungs
    verification.verify([rungs[0]], "all")
    assert len(verification.found["f 0"].entries) == 5
    over.append(1)
    verification.verify([rungs[1]], "in haste")
    assert [len(one.entries) for one in verification.found.values()] == [2, 2]
    assert verification.is_short


def test_decibels_are_averaged_as_errors():
    assert mean("psnr", [-200.0, -30.0]) == pytest.approx(10 * math.log10((1e-20 + 1e-3) / 2))
    assert mean("latents", [1.0, 3.0]) == 2.0
    assert mean("latents", [1.0, None]) == math.inf


def test_even_schedules():
    for steps in (4, 10, 30, 50):
        for budget in range(2, steps):
            chosen = evenly(steps, budget)
            assert (chosen[0], chosen[-1], len(set(chosen))) == (0, steps - 1, budget)
            gaps = [b - a for a, b in itertools.pairwise(chosen)]
            assert max(gaps) - min(gaps) <= 1


def test_prompts_are_recorded_or_held_out_never_both(tmp_path):
    target = TestbedTarget(load_testbed("cpu"))
    recorded, held_out = prompts.draw(target, None, 2, None, 5)
    assert (len(recorded), len(held_out)) == (2, 8)
    assert not {text for text, _ in recorded} & {text for text, _ in held_out}
    assert [seed for _, seed in recorded + held_out] == list(range(5, 15))
    file = tmp_path / "p.txt"
    file.write_text("a red square moving left\na red square moving left\n" * 3)
    with pytest.raises(ConfigError, match="given twice"):
        prompts.draw(target, file, 2, 2, 0)
    file.write_text("a red fox\nb\nc\nd")
    with pytest.raises(ParametersInvalid, match="unknown words"):
        prompts.draw(target, file, 2, 2, 0)


def test_strips_show_the_first_the_middle_and_the_last_frame():
    frames = torch.linspace(0, 1, 5).reshape(5, 1, 1, 1).expand(5, 40, 60, 3)
    picture = strip(frames)
    width, height = picture.size
    assert height == 80  # enlarged by whole pixels: 60 wide, at least 96
    assert [picture.getpixel((x, 10))[0] for x in (5, width // 2, width - 5)] == [0, 128, 255]
    large = strip(torch.zeros(1, 400, 1600, 3))
    assert large.size == (320, 80)


def test_help_teaches(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["tune", "--help"])
    shown = capsys.readouterr().out
    for word in (
        "examples:",
        "--target-speedup",
        "--max-error",
        "--min-psnr",
        "best.yaml",
        "report.html",
        "torchrun",
        "testbed",
    ):
        assert word in shown
    assert max(map(len, shown.splitlines())) <= 130
