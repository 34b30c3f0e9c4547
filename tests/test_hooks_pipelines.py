"""enable_cache on every tiny pipeline, beside the same pipeline without a cache."""

from __future__ import annotations

import inspect

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from hooked import ALWAYS, EVERY_OTHER, TINY, denoisers, latents, linears_run, marks, of_blocks, traces

from mindie_cache import disable_cache, enable_cache

COND, TWO, BOTH, UNNAMED = ["cond"], ["cond", "uncond"], ["both"], ["first"]
BRANCHES = {
    **dict.fromkeys(("flux", "hunyuan-video"), COND),
    **dict.fromkeys(("flux-true-cfg", "hunyuan-video-true-cfg"), TWO),
    **dict.fromkeys(("wan", "wan22", "wan-i2v", "qwen-image", "qwen-image-edit", "qwen-image-edit-plus"), TWO),
    **dict.fromkeys(("cogvideox", "ltx", "sd3", "z-image"), BOTH),
    # these name no branch, and have one forward a step
    **dict.fromkeys(("flux-controlnet", "flux-img2img", "flux-inpaint", "hunyuan-video-i2v"), UNNAMED),
    "pixart-sigma": UNNAMED,  # both in one, but the pipeline does not say that it guides
}
FROM_A_PICTURE = ("flux-img2img", "flux-inpaint")  # strength 0.75: of 4 steps, 3 run
ROWS = {  # of "balanced" with 8 steps
    "wan22": {"#.#.", "____##.#"},  # the first step of the second expert has nothing to reuse
    **{name: {"#.#..#"} for name in FROM_A_PICTURE},
}
HEAVY = ("qwen-image-edit", "qwen-image-edit-plus")  # most of their time is for the picture that they start from
ONE_VIDEO = ("wan-i2v", "hunyuan-video-i2v")  # per prompt: these pipelines of diffusers fail with two


class Case:
    """A pipeline, what it gives without a cache, and how often its linear layers run in that."""

    def __init__(self, name: str):
        self.name = name
        self.pipe = TINY[name].build()
        if name in HEAVY:
            self.pipe.vae.encode = remembered(self.pipe.vae.encode)
        with linears_run(*denoisers(self.pipe).values()) as self.runs:
            self.bare = self.generate()
        self.traces = traces(self.pipe)
        self.steps = 3 if name in FROM_A_PICTURE else 4

    def generate(self, **changes):
        return latents(self.name, self.pipe, **changes)

    def marks(self, handle):
        return {name: marks(report) for name, report in handle.report().models.items()}


def remembered(function):
    """For calls that differ in nothing but the shape of the first argument."""
    results = {}
    return lambda x: results.get(x.shape) or results.setdefault(x.shape, function(x))


@pytest.fixture(scope="module", params=BRANCHES)
def case(request):
    return Case(request.param)


def test_every_pipeline_has_its_branches_here():
    assert sorted(BRANCHES) == sorted(TINY)


@pytest.mark.parametrize("method", ["first_block", "dit_block_cache"])
def test_computing_every_step_changes_nothing(case, method):
    every_step = {"method": "dit_block_cache", "options": {"compute_steps": tuple(range(case.steps))}}
    config = ALWAYS if method == "first_block" else every_step
    with enable_cache(case.pipe, config) as handle:
        with pytest.warns(match="reused nothing"):
            found = case.generate()
        assert torch.equal(found, case.bare)
        assert handle.report().share_computed == 1.0
    assert torch.equal(case.generate(), case.bare)


def test_a_schedule_saves_what_the_report_says(case):
    with enable_cache(case.pipe, EVERY_OTHER) as handle, linears_run(*denoisers(case.pipe).values()) as runs:
        found = case.generate()
    rows = "#.#."[: case.steps]
    if case.name == "wan22":  # the steps of both experts are those of the run
        wanted = {"transformer": dict.fromkeys(TWO, "#."), "transformer_2": dict.fromkeys(TWO, "__#.")}
    else:
        wanted = {"transformer": dict.fromkeys(BRANCHES[case.name], rows)}
    assert case.marks(handle) == wanted

    inside = of_blocks(case.runs)
    assert inside - of_blocks(runs) == inside * rows.count(".") // case.steps
    outside = sum(case.runs.values()) - inside  # once more for each model, when what it has kept is tried
    forwards, models = case.steps * len(BRANCHES[case.name]), len(denoisers(case.pipe))
    assert sum(runs.values()) - of_blocks(runs) == outside + models * outside // forwards
    assert not torch.equal(found, case.bare)


def test_balanced_needs_no_settings(case):
    models = denoisers(case.pipe).values()
    with linears_run(*models) as full:
        bare = case.generate(steps=8)
    with enable_cache(case.pipe, "balanced") as handle, linears_run(*models) as runs:
        found = case.generate(steps=8)
    assert handle.report().asked.startswith("balanced")
    rows = {row for found in case.marks(handle).values() for row in found.values()}
    assert rows == ROWS.get(case.name, {"#.#..#.#"})
    reused = sum(row.count(".") for row in rows) / sum(len(row.replace("_", "")) for row in rows)
    inside = of_blocks(full)
    assert inside - of_blocks(runs) == inside * reused
    assert 0 < (found - bare).abs().mean() < 0.5 * bare.abs().mean()


def test_the_next_generation_starts_afresh(case):
    """Other steps, prompt, size or batch than in the one before: as in a pipeline that is used for the first time."""
    number = "num_images_per_prompt" if "num_images_per_prompt" in inspect.signature(case.pipe.__call__).parameters else ""
    changes = [{"steps": 6}, {"prompt": "two blue cubes"}, {"height": 96}, {number or "num_videos_per_prompt": 2}]
    if case.name in HEAVY:
        changes = changes[:1]
    elif case.name in ONE_VIDEO:
        changes = changes[:3]
    wanted = []
    for change in [{}, *changes]:
        with enable_cache(case.pipe, EVERY_OTHER):
            wanted.append(case.generate(**change))
    with enable_cache(case.pipe, EVERY_OTHER):
        for change, expected in [({}, wanted[0]), *zip([{}, *changes], wanted, strict=True), ({}, wanted[0])]:
            assert torch.equal(case.generate(**change), expected), change


def test_disabling_leaves_nothing(case):
    enable_cache(case.pipe, EVERY_OTHER)
    enabled = traces(case.pipe)
    assert enabled != case.traces
    assert enabled[1:] == case.traces[1:]  # the state dict
    case.generate()
    disable_cache(case.pipe)
    assert traces(case.pipe) == case.traces
    assert torch.equal(case.generate(), case.bare)
