"""AdaTaylorCache against its published rule, restated here: plan, gaps, fallback and numbers, for every table."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor
from toy import quiet

from mindie_cache.telefuser import AdaTaylorCache

TABLES = json.loads(Path(__file__).with_name("data").joinpath("ada_taylor_tables.json").read_text())
BRANCHES = {True: "cond", False: "uncond"}


class Published:
    """TeleFuser's AdaTaylorCache, from its description."""

    def __init__(self, name: str, steps: int, order: int, distance: int, init_step: int, **changes: float):
        table = {**TABLES[name], **changes}
        self.order, self.distance = order, distance
        self.plans = {
            branch: self.plan(table, table[f"{key}_mag_ratios"], steps, init_step) for branch, key in BRANCHES.items()
        }
        self.counter = dict.fromkeys(BRANCHES, init_step - 1)
        self.computed = dict.fromkeys(BRANCHES, init_step - 1)
        self.ladder: dict[bool, list[Tensor]] = {branch: [] for branch in BRANCHES}

    def plan(self, table: dict, ratios: list[float], steps: int, init_step: int) -> set[int]:
        last = len(ratios) - 1
        if steps != len(ratios):
            ratios = [ratios[round(step * last / (steps - 1)) if steps > 1 else last] for step in range(steps)]
        computed, error, skips, product = set(), 0.0, 0, 1.0
        for step in range(steps):
            if not (step <= int(steps * table["retention_ratio"]) or step in (steps - 1, init_step)):
                product, skips = product * ratios[step], skips + 1
                error += abs(1 - product)
                if error < table["thresh"] and skips <= table["K"]:
                    continue
            computed.add(step)
            error, skips, product = 0.0, 0, 1.0
        return computed

    def should_compute(self, is_cond: bool) -> bool:
        self.counter[is_cond] += 1
        return self.counter[is_cond] in self.plans[is_cond]

    def update(self, output: Tensor, given: Tensor, is_cond: bool) -> None:
        gap, old, new = self.counter[is_cond] - self.computed[is_cond], self.ladder[is_cond], [output - given]
        for i in range(min(self.order, len(old))):
            new.append((new[i] - old[i]) / max(gap, 1))
        self.ladder[is_cond], self.computed[is_cond] = new, self.counter[is_cond]

    def approximate(self, given: Tensor, is_cond: bool) -> Tensor:
        ahead, ladder = self.counter[is_cond] - self.computed[is_cond], self.ladder[is_cond]
        used = ladder if ahead <= self.distance else ladder[:1]
        return given + sum(rung * ahead**i / math.factorial(i) for i, rung in enumerate(used))


def compare(cache: AdaTaylorCache, rule: Published, first: int, steps: int) -> None:
    generator = torch.Generator().manual_seed(steps)
    for branch in BRANCHES:
        assert cache.get_compute_steps(branch) == sorted(rule.plans[branch])
    for _ in range(first, steps):
        for branch in BRANCHES:
            given, output = torch.randn(2, 3, generator=generator, dtype=torch.float64).unbind(0)
            asked = cache.should_compute(branch)
            assert asked == rule.should_compute(branch) == cache.last_step_was_compute(branch)
            if asked:
                cache.update(output, given, branch)
                rule.update(output, given, branch)
            else:
                assert torch.allclose(cache.approximate(given, branch), rule.approximate(given, branch), rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("steps", [1, 2, 3, 10, 17, 20, 30, 40, 50, 64, 100])
def test_defaults(name, steps):
    with quiet():
        compare(AdaTaylorCache(name, steps), Published(name, steps, 1, 2, 0), 0, steps)


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize(("order", "distance", "init_step"), [(2, 2, 0), (2, 4, 9), (3, 3, 0), (0, 2, 0), (1, 1, 20)])
def test_orders_distances_and_the_second_expert(name, order, distance, init_step):
    with quiet():
        cache = AdaTaylorCache(name, 30, order, distance, init_step)
    compare(cache, Published(name, 30, order, distance, init_step), init_step, 30)


@pytest.mark.parametrize("changes", [{"K": 0}, {"thresh": 0.01}, {"thresh": 0.5, "K": 6}, {"retention_ratio": 0.6}])
def test_numbers_in_the_place_of_the_presets(changes):
    name = "Wan2_1-T2V-14B"
    cache = AdaTaylorCache(name, 50, **changes)
    compare(cache, Published(name, 50, 1, 2, 0, **changes), 0, 50)
    assert cache.get_compute_steps() != AdaTaylorCache(name, 50).get_compute_steps()


def test_the_better_mode_is_chosen_explicitly():
    with quiet():
        published, better = (AdaTaylorCache("Wan2_1-T2V-14B", 20, resampling=how) for how in ("nearest", "product"))
        default = AdaTaylorCache("Wan2_1-T2V-14B", 20)
    assert default.get_compute_steps() == published.get_compute_steps() != better.get_compute_steps()


def test_branches_may_have_plans_of_their_own():
    with quiet():
        plans = [AdaTaylorCache(name, steps) for name in TABLES for steps in range(10, 60)]
    assert any(cache.get_compute_steps(True) != cache.get_compute_steps(False) for cache in plans)
