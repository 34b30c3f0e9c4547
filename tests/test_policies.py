"""Policies against direct implementations of their published rules."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toy import agent_for, marks, quiet

from mindie_cache import AdastepOptions, CacheAgent, CacheConfig
from mindie_cache.distributed import Ranks
from mindie_cache.policies import Adastep, Limits, Schedule, Signal, interval

STEPS = 40


# --- interval and schedule


def by_interval(start: int, every: int, stop: int, steps: int) -> Schedule:
    return Schedule(interval(start, every, stop, steps), steps, final_steps=0)


@settings(deadline=None)
@given(start=st.integers(0, 8), every=st.integers(1, 5), stop=st.integers(0, 14), steps=st.integers(1, 14))
def test_interval_against_its_definition(start, every, stop, steps):
    policy, state = by_interval(start, every, stop, steps), None
    for step in range(steps):
        decision = policy.decide(state, step, None, can_reuse=step > 0)
        assert decision.reuse == (step > 0 and start < step < stop and (step - start) % every != 0)
        state = decision.state
        if decision.reuse and policy.last_use(step):
            assert not policy.decide(state, step + 1, None, can_reuse=True).reuse


@settings(deadline=None)
@given(start=st.integers(0, 5), every=st.integers(2, 5), stop=st.integers(0, 14), depth=st.integers(1, 3))
def test_interval_keeps_what_can_be_used_and_nothing_else(start, every, stop, depth):
    """A feature is worth keeping exactly if a later step may be predicted from it."""
    steps = 20
    policy = by_interval(start, every, stop, steps)
    reused = [s for s in range(steps) if start < s < stop and (s - start) % every]
    for step in range(steps):
        if step in reused:
            continue
        used = any(step in [c for c in range(s) if c not in reused][-depth:] for s in reused)
        assert policy.worth_keeping(step, depth) >= used
        if depth == 1 or step > max(reused, default=-1):
            assert policy.worth_keeping(step, depth) == used


@settings(deadline=None)
@given(computed=st.frozensets(st.integers(0, 11)), steps=st.integers(1, 12))
def test_schedule_against_its_definition(computed, steps):
    policy, state = Schedule(computed, steps), None
    for step in range(steps):
        decision = policy.decide(state, step, None, can_reuse=step > 0)
        assert decision.reuse == (0 < step < steps - 1 and step not in computed)
        state = decision.state
        if decision.reuse and policy.last_use(step):
            assert not policy.decide(state, step + 1, None, can_reuse=True).reuse


@pytest.mark.parametrize("policy", [by_interval(0, 3, 20, 20), Schedule(frozenset({0, 3, 6, 9}), 20)])
def test_a_missed_refresh_is_made_up_for(policy):
    state = policy.decide(None, 0, None, False).state
    state = policy.decide(state, 1, None, True).state
    late = policy.decide(state, 4, None, True)  # steps 2 and 3 did not take place
    assert (late.reuse, late.reason) == (False, "late refresh")
    assert policy.decide(late.state, 5, None, True).reuse
    assert not policy.decide(late.state, 6, None, True).reuse


@pytest.mark.parametrize("policy", [by_interval(0, 3, 20, 20), Schedule(frozenset({0, 3}), 20)])
def test_scheduled_policies_obey_can_reuse(policy):
    for step in range(20):
        assert not policy.decide(0, step, None, can_reuse=False).reuse


# --- adastep


class Settings(NamedTuple):
    skip_thr: float
    max_skip_steps: int
    decay_ratio: float


def original(latents: list[torch.Tensor], given: Settings) -> list[bool]:
    """The original's algorithm: which model calls are skipped. `latents[s]` is what the model is called with at step s."""
    mask, lengths, threshold = [False], [], given.skip_thr
    previous = torch.zeros_like(latents[0])
    skipped = [mask[-1]]
    for after in latents[1:]:  # the scheduler made `after`
        lengths.append((after - previous).abs().mean().item())
        previous = after
        if len(lengths) >= 3:
            threshold *= given.decay_ratio
            last = mask[-given.max_skip_steps :]
            if given.max_skip_steps and len(mask) >= given.max_skip_steps and all(last):
                mask.append(False)
            else:
                oldest, middle, newest = lengths[-3:]
                mask.append(abs((newest + oldest) / 2 - middle) <= middle * threshold)
        skipped.append(mask[-1])
    return skipped


