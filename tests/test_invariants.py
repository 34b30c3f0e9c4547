"""The promises that hold for every method, and the points in which this package differs from MindIE-SD on purpose."""

from __future__ import annotations

import gc
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from toy import (
    FIELDS,
    METHODS,
    Add,
    AddBoth,
    Constant,
    JointModel,
    agent_for,
    all_warnings,
    block_rows,
    call_rows,
    joint_inputs,
    marks,
    plain,
    quiet,
)

from mindie_cache import CacheAgent, CacheConfig, CacheError, CacheWarning, ConfigError, ModelExecError, ParametersInvalid
from mindie_cache.policies import Schedule


@pytest.fixture(autouse=True)
def one_thread():
    """The models here are so small that a second thread costs more than it brings."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


STEPS = 9
ORDERS = (0, 1, 2)
AMOUNTS = (1.0, 10.0, 100.0, 1000.0)


def adds(kind: type[Add] = Add, **changes: Any) -> list[Add]:
    return [kind(amount, **changes) for amount in AMOUNTS]


def joint(method: str, order: int = 0, steps: int = STEPS, **changes: Any) -> tuple[CacheAgent, Callable[..., Tensor]]:
    """An agent, and a real transformer-like model that calls it in the method's way."""
    options: dict[str, Any] = {"order": order, **({"skip_thr": 0.5} if method == "adastep" else {})}
    agent = agent_for(method, 1 if method == "adastep" else 4, steps, options=options, **changes)
    if method == "adastep":
        return agent, lambda **inputs: agent.apply(REAL, **inputs)
    face = "block_agent" if method == "dit_block_cache" else "attention_agent"
    return agent, JointModel(**{face: agent}).eval()


REAL = JointModel().eval()  # without a cache


def outputs(forward: Callable[..., Tensor], inputs: list[dict[str, Tensor]]) -> list[Tensor]:
    with torch.no_grad():
        return [forward(**one) for one in inputs]


# --- 1. one decision a step


@pytest.mark.parametrize("method", ["dit_block_cache", "attention_cache"])
def test_1_a_step_is_decided_once_and_asking_again_changes_nothing(method, monkeypatch):
    decided = []
    original = Schedule.decide

    def counted(self, state, step, signal, can_reuse):
        decided.append(step)
        return original(self, state, step, signal, can_reuse)

    monkeypatch.setattr(Schedule, "decide", counted)
    agent, blocks = agent_for(method, 4, STEPS), adds()

    def ask(step):
        with agent.branch(step=step):
            return block_rows(agent, blocks, [step]) if method == "dit_block_cache" else call_rows(agent, blocks, [step])

    for step in range(STEPS):
        once = ask(step)
        if step in (0, 1, 2):  # computed ones, and a reused one that is followed by another reused one
            assert ask(step) == once
    assert decided == list(range(STEPS))


def test_1_adastep_reads_the_latents_once_a_step(monkeypatch):
    reads = count_host_reads(monkeypatch)
    agent, forward = joint("adastep")
    for step, inputs in enumerate(joint_inputs(STEPS)):
        before = len(reads)
        for branch in ("cond", "uncond"):
            with agent.branch(branch), torch.no_grad():
                forward(**inputs)
        assert len(reads) - before <= 1, f"step {step}: {reads[before:]}"
    assert 1 <= len(reads) <= STEPS


# --- 2. without data the call is computed


@pytest.mark.parametrize("method", ["dit_block_cache", "attention_cache"])
def test_2_a_branch_that_appears_late_is_computed_first(method):
    agent = agent_for(method, 1, STEPS)
    block = Add(1.0)
    for step in range(STEPS):
        for branch in ("cond", "uncond")[: 1 + (step >= 3)]:  # step 3 is reused by the branch that was there before
            with agent.branch(branch):
                agent.apply(block, hidden_states=torch.zeros(1))
    assert marks(agent) == "##..#..#."
    assert marks(agent, "uncond") == "##..#."  # steps 3 to 8


# --- 3. what was kept must fit


def changed_batch(hidden: Tensor) -> Tensor:
    return torch.cat((hidden, hidden))


def changed_resolution(hidden: Tensor) -> Tensor:
    return hidden[:, :1]


def changed_dtype(hidden: Tensor) -> Tensor:
    return hidden.to(torch.float64)


