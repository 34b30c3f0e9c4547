"""Caching real generations of the trained testbed: exact where it must be, and as close as measured where it estimates."""

import logging
import math
from contextlib import contextmanager

import pytest
import torch

from mindie_cache import CacheAgent, CacheConfig
from mindie_cache.testbed import generate, load_testbed

STEPS = 30
PROMPTS = ["a red square moving left", "a cyan circle moving down"]
FIELDS = dict(blocks_count=12, steps_count=STEPS, step_start=6, step_interval=2, step_end=29)
# By method: the fields, and the PSNR in dB measured with the shipped weights, less 3. See docs/measurements.md.
METHODS = {
    "dit_block_cache": (FIELDS, 46.3),
    "dit_block_cache order 1": ({**FIELDS, "options": {"order": 1}}, 48.2),
    "attention_cache": ({**FIELDS, "step_end": 28}, 45.9),
    "attention_cache order 1": ({**FIELDS, "step_end": 28, "options": {"order": 1}}, 51.5),
}


@pytest.fixture(scope="module")
def model():
    return load_testbed()


def trajectory(model, **cache):
    """Latents after each step of one generation."""
    path = []
    generate(model, PROMPTS, seeds=[0, 1], steps=STEPS, callback=lambda step, x: path.append(x.clone()), **cache)
    return path


@pytest.fixture(scope="module")
def uncached(model):
    return trajectory(model)


@contextmanager
def attached(model, agent):
    holders = [model] if agent.config.method == "dit_block_cache" else list(model.transformer_blocks)
    try:
        for holder in holders:
            holder.cache = agent
        yield
    finally:
        for holder in holders:
            holder.cache = None


def psnr(image, reference):
    """Over latents, which are pixels in [-1, 1] here: peak to peak 2."""
    return 10 * math.log10(4.0 / (image - reference).square().mean().item())


@pytest.mark.parametrize("name", METHODS)
def test_generations_with_a_third_of_the_calls_reused(model, uncached, name):
    fields, least_psnr = METHODS[name]
    agent = CacheAgent(CacheConfig(name.split()[0], **fields))
    with attached(model, agent):
        first = trajectory(model)
        report = agent.report()
        if "order" not in name:  # the second generation equals the first
            assert all(torch.equal(a, b) for a, b in zip(trajectory(model), first, strict=True))
    assert report.share_computed == pytest.approx(19 / 30, abs=0.01)
    assert report.bytes_now == 0 < report.bytes_peak
    reused = min(record.step for record in report.steps if record.reused)
    assert reused == 7
    # Before the first reused step nothing differs from the model without a cache, to the last bit.
    assert all(torch.equal(a, b) for a, b in zip(first[:reused], uncached[:reused], strict=True))
    assert not torch.equal(first[reused], uncached[reused])
    measured = psnr(first[-1], uncached[-1])
    logging.getLogger(__name__).info("%s: %.1f dB", name, measured)
    assert measured > least_psnr, f"{measured:.1f} dB"


def test_adastep_skips_whole_forwards(model, uncached):
    agent = CacheAgent(CacheConfig("adastep", 1, STEPS, options={"skip_thr": 0.05}))
    images = trajectory(model, forward_cache=agent)[-1]
    report = agent.report()
    patterns = {branch: [r.reused for r in report.steps if r.branch == branch] for branch in ("cond", "uncond")}
    assert patterns["cond"] == patterns["uncond"]  # one decision serves both branches
    assert 0 < sum(patterns["cond"]) < STEPS - 4
    assert not any(patterns["cond"][:4])
    assert not patterns["cond"][-1]
    assert psnr(images, uncached[-1]) > 30.0


def test_disable_restores(model, uncached):
    assert model.cache is None
    assert all(block.cache is None for block in model.transformer_blocks)
    assert all(torch.equal(a, b) for a, b in zip(trajectory(model), uncached, strict=True))