def corrected(latents: list[torch.Tensor], given: Settings, relative: bool = False) -> list[bool]:
    """The same with the first length measured from the first latents, four steps of warm-up, and the last step computed."""
    skipped, in_a_row, lengths, estimates = [], 0, [], 0
    for step, now in enumerate(latents):
        skip = False
        if step:
            moved = (now - latents[step - 1]).abs().mean().item()
            lengths.append(moved / latents[step - 1].abs().mean().item() if relative else moved)
        if len(lengths) >= 3:
            estimates += 1
            oldest, middle, newest = lengths[-3:]
            even = abs((newest + oldest) / 2 - middle) <= middle * given.skip_thr * given.decay_ratio**estimates
            capped = given.max_skip_steps and in_a_row >= given.max_skip_steps
            skip = even and not capped and 4 <= step < len(latents) - 1
        in_a_row = in_a_row + 1 if skip else 0
        skipped.append(skip)
    return skipped


def smooth_latents(seed: int, steps: int) -> list[torch.Tensor]:
    """A random path that is a little uneven, so that thresholds near the recommended ones decide both ways."""
    generator = torch.Generator().manual_seed(seed)
    x, velocity = torch.randn(64, generator=generator), torch.randn(64, generator=generator)
    path = []
    for _ in range(steps):
        path.append(x.clone())
        velocity = velocity * (1 + 0.02 * torch.randn(1, generator=generator)) + 0.02 * torch.randn(64, generator=generator)
        x = x + velocity
    return path


GIVEN = st.builds(Settings, st.sampled_from([0.003, 0.01, 0.02, 0.2]), st.integers(0, 5), st.sampled_from([0.9, 0.99, 1.0]))


def adastep_policy(given: Settings, steps: int, relative: bool = False, parity: bool = False) -> Adastep:
    warmup, final = (0, 0) if parity else (4, 1)
    limits = Limits(steps_count=steps, warmup_steps=warmup, final_steps=final, max_skip_steps=given.max_skip_steps)
    return Adastep(limits=limits, skip_thr=given.skip_thr, decay_ratio=given.decay_ratio, relative=relative, parity=parity)


def by_policy(policy: Adastep, latents: list[torch.Tensor]) -> list[bool]:
    state, skipped = None, []
    for step, signal in enumerate(latents):
        decision = policy.decide(state, step, Signal(signal, Ranks()), can_reuse=step > 0)
        state = decision.state
        skipped.append(decision.reuse)
    return skipped


@settings(deadline=None)
@given(given=GIVEN, seed=st.integers(0, 10**6), steps=st.integers(1, STEPS))
def test_adastep_with_parity_takes_the_originals_decisions(given, seed, steps):
    latents = smooth_latents(seed, steps)
    assert by_policy(adastep_policy(given, steps, parity=True), latents) == original(latents, given)


@settings(deadline=None)
@given(given=GIVEN, seed=st.integers(0, 10**6), steps=st.integers(1, STEPS), relative=st.booleans())
def test_adastep_follows_the_corrected_rule(given, seed, steps, relative):
    latents = smooth_latents(seed, steps)
    assert by_policy(adastep_policy(given, steps, relative=relative), latents) == corrected(latents, given, relative)


def test_the_latents_of_these_tests_decide_both_ways():
    for rule in (original, corrected):
        shares = [sum(rule(smooth_latents(seed, STEPS), Settings(0.02, 4, 0.99))) / STEPS for seed in range(20)]
        assert 0.05 < sum(shares) / 20 < 0.9


def adastep(steps: int = STEPS, **options: Any) -> CacheAgent:
    return agent_for("adastep", 1, steps, options={"skip_thr": 0.02, **options})


def run(agent: CacheAgent, latents: list[torch.Tensor]) -> list[float]:
    """One generation; the transformer returns its number of executions, so that a reused output shows."""
    runs = 0

    def transformer(hidden_states):
        nonlocal runs
        runs += 1
        return torch.tensor([float(runs)])

    with quiet():
        return [agent.apply(transformer, hidden_states=x).item() for x in latents]