def changed_device(hidden: Tensor) -> Tensor:
    return hidden.to("meta")


@pytest.mark.parametrize("change", [changed_batch, changed_resolution, changed_dtype, changed_device])
@pytest.mark.parametrize("method", METHODS)
def test_3_the_first_step_after_a_change_of_shape_dtype_or_device_is_computed(method, change):
    options = {"skip_thr": 10.0, "max_skip_steps": 0} if method == "adastep" else {}
    agent = agent_for(method, 1, 12, options=options)
    block = Add(1.0)
    for step in range(12):
        hidden = torch.full((2, 3), float(step))
        if step >= 6:
            if method == "adastep" and change is changed_device:
                pytest.skip("adastep reads its latents, which meta tensors do not have")
            hidden = change(hidden)
        before = block.runs
        out = agent.apply(block, hidden_states=hidden)
        assert (out.shape, out.dtype, out.device) == (hidden.shape, hidden.dtype, hidden.device)
        if step in (0, 6):
            assert block.runs == before + 1
    assert "." in marks(agent)[2:6]  # it did reuse before, and does so again
    assert "." in marks(agent)[7:]
    assert marks(agent)[6] == "#"


@pytest.mark.parametrize(
    ("method", "options"),
    [("dit_block_cache", {"compute_steps": [0, 2]}), ("adastep", {"skip_thr": 10.0, "max_skip_steps": 0})],
)
def test_3_the_last_step_is_computed_where_no_published_rule_says_otherwise(method, options):
    agent = CacheAgent(CacheConfig(method, 1, 10, options=options))
    block = Add(1.0)
    for step in range(10):
        agent.apply(block, hidden_states=torch.full((2,), float(step)))
    assert marks(agent)[-2:] == ".#"


# --- 4. state is keyed, and a reset is a new start


def forward_step(agent: CacheAgent, blocks: list[Add], step: int) -> Any:
    """One step, whatever the method: `hidden_states` go through the blocks."""
    hidden = torch.full((2,), float(step * step))
    for block in blocks:
        hidden = agent.apply(block, hidden_states=hidden, step=step)
    return plain(hidden)


@pytest.mark.parametrize("method", METHODS)
def test_4_branches_never_mix(method):
    """One agent with two branches gives what two agents with one branch each give."""
    options = {"skip_thr": 0.5} if method == "adastep" else {}
    together, alone = (agent_for(method, 2 - (method == "adastep"), STEPS, options=options) for _ in range(2))
    other = agent_for(method, 2 - (method == "adastep"), STEPS, options=options)
    blocks = {"cond": [Add(1.0), Add(2.0)], "uncond": [Add(-5.0), Add(0.5)]}
    for step in range(STEPS):
        for branch, agent in (("cond", alone), ("uncond", other)):
            mine = blocks[branch][: agent.config.blocks_count]
            with together.branch(branch):
                got = forward_step(together, mine, step)
            with agent.branch(branch):
                assert got == forward_step(agent, mine, step)
    assert "." in marks(together)
    assert marks(together, "uncond") == marks(other, "uncond")


@pytest.mark.parametrize("method", METHODS)
def test_4_after_reset_the_next_call_is_a_first_step(method):
    agent, forward = joint(method)
    inputs = joint_inputs(STEPS)
    first = outputs(forward, inputs)
    outputs(forward, inputs[:5])
    agent.reset()
    assert agent.report().bytes_now == 0
    assert all(torch.equal(a, b) for a, b in zip(outputs(forward, inputs), first, strict=True))


# --- 5. a new run is recognised, and nothing is left behind for it


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("method", METHODS)
def test_5_the_second_generation_equals_the_first(method, order):
    agent, forward = joint(method, order)
    first = outputs(forward, joint_inputs(STEPS))
    seen = marks(agent)
    assert "." in seen
    outputs(forward, joint_inputs(STEPS, seed=1))
    assert all(torch.equal(a, b) for a, b in zip(outputs(forward, joint_inputs(STEPS)), first, strict=True))
    assert marks(agent) == seen


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("explicit", [False, True])
def test_5_an_exception_leaves_nothing_behind(method, explicit):
    agent, forward = joint(method)
    inputs = joint_inputs(STEPS)
    first = outputs(forward, inputs)

    def fail(*args, **kwargs):
        raise KeyboardInterrupt

    def generate_and_fail(done):
        outputs(forward, inputs[:done])
        agent.apply(fail, hidden_states=torch.zeros(1, 6, 16))  # other inputs than before, so it is executed

    for done in range(STEPS):
        with pytest.raises(KeyboardInterrupt), agent.run() if explicit else nullcontext():
            generate_and_fail(done)
        assert agent.report().bytes_now == 0
        assert all(torch.equal(a, b) for a, b in zip(outputs(forward, inputs), first, strict=True))


