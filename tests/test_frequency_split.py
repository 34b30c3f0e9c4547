"""taylorseer with a degree for slow and one for fast parts, against HunyuanImage-3.0's cache, restated here."""

from __future__ import annotations

from math import factorial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from players import Player, as_numpy, play, recording
from toy import quiet

from mindie_cache import CacheAgent, CacheConfig, ConfigError, ModelExecError
from mindie_cache.ops import fourier

SHAPE = (2, 23, 3)  # batch, tokens, channels


class HunyuanImage:
    """The published cache: its counter of steps, its split, and a ladder of derivatives for each part."""

    def __init__(
        self, interval: int, low_order: int, high_order: int, steps: int, first: int = 0, last: int = 0, cutoff: float = 0.1
    ):
        self.interval, self.orders, self.steps = interval, (low_order, high_order), steps
        self.first, self.last, self.cutoff = first, last, cutoff
        self.counter = 0
        self.computed_last = -1
        self.ladders: list[list[np.ndarray]] = [[], []]

    def split(self, feature: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        spectrum = np.fft.fft(feature, axis=1)
        frequency = np.abs(np.fft.fftfreq(feature.shape[1]))
        low = (frequency <= self.cutoff * frequency.max() + 1e-12)[None, :, None]
        return np.fft.ifft(spectrum * low, axis=1).real, np.fft.ifft(spectrum * ~low, axis=1).real

    def computes(self, step: int) -> bool:
        due = step == 0 or self.counter == self.interval - 1
        return due or step < self.first or step >= self.steps - self.last

    def __call__(self, step: int, feature: np.ndarray) -> tuple[str, np.ndarray]:
        if not self.computes(step):
            self.counter += 1
            rungs = [(order, rung) for ladder in self.ladders for order, rung in enumerate(ladder)]
            return ".", sum(self.counter**order / factorial(order) * rung for order, rung in rungs)
        self.counter = 0
        if not (self.first and step < self.first - 1):
            gap = max(step - self.computed_last, 1)
            for part, new in enumerate(self.split(feature)):
                old, ladder = self.ladders[part], [new]
                for order in range(self.orders[part]):
                    if order >= len(old):
                        break
                    ladder.append((ladder[order] - old[order]) / gap)
                self.ladders[part] = ladder
        self.computed_last = step
        return "#", feature


def agent_of(steps: int, calls: int = 1, **options: Any) -> CacheAgent:
    return CacheAgent(CacheConfig("taylorseer", calls, steps, options={"final_steps": 0, "ladder": "published", **options}))


def follow(rule: HunyuanImage, agent: CacheAgent, steps: int, shape: tuple[int, ...] = SHAPE) -> Any:
    player = Player({"cond": recording(steps, shape, seed=steps)})
    with quiet():
        marks, outputs, host_reads = play(agent, [player], steps, {"cond": range(steps)})
    assert host_reads == 0
    for step in range(steps):
        mark, value = rule(step, as_numpy(player.recordings["cond"][step]))
        got = as_numpy(outputs["cond"][step][0])
        assert marks["cond"][step] == mark
        if mark == "#":
            assert np.array_equal(got, value)
        else:
            np.testing.assert_allclose(got, value, atol=1e-9 * max(1.0, np.abs(value).max()))
    return agent.report()


@settings(deadline=None, max_examples=60)
@given(
    steps=st.integers(1, 26),
    interval=st.integers(1, 6),
    orders=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    first=st.sampled_from([0, 3, 4, 6]),
    last=st.integers(0, 3),
    tokens=st.integers(1, 45),
    cutoff=st.sampled_from([0.0, 0.1, 0.25, 0.5, 1.0]),
)
def test_the_published_cache(steps, interval, orders, first, last, tokens, cutoff):
    rule = HunyuanImage(interval, *orders, steps, first, last, cutoff)
    options = {"warmup_steps": max(1, first), "final_steps": last, "split_cutoff": cutoff}
    agent = agent_of(steps, interval=interval, low_order=orders[0], high_order=orders[1], **options)
    follow(rule, agent, steps, (1, tokens, 2))


def test_a_boundary_that_is_a_whole_number_belongs_to_the_slow_part():
    """0.29 * 100 is 28.999999999999996 in floating point."""
    agent = agent_of(12, interval=3, low_order=0, high_order=1, split_cutoff=0.29)
    follow(HunyuanImage(3, 0, 1, 12, cutoff=0.29), agent, 12, (1, 200, 1))


def test_without_an_fft_the_numbers_are_the_same(monkeypatch):
    monkeypatch.setattr(fourier, "FFT_DEVICES", ())
    follow(
        HunyuanImage(4, 0, 2, 24, 3, 1),
        agent_of(24, interval=4, low_order=0, high_order=2, warmup_steps=3, final_steps=1),
        24,
    )


@pytest.mark.parametrize(("orders", "kept"), [((0, 2), 1 + 3), ((2, 1), 3 + 2), ((2, 2), 3), ((0, 0), 1)])
def test_each_part_keeps_one_tensor_more_than_its_degree(orders, kept):
    """One degree for both parts is the forecast of the whole, which needs no split and keeps half as much."""
    agent = agent_of(30, low_order=orders[0], high_order=orders[1], interval=3)
    report = follow(HunyuanImage(3, *orders, 30), agent, 30)
    assert (report.bytes_peak, report.bytes_now) == (kept * 8 * int(np.prod(SHAPE)), 0)


@pytest.mark.parametrize("ladder", ["newton", "published"])
@pytest.mark.parametrize("lite", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_where_nothing_changes_nothing_is_changed(dtype, lite, ladder):
    """Identity property, of modules and of the residual of the whole stack."""
    steps, hidden = 20, recording(1, SHAPE, 7, dtype=dtype)[0]
    agent = agent_of(steps, low_order=0, high_order=2, interval=3, lite=lite, ladder=ladder)
    block = torch.nn.Linear(3, 3, dtype=dtype).requires_grad_(False)
    wanted, ran = block(hidden), 0
    for _ in range(steps):
        out = agent.apply(block, hidden_states=hidden.clone()) if lite else agent.apply(block, hidden.clone())
        ran += torch.equal(out, wanted)
        error = 8 * torch.finfo(dtype).eps * (wanted.abs() + hidden.abs()).max()
        assert (out - wanted).abs().max() <= error
    assert sum(record.reused for record in agent.report().steps) > 10


def test_the_residual_of_a_stack_is_split_stream_by_stream():
    """lite: hidden states that move fast and slowly, an encoder stream that does not move; both exact in their degree."""

    class Waves(torch.nn.Module):
        step = 0

        def forward(self, hidden_states: torch.Tensor, encoder_hidden_states: torch.Tensor) -> tuple[torch.Tensor, ...]:
            token = torch.arange(40, dtype=torch.float64)[None, :, None]
            slow = torch.cos(2 * torch.pi * token / 40) * 3.0
            fast = torch.cos(2 * torch.pi * 15 * token / 40) * self.step**2
            return hidden_states + slow + fast, encoder_hidden_states + 1.0

    agent, block = agent_of(24, low_order=0, high_order=2, interval=3, lite=True, ladder="newton"), Waves()
    reused = []
    for step in range(24):
        block.step = step
        hidden, encoder = (recording(1, (1, tokens, 2), step)[0] for tokens in (40, 6))
        got = agent.apply(block, hidden_states=hidden.clone(), encoder_hidden_states=encoder.clone())
        if step >= 7:  # three snapshots
            for stream, wanted in zip(got, block(hidden, encoder), strict=True):
                torch.testing.assert_close(stream, wanted, atol=1e-8, rtol=0)
        reused.append(agent.report().steps[-1].reused)
    assert sum(reused[7:]) == 12


def test_what_has_no_tokens():
    agent = agent_of(24, low_order=0, high_order=2)
    player = Player({"cond": recording(24, (4,))})
    with pytest.raises(ModelExecError, match=r"tokens, dim 1.*\(4,\).*Set order"):
        play(agent, [player], 24, {"cond": range(24)})


def test_whole_numbers_and_objects_are_held():
    agent = agent_of(24, low_order=0, high_order=1, interval=3)
    player = Player({"cond": recording(24, SHAPE)}, lambda value: (value, torch.tensor([3, 4]), 2.5, None))
    _, outputs, _ = play(agent, [player], 24, {"cond": range(24)})
    assert all(out[1].tolist() == [3, 4] and out[2:] == (2.5, None) for (out,) in outputs["cond"])


def test_the_preset_of_hunyuanimage():
    """Degree 2 for both parts, of the whole stack."""
    options = CacheConfig("taylorseer", 32, 50, options={"preset": "HunyuanImage-3.0"}).validated().options
    full, notes = options.resolved(CacheConfig("taylorseer", 32, 50))
    assert (full.interval, full.low_order, full.high_order, full.split_cutoff, full.lite) == (5, 2, 2, 0.1, True)
    assert not notes


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"low_order": 1}, "low_order=1 and high_order=None"),
        ({"high_order": 1}, "Set both"),
        ({"low_order": 1, "high_order": 2, "order": 2}, "order=2 has no effect"),
        ({"low_order": -1, "high_order": 2}, "low_order=-1"),
        ({"low_order": 1, "high_order": 9}, "high_order=9"),
        ({"low_order": 1, "high_order": 2, "split_cutoff": 1.5}, "split_cutoff=1.5"),
        ({"split_cutoff": 0.2}, "split_cutoff has no effect"),
        ({"low_orders": 1}, "Did you mean 'low_order'"),
    ],
)
def test_bad_options(options, said):
    with pytest.raises(ConfigError, match=said):
        agent_of(20, **options)
