"""pab against the published rule: reuse where count mod range is not 0 and lo < t < hi, the first step inside computes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from players import Player, as_numpy, play, recording
from toy import quiet

from mindie_cache import CacheAgent, CacheConfig, ConfigError, PabOptions

SHAPE = (2, 5, 3)
RANGES = {  # spatial, temporal, cross; window of timesteps; default number of steps
    "Open-Sora-1.2": ((2, 4, 6), (450, 930), 30),
    "Latte-1": ((2, 3, 6), (100, 800), 50),
    "Open-Sora-Plan-1.1": ((2, 4, 6), (100, 850), 150),
    "Open-Sora-Plan-1.2": ((2, None, 6), (100, 850), 100),
    "CogVideoX": ((2, None, None), (100, 850), 50),
    "Vchitect-2.0": ((2, 4, 6), (100, 800), 100),
}
KINDS = [
    (model, kind, every)
    for model, (ranges, _, _) in RANGES.items()
    for kind, every in zip(("spatial", "temporal", "cross"), ranges, strict=True)
    if every is not None
]


def evenly(steps: int) -> list[float]:
    return [1000 - 1000 * step / steps for step in range(steps)]


def attention_computes(times: Sequence[float], every: int, low: float, high: float, last: int = 1) -> list[bool]:
    computes, entered = [], False
    for count, time in enumerate(times):
        inside = low < time < high
        reuse = inside and entered and count % every != 0 and count < len(times) - last
        entered = entered or inside
        computes.append(not reuse)
    return computes


def mlp_computes(times: Sequence[float], listed: Sequence[float], skips: int, last: int = 1) -> list[bool]:
    """Published: at a listed timestep the output is computed, and serves the steps that follow."""
    computes, left = [], 0
    for count, time in enumerate(times):
        if time in listed:
            left = skips
            computes.append(True)
        else:
            computes.append(left == 0 or count >= len(times) - last)
            left = max(0, left - 1)
    return computes


def agent_of(steps: int, calls: int = 1, **options: Any) -> CacheAgent:
    return CacheAgent(CacheConfig("pab", calls, steps, options=options))


def follow(agent: CacheAgent, computes: list[bool], branches: Sequence[str] = ("cond", "uncond")) -> None:
    """Compare decision by decision, value by value."""
    steps = len(computes)
    player = Player({name: recording(steps, SHAPE, seed) for seed, name in enumerate(branches)})
    with quiet():
        marks, outputs, host_reads = play(agent, [player], steps, dict.fromkeys(branches, range(steps)))
    assert host_reads == 0
    for branch in branches:
        assert marks[branch] == "".join("#" if compute else "." for compute in computes)
        for step in range(steps):
            source = max(earlier for earlier in range(step + 1) if computes[earlier])
            assert torch.equal(outputs[branch][step][0], player.recordings[branch][source])
    assert agent.report().bytes_now == 0


@pytest.mark.parametrize(("model", "kind", "every"), KINDS)
def test_the_published_ranges(model, kind, every):
    _, (low, high), steps = RANGES[model]
    computes = attention_computes(evenly(steps), every, low, high)
    follow(agent_of(steps, preset=f"{model}@{kind}"), computes)
    follow(agent_of(steps, broadcast=every, window=(low, high)), computes)
    assert 0.1 < computes.count(False) / steps < 0.8


@settings(deadline=None, max_examples=80)
@given(data=st.data(), steps=st.integers(1, 40), every=st.integers(2, 9), last=st.integers(0, 3))
def test_any_window_and_timesteps(data, steps, every, last):
    low, high = sorted(data.draw(st.lists(st.integers(0, 1000), min_size=2, max_size=2, unique=True)))
    times = data.draw(
        st.none() | st.lists(st.floats(0, 1000), min_size=steps, max_size=steps).map(lambda t: sorted(t)[::-1])
    )
    options = dict(broadcast=every, window=(low, high), timesteps=times, final_steps=last)
    follow(agent_of(steps, **options), attention_computes(times or evenly(steps), every, low, high, last))


@pytest.mark.parametrize(
    ("model", "listed", "blocks"),
    [
        ("Open-Sora-1.2", [676, 788, 864], range(5)),
        ("Latte-1", [720, 640, 560, 480, 400], range(5)),
        ("Open-Sora-Plan-1.1", [738, 714, 690, 666, 642, 618, 594, 570, 546, 522, 498, 474, 450, 426], range(7)),
    ],
)
def test_feed_forward_networks_after_listed_timesteps(model, listed, blocks):
    """With the listed timesteps among those of the scheduler, as in the original; only the listed blocks."""
    times = sorted({*listed, *range(6, 1000, 6 if len(listed) > 5 else 20)}, reverse=True)
    steps = len(times)
    follow(agent_of(steps, preset=f"{model}@mlp", timesteps=times, mlp_blocks=[0]), mlp_computes(times, listed, 2))

    agent = agent_of(steps, calls=9, preset=f"{model}@mlp", timesteps=times)
    players = [Player({"cond": recording(steps, SHAPE, call)}) for call in range(9)]
    for step in range(steps):
        for player in players:
            agent.apply(player, torch.zeros(1), branch="cond", step=step)
    skipped = [steps - len(player.runs) for player in players]
    assert skipped[: len(blocks)] == [mlp_computes(times, listed, 2).count(False)] * len(blocks)
    assert skipped[len(blocks) :] == [0] * (9 - len(blocks))


def test_listed_timesteps_between_those_of_the_scheduler_are_taken_at_the_nearest():
    """The original asks for exact equality, and does nothing silently with another scheduler."""
    agent = agent_of(20, kind="mlp", mlp_timesteps=[676], mlp_skip_count=3)  # 700 is step 6, 650 step 7
    follow(agent, [step not in (7, 8, 9) for step in range(20)])


def test_a_listed_timestep_is_computed_also_after_another_one():
    agent = agent_of(20, kind="mlp", mlp_timesteps=[700, 650], mlp_skip_count=2)
    follow(agent, [step not in (8, 9) for step in range(20)])


def test_the_window_limits_feed_forward_networks_too():
    agent = agent_of(20, kind="mlp", mlp_timesteps=[500], mlp_skip_count=5, window=(390, 900))
    follow(agent, [step not in (11, 12) for step in range(20)])  # 450 and 400


def test_nothing_from_outside_the_window_is_reused():
    """Step 3 is the first one inside, and 3 mod 2 is not 0: the original reuses the output of step 2 there."""
    times = [999, 950, 900, 800, 700, 600, 500, 90, 50, 10]
    follow(agent_of(10, broadcast=2, timesteps=times, window=(100, 850)), [step != 5 for step in range(10)])
    assert attention_computes(times, 2, 100, 850) == [step != 5 for step in range(10)]


def test_one_output_is_kept_for_each_call_and_branch_and_only_while_it_serves():
    agent = agent_of(50, calls=2)
    players = [Player({name: recording(50, SHAPE) for name in ("cond", "uncond")}) for _ in range(2)]
    kept = []
    for step in range(50):
        for branch in ("cond", "uncond"):
            with agent.branch(branch):
                for player in players:
                    agent.apply(player, torch.zeros(1), branch=branch, step=step)
        kept.append(agent.report().bytes_now)
    one = 8 * int(np.prod(SHAPE))
    assert agent.report().bytes_peak == 2 * 2 * one
    assert set(kept[:7]) == {0}  # before the window
    assert set(kept[46:]) == {0}  # after it


def test_where_nothing_changes_nothing_is_changed():
    agent, player = agent_of(40), Player({"cond": recording(40, SHAPE, constant=True)})
    marks, outputs, _ = play(agent, [player], 40, {"cond": range(40)})
    assert marks["cond"].count(".") > 10
    assert all(torch.equal(row[0], player.recordings["cond"][0]) for row in outputs["cond"])


def test_a_broadcast_may_extrapolate():
    """The common option `order`: a line through the last two computed outputs."""
    agent = agent_of(20, broadcast=3, window=(0, 1001), order=1)
    player = Player({"cond": torch.arange(20.0)[:, None] * torch.tensor([[1.0, -2.0]])})
    _, outputs, _ = play(agent, [player], 20, {"cond": range(20)})
    for step in range(4, 20):
        np.testing.assert_allclose(as_numpy(outputs["cond"][step][0]), [step, -2 * step], rtol=1e-6)
    agent = agent_of(20, broadcast=3, window=(0, 701), order=1)  # inside from step 6 on: one snapshot is held
    _, outputs, _ = play(agent, [player], 20, {"cond": range(20)})
    assert [int(row[0][0]) for row in outputs["cond"]] == [*range(7), 6, 6, *range(9, 20)]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"broadcast": 1}, "broadcast=1"),
        ({"window": (850, 100)}, r"window=\(850, 100\)"),
        ({"window": (1, 2, 3)}, "window"),
        ({"window": 100}, "window=100"),
        ({"timesteps": [1000.0]}, "1 entries, but steps_count=20"),
        ({"timesteps": list(range(20))}, r"timesteps\[1\]=1 is above timesteps\[0\]=0"),
        ({"kind": "ffn"}, "kind='ffn'"),
        ({"kind": "mlp"}, "needs mlp_timesteps"),
        ({"kind": "mlp", "mlp_timesteps": [500], "broadcast": 3}, "broadcast has no effect"),
        ({"kind": "mlp", "mlp_timesteps": [90]}, "holds 90.*Use timesteps from 100 to 850"),
        ({"kind": "mlp", "mlp_timesteps": [500], "mlp_skip_count": 0}, "mlp_skip_count=0"),
        ({"kind": "mlp", "mlp_timesteps": [500], "mlp_blocks": [4]}, "mlp_blocks=4"),
        ({"mlp_timesteps": [500]}, "mlp_timesteps has no effect"),
        ({"range": 2}, "unknown key 'range'"),
        ({"preset": "Latte-1@mlp", "broadcast": 2}, "broadcast has no effect"),
    ],
)
def test_bad_options(options, said):
    with pytest.raises(ConfigError, match=said):
        agent_of(20, **options)


def test_options_are_values():
    options = PabOptions(broadcast=4, window=(450, 930))
    assert options == PabOptions(broadcast=4, window=(450, 930))
    config = CacheConfig("pab", 4, 30, options=options)
    assert CacheConfig.from_dict(config.to_dict()).options == options