@pytest.mark.parametrize(
    "wrong",
    [
        lambda agent: agent.apply("no function"),
        lambda agent: agent.apply(Add(1.0)),
        lambda agent: agent.apply(Add(1.0), hidden_states=None),
    ],
)
def test_5_a_wrong_call_leaves_nothing_behind(wrong):
    expected = block_rows(agent_for("dit_block_cache", 4, STEPS), adds(), STEPS)
    agent, blocks = agent_for("dit_block_cache", 4, STEPS), adds()
    with pytest.raises(ParametersInvalid):
        wrong(agent)
    assert block_rows(agent, blocks, STEPS) == expected


# --- 6. the cache owns what it keeps


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("span", [(0, 4), (1, 3), (2, 3)])
def test_6_blocks_that_work_in_place_are_safe(mode, span):
    wanted = block_rows(agent_for("dit_block_cache", 4, STEPS, block_start=span[0], block_end=span[1]), adds(), STEPS)
    agent = agent_for("dit_block_cache", 4, STEPS, block_start=span[0], block_end=span[1])
    with mode():
        assert block_rows(agent, adds(in_place=True), STEPS) == wanted


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_6_both_streams_may_be_changed_in_place(mode):
    def generate(in_place):
        agent, blocks, rows = agent_for("dit_block_cache", 4, STEPS), adds(AddBoth, in_place=in_place), []
        for step in range(STEPS):
            streams = (torch.full((2,), float(step)), torch.full((3,), -float(step)))
            for block in blocks:
                streams = agent.apply(block, hidden_states=streams[0], encoder_hidden_states=streams[1], step=step)
            rows.append(plain(streams))
        return rows

    with mode():
        assert generate(True) == generate(False)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_6_an_attention_may_reuse_its_buffer_and_the_model_may_change_the_result(mode, order):
    """Neither a buffer that the attention writes into again, nor a gate applied in place, reaches what is kept."""

    def generate(careless: bool) -> list[list[float]]:
        agent = agent_for("attention_cache", 2, STEPS, options={"order": order})
        buffers, rows = [torch.zeros(2), torch.zeros(2)], []
        for step in range(STEPS):
            for call in range(2):

                def attention(value: float, call: int = call) -> Tensor:
                    return buffers[call].fill_(value) if careless else torch.full((2,), value)

                out = agent.apply(attention, 10.0 * call + step * step)
                rows.append(out.tolist())
                out.mul_(-1000.0)
        return rows

    with mode():
        assert generate(True) == generate(False)


@pytest.mark.parametrize("order", [0, 1])
def test_6_objects_that_hold_tensors_are_not_shared_with_the_model(order):
    """An output class of the model, as whole-forward caches meet it."""

    class Output:
        def __init__(self, sample: Tensor):
            self.sample = sample

    agent = agent_for("attention_cache", 1, STEPS, options={"order": order})
    for step in range(4):  # computed: 0, 1; reused: 2, 3
        with torch.no_grad():
            try:
                out = agent.apply(lambda step=step: Output(torch.full((2,), float(step))))
            except ModelExecError:  # refusing is an honest answer, too
                return
        assert out.sample.tolist() == ([float(step)] * 2 if order or step < 2 else [1.0] * 2)
        out.sample.mul_(-1000.0)


# --- 7. a computed step is the model's own


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("method", METHODS)
def test_7_a_computed_step_is_bit_identical_to_the_uncached_model(method, order):
    agent, forward = joint(method, order)
    inputs = joint_inputs(STEPS)
    uncached = outputs(REAL, inputs)
    cached = outputs(forward, inputs)
    assert {"#", "."} == set(marks(agent))
    for mark, got, wanted in zip(marks(agent), cached, uncached, strict=True):
        assert torch.equal(got, wanted) == (mark == "#")


