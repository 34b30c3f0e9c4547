"""Models that are not of diffusers, loops of one's own, forecasts, and requests that take turns."""

from __future__ import annotations

import pytest
import torch
from hooked import EVERY_OTHER, LITE, SCHEDULED, Stepper, marks, only
from torch import nn

import mindie_cache
from mindie_cache import enable_cache


@pytest.mark.parametrize("interval", [2, 3, 4])
@pytest.mark.parametrize("order", [1, 2])
def test_a_straight_line_is_forecast_exactly(order, interval):
    """What the blocks add is a line in the step, so every reused step is the computed one."""
    model = Stepper()
    options = {"lite": True, "order": order, "interval": interval, "warmup_steps": 3}
    with enable_cache(model, {"method": "taylorseer", "options": options}, num_inference_steps=12) as handle:
        for step in range(12):
            push = 3.0 + 0.25 * step
            with mindie_cache.branch(step=step):
                out = model(torch.full((1, 2), 10.0), torch.tensor([push]), None)
            assert out[0, 0].item() == pytest.approx(10.0 + 6 * push, abs=1e-4), step
        assert "." in "".join(marks(only(handle)).values())


# ------------------------------------------------------------------------------------------------ foreign models


class Foreign(nn.Module):
    """Two streams under names of its own, the second one first in what a block returns; and a list that is no stack."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.ModuleDict({"layers": nn.ModuleList([ForeignBlock() for _ in range(4)])})
        self.heads = nn.ModuleList([nn.Linear(4, 4) for _ in range(6)])
        self.eval()

    def forward(self, picture, words, t):
        for layer in self.trunk["layers"]:
            words, picture = layer(picture, words, t)
        return self.heads[0](picture) + words.mean()


class ForeignBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.mix, self.lift, self.drop = (nn.Linear(4, 4) for _ in "123")

    def forward(self, picture, words, t):
        both = torch.cat([words, picture], 1)
        both = both + t * self.drop(torch.tanh(self.lift(self.mix(both))))
        return both.split([words.shape[1], picture.shape[1]], 1)


@pytest.mark.parametrize("config", SCHEDULED.values(), ids=SCHEDULED.keys())
def test_a_foreign_model_by_the_names_of_its_blocks_and_streams(config):
    model = Foreign()
    picture, words = torch.randn(1, 5, 4), torch.randn(1, 3, 4)
    with torch.no_grad():
        bare = model(picture, words, 0.3)
        names = {"blocks": "trunk.layers", "streams": ("words", "picture")}
        with enable_cache(model, config, num_inference_steps=8, **names) as handle:
            for step in range(8):
                with mindie_cache.branch(step=step):
                    assert torch.allclose(model(picture, words, 0.3), bare, atol=1e-6)
            assert "." in "".join(marks(only(handle)).values())
        assert torch.equal(model(picture, words, 0.3), bare)


def test_a_foreign_model_needs_the_number_of_steps():
    model = Stepper()
    with enable_cache(model, "balanced"), pytest.raises(ValueError, match="num_inference_steps=50"):
        model(torch.zeros(1, 2), torch.tensor([1.0]))
    with enable_cache(model, EVERY_OTHER).refresh(num_inference_steps=4) as handle:
        for step in range(4):
            model(torch.zeros(1, 2), torch.tensor([3.0 - step]))
        assert marks(only(handle)) == {"first": "#.#."}


def test_a_loop_that_is_longer_than_told_is_said_once():
    model = Stepper()
    times = [torch.tensor([7.0 - step]) for step in range(8)]
    says = pytest.warns(match="goes on after its 4 steps")
    with enable_cache(model, EVERY_OTHER, num_inference_steps=4), says as caught:
        found = [float(model(torch.zeros(1, 2), time)[0, 0]) / 6 for time in times * 2]
    assert len(caught) == 1
    assert found == [7, 7, 5, 5, 3, 3, 1, 1] * 2


# ------------------------------------------------------------------------------------------------ requests


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("config", [EVERY_OTHER, LITE], ids=["hold", "line"])
def test_requests_take_turns_step_by_step(config, named):
    """A server: two generations on one transformer, the second one begins later, each as if it were alone."""
    model = Stepper()

    def step_of(request, step):
        time = torch.tensor([(9.0 - step) ** 2 if request == "b" else 9.0 - step])
        embedding = torch.full((1, 3), 50.0 if request == "a" else 70.0)
        rows = []
        for name, shift in (("cond", 0.0), ("uncond", 500.0)):
            hidden = torch.zeros(1, 2)
            if named:
                with mindie_cache.branch(name, step=step):
                    rows.append(float(model(hidden, time, embedding + shift)[0, 0]))
            else:
                rows.append(float(model(hidden, time, embedding + shift)[0, 0]))
        return rows

    with enable_cache(model, config, num_inference_steps=8):
        alone = {}
        for request in ("a", "b"):
            with mindie_cache.run():
                alone[request] = [step_of(request, step) for step in range(8)]
        found = {"a": [], "b": []}
        for tick in range(11):
            for request, step in (("a", tick), ("b", tick - 3)):
                if 0 <= step < 8:
                    with mindie_cache.run(request):
                        found[request].append(step_of(request, step))
    assert found == alone


def test_a_request_that_goes_away_is_forgotten():
    model = Stepper()
    with enable_cache(model, EVERY_OTHER, num_inference_steps=8) as handle:
        for step in range(3):
            with mindie_cache.run("gone"):
                model(torch.zeros(1, 2), torch.tensor([9.0 - step]))
        assert only(handle).bytes_now > 0
        mindie_cache.forget_request("gone")
        assert only(handle).bytes_now == 0


@pytest.mark.parametrize("blocks", [1, 2, 5])
@pytest.mark.parametrize("config", ["quality", "balanced", "fast", EVERY_OTHER], ids=str)
def test_small_models_save_work_too(config, blocks):
    model = Stepper(blocks=blocks)
    with enable_cache(model, config, num_inference_steps=12) as handle:
        for step in range(12):
            model(torch.zeros(1, 2), torch.tensor([11.0 - step]))
    computed = marks(only(handle))["first"].count("#")
    assert computed <= 9
    assert [block.runs for block in model.blocks] == [computed] * blocks


def test_two_models_of_one_class_know_nothing_of_each_other():
    one, other = Stepper(), Stepper()
    handles = enable_cache(one, EVERY_OTHER, num_inference_steps=4), enable_cache(other, "fast", num_inference_steps=4)
    handles[1].disable()
    for step in range(4):
        for model in (one, other):
            model(torch.zeros(1, 2), torch.tensor([3.0 - step]))
    assert marks(only(handles[0])) == {"first": "#.#."}
    assert (one.blocks[0].runs, other.blocks[0].runs) == (2, 4)
