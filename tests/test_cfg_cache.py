"""cfg_cache against FasterCache's published rule, restated here in the frequency domain, in both layouts."""

from __future__ import annotations

import gc
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from open_loop import LocalScalars
from players import Player, as_numpy, play, recording
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from toy import all_warnings, quiet

from mindie_cache import CacheAgent, CacheConfig, CacheWarning, ConfigError, ModelExecError, ParametersInvalid
from mindie_cache.ops import fourier
from mindie_cache.predictors import Boost

SHAPE = (1, 2, 3, 8, 10)  # batch, channels, frames, height, width


class Published(NamedTuple):
    """As printed: `c` counts from 1 (Mochi: from 0); `low` and `high` are the factors of a step."""

    steps: int
    store: Callable[[int], bool]
    skip: Callable[[int], bool]
    low: Callable[[int], float]
    high: Callable[[int], float]
    counts_from: int = 1


PUBLISHED = {
    "Open-Sora-1.2": Published(
        30,
        lambda c: c >= 10,
        lambda c: c > 11 and c % 5 != 0,
        lambda c: 1.15 if c <= 25 else 1.0,
        lambda c: 1.15 if c >= 20 else 1.0,
    ),
    "Open-Sora-Plan-1.1": Published(
        150,
        lambda c: c > 38,
        lambda c: c >= 40 and c % 6 != 0,
        lambda c: 1.1 if c <= 130 else 1.0,
        lambda c: 1.0 if c <= 130 else 1.2,
    ),
    "Latte-1": Published(
        50,
        lambda c: c >= 16,
        lambda c: c >= 18 and c % 5 != 0,
        lambda c: 1.1 if c < 45 else 1.0,
        lambda c: 1.0 if c < 45 else 1.1,
    ),
    "CogVideoX": Published(
        50,
        lambda c: c >= 16,
        lambda c: c >= 18 and c % 5 != 0,
        lambda c: 1.1 if c <= 40 else 1.0,
        lambda c: 1.1 if c >= 30 else 1.0,
    ),
    "Mochi-1": Published(
        64,
        lambda c: c >= 20,
        lambda c: c >= 22 and c % 5 != 0 and c != 63,
        lambda c: 1.15 if c <= 50 else 1.0,
        lambda c: 1.25 if c >= 30 else 1.0,
        0,
    ),
    "Vchitect-2.0": Published(
        100,
        lambda c: c >= 30,
        lambda c: c > 30 and c % 5 != 0,
        lambda c: 1.05 if c < 80 else 1.0,
        lambda c: 1.1 if c > 60 else 1.0,
    ),
}