@pytest.mark.parametrize("method", METHODS)
def test_7_gradients_are_not_kept_alive(method):
    agent, forward = joint(method)
    for inputs in joint_inputs(STEPS):
        out = forward(**{name: value.clone().requires_grad_() for name, value in inputs.items()})
        assert torch.isfinite(out).all()
    assert "." in marks(agent)


# --- 8. the same input every step


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("method", METHODS)
def test_8_with_the_same_input_every_step_a_reused_step_reproduces_the_model(method, order):
    agent, forward = joint(method, order, steps=12)
    inputs = joint_inputs(12, smooth=False)
    wanted = outputs(REAL, inputs[:1])[0]
    for got in outputs(forward, inputs):
        assert (got - wanted).abs().max() <= 1e-6 * wanted.abs().max()
    assert marks(agent).count(".") >= 6


@pytest.mark.parametrize("order", ORDERS)
def test_8_the_identity_holds_for_whole_numbers_and_flags_too(order):
    """What is no real number (a length, a mask, a flag) comes back as it was, in its own type."""
    agent = agent_for("attention_cache", 1, 12, options={"order": order})
    for _ in range(12):
        hidden, lengths, mask, flag, count = agent.apply(
            lambda: (torch.ones(1), torch.tensor([77, 123456789]), torch.tensor([True, False]), True, 77)
        )
        assert hidden.tolist() == pytest.approx([1.0])
        assert (count, type(count)) == (77, int)
        assert (lengths.tolist(), lengths.dtype) == ([77, 123456789], torch.int64)
        assert mask.tolist() == [True, False]
        assert flag is True


# --- 9. not finite


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_9_nan_latents_are_computed_and_reported_once(poison):
    agent = agent_for("adastep", 1, 20, options={"skip_thr": 10.0})
    transformer = Add(1.0)
    with all_warnings() as caught:
        for step in range(20):
            latents = torch.full((4,), float(step))
            if step in (8, 9, 12):
                latents[1] = poison
            before = transformer.runs
            agent.apply(transformer, hidden_states=latents)
            if step in (8, 9, 10, 12, 13):
                assert transformer.runs == before + 1, f"step {step} was reused"
    assert [w.category for w in caught] == [CacheWarning]
    assert "NaN or infinite" in str(caught[0].message)
    assert "." in marks(agent)


def test_9_nan_in_the_first_latents_is_computed():
    agent = agent_for("adastep", 1, 8, options={"skip_thr": 10.0})
    transformer = Add(1.0)
    with all_warnings() as caught:
        for _ in range(8):
            agent.apply(transformer, hidden_states=torch.full((4,), float("nan")))
    assert ["NaN" in str(w.message) for w in caught] == [True, False]
    assert "reused nothing" in str(caught[1].message)
    assert transformer.runs == 8


def test_9_a_run_without_any_reuse_or_with_nothing_but_reuse_is_not_silent():
    never = agent_for("dit_block_cache", 1, 4, step_start=3, step_interval=2)
    with pytest.warns(CacheWarning, match="reused nothing"):
        block_rows(never, [Add(1.0)], 4)
    always = agent_for("dit_block_cache", 1, 4, step_start=0, step_interval=9)
    with pytest.warns(CacheWarning, match="every step after the first"):
        block_rows(always, [Add(1.0)], 4)


# --- 10. no synchronisation


def count_host_reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the calls, from now on, that bring a tensor's values to the host."""
    reads: list[str] = []
    for name in ("item", "tolist", "numpy", "cpu", "__bool__", "__float__", "__int__", "__index__"):
        original = getattr(Tensor, name)

        def counted(self, *args, _name=name, _original=original, **kwargs):
            reads.append(_name)
            return _original(self, *args, **kwargs)

        monkeypatch.setattr(Tensor, name, counted)
    return reads


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("schedule", [dict(step_start=1, step_interval=3), dict(options={"compute_steps": [0, 1, 5]})])
@pytest.mark.parametrize("method", ["dit_block_cache", "attention_cache"])
def test_10_scheduled_policies_never_read_a_tensor(method, schedule, order):
    """On the meta device there is nothing to read: whoever tries, fails."""
    fields = {**schedule, "options": {**schedule.get("options", {}), "order": order}}
    agent, blocks = CacheAgent(CacheConfig(method, 4, STEPS, **fields)), adds()
    for _ in range(2):
        for step in range(STEPS):
            hidden = torch.full((2, 3), float(step), device="meta")
            for block in blocks:
                hidden = agent.apply(block, hidden_states=hidden)
            assert hidden.is_meta
    assert "." in marks(agent)