@pytest.mark.parametrize("parity", [False, True])
def test_an_agent_takes_the_policys_decisions_and_repeats_them_in_the_next_run(parity):
    """The threshold decays within a run and is restored by the next one (the original's goes on decaying)."""
    agent, latents = adastep(parity=parity), smooth_latents(3, STEPS)
    given = Settings(0.02, AdastepOptions().max_skip_steps, AdastepOptions().decay_ratio)
    wanted = (original if parity else corrected)(latents, given)
    assert any(wanted)
    for _ in range(3):
        outputs = run(agent, latents)
        assert [mark == "." for mark in marks(agent)] == wanted
        repeated = [step > 0 and outputs[step] == outputs[step - 1] for step in range(STEPS)]
        assert repeated == wanted


def even_latents(steps: int) -> list[torch.Tensor]:
    return [torch.full((8,), float(step)) for step in range(steps)]


@pytest.mark.parametrize("limit", [1, 2, 3, 7])
@pytest.mark.parametrize("parity", [False, True])
def test_never_more_than_max_skip_steps_in_a_row(limit, parity):
    agent = adastep(max_skip_steps=limit, parity=parity)
    run(agent, even_latents(STEPS))
    assert "." * limit in marks(agent)
    assert "." * (limit + 1) not in marks(agent)


def test_without_a_limit_only_warm_up_and_last_step_are_computed():
    agent = adastep(max_skip_steps=0)
    run(agent, even_latents(STEPS))
    assert marks(agent) == "####" + "." * (STEPS - 5) + "#"


def test_the_last_step_is_computed_but_not_with_parity():
    for parity in (False, True):
        agent = adastep(max_skip_steps=0, parity=parity)
        run(agent, even_latents(STEPS))
        assert (marks(agent)[-1] == ".") == parity


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5])
def test_runs_that_are_shorter_than_the_warm_up_are_computed(steps):
    agent = adastep(steps, max_skip_steps=0)
    run(agent, even_latents(steps))
    assert marks(agent) == "#" * steps


def test_the_threshold_decays_with_every_estimate():
    """Lengths whose unevenness stays at 1 %: they are even at first, and are not once the threshold is below."""
    length, x, latents = 1.0, torch.zeros(4), []
    for step in range(STEPS):
        latents.append(x.clone())
        length = 1.0 + 0.01 * (step % 2)  # |(1 + 1) / 2 - 1.01| / 1.01 and |(1.01 + 1.01) / 2 - 1| / 1
        x = x + length
    agent = adastep(skip_thr=0.0105, decay_ratio=0.998, max_skip_steps=0)
    run(agent, latents)
    seen = marks(agent)
    assert seen.startswith("####.")
    threshold = [0.0105 * 0.998 ** (step - 2) for step in range(STEPS)]
    for step in range(4, STEPS - 1):
        unevenness = 0.01 / 1.01 if step % 2 else 0.01
        assert (seen[step] == ".") == (unevenness <= threshold[step]), step
    assert threshold[-2] < 0.01, "the decay must matter"


def test_a_threshold_of_zero_is_off_and_says_so():
    with pytest.warns(UserWarning, match="skip_thr=0"):
        agent = CacheAgent(CacheConfig("adastep", 1, STEPS, options=AdastepOptions(skip_thr=0.0)))
    assert len(set(run(agent, even_latents(STEPS)))) == STEPS


def test_positional_latents_are_watched_too():
    agent = adastep(max_skip_steps=0)
    for latents in even_latents(STEPS):
        agent.apply(lambda x, timestep: x, latents, 5)
    assert marks(agent).count(".") == STEPS - 5


def test_what_the_model_does_to_its_input_is_not_watched():
    """The latents are copied: a transformer that works in place does not change the next decision."""
    outcomes = []
    for change in (lambda x: x + 1, lambda x: x.add_(1)):
        agent = adastep(max_skip_steps=3)
        for latents in smooth_latents(5, STEPS):
            agent.apply(change, latents.clone())
        outcomes.append(marks(agent))
    assert outcomes[0] == outcomes[1]
