"""Timesteps and embeddings that only a device knows are never read: branches are counted, and nothing is mixed up."""

from __future__ import annotations

import contextlib

import pytest
import torch
from hooked import EVERY_OTHER, SCHEDULED, Stepper, marks, only
from torch.utils._python_dispatch import TorchDispatchMode

import mindie_cache
from mindie_cache import enable_cache
from mindie_cache.hooks import sight

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


@pytest.mark.parametrize("ended", ["reset", "run"])
def test_counted_steps_are_said_in_the_report(on_device, ended):
    """Nothing shows that a generation was broken off: its user says so, before the next one or by a run for each."""
    model = Stepper()
    with enable_cache(model, EVERY_OTHER, num_inference_steps=8) as handle:
        for generation, steps in enumerate((3, 8, 1, 8)):
            with mindie_cache.run() if ended == "run" else contextlib.nullcontext():
                found = play(model, steps, generation=generation)
            assert None not in found
            assert found == [step - step % 2 for step in range(steps) for _ in "12"]
            assert ("handle.reset()" in only(handle).note) is (ended == "reset")
            if ended == "reset":
                handle.reset()


def test_steps_that_are_known_are_not_said_to_be_counted():
    model = Stepper()
    with enable_cache(model, EVERY_OTHER, num_inference_steps=4) as handle:
        for step in range(4):
            model(torch.zeros(1, 2), torch.tensor([3.0 - step]), COND)
        assert only(handle).note == ""


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
