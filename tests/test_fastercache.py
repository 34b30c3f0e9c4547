"""fastercache against the published rules of six models, and against its own options, restated here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from players import Player, as_numpy, play, recording
from toy import quiet

from mindie_cache import CacheAgent, CacheConfig, ConfigError, FasterCacheOptions
from mindie_cache.predictors import TwoPoint

SHAPE = (2, 5, 3)


class Published(NamedTuple):
    """As printed: `c` counts from 1 (Mochi: from 0)."""

    steps: int
    store: Callable[[int], bool]
    reuse: Callable[[int], bool]
    weight: Callable[[int], float]
    counts_from: int = 1


PUBLISHED = {
    "Open-Sora-1.2": Published(30, lambda c: c >= 5, lambda c: c > 7 and c % 2 == 0, lambda c: (c - 7) / 20 * 0.9),
    "Open-Sora-Plan-1.1@temporal": Published(150, lambda c: c >= 40, lambda c: c >= 45 and c % 3 != 0, lambda c: 0.3),
    "Open-Sora-Plan-1.1@spatial": Published(150, lambda c: c >= 42, lambda c: c >= 45 and c % 3 != 0, lambda c: 0.3),
    "Latte-1": Published(50, lambda c: c >= 13, lambda c: c >= 16 and c % 2 == 0, lambda c: 0.5),
    "CogVideoX": Published(50, lambda c: c >= 15, lambda c: c >= 18 and c % 3 != 0, lambda c: 0.3),
    "Mochi-1": Published(64, lambda c: c >= 5, lambda c: c >= 20 and c % 2 == 0, lambda c: max(0.5, c / 63), 0),
    "Vchitect-2.0": Published(100, lambda c: c >= 30, lambda c: c > 30 and c % 2 == 0, lambda c: 0.0),
}


class Rule:
    """The two newest computed outputs; a reused one is C1 + (C1 - C0) w."""

    def __init__(self, store: Callable[[int], bool], reuse: Callable[[int], bool], weight: Callable[[int], float]):
        self.store, self.reuse, self.weight = store, reuse, weight
        self.older: Any = None
        self.newer: Any = None
        self.computed_last = -1

    def __call__(self, step: int, value: np.ndarray) -> tuple[str, np.ndarray]:
        missed = any(not self.reuse(other) for other in range(self.computed_last + 1, step))  # guidance left it out
        if self.reuse(step) and self.newer is not None and not missed:
            return ".", self.newer + (self.newer - self.older) * self.weight(step)
        self.computed_last = step
        if self.store(step):
            self.older = value if self.newer is None else self.newer
            self.newer = value
        return "#", value


def agent_of(steps: int, calls: int = 2, **options: Any) -> CacheAgent:
    return CacheAgent(CacheConfig("fastercache", calls, steps, options=options))


def follow(rule: Callable[[], Rule], agent: CacheAgent, steps: int, branches: dict[str, Any], constant: bool = False) -> Any:
    """Play two attentions and compare decision by decision, value by value. Returns the report and the marks."""
    players = [
        Player({name: recording(steps, SHAPE, 10 * call + seed, constant) for seed, name in enumerate(branches)})
        for call in range(2)
    ]
    with quiet():
        marks, outputs, host_reads = play(agent, players, steps, branches)
    assert host_reads == 0
    for branch, present in branches.items():
        for call, player in enumerate(players):
            follower = rule()
            for at, step in enumerate([step for step in range(steps) if step in present]):
                truth = as_numpy(player.recordings[branch][step])
                mark, value = follower(step, truth)
                got = as_numpy(outputs[branch][at][call])
                assert marks[branch][at] == mark, (branch, call, step)
                if mark == "#":
                    assert np.array_equal(got, value)
                else:
                    np.testing.assert_allclose(got, value, atol=1e-12)
    return agent.report(), marks


@pytest.mark.parametrize("model", PUBLISHED)
def test_the_published_rule(model):
    published = PUBLISHED[model]
    steps, offset = published.steps, published.counts_from

    def rule() -> Rule:
        return Rule(
            lambda step: published.store(step + offset),
            lambda step: published.reuse(step + offset),
            lambda step: published.weight(step + offset),
        )

    agent = agent_of(steps, final_steps=0, preset=model)
    everything = dict.fromkeys(("cond", "uncond"), range(steps))
    _, marks = follow(rule, agent, steps, everything)
    assert 0.2 < marks["cond"].count(".") / steps < 0.7


OPTIONS = {
    "keep_from": st.integers(0, 12),
    "reuse_from": st.integers(0, 12),
    "reuse_until": st.none() | st.integers(12, 30),
    "interval": st.integers(2, 6),
    "phase": st.integers(0, 6),
    "reuse_on": st.sampled_from(["multiples", "others"]),
    "weight_floor": st.sampled_from([0.0, 0.3, 1.5]),
    "weight_slope": st.sampled_from([0.0, 0.02, 0.1]),
    "weight_origin": st.integers(0, 9),
    "final_steps": st.integers(0, 3),
}


@settings(deadline=None, max_examples=80)
@given(
    steps=st.integers(1, 26),
    window=st.tuples(st.integers(0, 26), st.integers(0, 26)),
    options=st.fixed_dictionaries(OPTIONS),
)
def test_its_options(steps, window, options):
    """Also with guidance in a window of steps only."""

    def reuse(step: int) -> bool:
        if step >= steps - options["final_steps"] or not options["reuse_from"] <= step < (options["reuse_until"] or 99):
            return False
        return ((step + options["phase"]) % options["interval"] == 0) == (options["reuse_on"] == "multiples")

    def weight(step: int) -> float:
        return max(options["weight_floor"], options["weight_slope"] * (step - options["weight_origin"]))

    branches = {"cond": range(steps), "uncond": range(min(window), max(window))}
    report, _ = follow(
        lambda: Rule(lambda step: step >= options["keep_from"], reuse, weight), agent_of(steps, **options), steps, branches
    )
    assert report.bytes_now == 0


def test_defaults_are_those_of_cogvideox_in_proportion():
    agent = agent_of(50)
    _, marks = follow(
        lambda: Rule(lambda s: s >= 12, lambda s: 15 <= s < 49 and (s + 1) % 3 != 0, lambda s: 0.3),
        agent,
        50,
        {"cond": range(50)},
    )
    assert marks["cond"][-1] == "#"
    assert FasterCacheOptions().resolved(CacheConfig("fastercache", 1, 20))[0].reuse_from == 6


def test_where_nothing_changes_nothing_is_changed():
    """Identity property."""
    agent, player = agent_of(24, 1), Player({"cond": recording(24, SHAPE, constant=True, dtype=torch.float32)})
    marks, outputs, _ = play(agent, [player], 24, {"cond": range(24)})
    assert marks["cond"].count(".") > 5
    for row in outputs["cond"]:
        torch.testing.assert_close(row[0], player.recordings["cond"][0], rtol=3e-7, atol=0)


def test_two_outputs_are_kept_for_each_call_and_branch():
    for weight, kept in ((0.3, 2), (0.0, 1)):  # without extrapolation one is enough
        agent = agent_of(24, weight_floor=weight)
        players = [Player({name: recording(24, SHAPE) for name in ("cond", "uncond")}) for _ in range(2)]
        play(agent, players, 24, dict.fromkeys(("cond", "uncond"), range(24)))
        assert agent.report().bytes_peak == kept * 2 * 2 * 8 * int(np.prod(SHAPE))


def test_an_attention_may_return_several_tensors():
    agent = agent_of(24, 1)
    player = Player({"cond": recording(24, SHAPE)}, form=lambda value: {"image": value, "text": (-value[0], None)})
    _, outputs, _ = play(agent, [player], 24, {"cond": range(24)})
    for (out,) in outputs["cond"]:
        torch.testing.assert_close(out["text"][0], -out["image"][0])
        assert out["text"][1] is None


def test_a_new_shape_is_computed():
    agent, player = agent_of(24, 1), Player({"cond": recording(24, (2, 4))})
    ran = []
    for step in range(24):
        if step == 12:
            player.recordings["cond"] = recording(24, (2, 6))
        before = len(player.runs)
        out = agent.apply(player, torch.zeros(player.recordings["cond"].shape[1:]), branch="cond", step=step)
        ran.append(len(player.runs) > before)
        assert out.shape == player.recordings["cond"].shape[1:]
    assert [ran[step] for step in (10, 11, 12, 13, 14, 15)] == [False, True, True, False, True, False]


@pytest.mark.parametrize(
    ("weights", "points", "at", "expected"),
    [
        ((0.3, 0.0, 0), (4,), 5, (1.0,)),
        ((0.3, 0.0, 0), (4, 6), 7, (-0.3, 1.3)),
        ((0.3, 0.1, 2), (4, 6), 4, (-0.3, 1.3)),
        ((0.3, 0.1, 2), (4, 6), 7, (-0.5, 1.5)),
        ((0.3, 0.1, 2), (1, 4, 6), 7, (0.0, -0.5, 1.5)),
    ],
)
def test_two_point_weights(weights, points, at, expected):
    predictor = TwoPoint(*weights)
    assert predictor.weights(points, at) == pytest.approx(expected)
    assert (predictor.depth, predictor.warmup) == (2, 1)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"interval": 1}, "interval=1"),
        ({"reuse_on": "all"}, "reuse_on='all'"),
        ({"phase": -1}, "phase=-1"),
        ({"keep_from": -1}, "keep_from=-1"),
        ({"reuse_from": 2.5}, "reuse_from=2.5"),
        ({"reuse_from": 9, "reuse_until": 8}, "reuse_until=8"),
        ({"weight_floor": -0.1}, "weight_floor=-0.1"),
        ({"weight_slope": float("nan")}, "weight_slope=nan"),
        ({"final_steps": -1}, "final_steps=-1"),
        ({"order": 1}, "order=1"),
        ({"max_distance": 2}, "order"),
        ({"weight": 0.3}, "Did you mean"),
    ],
)
def test_bad_options(options, said):
    with pytest.raises(ConfigError, match=said):
        agent_of(20, **options)
