"""seacache against the published rule, restated in oracles.py with NumPy's FFT; ops.axis_filter against it, too."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from open_loop import Inputs, agent_of, agree, drive, expected, host_reads, make_inputs, make_model
from oracles import Hold, Ladder, Sea, relative_l1, sea_filter, sea_response
from test_teacache import forced_steps, modulated
from toy import all_warnings, quiet

from mindie_cache import CacheAgent, CacheConfig
from mindie_cache.demo.metrics import psnr
from mindie_cache.distributed import Ranks
from mindie_cache.ops import axis_filter
from mindie_cache.policies import Limits, SeaCache, Signal
from mindie_cache.testbed import generate, load_testbed

MODEL, FORWARD = make_model(), make_model(1)
STEPS, CHANNELS = 20, 6
GRIDS = [(3, 2, 4), (4, 5), (7,), (1, 3, 3)]


def tokens_of(signal: np.ndarray, grid: tuple[int, ...]) -> np.ndarray:
    return signal.reshape(*signal.shape[:-2], *grid, signal.shape[-1])


def axes_of(grid: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(range(1, 1 + len(grid)))


def walk(steps: int, seed: int, speed: float, grid: tuple[int, ...], constant: bool = False) -> list[Inputs]:
    return make_inputs(steps, seed, speed, (2, int(np.prod(grid)), CHANNELS), constant)


def shifted(steps: int, shift: float) -> list[float]:
    return [shift * (1 - i / steps) / (1 + (shift - 1) * (1 - i / steps)) for i in range(steps)]


def watched(signal: str, row: Inputs) -> np.ndarray:
    return modulated(row) if signal == "modulated" else row.hidden.numpy()


# ------------------------------------------------------------------------------------------------ the filter


@pytest.mark.parametrize("sizes", [(8, 24, 23), (5, 7), (1, 6), (9,)])
@pytest.mark.parametrize("sigma", [1.0, 0.97, 0.5, 0.03, 0.0])
@pytest.mark.parametrize("exponent", [3.0, 2.0, 0.5])
def test_the_filter_is_the_published_one(sizes, sigma, exponent):
    x = torch.randn(2, 3, *sizes, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    policy = SeaCache(limits=Limits(steps_count=1), threshold=1.0, sigmas=(sigma,), exponent=exponent)
    wanted = sea_filter(x.numpy(), tuple(range(2, x.dim())), sigma, exponent)
    np.testing.assert_allclose(policy.filtered(Signal(x, Ranks()), 0).numpy(), wanted, atol=1e-7)
    single = policy.filtered(Signal(x.float(), Ranks()), 0)
    assert single.dtype == torch.float32
    np.testing.assert_allclose(single.numpy(), wanted, atol=1e-4)


def test_early_only_the_mean_counts_and_late_everything():
    for sizes in ((8, 6), (3, 4, 5)):
        early, late = sea_response(sizes, 1.0, 3.0), sea_response(sizes, 0.0, 3.0)
        assert early.flat[0] == pytest.approx(early.size, rel=1e-3)
        np.testing.assert_allclose(late, 1.0, rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_axis_filter(dtype):
    x = torch.randn(2, 7, 4, dtype=torch.float64).to(dtype)
    tolerance = {"atol": 1e-12 if dtype == torch.float64 else 1e-5, "rtol": 0}
    wide = x.double()

    def of_mean(f: torch.Tensor) -> torch.Tensor:
        return (f == 0).to(f.dtype)

    same = axis_filter(x, torch.ones_like, (1, 2))
    assert same.dtype == (torch.float32 if dtype == torch.bfloat16 else dtype)
    torch.testing.assert_close(same.double(), wide, **tolerance)
    mean = axis_filter(x, of_mean, (-2,))
    torch.testing.assert_close(mean.double(), wide.mean(1, keepdim=True).expand_as(wide), **tolerance)
    turned = axis_filter(x.transpose(1, 2), of_mean, (2,)).transpose(1, 2)
    torch.testing.assert_close(turned, mean, **tolerance)
    assert axis_filter(x[:0], torch.ones_like, (1, 2)).shape == (0, 7, 4)
    assert axis_filter(x, torch.ones_like, ()).data_ptr() != x.data_ptr()


@pytest.mark.parametrize(("x", "dims"), [(torch.ones(3, dtype=torch.int64), (0,)), (torch.ones(3, 3), (0, 2))])
def test_axis_filter_says_what_it_needs(x, dims):
    with pytest.raises(ValueError, match="axis_filter: needs a real tensor"):
        axis_filter(x, torch.ones_like, dims)


# ------------------------------------------------------------------------------------------------ decisions


@settings(deadline=None, max_examples=60)
@given(
    steps=st.integers(1, 20),
    seed=st.integers(0, 10**6),
    speed=st.sampled_from([0.0, 0.05, 0.3, 2.0]),
    grid=st.sampled_from(GRIDS),
    signal=st.sampled_from(["modulated", "hidden_states"]),
    threshold=st.sampled_from([0.0, 0.05, 0.3, 5.0]),
    exponent=st.sampled_from([3.0, 2.0, 0.0]),
    shift=st.sampled_from([None, 1.0, 3.0, 0.5, "given"]),
    first=st.integers(0, 4),
    last=st.integers(0, 3),
    most=st.integers(0, 4),
    order=st.integers(0, 1),
    span=st.sampled_from([(0, 4), (0, 2)]),
)
def test_any_settings(
    steps, seed, speed, grid, signal, threshold, exponent, shift, first, last, most, order, span
):  # fmt: skip
    rows = walk(steps, seed, speed, grid)
    drawn = np.random.default_rng(seed).uniform(size=steps).tolist()
    sigmas = drawn if shift == "given" else shifted(steps, shift or 1.0)
    oracle = Sea(sigmas, exponent, threshold, forced_steps(steps, first, last), most or None)

    def decide(step: int, row: Inputs, _: list[np.ndarray]) -> bool:
        return oracle.look(step, tokens_of(watched(signal, row), grid), axes_of(grid))

    wanted = expected(MODEL, rows, decide, Ladder(order) if order else Hold(), span)
    assume(not oracle.unclear)
    levels = {"sigmas": sigmas} if shift == "given" else {"sigma_shift": shift}
    options = {"threshold": threshold, "signal": signal, "grid": grid, "spectral_exponent": exponent, "order": order}
    limits = {"warmup_steps": first, "final_steps": last, "max_skip_steps": most}
    agent = agent_of("seacache", steps, options={**options, **levels, **limits}, block_start=span[0], block_end=span[1])
    with quiet():
        agree(drive(agent, MODEL, {"cond": rows})["cond"], wanted)


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("order", [0, 1])
def test_latents_around_the_whole_forward(together, order):
    """Their own shape tells the grid; what is kept is the output."""
    branches = {"cond": make_inputs(STEPS, 1, 0.2, (2, 3, 4, 6)), "uncond": make_inputs(STEPS, 2, 0.6, (2, 3, 4, 6))}
    sigmas = shifted(STEPS, 3.0)
    options = {"signal": "latents", "sigma_shift": 3.0, "threshold": 0.4, "order": order, "together": together}
    got = drive(agent_of("seacache", STEPS, 1, options=options), FORWARD, branches)
    plans = {}
    for name, rows in branches.items():
        oracle = Sea(sigmas, 3.0, 0.4, forced_steps(STEPS, 1, 1), 10)
        plans[name] = [oracle.look(step, row.hidden.numpy(), (2, 3)) for step, row in enumerate(rows)]
        assert not oracle.unclear
    assert plans["cond"] != plans["uncond"]
    for name, rows in branches.items():
        predictor = Ladder(1) if order else Hold()
        for step, row in enumerate(rows):
            computed = plans["cond" if together else name][step]
            assert (got[name].marks[step] == "#") == computed
            if computed:
                predictor.keep(step, FORWARD[0](row.hidden, row.temb).numpy())
            wanted = predictor.estimate(step)
            assert np.abs(got[name].outputs[step] - wanted).max() <= 1e-10 * max(1.0, np.abs(wanted).max())


def test_noise_counts_less_than_in_teacache():
    """The same path: white noise that is drawn anew hides it from TeaCache, not from the filtered sum."""
    steps, grid = 12, (8, 8)
    noise = torch.Generator().manual_seed(3)
    slow = torch.cos(2 * torch.pi * torch.arange(8.0, dtype=torch.float64) / 8)[:, None].expand(8, 8).reshape(1, 64, 1)
    rows = [
        Inputs(5 + slow + 0.5 * torch.randn(1, 64, CHANNELS, generator=noise, dtype=torch.float64), torch.zeros(CHANNELS))
        for _ in range(steps)
    ]
    sigmas = [0.9] * steps
    seen = [row.hidden.numpy() for row in rows]
    raw = [relative_l1(b, a) for a, b in pairwise(seen)]
    clean = [sea_filter(tokens_of(x, grid), (1, 2), 0.9, 3.0) for x in seen]
    assert max(relative_l1(b, a) for a, b in pairwise(clean)) < 0.5 * min(raw)
    options = {"signal": "hidden_states", "threshold": 2 * min(raw), "final_steps": 0, "max_skip_steps": 0}
    tea = agent_of("teacache", steps, options=options)
    sea = agent_of("seacache", steps, options={**options, "grid": grid, "sigmas": sigmas})
    with quiet():
        marks = [drive(agent, MODEL, {"cond": rows})["cond"].marks for agent in (tea, sea)]
    assert marks[0].count("#") > 2 * marks[1].count("#")


# ------------------------------------------------------------------------------------------------ invariants


@pytest.mark.parametrize("order", [0, 1])
def test_same_input_every_step_reproduces_the_model(order):
    """With one noise level, because the filter changes with it."""
    rows = walk(8, 5, 0.0, (3, 4), constant=True)
    agent = agent_of("seacache", 8, options={"grid": (3, 4), "sigmas": [0.5] * 8, "order": order, "threshold": 0.1})
    got = drive(agent, MODEL, {"cond": rows})["cond"]
    assert got.marks == "#......#"
    for output in got.outputs:
        assert np.abs(output - got.outputs[0]).max() <= 1e-6


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("signal", ["modulated", "latents"])
def test_a_broken_signal_computes_and_says_so_once(bad, signal):
    rows = walk(9, 5, 0.0, (3, 4), constant=True)
    for step in (3, 5):
        rows[step].hidden[0, 0, 0] = bad
    grid, model = ({"grid": (3, 4)}, MODEL) if signal == "modulated" else ({}, FORWARD)
    agent = agent_of("seacache", 9, len(model), options={"signal": signal, "sigmas": [0.5] * 9, **grid})
    with all_warnings() as caught:
        marks = drive(agent, model, {"cond": rows})["cond"].marks
    assert marks == "#..####.#"  # a broken signal, and the step that is compared with it
    assert [warning.message.args[0].startswith("The signal") for warning in caught] == [True]


@pytest.mark.parametrize("signal", ["modulated", "hidden_states", "latents"])
def test_one_host_read_a_step_for_all_branches(signal):
    branches = {"cond": walk(8, 1, 0.1, (3, 4)), "uncond": walk(8, 2, 0.1, (3, 4))}
    grid, model = ({}, FORWARD) if signal == "latents" else ({"grid": (3, 4)}, MODEL)
    agent = agent_of("seacache", 8, len(model), options={"signal": signal, "threshold": 0.3, **grid})
    counts = host_reads(agent, model, branches)
    assert max(counts) == 1
    assert counts[0] == counts[-1] == 0  # the first and the last step are computed whatever is measured


@pytest.mark.parametrize(("signal", "least"), [("modulated", 34), ("latents", 31)])
def test_a_generation_of_the_testbed(signal, least):
    """Less than 40 % of the work, and the PSNR in dB measured with the shipped weights, less about 3."""
    model, prompts = load_testbed(), ["a red square moving left", "a cyan circle moving down"]
    wanted = generate(model, prompts, seeds=[0, 1], steps=30).videos
    options = {"signal": signal, "threshold": 0.42, "sigma_shift": 3.0}
    blocks = len(model.transformer_blocks)
    if signal == "latents":
        agent = CacheAgent(CacheConfig("seacache", 1, 30, options=options))
        made = generate(model, prompts, seeds=[0, 1], steps=30, forward_cache=agent).videos
    else:
        agent = CacheAgent(CacheConfig("seacache", blocks, 30, options={**options, "grid": model.config.grid}))
        model.cache = agent
        made = generate(model, prompts, seeds=[0, 1], steps=30).videos
    report = agent.report()
    assert report.calls_reused / report.calls > 0.6
    assert min(psnr(made, wanted)) > least
