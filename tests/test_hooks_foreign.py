"""Models that are not of diffusers, loops of one's own, requests that take turns, and timesteps that only a device knows."""

from __future__ import annotations

import pytest
import torch
from hooked import EVERY_OTHER, LineBlock, Stepper, marks, only
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import mindie_cache
from mindie_cache import enable_cache
from mindie_cache.hooks import sight

LITE = {"method": "taylorseer", "options": {"lite": True, "order": 1, "interval": 3, "warmup_steps": 2}}
SCHEDULED = {
    "dit_block_cache": EVERY_OTHER,
    "taylorseer lite": LITE,
    "compute_steps": {"method": "dit_block_cache", "options": {"compute_steps": (0, 1, 4)}},
    "magcache": {
        "method": "magcache",
        "options": {"cond_ratios": (1.0, *[0.98] * 7), "retention_ratio": 0.0, "max_skip_steps": 1},
    },
}
COND, UNCOND = torch.full((1, 3), 100.0), torch.full((1, 3), 300.0)


@pytest.fixture
def on_device(monkeypatch):
    """What cannot be read on the host: timesteps, and whether two tensors have the same values."""
    monkeypatch.setattr(sight, "host_value", lambda timestep: None)

    def same_objects(kept, now):
        if kept.keys() != now.keys():
            return False
        return all(kept[name] is now[name] for name in now) or None

    monkeypatch.setattr("mindie_cache.hooks.generation.same_condition", same_objects)


def play(model, steps=8, branches=(COND, UNCOND), fresh=False, skipped=(), generation=0):
    """The step that the features of each call are of; None if they are of another branch or generation."""
    found = []
    for step in range(steps):
        for embedding in branches:
            if embedding is UNCOND and step in skipped:
                continue
            time = torch.tensor([float(step + 20 * generation)])
            out = model(torch.zeros(1, 2), time, embedding.clone() if fresh else embedding)
            source = float(out[0, 0]) / 6 - float(embedding[0, 0]) - 20 * generation
            found.append(round(source, 3) if 0 <= source < steps else None)
    return found


# ------------------------------------------------------------------------------------------------ only a device knows


@pytest.mark.parametrize("skipped", [(), (0,), (2,), (3,), (1, 2, 3), (0, 1, 2, 3), (5, 6, 7), (7,)])
@pytest.mark.parametrize("branches", [(COND,), (COND, UNCOND), (UNCOND, COND)], ids=["one", "cond first", "uncond first"])
def test_steps_are_counted_by_branches(on_device, branches, skipped):
    model = Stepper()
    with enable_cache(model, EVERY_OTHER, num_inference_steps=8) as handle:
        for generation in range(3):
            found = play(model, branches=branches, skipped=skipped, generation=generation)
            assert None not in found
            assert "#.#.#.#." in marks(only(handle)).values()
        if len(branches) == 1:
            assert found == [0, 0, 2, 2, 4, 4, 6, 6]


def test_fresh_embeddings_on_a_device_are_computed_and_said_once(on_device):
    model = Stepper()
    with enable_cache(model, EVERY_OTHER, num_inference_steps=8) as handle:
        with pytest.warns(match="cannot be told apart") as caught:
            found = [play(model, fresh=True) for _ in range(2)]
        assert len(caught) == 1
        assert found == [[step for step in range(8) for _ in "12"]] * 2
        assert "mindie_cache.branch" in only(handle).note


@pytest.mark.parametrize("given", ["step", "timestep"])
def test_the_user_tells_what_the_device_does_not(on_device, given):
    model = Stepper()
    with enable_cache(model, EVERY_OTHER, num_inference_steps=6) as handle:
        for _ in range(2):
            for step in range(6):
                told = {"step": step} if given == "step" else {"timestep": 900.0 - 100 * step}
                for name, embedding in (("cond", COND), ("uncond", UNCOND)):
                    if name == "cond" or step not in (2, 3):
                        with mindie_cache.branch(name, **told):
                            out = model(torch.zeros(1, 2), torch.tensor([float(step)]), embedding.clone())
                        source = round(float(out[0, 0]) / 6 - float(embedding[0, 0]), 3)
                        assert source in (step, step - step % 2)
            assert marks(only(handle))["cond"] == "#.#.#."
            assert marks(only(handle))["uncond"].startswith("#.__#")


class Reads(TorchDispatchMode):
    """Counts what makes the host wait for a tensor: for its value, and for a comparison with another one."""

    def __init__(self):
        super().__init__()
        self.values = self.comparisons = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.values += function in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.is_nonzero.default)
        self.comparisons += function is torch.ops.aten.equal.default
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("config", SCHEDULED.values(), ids=SCHEDULED.keys())
@pytest.mark.parametrize("known", ["host", "device", "told"])
def test_scheduled_methods_read_host_timesteps_and_nothing_else(known, config, request):
    if known == "device":
        request.getfixturevalue("on_device")
    model, times = Stepper(), [torch.tensor([7.0 - step]) for step in range(8)]
    hidden = torch.zeros(1, 2)
    with enable_cache(model, config, num_inference_steps=8) as handle, Reads() as reads:
        for step, time in enumerate(times):
            for name, embedding in (("cond", COND), ("uncond", UNCOND)):
                if known == "told":
                    with mindie_cache.branch(name, step=step):
                        model(hidden, time, embedding)
                else:
                    model(hidden, time, embedding)
    assert "." in "".join(marks(only(handle)).values())
    assert reads.values == (0 if known == "device" else 2 * len(times))  # the timestep in each forward
    assert reads.comparisons == (len(times) if known == "host" else 0)  # the second embedding with the first one


# ------------------------------------------------------------------------------------------------ forecasts


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
        assert play(model, 4, (COND,)) == [0, 1, 2, 3]  # rising timesteps: told apart later on
        assert only(handle).steps


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
                model(torch.zeros(1, 2), torch.tensor([9.0 - step]), COND)
        assert only(handle).bytes_now > 0
        mindie_cache.forget_request("gone")
        assert only(handle).bytes_now == 0


def test_the_blocks_that_are_skipped_do_not_run():
    model = Stepper(blocks=5)
    with enable_cache(model, EVERY_OTHER, num_inference_steps=4):
        for step in range(4):
            model(torch.zeros(1, 2), torch.tensor([3.0 - step]))
    assert [block.runs for block in model.blocks] == [2] * 5
    assert all(isinstance(block, LineBlock) for block in model.blocks)