# --- 11. nothing is patched


@pytest.mark.parametrize("method", METHODS)
def test_11_modules_are_left_as_they_were(method):
    def look():
        return {
            name: id(value) for owner in (block, Add, nn.Module) for name, value in vars(owner).items() if name != "runs"
        }

    agent = agent_for(method, 1, STEPS, options={"skip_thr": 0.5} if method == "adastep" else {})
    block = Add(1.0)
    before = look()
    for step in range(STEPS):
        agent.apply(block, hidden_states=torch.full((1, 2), float(step)))
    assert look() == before
    assert "." in marks(agent)


# --- nothing is kept after a run


@pytest.fixture
def live_tensors():
    """A function that lists the tensors made since the test began, and alive now."""

    def look() -> list[Tensor]:
        gc.collect()
        return [found for found in gc.get_objects() if type(found) is Tensor]

    gc.freeze()
    yield look
    gc.unfreeze()


def ends_by_counting(agent: CacheAgent, forward: Callable[..., Tensor]) -> None:
    outputs(forward, joint_inputs(STEPS))


def ends_with_run(agent: CacheAgent, forward: Callable[..., Tensor]) -> None:
    with quiet(), agent.run():
        outputs(forward, joint_inputs(5))


def ends_by_an_exception(agent: CacheAgent, forward: Callable[..., Tensor]) -> None:
    def generate() -> None:
        with agent.run():
            outputs(forward, joint_inputs(5))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        generate()


def ends_by_reset(agent: CacheAgent, forward: Callable[..., Tensor]) -> None:
    outputs(forward, joint_inputs(5))
    agent.reset()


def ends_with_a_named_request(agent: CacheAgent, forward: Callable[..., Tensor]) -> None:
    for inputs in joint_inputs(STEPS):
        with agent.run(request="a"):
            outputs(forward, [inputs])


@pytest.mark.parametrize(
    "generate", [ends_by_counting, ends_with_run, ends_by_an_exception, ends_by_reset, ends_with_a_named_request]
)
@pytest.mark.parametrize("method", METHODS)
def test_no_tensor_is_kept_after_a_run(method, generate, live_tensors):
    agent, forward = joint(method, order=1)
    outputs(forward, joint_inputs(5))
    assert agent.report().bytes_now > 0
    assert live_tensors(), "the tensors of a run under way must be visible to this test"
    agent.reset()
    generate(agent, forward)
    assert agent.report().bytes_now == 0
    assert agent.report().bytes_peak > 0
    assert not live_tensors()


def test_no_tensor_is_kept_after_the_agent_is_gone(live_tensors):
    agent = agent_for("attention_cache", 4, STEPS)
    call_rows(agent, adds(), 3)
    assert agent.report().bytes_now > 0
    assert live_tensors()
    del agent
    assert not live_tensors()


# --- 14. no silent fallback


@pytest.mark.parametrize("steps", [5, 7])
def test_14_a_run_of_another_length_than_configured_is_announced(steps):
    agent = agent_for("dit_block_cache", 1, 6)
    with all_warnings() as caught, agent.run():
        block_rows(agent, [Add(1.0)], steps)
    expected = "A run ended after 5 steps, but steps_count=6" if steps == 5 else "The run goes on after steps_count=6"
    assert [str(w.message)[: len(expected)] for w in caught] == [expected]


def test_14_a_configuration_that_caches_nothing_is_announced():
    with pytest.warns(CacheWarning, match="step_interval"):
        CacheAgent(CacheConfig("dit_block_cache", 4, 4))


# --- code of the model between blocks


class Ending(NamedTuple):
    """What a span returned: first, inner and last values, and the objects."""

    values: list[float]
    given: list[Any]
    got: list[Any]


