"""taylorseer, per module and on the whole stack, against the published plan and ladder, restated in oracles.py."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from open_loop import DTYPE, Outcome, TokenBlock, agent_of, agree, drive, expected, make_inputs, make_model
from oracles import Ladder, Polynomial, taylorseer_computes
from toy import quiet

MODEL = make_model()
STEPS = 23


class Forecast(TokenBlock):
    """The block with its two modules through an agent: attention before its gate, and feed-forward."""

    def __init__(self, dim: int, agent: Any):
        super().__init__(dim)
        self.agent = agent
        self.seen: list[torch.Tensor] = []

    def forward(self, hidden_states: torch.Tensor, temb: torch.Tensor) -> torch.Tensor:
        normed, gate = self.norm1(hidden_states, emb=temb)
        attended = self.agent.apply(self.attn, normed)
        hidden_states = hidden_states + self.gated(attended, gate)
        fed = self.agent.apply(self.ff, self.norm2(hidden_states))
        self.seen = [attended, fed]
        return hidden_states + 0.3 * torch.tanh(fed)


def rule(ladder: str, order: int, first_enhance: int) -> Any:
    """Derivatives are formed from step first_enhance - 1 on."""
    return Ladder(order, derivatives_from=first_enhance - 1) if ladder == "published" else Polynomial(order)


SETTINGS = {
    "interval": st.integers(1, 7),
    "order": st.integers(0, 4),
    "first": st.integers(1, 6),
    "last": st.booleans(),
    "ladder": st.sampled_from(["newton", "published"]),
    "steps": st.integers(1, 24),
}


def options_of(interval: int, order: int, first: int, last: bool, ladder: str, **more: Any) -> dict[str, Any]:
    options = {"interval": interval, "order": order, "warmup_steps": first, "final_steps": int(last), **more}
    return {**options, "ladder": ladder} if order else options


@settings(deadline=None, max_examples=40)
@given(**SETTINGS)
def test_lite_forecasts_the_residual_of_the_stack(interval, order, first, last, ladder, steps):
    rows = make_inputs(steps, seed=steps)
    plan = taylorseer_computes(steps, interval, first, last)
    with quiet():
        agent = agent_of("taylorseer", steps, options=options_of(interval, order, first, last, ladder, lite=True))
        got = drive(agent, MODEL, {"cond": rows})["cond"]
    agree(got, expected(MODEL, rows, lambda step, *_: step in plan, rule(ladder, order, first)), tolerance=1e-8)


@settings(deadline=None, max_examples=30)
@given(**SETTINGS)
def test_each_module_is_forecast_and_gates_are_those_of_the_step(interval, order, first, last, ladder, steps):
    """A chain of the blocks' own arithmetic, in which every module's output is what its own predictor says."""
    rows = make_inputs(steps, seed=steps)
    plan = taylorseer_computes(steps, interval, first, last)
    torch.manual_seed(1)
    with quiet():
        agent = agent_of("taylorseer", steps, 4, options=options_of(interval, order, first, last, ladder))
        blocks = [Forecast(6, agent).requires_grad_(False) for _ in range(2)]
        predictors = [[rule(ladder, order, first) for _ in range(2)] for _ in blocks]
        for step, row in enumerate(rows):
            hidden = mine = row.hidden
            for block, (attended, fed) in zip(blocks, predictors, strict=True):
                hidden = block(hidden, row.temb)
                normed, gate = block.norm1(mine, emb=row.temb)
                if step in plan:
                    attended.keep(step, block.attn(normed).numpy())
                mine = mine + block.gated(torch.from_numpy(attended.estimate(step)), gate)
                if step in plan:
                    fed.keep(step, block.ff(block.norm2(mine)).numpy())
                mine = mine + 0.3 * torch.tanh(torch.from_numpy(fed.estimate(step)))
            torch.testing.assert_close(hidden, mine, rtol=0, atol=1e-8 * max(1.0, float(mine.abs().max())))


@pytest.mark.parametrize(("interval", "order", "first"), [(6, 1, 3), (6, 2, 3), (5, 1, 1), (4, 2, 1), (5, 0, 1), (3, 4, 2)])
def test_published_defaults(interval, order, first):
    """FLUX, HunyuanVideo and Wan, HiDream, FramePack, DiT-XL; the original does not force the last step."""
    rows = make_inputs(50, 1)
    options = options_of(interval, order, first, False, "published", lite=True)
    got = drive(agent_of("taylorseer", 50, options=options), MODEL, {"cond": rows})["cond"]
    plan = taylorseer_computes(50, interval, first, last=False)
    agree(got, expected(MODEL, rows, lambda step, *_: step in plan, rule("published", order, first)))


def test_lightx2v_pattern():
    """Computed at every fourth step, order 1, no last step."""
    rows = make_inputs(10, 1)
    agent = agent_of("taylorseer", 10, options={"interval": 4, "final_steps": 0, "lite": True})
    got = drive(agent, MODEL, {"cond": rows})["cond"]
    assert got.marks == "#...#...#."
    agree(got, expected(MODEL, rows, lambda step, *_: step % 4 == 0, Ladder(1)))


@pytest.mark.parametrize("order", [1, 2, 3])
def test_what_a_polynomial_residual_does_is_forecast_exactly(order):
    """Unequal gaps (warm-up, then the interval): once there are order + 1 features, Newton's form is exact, and the
    published ladder from order 2 on is not."""

    class Power(torch.nn.Module):
        runs = 0

        def forward(self, hidden: torch.Tensor, temb: torch.Tensor) -> torch.Tensor:
            self.runs += 1
            return hidden + float(temb) ** order

    steps, power = 20, Power()
    rows = [row._replace(temb=torch.tensor(0.1 * step, dtype=DTYPE)) for step, row in enumerate(make_inputs(steps, 1))]
    errors = {}
    for ladder in ("newton", "published"):
        options = options_of(4, order, 2, True, ladder, lite=True)
        got: Outcome = drive(agent_of("taylorseer", steps, 1, options=options), [power], {"cond": rows})["cond"]
        true = [row.hidden.numpy() + float(row.temb) ** order for row in rows]
        enough = got.computed[order + 1]  # the warm-up keeps two features
        errors[ladder] = max(np.abs(a - b).max() for a, b in zip(got.outputs[enough:], true[enough:], strict=True))
    assert errors["newton"] < 1e-10
    assert (errors["published"] < 1e-10) == (order == 1)


@pytest.mark.parametrize("lite", [True, False])
@pytest.mark.parametrize("order", [0, 1, 2, 3])
def test_memory_is_order_plus_one_tensors_a_lane_and_branch(lite, order):
    rows = make_inputs(STEPS, 3)
    branches = {"cond": rows, "uncond": rows}
    agent = agent_of("taylorseer", STEPS, options={"interval": 3, "order": order, "lite": lite})
    peaks = []
    if lite:
        drive(agent, MODEL, branches)
        lanes = 1
    else:
        lanes = 4
        modules = [torch.nn.Linear(6, 6, dtype=DTYPE) for _ in range(lanes)]
        for row in rows:
            for branch in branches:
                with agent.branch(branch):
                    for module in modules:
                        agent.apply(module, row.hidden)
                peaks.append(agent.report().bytes_now)
    one = rows[0].hidden.nbytes
    assert agent.report().bytes_peak == (order + 1) * one * lanes * len(branches)
    assert agent.report().bytes_now == 0


def test_same_input_every_step_reproduces_the_model():
    rows = make_inputs(12, 5, constant=True)
    for order in range(4):
        got = drive(agent_of("taylorseer", 12, options={"order": order, "lite": True}), MODEL, {"cond": rows})["cond"]
        assert got.marks == "#....#....##"
        for output in got.outputs:
            assert np.abs(output - got.outputs[0]).max() <= 1e-6
