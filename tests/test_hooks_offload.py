"""enable_cache beside offloading, adapters and fused projections: in any order, with the same result."""

from __future__ import annotations

from functools import cache

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")
pytest.importorskip("accelerate")
pytest.importorskip("peft")

from hooked import ENTRIES, EVERY_OTHER, TINY, denoisers, error, latents, linears_run, marks, of_blocks, only
from zoo.matrix import METHODS

from mindie_cache import branch, disable_cache, enable_cache
from mindie_cache.hooks.patches import Patch

CPU = torch.device("cpu")


def model_offload(pipe):
    """One model after the other; diffusers removes and renews these hooks at the end of every generation."""
    pipe.enable_model_cpu_offload(device="cpu:0")


def sequential_offload(pipe):
    """A hook around each module of the transformers that has weights of its own."""
    import accelerate

    for model in denoisers(pipe).values():
        accelerate.cpu_offload(model, CPU)


def group_offload(kind):
    def offload(pipe):
        pipe.enable_group_offload(onload_device=CPU, offload_device=CPU, offload_type=kind, num_blocks_per_group=1)

    return offload


def end_group_offload(pipe):
    for model in denoisers(pipe).values():
        for module in model.modules():
            registry = getattr(module, "_diffusers_hook", None)
            for name in list(registry.hooks) if registry else ():
                registry.remove_hook(name, recurse=False)


OFFLOADS = {
    "model": (model_offload, lambda pipe: pipe.remove_all_hooks()),
    "sequential": (sequential_offload, lambda pipe: pipe.remove_all_hooks()),
    "blocks": (group_offload("block_level"), end_group_offload),
    "leaves": (group_offload("leaf_level"), end_group_offload),
}
CHOSEN = (("flux", "whole stack"), ("wan22", "attention"))


def patches(pipe):
    return [
        v for model in denoisers(pipe).values() for m in model.modules() for v in vars(m).values() if isinstance(v, Patch)
    ]


@cache
def wanted(name, method):
    """What the cached pipeline gives without offloading, which steps were computed, what it gives without a cache."""
    pipe = TINY[name].build()
    bare = latents(name, pipe)
    with enable_cache(pipe, METHODS[method]) as handle:
        return latents(name, pipe), rows(handle), bare


def rows(handle):
    return {name: marks(report) for name, report in handle.report().models.items()}


@pytest.mark.parametrize(("name", "method"), CHOSEN)
@pytest.mark.parametrize("first", ["cache", "offload"])
@pytest.mark.parametrize("kind", OFFLOADS)
def test_offloading_before_or_after_enabling(kind, first, name, method):
    cached, steps, bare = wanted(name, method)
    pipe = TINY[name].build()
    start, end = OFFLOADS[kind]
    if first == "offload":
        start(pipe)
    handle = enable_cache(pipe, METHODS[method])
    if first == "cache":
        start(pipe)
    for _ in range(2):  # hooks that renew themselves do not drop the cache
        assert torch.equal(latents(name, pipe), cached)
        assert rows(handle) == steps

    if first == "offload":
        handle.disable()
        assert torch.equal(latents(name, pipe), bare)
        end(pipe)
    else:
        end(pipe)
        assert torch.equal(latents(name, pipe), cached)
        assert rows(handle) == steps
        disable_cache(pipe)
    assert not patches(pipe)
    assert torch.equal(latents(name, pipe), bare)
    with enable_cache(pipe, METHODS[method]):
        assert torch.equal(latents(name, pipe), cached)


@pytest.mark.parametrize("kind", OFFLOADS)
def test_the_cache_ends_while_offloading_goes_on(kind):
    cached, _, bare = wanted("flux", "whole stack")
    pipe = TINY["flux"].build()
    handle = enable_cache(pipe, METHODS["whole stack"])
    OFFLOADS[kind][0](pipe)
    assert torch.equal(latents("flux", pipe), cached)
    handle.disable()
    assert not patches(pipe)
    for _ in range(2):
        assert torch.equal(latents("flux", pipe), bare)
    OFFLOADS[kind][1](pipe)
    assert torch.equal(latents("flux", pipe), bare)


def adapter(model):
    from peft import LoraConfig

    torch.manual_seed(1)
    model.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=["to_q", "to_k"], init_lora_weights=False), "style")