def controlled_step(agent: CacheAgent, blocks: list[Add], step: int, control: float, in_place: bool) -> Ending:
    """One step of a model that adds a residual after every block, as a ControlNet does."""
    hidden = torch.full((2,), float(step), dtype=torch.float64)
    ending = Ending([], [], [])
    for block in blocks:
        ending.given.append(hidden)
        hidden = agent.apply(block, hidden_states=hidden, step=step)
        ending.got.append(hidden)
        ending.values.append(hidden[0].item())
        if in_place:
            hidden += control
        else:
            hidden = hidden + control
    return ending


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("in_place", [False, True])
def test_a_residual_added_between_blocks_is_counted_exactly_once(in_place, mode):
    agent = agent_for("dit_block_cache", 4, 6, step_start=1, step_interval=4, block_start=1, block_end=4)
    blocks, control = adds(), 0.25
    for step in range(6):
        with mode():
            values = controlled_step(agent, blocks, step, control, in_place).values
        source = step if step in (0, 1, 5) else 1  # the step whose blocks 1 to 3 are in the result
        entered = step + AMOUNTS[0] * (step + 1) + control
        residual = sum(AMOUNTS[1:]) * (source + 1) + 2 * control  # two of the three controls lie inside
        assert values[3] == entered + residual
    assert marks(agent) == "##...#"


def test_inner_skipped_calls_return_the_very_same_object():
    agent, blocks = agent_for("dit_block_cache", 4, 6), adds()
    for step in range(6):
        ending = controlled_step(agent, blocks, step, 0.5, in_place=False)
        if marks(agent)[-1] == ".":
            assert all(ending.got[call] is ending.given[call] for call in (1, 2))
            assert ending.values[3] == ending.values[0]  # X again, whatever arrived


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_estimate_has_the_dtype_of_the_blocks_output(dtype):
    agent = agent_for("dit_block_cache", 1, 6)
    for step in range(6):
        out = agent.apply(lambda hidden: hidden.to(dtype), hidden_states=torch.full((2,), float(step)))
        assert out.dtype == dtype
        assert out.tolist() == [step, step]


# --- deviations from MindIE-SD, on purpose


def test_mindie_a_one_block_range_is_exact():
    """There: 7, 7, 8, 7, 8 (the input is added to itself)."""
    agent = agent_for("dit_block_cache", 3, 5, step_start=1, step_interval=2, block_start=1, block_end=2)
    assert [row[-1] for row in [[v[0] for v in r] for r in block_rows(agent, [lambda h, step: h + 1] * 3, [4] * 5)]] == [
        7
    ] * 5
    assert marks(agent) == "##.#."


def test_mindie_step_end_is_honoured():
    agent = agent_for("dit_block_cache", 2, 10, step_start=2, step_interval=3, step_end=7)
    block_rows(agent, adds()[:2], 10)
    assert marks(agent) == "###..#.###"


def test_mindie_attention_cache_keeps_its_own_rule_for_step_end():
    agent = agent_for("attention_cache", 2, 10, step_start=2, step_interval=3, step_end=7)
    call_rows(agent, adds()[:2], 10)
    assert marks(agent) == "###..#..##"


def test_mindie_the_default_block_end_constructs():
    agent = agent_for("dit_block_cache", 4, 6)
    block_rows(agent, adds(), 6)
    assert agent.report().calls_reused == 3 * 4


def test_mindie_blocks_that_work_in_place_are_safe():
    """There: the residual is 0, because input and output are one tensor."""
    agent, blocks = agent_for("dit_block_cache", 2, 6), [Add(1.0, in_place=True), Add(2.0, in_place=True)]
    rows = block_rows(agent, blocks, 6)
    assert [row[-1][0] for row in rows] == [0 + 3, 1 + 6, 2 + 6, 3 + 6, 4 + 15, 5 + 15]


def test_mindie_one_agent_serves_several_branches():
    """There: uncond is always served cond's feature."""
    agent, rows = agent_for("attention_cache", 1, 6), []
    attention = Constant(0.0)
    for step in range(6):
        for branch, amount in (("cond", 1.0), ("uncond", -1.0)):
            attention.amount = amount
            with agent.branch(branch):
                rows.append(agent.apply(attention, torch.zeros(1), step=step).round().item())
    assert rows == [1.0, -1.0] * 6


def test_mindie_reset_and_run_exist():
    agent, blocks = agent_for("dit_block_cache", 4, 6), adds()
    expected = block_rows(agent, blocks, 6)
    block_rows(agent, blocks, 3)
    agent.reset()
    assert block_rows(agent, blocks, 6) == expected
    block_rows(agent, blocks, 3)
    with agent.run():
        assert block_rows(agent, blocks, 6) == expected


