"""The tiny pipelines of the examples run, repeat themselves, and depend on seed and prompt."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).parents[1] / "examples"
sys.path.insert(0, str(EXAMPLES))

from tiny_pipelines import TINY, TinyPipeline, generate  # noqa: E402

NEEDED = ("diffusers", "transformers", "ftfy", "PIL")
needs_diffusers = pytest.mark.skipif(
    any([find_spec(name) is None for name in NEEDED]), reason=f"needs all of {', '.join(NEEDED)}"
)
NAMES = (
    *("flux", "flux-true-cfg", "flux-controlnet", "flux-img2img", "flux-inpaint"),
    *("wan", "wan22", "wan-i2v"),
    *("qwen-image", "qwen-image-edit", "qwen-image-edit-plus"),
    *("hunyuan-video", "hunyuan-video-true-cfg", "hunyuan-video-i2v"),
    *("cogvideox", "sd3", "ltx", "z-image", "pixart-sigma"),
)
VIDEOS = ("wan", "hunyuan", "cogvideox", "ltx")


def transformers(pipe):
    found = (getattr(pipe, name, None) for name in ("transformer", "transformer_2", "controlnet"))
    return [module for module in found if module is not None]


def test_the_names():
    assert tuple(TINY) == NAMES
    assert all(isinstance(tiny, TinyPipeline) and tiny.name == name for name, tiny in TINY.items())


def test_importing_the_collection_leaves_diffusers_out():
    code = "import sys, tiny_pipelines; print([n for n in ('diffusers', 'transformers', 'tokenizers') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=EXAMPLES, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_changes_replace_the_arguments_of_a_call():
    call = TINY["wan"].call(steps=3, prompt="a cube", guidance_scale=1.0)
    assert (call["num_inference_steps"], call["prompt"], call["guidance_scale"]) == (3, "a cube", 1.0)
    assert TINY["wan"].call()["guidance_scale"] == 5.0


@needs_diffusers
@pytest.mark.parametrize("name", NAMES)
def test_a_pipeline_runs_and_repeats_itself(name):
    torch.manual_seed(5)
    state = torch.get_rng_state()
    pipe = TINY[name].build()
    first = generate(name, pipe, steps=4)
    assert torch.equal(torch.get_rng_state(), state)  # neither weights nor noise come from the global generator

    assert first.dtype == torch.float32
    assert first.ndim == (5 if name.startswith(VIDEOS) else 4)
    assert first.shape[-3] == 3
    assert 0 <= first.min() <= first.max() <= 1  # also finite
    assert first.std() > 0.1
    assert torch.equal(generate(TINY[name], pipe, steps=4), first)
    for change in ({"seed": 1}, {"prompt": "two blue cubes"}):
        assert (generate(name, pipe, steps=4, **change) - first).abs().mean() > 1e-3


@needs_diffusers
@pytest.mark.parametrize("name", NAMES)
def test_the_weights_are_random_and_the_same_every_time(name):
    pipes = TINY[name].build(), TINY[name].build()
    for module, again in zip(*map(transformers, pipes), strict=True):
        assert not module.training
        for (key, value), other in zip(module.named_parameters(), again.parameters(), strict=True):
            assert value.any(), key
            assert torch.equal(value, other), key


@needs_diffusers
def test_each_expert_of_wan22_has_half_of_the_steps():
    pipe = TINY["wan22"].build()
    seen = []
    for name in ("transformer", "transformer_2"):
        getattr(pipe, name).register_forward_pre_hook(lambda *_, name=name: seen.append(name))
    generate("wan22", pipe, steps=4)
    assert seen == ["transformer"] * 4 + ["transformer_2"] * 4  # cond and uncond