@pytest.mark.parametrize("method", ["whole stack", "taylorseer"])
@pytest.mark.parametrize("first", ["cache", "adapter"])
def test_an_adapter_comes_and_goes(first, method):
    """As in a pipeline that had the adapter before it was cached."""
    answer, pipe = TINY["flux"].build(), TINY["flux"].build()
    with enable_cache(answer, METHODS[method]):
        plain = latents("flux", answer)
    adapter(answer.transformer)
    with enable_cache(answer, METHODS[method]):
        styled = latents("flux", answer)
    assert error(plain, styled) > 0.001

    if first == "adapter":
        adapter(pipe.transformer)
    with enable_cache(pipe, METHODS[method]):
        if first == "cache":
            assert torch.equal(latents("flux", pipe), plain)
            adapter(pipe.transformer)
        assert torch.equal(latents("flux", pipe), styled)
        pipe.transformer.disable_adapters()
        assert torch.equal(latents("flux", pipe), plain)
        pipe.transformer.enable_adapters()
        assert torch.equal(latents("flux", pipe), styled)
        pipe.transformer.delete_adapters("style")
        assert torch.equal(latents("flux", pipe), plain)


@pytest.mark.parametrize("kind", ["blocks", "leaves"])
def test_an_adapter_is_loaded_while_offloading(kind):
    """The pipeline takes its hooks off to load it, and puts them on again."""
    from peft import get_peft_model_state_dict

    answer, pipe = TINY["flux"].build(), TINY["flux"].build()
    adapter(answer.transformer)
    weights = get_peft_model_state_dict(answer.transformer, adapter_name="style")
    with enable_cache(answer, EVERY_OTHER):
        styled = latents("flux", answer)
    OFFLOADS[kind][0](pipe)
    with enable_cache(pipe, EVERY_OTHER) as handle:
        plain = latents("flux", pipe)
        pipe.load_lora_weights({f"transformer.{name}": value for name, value in weights.items()}, "style")
        for _ in range(2):
            assert torch.equal(latents("flux", pipe), styled)
            assert rows(handle) == {"transformer": {"cond": "#.#."}}
        pipe.unload_lora_weights()
        assert torch.equal(latents("flux", pipe), plain)
        assert rows(handle) == {"transformer": {"cond": "#.#."}}
    assert not patches(pipe)


@pytest.mark.parametrize("method", ["whole stack", "attention", "first_block"])
@pytest.mark.parametrize("name", ["flux", "qwen-image"])
def test_fused_projections(name, method):
    """Fusing is another order of sums: the results are equal up to rounding."""
    pipe = TINY[name].build()
    with enable_cache(pipe, METHODS[method]) as handle:
        before, steps = latents(name, pipe), rows(handle)
        with linears_run(pipe.transformer) as runs:
            pipe.transformer.fuse_qkv_projections()
            fused = latents(name, pipe)
        assert rows(handle) == steps
        assert error(fused, before) < 1e-3
        pipe.transformer.unfuse_qkv_projections()
        assert error(latents(name, pipe), before) < 1e-6
    assert runs


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("method", ["whole stack", "taylorseer lite", "attention", "teacache", "first_block"])
@pytest.mark.parametrize("name", ["FluxTransformer2DModel", "WanTransformer3DModel", "QwenImageTransformer2DModel"])
def test_half_precision(name, method, dtype):
    """Identity: with the same input a reused step is the computed one, up to the rounding of one sum."""
    entry = ENTRIES[name]
    model = entry.build().to(dtype)
    floats = ("timestep", "guidance")
    given = {
        key: value.to(dtype)
        if isinstance(value, torch.Tensor) and value.is_floating_point() and key not in floats
        else value
        for key, value in entry.inputs().items()
    }
    with torch.no_grad():
        bare = model(**given, return_dict=False)[0]
        with enable_cache(model, METHODS[method], num_inference_steps=6) as handle:
            for step in range(6):
                with branch(step=step):
                    found = model(**given, return_dict=False)[0]
                assert found.dtype == dtype
                assert error(found.float(), bare.float()) < 0.02
            assert "." in "".join(marks(only(handle)).values())


@pytest.mark.parametrize("name", ["flux", "wan", "sd3"])
def test_one_transformer_in_two_pipelines(name):
    """`from_pipe`: generations take turns, through whichever pipeline the cache was enabled."""
    from diffusers import FluxImg2ImgPipeline

    pipe = TINY[name].build()
    other = FluxImg2ImgPipeline.from_pipe(pipe) if name == "flux" else type(pipe).from_pipe(pipe)
    other.set_progress_bar_config(disable=True)
    kinds = (name, pipe), ("flux-img2img" if name == "flux" else name, other)
    with enable_cache(pipe, EVERY_OTHER) as handle:
        first = [latents(kind, owner, steps=steps) for steps in (4, 6) for kind, owner in kinds]
        assert "." in "".join(marks(only(handle)).values())
    with enable_cache(other, EVERY_OTHER):
        again = [latents(kind, owner, steps=steps) for steps in (4, 6) for kind, owner in kinds]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    with enable_cache(other, EVERY_OTHER), linears_run(*denoisers(pipe).values()) as runs:
        latents(*kinds[0])
    with linears_run(*denoisers(pipe).values()) as full:
        latents(*kinds[0])
    assert of_blocks(full) - of_blocks(runs) == of_blocks(full) // 2