def encoder_first(block: AddBoth) -> Callable[..., Any]:
    """A block that returns its encoder stream first, as CogVideoX-like models do."""

    def call(hidden_states: Any, encoder_hidden_states: Any, step: float) -> tuple[Any, Any]:
        return tuple(reversed(block(hidden_states, encoder_hidden_states, step)))

    return call


def test_mindie_encoder_first_outputs_by_declared_streams():
    """There: both streams are silently wrong when they have one shape."""
    declared = agent_for("dit_block_cache", 4, STEPS, streams=("encoder_hidden_states", "hidden_states"))
    default, blocks = agent_for("dit_block_cache", 4, STEPS), adds(AddBoth)
    for step in range(STEPS):
        streams = {name: torch.full((2,), float(step)) for name in ("hidden_states", "encoder_hidden_states")}
        swapped = dict(streams)
        for block in blocks:
            hidden, encoder = default.apply(block, **streams, step=step)
            streams = {"hidden_states": hidden, "encoder_hidden_states": encoder}
            encoder, hidden = declared.apply(encoder_first(block), **swapped, step=step)
            swapped = {"hidden_states": hidden, "encoder_hidden_states": encoder}
        assert plain(list(swapped.values())) == plain(list(streams.values()))
    assert marks(declared) == marks(default)


class ThreeStreams(NamedTuple):
    video: Tensor
    audio: Tensor
    text: Tensor


@pytest.mark.parametrize("form", [tuple, list, ThreeStreams._make])
def test_mindie_more_than_two_outputs_by_declared_streams(form):
    agent = agent_for("dit_block_cache", 2, STEPS, streams=ThreeStreams._fields)
    for step in range(STEPS):
        streams = ThreeStreams(*(torch.full((2,), float(step)) for _ in range(3)))
        for call in range(2):

            def block(video, audio, text, step, call=call):
                return form((video + step, audio + 10 * step + call, text - step))

            result = agent.apply(block, **streams._asdict(), step=step)
            assert type(result) is type(form((1, 2, 3)))
            streams = ThreeStreams(*result)
        source = step if marks(agent)[-1] == "#" else step - (step - 1) % 3
        assert [s[0].item() for s in streams] == [step + 2 * source, step + 20 * source + 1, step - 2 * source]
    assert "." in marks(agent)


def test_mindie_attention_cache_honours_the_block_range():
    agent, calls = agent_for("attention_cache", 4, 6, block_start=1, block_end=3), [Constant(a) for a in AMOUNTS]
    call_rows(agent, calls, 6)
    assert [call.runs for call in calls] == [6, 3, 3, 6]


def test_mindie_exceptions_are_pythons_own():
    with pytest.raises(ValueError, match="block_end") as config:
        agent_for("dit_block_cache", 4, 6, block_end=5)
    with pytest.raises(ValueError, match="callable") as call:
        agent_for("attention_cache", 4, 6).apply(None)
    with pytest.raises(RuntimeError, match="None") as model_error:
        agent_for("dit_block_cache", 4, 6).apply(lambda hidden: None, hidden_states=1)
    assert [type(e.value) for e in (config, call, model_error)] == [ConfigError, ParametersInvalid, ModelExecError]
    assert all(isinstance(e.value, CacheError) for e in (config, call, model_error))


class CountOps(TorchDispatchMode):
    """Counts tensor operations."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_mindie_inner_skipped_calls_do_no_tensor_work(mode):
    """There: an addition of 0 per block and stream. Here: one operation per stream, for the whole span."""
    agent, blocks = agent_for("dit_block_cache", 4, 6), adds(AddBoth)
    with mode():
        for step in range(6):
            streams = (torch.zeros(2), torch.zeros(3))
            counts = []
            for block in blocks:
                with CountOps() as ops:
                    streams = agent.apply(block, hidden_states=streams[0], encoder_hidden_states=streams[1], step=step)
                counts.append(ops.count)
            if marks(agent)[-1] == ".":
                assert counts[:3] == [2, 0, 0]
                assert counts[3] == (0 if mode is torch.no_grad else 2)  # inference mode does not count changes


def test_the_fields_of_the_toys_are_valid_for_every_method():
    assert set(FIELDS) == set(METHODS) == {"dit_block_cache", "attention_cache", "adastep"}
