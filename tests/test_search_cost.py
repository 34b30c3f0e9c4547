"""The cost model of the searches: counts against the real agent and against counting by hand, and what is published."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from toy import Add, Constant, agent_for, block_rows, call_rows, quiet

from mindie_cache import ConfigError
from mindie_cache.calibration.search.cost import (
    AttentionWindow,
    Window,
    Work,
    attention_reuses,
    attention_skips_needed,
    attention_window,
    blocks_needed,
    published_blocks_needed,
    ratio_of_shares,
    refreshes,
    reuses,
)
from mindie_cache.calibration.search.pareto import choose, front, keep_best
from mindie_cache.calibration.search.windows import BEST, Space, attention_windows, top

EXAMPLES = [(40, 50, 1.2, 14, 1.182), (28, 100, 1.3, 13, 1.279), (28, 30, 1.3, 14, 1.250)]


@pytest.mark.parametrize("interval", [2, 3, 4])
@pytest.mark.parametrize(("start", "stop"), [(0, 10), (1, 9), (3, 10), (4, 8), (7, 9)])
def test_the_cost_is_what_an_agent_executes(interval, start, stop):
    blocks, steps, first, length = 6, 10, 1, 3
    functions = [Add(1.0) for _ in range(blocks)]
    agent = agent_for(
        "dit_block_cache",
        blocks,
        steps,
        step_start=start,
        step_interval=interval,
        step_end=stop,
        block_start=first,
        block_end=first + length,
    )
    with quiet():
        block_rows(agent, functions, steps)
    executed = sum(function.runs for function in functions)
    window = Window(start, interval, stop, first, length)
    work = Work.counted(blocks)
    assert executed == steps * blocks - work.saved(window)
    assert work.ratio(window, steps) == pytest.approx(steps * blocks / executed)
    assert refreshes(start, interval, stop) + reuses(start, interval, stop) == stop - start


@pytest.mark.parametrize("window", [(0, 2, 9), (2, 3, 7), (2, 3, 8), (1, 4, 6), (5, 5, 8), (3, 9, 9)])
def test_the_attentions_that_an_agent_reuses(window):
    functions = [Constant(0.5), Constant(0.25)]
    start, interval, end = window
    agent = agent_for("attention_cache", 2, 10, step_start=start, step_interval=interval, step_end=end)
    with quiet():
        call_rows(agent, functions, 10)
    assert 10 - functions[0].runs == attention_reuses(AttentionWindow(*window))


def brute_length(work, steps, ratio, start, interval, stop, first, last):
    for length in range(1, last - first + 1):
        cost = 0.0
        for step in range(steps):
            reused = start < step < stop and (step - start) % interval
            cost += work.rest + sum(c for i, c in enumerate(work.blocks) if not (reused and first <= i < first + length))
        if steps * (work.rest + sum(work.blocks)) / cost >= ratio - 1e-9:
            return length
    return None


def test_the_number_of_blocks_is_the_smallest_that_reaches_the_ratio():
    works = [Work.counted(9), Work((2.0,) * 4 + (1.0,) * 5, 3.0)]
    cases = itertools.product(works, [12, 15], [1.1, 1.25, 1.5, 2.0], [0, 2], [2, 3, 4], [0, 1], [1, 4])
    outcomes = set()
    for work, steps, ratio, start, interval, less, first in cases:
        place = dict(start=start, interval=interval, stop=steps - less, first=first, last=9)
        found = blocks_needed(work, steps, ratio, **place)
        assert found == brute_length(work, steps, ratio, **place)
        outcomes.add(found is None)
    assert outcomes == {True, False}


def test_the_closed_form_for_equal_blocks():
    for blocks, steps, ratio, start, interval in itertools.product([28, 40], [30, 50], [1.2, 1.3], [0, 5, 10], [2, 3]):
        refreshed = math.ceil((steps - start) / interval)
        reused = steps - start - refreshed
        closed = math.ceil(blocks * (1 - (steps / ratio - start - refreshed) / reused) - 1e-9)
        place = dict(start=start, interval=interval, stop=steps, first=0, last=blocks)
        assert blocks_needed(Work.counted(blocks), steps, ratio, **place) == closed


@pytest.mark.parametrize(("blocks", "steps", "ratio", "length", "real"), EXAMPLES)
def test_published_examples_and_what_they_really_reach(blocks, steps, ratio, length, real):
    assert published_blocks_needed(blocks, steps, ratio, start=5, interval=2) == length
    work = Work.counted(blocks)
    assert work.ratio(Window(5, 2, steps, 1, length), steps) == pytest.approx(real, abs=5e-4)
    enough = blocks_needed(work, steps, ratio, start=5, interval=2, stop=steps, first=1, last=blocks)
    assert work.ratio(Window(5, 2, steps, 1, enough), steps) >= ratio
    assert work.ratio(Window(5, 2, steps, 1, enough - 1), steps) < ratio


@pytest.mark.parametrize(("ratio", "words"), [(2.0, "needs 4[0-9] of 40 blocks"), (2.5, "from 1.0 to 2.0")])
def test_published_arithmetic_has_bounds(ratio, words):
    with pytest.raises(ConfigError, match=words):
        published_blocks_needed(40, 50, ratio, start=5, interval=2)


def published_space(blocks, steps, ratio):
    return Space(Work.counted(blocks), steps, ratio, 1, blocks, intervals=(2,), published=True)


@pytest.mark.parametrize(
    ("blocks", "steps", "ratio", "generations"), [(40, 50, 1.2, 72), (28, 100, 1.3, 61), (28, 30, 1.3, 60)]
)
def test_published_candidates(blocks, steps, ratio, generations):
    space = published_space(blocks, steps, ratio)
    one = space.stage_one()
    length = one[0].length
    assert [window.first for window in one] == list(range(1, blocks - length + 1))
    assert {window[:3] for window in one} == {(5, 2, steps)}
    two = space.stage_two(one[:BEST])
    assert len(two) == len(set(two)) == 3 * 15
    assert {window.length - length for window in two} == set(range(8))
    assert {window.start for window in two} == {0, 5}
    assert not {*two} & {*one}
    assert 1 + len(one) + len(two) == generations
    (last,) = one[-1:]
    assert last.first + length == blocks
    assert space.stage_two([last]) == []  # b + l < L: the second stage is strict


def test_documented_candidates():
    space = Space(Work.counted(40), 50, 1.2, 1, 40, intervals=(2,), stops=(50,))
    assert space.starts == (0, 5, 10)
    one = space.stage_one()
    length = one[0].length
    assert len(one) == 40 - length
    two = space.stage_two(one[:BEST])
    assert len(two) == 3 * 3 * (40 // 4 + 1) - 3
    every = Work.counted(40)
    assert all(every.ratio(window, 50) >= 1.2 for window in (*one, *two))


def test_the_default_space_reaches_the_ratio_everywhere_and_searches_intervals_and_ends():
    space = Space(Work((2.0,) * 6 + (1.0,) * 12, 1.5), 28, 1.3, 1, 18)
    one = space.stage_one()
    assert {window.interval for window in one} == {2, 3, 4}
    two = space.stage_two(top(one, range(len(one))))
    assert {window.stop for window in two} == {27, 28}
    assert all(space.work.ratio(window, 28) >= 1.3 - 1e-9 for window in (*one, *two))
    lengths = {window.first: window.length for window in one if window.interval == 2}
    assert lengths[1] < lengths[max(lengths)]  # the first blocks cost twice as much


def test_top_takes_three_of_each_interval_and_breaks_ties_in_order():
    windows = [Window(5, k, 20, b, 4) for k in (2, 3) for b in range(1, 6)]
    errors = [5, 1, 1, 4, 2, math.inf, 9, 8, 7, 6]
    assert [(w.interval, w.first) for w in top(windows, errors)] == [(2, 2), (2, 3), (2, 5), (3, 5), (3, 4), (3, 3)]
    assert [(w.interval, w.first) for w in top(windows, errors, together=True)] == [(2, 2), (2, 3), (2, 5)]


def test_a_ratio_out_of_reach_says_what_can_be_reached():
    with pytest.raises(ConfigError, match=r"ratio=2.5 is out of reach: .* give 1\.\d\d .*larger --intervals"):
        Space(Work.counted(12), 30, 2.5, 1, 12, intervals=(2,)).stage_one()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"ratio": 1.0}, "Use a ratio above 1"),
        ({"ratio": 0.5}, "from 1.0"),
        ({"intervals": (1,)}, "interval=1 is out of range"),
        ({"starts": (29,)}, "step_start=29 is out of range"),
        ({"stops": (31,)}, "step_end=31 is out of range"),
        ({"steps": 3}, "steps=3 is out of range"),
    ],
)
def test_wrong_spaces(changes, words):
    with pytest.raises(ConfigError, match=words):
        Space(**{**dict(work=Work.counted(12), steps=30, ratio=1.3, first=1, last=12), **changes})


@pytest.mark.parametrize(
    ("steps", "start", "skips", "shipped"),
    [
        (50, 9, 25, (3, 47)),
        (100, 60, 29, (5, 97)),
        (50, 15, 20, (3, 45)),
        (50, 15, 11, (2, 37)),
        (100, 9, 73, (6, 97)),
        (40, 12, 19, (4, 37)),
        (50, 20, 14, (2, 47)),
    ],
)
def test_attention_windows_that_are_published(steps, start, skips, shipped):
    assert attention_window(steps, skips, start)[1:] == shipped


@pytest.mark.parametrize("ratio", [1.2, 1.5, 2.0])
def test_attention_windows_skip_enough_with_the_smallest_interval(ratio):
    steps = 50
    skips = attention_skips_needed(steps, ratio)
    assert skips == math.ceil(steps * (1 - 1 / ratio) - 1e-9)
    found = attention_windows(steps, ratio)
    for window in found:
        assert attention_reuses(window) >= skips
        assert window.end <= steps - 3
        if window.interval > 2:
            assert attention_reuses(window._replace(interval=window.interval - 1, end=steps - 3)) < skips
    reachable = [start for start in range(8, 18) if steps - 3 - start >= skips]
    assert [window.start for window in found] == reachable


def test_an_end_to_end_ratio_needs_more_attentions_skipped():
    assert attention_skips_needed(50, 1.2, share=0.5) == 17
    assert ratio_of_shares(1 - 17 / 50, 0.5) >= 1.2 > ratio_of_shares(1 - 16 / 50, 0.5)
    with pytest.raises(ConfigError, match=r"needs 67 of 50 steps without attention, .* there are 39"):
        attention_windows(50, 2.0, share=0.375)


def brute_front(points):
    beaten = lambda p: any(o[0] <= p[0] and o[1] <= p[1] and o != p for o in points)  # noqa: E731
    return {p for p in points if not beaten(p)}


def test_the_front_is_that_of_brute_force():
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        points = [tuple(pair) for pair in torch.randint(0, 8, (20, 2), generator=generator).tolist()]
        found = front(points)
        assert {points[i] for i in found} == brute_front(points)
        assert [points[i] for i in found] == sorted({points[i] for i in found})
        kept = keep_best(points, 7)
        assert len(kept) == 7
        least = min(range(20), key=lambda i: (points[i][1], points[i][0]))
        assert points[least] in [points[i] for i in kept]
        costs = choose(points, most_cost=4)
        fitting = [p[1] for p in points if p[0] <= 4]
        assert (costs is None) == (not fitting)
        assert costs is None or points[costs][1] == min(fitting)


def test_points_that_are_no_numbers_are_the_worst():
    points = [(1.0, math.nan), (2.0, 0.5), (3.0, math.inf)]
    assert front(points) == [1]
    assert keep_best(points, 2) == [0, 1]
    assert keep_best(points, 3) == [0, 1, 2]
    assert choose(points, most_error=0.1) is None
    assert choose(points, most_cost=5) == 1
    assert choose(points, most_error=0.6) == 1
