"""sync="lagged": decisions by what was measured a step earlier. Against the rules restated in NumPy; and no waits."""

from __future__ import annotations

import types
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from open_loop import Inputs, agent_of, drive, make_inputs, make_model
from toy import quiet

from mindie_cache import ConfigError
from mindie_cache.device import Reading

MODEL = make_model(blocks=12)
STEPS = 30
LIMITS = {"warmup_steps": 3, "final_steps": 1, "max_skip_steps": 4}


def marks_of(method: str, rows: list[Inputs], **options: object) -> str:
    blocks = 1 if method in ("easycache", "adastep") else len(MODEL)
    agent = agent_of(method, STEPS, blocks, options={**LIMITS, **options})
    with quiet():
        return drive(agent, MODEL[:blocks], {"cond": rows})["cond"].marks


def change(new: np.ndarray, old: np.ndarray) -> float:
    return float(np.abs(new - old).sum() / np.abs(old).sum())


def follow(wish: Callable[[int, int], float | None], threshold: float) -> str:
    """Marks of a policy that reuses while `wish(step, last computed step)` is below the threshold."""
    marks, computed = "", 0
    for step in range(STEPS):
        forced = step < LIMITS["warmup_steps"] or step >= STEPS - 1 or step - computed > LIMITS["max_skip_steps"]
        value = wish(step, computed) if step else None
        reuse = not forced and value is not None and value < threshold
        marks += "." if reuse else "#"
        computed = computed if reuse else step
    return marks


def test_teacache_adds_up_the_changes_up_to_the_step_before():
    rows = make_inputs(STEPS, seed=3, speed=0.3)
    changes = [0.0] + [change(b.temb.numpy(), a.temb.numpy()) for a, b in pairwise(rows)]
    threshold = 2.5 * float(np.mean(changes))
    # of step `at` since the last computed one: d of (computed), ..., (at - 1), for d of (computed + 1), ..., (at)
    wanted = follow(lambda at, computed: sum(changes[computed:at]) if at > 1 else None, threshold)
    assert marks_of("teacache", rows, threshold=threshold, sync="lagged") == wanted
    assert 5 < wanted.count(".") < 25
    assert marks_of("teacache", rows, threshold=threshold) != wanted


@pytest.mark.parametrize("compare", ["computed", "previous"])
def test_first_block_adds_a_step_like_the_last_one(compare):
    rows = make_inputs(STEPS, seed=5, speed=0.1)
    probes = [(MODEL[0](row.hidden, row.temb) - row.hidden).numpy() for row in rows]
    speeds = [0.0] + [change(b, a) for a, b in pairwise(probes)]
    threshold = (1 + (compare == "computed")) * 1.2 * float(np.median(speeds))

    def wish(at: int, computed: int) -> float | None:
        drift = change(probes[at - 1], probes[computed]) if compare == "computed" else 0.0
        return speeds[at - 1] + drift if at > 1 else None

    wanted = follow(wish, threshold)
    assert marks_of("first_block", rows, threshold=threshold, compare=compare, downsample=1, sync="lagged") == wanted
    assert 5 < wanted.count(".") < 25


def test_adastep_judges_the_three_differences_before():
    rows = make_inputs(STEPS, seed=2, speed=0.2)
    lengths = [float(np.abs((b.hidden - a.hidden).numpy()).mean()) for a, b in pairwise(rows)]  # of steps 1, 2, ...
    marks, estimates, skips = "", 0, 0
    for step in range(STEPS):
        known = lengths[: max(0, step - 1)]
        even = False
        if len(known) >= 3:
            oldest, middle, newest = known[-3:]
            estimates += 1
            even = abs((newest + oldest) / 2 - middle) <= middle * 0.4 * 0.99**estimates
        reuse = even and step >= LIMITS["warmup_steps"] and step < STEPS - 1 and skips < LIMITS["max_skip_steps"]
        skips = skips + 1 if reuse else 0
        marks += "." if reuse else "#"
    assert marks_of("adastep", rows, skip_thr=0.4, decay_ratio=0.99, sync="lagged") == marks
    assert 3 < marks.count(".") < 25


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("dynamic_block", {"threshold": 0.06}),
        ("adacache", {"codebook": [[0.08, 6], [0.16, 5], [0.24, 4], [0.32, 3], [0.40, 2]], "otherwise": 1}),
    ],
)
def test_methods_that_look_back_anyway_decide_the_same(method, options):
    rows = make_inputs(STEPS, seed=1, speed=0.1)
    now, lagged = (marks_of(method, rows, **options, sync=sync) for sync in ("now", "lagged"))
    assert now == lagged
    assert "." in now