def bands(picture: np.ndarray, divisor: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Shifted spectra of the low and of the high frequencies, frame by frame."""
    spectrum = np.fft.fftshift(np.fft.fft2(picture), axes=(-2, -1))
    height, width = picture.shape[-2:]
    down, right = np.mgrid[:height, :width]
    radius = min(height, width) // divisor
    disc = (right - width // 2) ** 2 + (down - height // 2) ** 2 <= radius**2
    return spectrum * disc, spectrum * ~disc


def picture(spectrum: np.ndarray) -> np.ndarray:
    return np.fft.ifft2(np.fft.ifftshift(spectrum, axes=(-2, -1))).real


class Rule:
    """The unconditional output of a skipped step, with what is stored multiplied in place (`compounding`) or not."""

    def __init__(
        self,
        store: Callable[[int], bool],
        skip: Callable[[int], bool],
        low: Callable[[int], float],
        high: Callable[[int], float],
        compounding: bool = False,
        divisor: int = 5,
    ):
        self.store, self.skip, self.low, self.high = store, skip, low, high
        self.compounding, self.divisor = compounding, divisor
        self.delta: Any = None
        self.computed_last = -1

    def __call__(self, step: int, cond: np.ndarray, uncond: np.ndarray) -> tuple[str, np.ndarray]:
        missed = any(not self.skip(other) for other in range(self.computed_last + 1, step))
        low, high = bands(cond, self.divisor)
        if self.skip(step) and self.delta is not None and not missed:
            boosted = [self.delta[0] * self.low(step), self.delta[1] * self.high(step)]
            if self.compounding:
                self.delta = boosted
            return ".", picture(low + boosted[0] + high + boosted[1])
        self.computed_last = step
        if self.store(step):
            other_low, other_high = bands(uncond, self.divisor)
            self.delta = [other_low - low, other_high - high]
        return "#", uncond


def published_rule(model: str, compounding: bool) -> Rule:
    rule = PUBLISHED[model]

    def shifted(function: Callable[[int], Any]) -> Callable[[int], Any]:
        return lambda step: function(step + rule.counts_from)

    return Rule(*(shifted(f) for f in (rule.store, rule.skip, rule.low, rule.high)), compounding=compounding)


def agent_of(steps: int, **options: Any) -> CacheAgent:
    return CacheAgent(CacheConfig("cfg_cache", 1, steps, options=options))


def player_of(steps: int, shape: tuple[int, ...] = SHAPE, constant: bool = False, dtype: Any = torch.float64) -> Player:
    return Player({name: recording(steps, shape, seed, constant, dtype) for seed, name in enumerate(("cond", "uncond"))})


def follow(rule: Rule, agent: CacheAgent, steps: int, guided: Any = None, tolerance: float = 1e-10) -> str:
    """Two calls a step; compare decision by decision, value by value. Returns the marks of the unconditional branch."""
    player = player_of(steps)
    present = range(steps) if guided is None else guided
    with quiet():
        marks, outputs, host_reads = play(agent, [player], steps, {"cond": range(steps), "uncond": present})
    assert host_reads == 0
    assert marks["cond"] == "#" * steps
    for step in range(steps):
        assert torch.equal(outputs["cond"][step][0], player.recordings["cond"][step])
    for at, step in enumerate(step for step in range(steps) if step in present):
        truths = [as_numpy(player.recordings[name][step]) for name in ("cond", "uncond")]
        mark, value = rule(step, *truths)
        assert marks["uncond"][at] == mark, step
        got = as_numpy(outputs["uncond"][at][0])
        if mark == "#":
            assert np.array_equal(got, value)
        else:
            np.testing.assert_allclose(got, value, atol=tolerance)
    assert agent.report().bytes_now == 0
    return marks["uncond"]


@pytest.mark.parametrize("compounding", [False, True], ids=["paper", "code"])
@pytest.mark.parametrize("model", PUBLISHED)
def test_the_published_rule(model, compounding):
    steps = PUBLISHED[model].steps
    marks = follow(published_rule(model, compounding), agent_of(steps, compounding=compounding, preset=model), steps)
    assert marks.count(".") / steps > 0.4


def test_boosts_that_compound_are_more_than_boosts():
    values = []
    for compounding in (False, True):
        _, outputs, _ = play(
            agent_of(30, compounding=compounding, preset="Open-Sora-1.2"),
            [player_of(30)],
            30,
            dict.fromkeys(("cond", "uncond"), range(30)),
        )
        values.append(outputs["uncond"][13][0])  # the third skipped step in a row
    assert (values[0] - values[1]).abs().max() > 0.1


BOOSTS = st.tuples(st.sampled_from([1.0, 1.15, 0.5]), st.integers(0, 12), st.integers(12, 26))
OPTIONS = {
    "refresh_from": st.integers(0, 6),
    "skip_from": st.integers(6, 12),
    "interval": st.integers(2, 6),
    "phase": st.integers(0, 6),
    "low_boost": BOOSTS,
    "high_boost": BOOSTS,
    "radius_divisor": st.integers(1, 9),
    "compounding": st.booleans(),
    "final_steps": st.integers(0, 3),
}


def rule_of(options: dict[str, Any], steps: int) -> Rule:
    def factor(name: str) -> Callable[[int], float]:
        value, first, stop = options[name]
        return lambda step: value if first <= step < stop else 1.0

    def skip(step: int) -> bool:
        due = (step + options["phase"]) % options["interval"] == 0
        return options["skip_from"] <= step < steps - options["final_steps"] and not due

    return Rule(
        lambda step: step >= options["refresh_from"],
        skip,
        factor("low_boost"),
        factor("high_boost"),
        options["compounding"],
        options["radius_divisor"],
    )


@settings(deadline=None, max_examples=60)
@given(steps=st.integers(1, 26), options=st.fixed_dictionaries(OPTIONS))
def test_its_options(steps, options):
    """final_steps=0 also predicts in the last step."""
    follow(rule_of(options, steps), agent_of(steps, **options), steps)


@settings(deadline=None, max_examples=60)
@given(steps=st.integers(8, 26), missing=st.sets(st.integers(0, 25)), options=st.fixed_dictionaries(OPTIONS))
def test_guidance_may_be_left_out_of_some_steps(steps, missing, options):
    """A step in which the difference should have been refreshed is made up for. (Compounding counts steps, not calls.)"""
    options = {**options, "compounding": False}
    guided = [step for step in range(steps) if step not in missing]
    follow(rule_of(options, steps), agent_of(steps, **options), steps, guided)


def test_without_an_fft_the_numbers_are_the_same(monkeypatch):
    monkeypatch.setattr(fourier, "FFT_DEVICES", ())
    follow(published_rule("CogVideoX", False), agent_of(50, preset="CogVideoX"), 50)


# ------------------------------------------------------------------------------------------------ both in one batch


class Batch(nn.Module):
    """Plays rows: the first channel of the latents says which. Notes what it was called with."""

    def __init__(self, rows: Tensor, form: Callable[[Tensor], Any] | None = None):
        super().__init__()
        self.rows = rows  # (steps, batch, ...)
        self.form = form
        self.seen: list[dict[str, Any]] = []

    def forward(self, hidden_states: Tensor, timestep: Tensor, *, step: int, **others: Any) -> Any:
        self.seen.append({"hidden_states": hidden_states, "timestep": timestep, **others})
        value = self.rows[step][hidden_states[:, 0].long()].clone()
        return value if self.form is None else self.form(value)


def batch_call(agent: CacheAgent, model: Batch, step: int) -> Any:
    size = model.rows.shape[1]
    return agent.apply(
        model,
        torch.arange(size, dtype=torch.float64)[:, None] + torch.zeros(size, 3),
        torch.full((size,), float(step)),
        step=step,
        encoder_hidden_states=torch.arange(size)[:, None, None] + torch.zeros(size, 4, 2),
        rotary=(torch.zeros(7, 2), torch.ones(7, 2)),
        added={"text": torch.arange(size), "scale": torch.tensor(2.0)},
        mask=None,
    )


@pytest.mark.parametrize("compounding", [False, True])
@pytest.mark.parametrize("pairs", [1, 2])
@pytest.mark.parametrize("uncond_first", [False, True])
def test_a_batch_of_both_branches(uncond_first, pairs, compounding):
    steps, rows = 50, recording(50, (2 * pairs, *SHAPE[1:]))
    agent = agent_of(steps, layout="batch", uncond_first=uncond_first, compounding=compounding, preset="Latte-1")
    model, rule = Batch(rows), published_rule("Latte-1", compounding)
    halves = slice(0, pairs), slice(pairs, 2 * pairs)
    uncond, cond = halves if uncond_first else halves[::-1]
    marks = ""
    for step in range(steps):
        with LocalScalars() as scalars:
            got = as_numpy(batch_call(agent, model, step))
        assert scalars.count == 0
        mark, value = rule(step, as_numpy(rows[step][cond]), as_numpy(rows[step][uncond]))
        marks += mark
        seen = model.seen[-1]
        assert seen["hidden_states"].shape[0] == (2 * pairs if mark == "#" else pairs)
        assert np.array_equal(got[cond], as_numpy(rows[step][cond]))
        if mark == "#":
            assert np.array_equal(got[uncond], value)
        else:
            np.testing.assert_allclose(got[uncond], value, atol=1e-10)
            wanted = torch.arange(2 * pairs)[cond]
            assert torch.equal(seen["added"]["text"], wanted)
            assert torch.equal(seen["encoder_hidden_states"][:, 0, 0], wanted)
            assert seen["timestep"].shape == (pairs,)
            assert seen["rotary"][0].shape == (7, 2)
            assert (seen["added"]["scale"], seen["mask"]) == (torch.tensor(2.0), None)
    assert len(model.seen) == steps
    assert "".join("." if record.reused else "#" for record in agent.report().steps) == marks


def test_a_batch_may_return_other_things_too():
    """A tensor that is no batch, a batch of whole numbers, and objects."""
    agent = agent_of(20, layout="batch", uncond_first=False)
    model = Batch(
        recording(20, (2, *SHAPE[1:]), constant=True),
        lambda value: {
            "sample": value,
            "labels": (value[:, 0, 0, 0, 0] > 9).long() + 3,
            "shared": value.mean(0),
            "one": value.mean(0, keepdim=True),
            "other": (None, "x", 2),
        },
    )
    for step in range(20):
        out = batch_call(agent, model, step)
        torch.testing.assert_close(out["sample"], model.rows[0], atol=0.3, rtol=0.2)  # boosted
        assert out["labels"].tolist() == [3, 3]
        assert out["shared"].shape == out["one"].shape[1:] == SHAPE[1:]
        assert out["other"] == (None, "x", 2)
    assert sum(record.reused for record in agent.report().steps) > 8


def test_an_odd_batch_is_refused():
    agent = agent_of(20, layout="batch", uncond_first=False)
    with pytest.raises(ParametersInvalid, match=r"batch size is 3.*sequential"):
        batch_call(agent, Batch(recording(20, (3, *SHAPE[1:]))), 0)


def test_a_model_that_returns_less_for_half_a_batch_is_refused():
    agent = agent_of(20, layout="batch", uncond_first=False)
    model = Batch(recording(20, (2, *SHAPE[1:])), lambda value: (value, value) if value.shape[0] == 2 else value)

    def run() -> None:
        for step in range(20):
            batch_call(agent, model, step)

    with pytest.raises(ModelExecError, match="2 values for the batch, and 1 for half"):
        run()


# ------------------------------------------------------------------------------------------------ promises


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_where_nothing_changes_nothing_is_changed(dtype):
    """Identity property, of the differences as they are (boosts change them on purpose)."""
    agent, player = agent_of(24, low_boost=(1, 0, 0), high_boost=(1, 0, 0)), player_of(24, constant=True, dtype=dtype)
    marks, outputs, _ = play(agent, [player], 24, dict.fromkeys(("cond", "uncond"), range(24)))
    assert marks["uncond"].count(".") > 8
    for row in outputs["uncond"]:
        error = 4 * torch.finfo(dtype).eps * (player.recordings["cond"][0].abs() + player.recordings["uncond"][0].abs())
        assert (row[0].dtype, row[0].shape) == (dtype, SHAPE)
        assert ((row[0] - player.recordings["uncond"][0]).abs() <= error + 1e-12).all()


def test_two_bands_are_kept():
    agent = agent_of(24)
    play(agent, [player_of(24, dtype=torch.float32)], 24, dict.fromkeys(("cond", "uncond"), range(24)))
    assert (agent.report().bytes_peak, agent.report().bytes_now) == (2 * 4 * int(np.prod(SHAPE)), 0)


def test_a_predicted_step_transforms_nothing():
    """One pass over memory: the bands were transformed when they were kept."""

    class Transforms(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.count += "_fft_" in str(func)
            return func(*args, **(kwargs or {}))

    agent, player, marks, counts = agent_of(20), player_of(20), "", []
    for step in range(20):
        with Transforms() as transforms:
            for branch in ("cond", "uncond"):
                before = len(player.runs)
                with agent.branch(branch):
                    agent.apply(player, torch.zeros(1), branch=branch, step=step)
        marks += "#" if len(player.runs) > before else "."
        counts.append(transforms.count)
    assert all(count == 0 for count, mark in zip(counts, marks, strict=True) if mark == ".")
    assert sum(counts) > 0


def test_what_the_caller_does_to_outputs_does_not_reach_the_cache():
    agent, player, rule = (
        agent_of(20),
        player_of(20),
        rule_of(
            dict(
                refresh_from=4,
                skip_from=6,
                interval=5,
                phase=1,
                low_boost=(1.1, 0, 16),
                high_boost=(1.1, 12, 20),
                compounding=False,
                final_steps=1,
                radius_divisor=5,
            ),
            20,
        ),
    )
    for step in range(20):
        results = {}
        for branch in ("cond", "uncond"):
            with agent.branch(branch):
                result = agent.apply(player, torch.zeros(1), branch=branch, step=step)
            results[branch] = as_numpy(result.clone())
            result.zero_()
        _, value = rule(step, results["cond"], as_numpy(player.recordings["uncond"][step]))
        np.testing.assert_allclose(results["uncond"], value, atol=1e-10)


def test_a_new_shape_is_computed():
    agent, marks = agent_of(24), ""
    player = player_of(24)
    for step in range(24):
        if step == 12:
            for branch in player.recordings:
                player.recordings[branch] = recording(24, (1, 2, 3, 6, 6))
        for branch in ("cond", "uncond"):
            before = len(player.runs)
            with agent.branch(branch):
                out = agent.apply(player, torch.zeros(player.recordings[branch].shape[1:]), branch=branch, step=step)
            assert out.shape == player.recordings[branch].shape[1:]
        marks += "#" if len(player.runs) > before else "."
    assert [marks[step] for step in (10, 11, 12, 13)] == [".", ".", "#", "."]


def test_a_tile_of_another_shape_in_the_same_step_is_computed():
    agent, player, reused = agent_of(24), player_of(24), 0
    large, small = player.recordings, player_of(24, (1, 2, 3, 6, 6)).recordings
    with quiet(), agent.run():
        for step in range(24):
            for tile in (large, small)[: 1 + (step in (12, 13, 19))]:
                player.recordings = tile
                for branch in ("cond", "uncond"):
                    before = len(player.runs)
                    with agent.branch(branch, step=step):
                        out = agent.apply(player, torch.zeros(tile[branch].shape[1:]), branch=branch, step=step)
                    assert out.shape == tile[branch].shape[1:]
                    if len(player.runs) > before:
                        assert torch.equal(out, tile[branch][step])
                    else:
                        assert tile is large
                        reused += 1
    assert reused > 8


@pytest.mark.parametrize("order", ["tile by tile", "branch by branch"])
def test_tiles_of_one_shape_in_the_same_step_are_computed(order):
    """One agent cannot tell them apart."""
    agent, player, tiles = agent_of(24), player_of(24), [player_of(24).recordings, {}]
    tiles[1] = {branch: 3 - values for branch, values in tiles[0].items()}
    calls = [(branch, tile) for tile in tiles for branch in ("cond", "uncond")]
    if order == "branch by branch":
        calls.sort(key=lambda call: call[0])
    with quiet(), agent.run():
        for step in range(24):
            for branch, tile in calls:
                player.recordings = tile
                with agent.branch(branch, step=step):
                    assert torch.equal(agent.apply(player, torch.zeros(1), branch=branch, step=step), tile[branch][step])


def test_nothing_is_held_after_a_run_that_ended_early():
    def alive() -> int:
        return sum(type(item) is Tensor and item.shape == (1, 1, 8, 11) for item in gc.get_objects())

    agent, player = agent_of(24), player_of(24, (1, 1, 8, 11))
    with quiet(), agent.run():
        for branch in ("cond", "uncond") * 9:
            with agent.branch(branch):
                agent.apply(player, torch.zeros(1), branch=branch, step=0)
        assert alive() == 3  # two bands, and the conditional output of this step
    assert alive() == 0


def test_several_branches_are_predicted_from_one():
    """Two unconditional branches, as for text and image guidance."""
    names = ("cond", "no text", "no image")
    player = Player({name: recording(24, SHAPE, seed, constant=True) for seed, name in enumerate(names)})
    agent = agent_of(24, low_boost=(1, 0, 0), high_boost=(1, 0, 0))
    marks, outputs, _ = play(agent, [player], 24, dict.fromkeys(names, range(24)))
    assert marks["no text"] == marks["no image"] != marks["cond"]
    for name in names:
        for row in outputs[name]:
            torch.testing.assert_close(row[0], player.recordings[name][0])


def test_outputs_of_any_form():
    agent = agent_of(24)
    player = player_of(24)
    player.form = lambda value: (
        value,
        {"again": value[0], "count": 3, "labels": torch.tensor([1, 2]), "bias": value[0, 0, 0, 0]},
    )
    _, outputs, _ = play(agent, [player], 24, dict.fromkeys(("cond", "uncond"), range(24)))
    for (out,) in outputs["uncond"]:
        torch.testing.assert_close(out[1]["again"], out[0][0])
        assert (out[1]["count"], out[1]["labels"].tolist(), out[1]["bias"].shape) == (3, [1, 2], (10,))


def test_a_run_without_guidance_is_told():
    agent = agent_of(20)
    with all_warnings() as caught:
        play(agent, [player_of(20)], 20, {"cond": range(20)})
    assert [str(warning.message) for warning in caught if "only branch 'cond'" in str(warning.message)]
    with pytest.warns(CacheWarning, match="reused nothing in branch 'uncond'"):
        play(agent_of(20, skip_from=19), [player_of(20)], 20, dict.fromkeys(("cond", "uncond"), range(20)))


class Attentive(nn.Module):
    """A model of two attentions, which go through an agent of their own."""

    def __init__(self, agent: CacheAgent | None = None):
        super().__init__()
        torch.manual_seed(0)
        self.agent = agent
        self.attentions = nn.ModuleList([nn.Linear(10, 10, dtype=torch.float64).requires_grad_(False) for _ in range(2)])

    def forward(self, hidden_states: Tensor, prompt: Tensor) -> Tensor:
        for attention in self.attentions:
            call = attention if self.agent is None else partial(self.agent.apply, attention)
            mixed = call(hidden_states + prompt)
            hidden_states = hidden_states + 0.3 * mixed
        return hidden_states


@pytest.mark.parametrize("layout", ["sequential", "batch"])
def test_together_with_the_cache_of_attentions(layout):
    """Both parts of FasterCache at once, where nothing changes."""
    attention_agent = CacheAgent(CacheConfig("fastercache", 2, 50, options={"preset": "CogVideoX"}))
    order = {"uncond_first": False} if layout == "batch" else {}
    agent = agent_of(50, preset="CogVideoX", layout=layout, low_boost=(1, 0, 0), high_boost=(1, 0, 0), **order)
    model, bare, latents = Attentive(attention_agent), Attentive(), recording(1, (1, 1, 8, 10))[0]
    prompts = torch.tensor([0.3, -0.8], dtype=torch.float64).view(2, 1, 1, 1)
    with quiet(), agent.run():
        for _ in range(50):
            if layout == "batch":
                got = agent.apply(model, torch.cat((latents, latents)), prompts)
            else:
                parts = []
                for branch, prompt in zip(("cond", "uncond"), prompts, strict=True):
                    with agent.branch(branch):
                        parts.append(agent.apply(model, latents, prompt))
                got = torch.cat(parts)
            torch.testing.assert_close(got, bare(torch.cat((latents, latents)), prompts))
        reused = [sum(record.calls_reused for record in part.report().steps) for part in (agent, attention_agent)]
    assert min(reused) > 15


# ------------------------------------------------------------------------------------------------ refusals


def test_cfg_parallel_is_refused_with_the_reason():
    with pytest.raises(ConfigError, match=r"layout=\"parallel\".*CFG-parallel each rank"):
        agent_of(20, layout="parallel")
    with pytest.raises(ConfigError, match=r"process_group.*CFG-parallel each rank"):
        CacheAgent(CacheConfig("cfg_cache", 1, 20), process_group=object())
    for order in (["uncond"], ["uncond", "cond"]):  # the rank of this branch, or the wrong order
        agent, player = agent_of(20), player_of(20)
        with pytest.raises(ParametersInvalid, match=r"'uncond' is called in step 0.*'cond' was not.*CFG-parallel"):
            play(agent, [player], 20, dict.fromkeys(order, range(20)))


def test_a_step_without_the_conditional_branch_is_refused():
    agent, player = agent_of(20), player_of(20)
    with pytest.raises(ParametersInvalid, match="'uncond' is called in step 9"):
        play(agent, [player], 20, {"cond": [step for step in range(20) if step != 9], "uncond": range(20)})


@pytest.mark.parametrize(
    ("forms", "said"),
    [
        ((lambda x: x, lambda x: (x, x)), "1 and 2 values"),
        ((lambda x: x, lambda x: x[..., :4]), r"tensor of \(1, 2, 3, 8, 10\) and a tensor of \(1, 2, 3, 8, 4\)"),
        ((lambda x: (x, None), lambda x: (x, x)), "a NoneType and a tensor"),
        ((lambda x: x, lambda x: x.long()), "one shape"),
    ],
)
def test_branches_of_different_form_are_refused(forms, said):
    agent = agent_of(20)
    players = {name: Player(player_of(20).recordings, form) for name, form in zip(("cond", "uncond"), forms, strict=True)}

    def run() -> None:
        for step in range(20):
            for branch, player in players.items():
                with agent.branch(branch):
                    agent.apply(player, torch.zeros(1), branch=branch, step=step)

    with pytest.raises(ModelExecError, match=said):
        run()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"layout": "both"}, "layout='both'"),
        ({"uncond_first": True}, "uncond_first has no effect"),
        ({"layout": "batch"}, "needs uncond_first"),
        ({"uncond_first": 1, "layout": "batch"}, "uncond_first=1"),
        ({"skip_from": 5, "refresh_from": 6}, "skip_from=5 is before refresh_from=6"),
        ({"interval": 1}, "interval=1"),
        ({"radius_divisor": 0}, "radius_divisor=0"),
        ({"low_boost": 1.1}, "low_boost=1.1"),
        ({"low_boost": [1.1, 4]}, "low_boost"),
        ({"high_boost": [1.1, 9, 4]}, "high_boost stop=4"),
        ({"high_boost": [-1, 0, 4]}, "high_boost factor=-1"),
        ({"compounding": "yes"}, "compounding='yes'"),
        ({"final_steps": -1}, "final_steps=-1"),
        ({"order": 2}, "order=2"),
        ({"boost": 2}, "unknown key 'boost'"),
    ],
)
def test_bad_options(options, said):
    with pytest.raises(ConfigError, match=said):
        agent_of(20, **options)


def test_one_call_a_step_and_branch():
    with pytest.raises(ConfigError, match="blocks_count=4"):
        CacheAgent(CacheConfig("cfg_cache", 4, 20))


@pytest.mark.parametrize(
    ("boost", "points", "at", "expected"),
    [
        ((1.5, 3, 6), (2,), 2, 1.0),
        ((1.5, 3, 6), (2,), 5, 1.5),
        ((1.5, 3, 6), (2,), 6, 1.0),
        ((1.5, 3, 6, True), (2,), 5, 1.5**3),
        ((1.5, 3, 6, True), (4,), 5, 1.5),
        ((1.5, 3, 6, True), (2,), 9, 1.5**3),
        ((1.5, 3, 6, True), (7,), 9, 1.0),
    ],
)
def test_boost_weights(boost, points, at, expected):
    assert Boost(*boost).weights(points, at) == pytest.approx((expected,))