@pytest.mark.parametrize("method", ["teacache", "custom", "first_block", "dual_block", "easycache"])
def test_a_constant_input_is_reused_up_to_the_limits(method):
    marks = marks_of(method, make_inputs(STEPS, seed=1, constant=True), sync="lagged")
    assert marks[3:] == ("....#" * STEPS)[: STEPS - 4] + "#"


def test_a_new_run_does_not_use_the_numbers_of_the_last_one():
    rows = make_inputs(STEPS, seed=3, speed=0.3)
    agent = agent_of("teacache", STEPS, len(MODEL), options={"threshold": 0.5, "sync": "lagged", "warmup_steps": 1})
    with quiet():
        first = drive(agent, MODEL, {"cond": rows})["cond"].marks
        second = drive(agent, MODEL, {"cond": rows})["cond"].marks
    assert first == second
    assert first.startswith("##")  # nothing was measured a step before step 1


def test_nan_is_computed_and_said():
    rows = make_inputs(STEPS, seed=3, speed=0.3)
    rows[10].temb[0] = float("nan")
    agent = agent_of("teacache", STEPS, len(MODEL), options={"threshold": 9.0, "sync": "lagged"})
    with pytest.warns(match="NaN or infinite"):
        marks = drive(agent, MODEL, {"cond": rows})["cond"].marks
    assert marks[11:13] == "##"  # a step later: the differences to it, from both sides


def test_wrong_values():
    with pytest.raises(ConfigError, match="sync='later'"):
        agent_of("teacache", STEPS, options={"sync": "later"})
    with pytest.raises(ConfigError, match="parity=True looks at this step's change"):
        agent_of("dynamic_block", STEPS, options={"sync": "lagged", "parity": True})


# ------------------------------------------------------------------------------------------------------------- a device


class Clock:
    """A device whose copies take until `now` reaches them."""

    def __init__(self) -> None:
        self.now = self.waits = 0


@pytest.fixture
def slow_device(monkeypatch) -> Clock:
    """Makes PyTorch's "meta" look like a device with events; its copies arrive when `clock.now` is 1."""
    clock = Clock()

    class Event:
        def record(self, stream: object) -> None:
            assert stream == "stream of meta"

        def query(self) -> bool:
            return clock.now > 0

        def synchronize(self) -> None:
            clock.waits += 1

    module = types.SimpleNamespace(Event=Event, current_stream=lambda device: f"stream of {device.type}")
    monkeypatch.setattr(torch, "meta", module, raising=False)
    made = torch.empty

    def empty(*size: object, pin_memory: bool = False, **options: object) -> torch.Tensor:
        tensor = made(*size, **options)
        if pin_memory:  # a copy from a device to other memory waits
            tensor.fill_(3.0).copy_ = lambda source, non_blocking: asserted(non_blocking)
        return tensor

    monkeypatch.setattr(torch, "empty", empty)
    return clock


def asserted(value: bool) -> None:
    assert value


def test_reading_waits_only_if_the_copy_has_not_arrived(slow_device):
    numbers = torch.ones(2, device="meta")
    early, late = Reading(numbers), Reading(numbers)
    assert early.read() == [3.0, 3.0]  # what the copy is said to have brought
    assert slow_device.waits == 1
    slow_device.now = 1
    assert late.read() == [3.0, 3.0]
    assert slow_device.waits == 1


def test_reading_on_the_cpu_is_a_copy():
    numbers = torch.tensor([1.0, 2.0])
    reading = Reading(numbers)
    numbers.zero_()
    assert reading.read() == [1.0, 2.0]
