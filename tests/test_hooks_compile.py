"""torch.compile of blocks and of whole models under enable_cache: the same images, whole blocks, nothing compiled twice."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("diffusers")

SCRIPT = """
import sys, warnings
warnings.simplefilter("ignore")
sys.path.insert(0, {tests!r})
import torch
from mindie_cache import enable_cache
from zoo import ZOO

name, how, order, steps = {name!r}, {how!r}, {order!r}, 50
entry = next(entry for entry in ZOO if entry.name == name)
inputs = [entry.inputs(step=step / steps) for step in range(steps)]
config = {{"method": {method!r}, **{fields!r}}}

def play(model, steps=steps):
    with torch.no_grad():
        return [torch.utils._pytree.tree_leaves(model(**given))[0] for given in inputs[:steps]]

def compiled(model):
    from torch._dynamo.testing import CompileCounter
    counter = CompileCounter()
    if how.startswith("blocks"):
        model.compile_repeated_blocks(backend=counter, fullgraph=how == "blocks")
        return model, counter
    return torch.compile(model, backend=counter), counter

plain = entry.build()
with enable_cache(plain, config, num_inference_steps=steps):
    wanted = play(plain)

bare, bare_counter = compiled(entry.build())
play(bare, 3)
torch._dynamo.reset()
torch._dynamo.utils.counters.clear()

model = entry.build()
if order == "enabled first":
    handle = enable_cache(model, config, num_inference_steps=steps)
    model, counter = compiled(model)
else:
    model, counter = compiled(model)
    handle = enable_cache(model, config, num_inference_steps=steps)
play(model, 6)
early = counter.frame_count
handle.reset()
found = play(model)
reused = 1 - handle.report().share_computed
same = max(float((a - b).abs().max()) for a, b in zip(found, wanted))
print("RESULT", bare_counter.frame_count, early, counter.frame_count, reused, same)
"""


def run(name, how, order, method, **fields):
    """Graphs of the bare model, of the cached one early and after 50 steps, the share reused, the largest difference."""
    code = SCRIPT.format(tests=str(Path(__file__).parent), name=name, how=how, order=order, method=method, fields=fields)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    _, bare, early, late, reused, difference = next(
        line for line in done.stdout.splitlines() if line.startswith("RESULT")
    ).split()
    return int(bare), int(early), int(late), float(reused), float(difference)


@pytest.mark.parametrize("order", ["enabled first", "compiled first"])
@pytest.mark.parametrize(
    ("name", "method", "fields"),
    [
        ("FluxTransformer2DModel", "dit_block_cache", {"step_interval": 2}),
        ("WanTransformer3DModel", "taylorseer", {"options": {"lite": True, "interval": 3, "warmup_steps": 3}}),
        ("QwenImageTransformer2DModel", "first_block", {"options": {"threshold": 1e6, "max_skip_steps": 1}}),
    ],
)
def test_regional_compilation_has_the_graphs_of_the_bare_model(name, method, fields, order):
    bare, early, late, reused, difference = run(name, "blocks", order, method, **fields)
    assert (early, late) == (bare, bare)
    assert reused > 0.3
    assert difference < 1e-6


@pytest.mark.parametrize("order", ["enabled first", "compiled first"])
def test_modules_inside_compiled_blocks_are_skipped_too(order):
    fields = {"step_interval": 2}
    *_, reused, difference = run("WanTransformer3DModel", "blocks, broken", order, "attention_cache", **fields)
    assert reused == 0.5
    assert difference < 1e-6


@pytest.mark.parametrize("order", ["enabled first", "compiled first"])
@pytest.mark.parametrize("name", ["FluxTransformer2DModel", "WanTransformer3DModel"])
def test_a_whole_model_is_compiled_once_and_broken_between_blocks_only(name, order):
    _, early, late, reused, difference = run(name, "whole", order, "dit_block_cache", step_interval=2)
    assert early == late
    assert reused == 0.5
    assert difference < 1e-6


def test_a_copy_of_a_compiled_model_is_cached_too_and_disabling_leaves_it_compiled():
    import copy

    import torch
    from zoo import ZOO

    from mindie_cache import disable_cache, enable_cache

    entry = next(entry for entry in ZOO if entry.name == "WanTransformer3DModel")
    model = entry.build()
    model.compile_repeated_blocks(backend="eager")
    compiled = [block._compiled_call_impl for block in model.blocks]
    asked = {"method": "dit_block_cache", "step_interval": 2}
    handle = enable_cache(model, asked, num_inference_steps=4)

    def play(model):
        with torch.no_grad():
            return [model(**entry.inputs(step=step / 4))[0] for step in range(4)]

    wanted = play(model)
    assert handle.report().share_computed == 0.5
    twin = copy.deepcopy(model)
    assert all(torch.equal(a, b) for a, b in zip(play(twin), wanted, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(play(entry.build()), wanted, strict=True))
    disable_cache(twin)
    assert all(torch.equal(a, b) for a, b in zip(play(twin), play(entry.build()), strict=True))
    handle.disable()
    assert [block._compiled_call_impl for block in model.blocks] == compiled
    assert not any("forward" in vars(block) for block in (*model.blocks, *twin.blocks))


@pytest.mark.parametrize("chosen", [slice(0, 1), slice(-1, None), slice(1, 3)])
@pytest.mark.parametrize("order", ["enabled first", "compiled first"])
def test_some_blocks_are_compiled(chosen, order):
    """A last block that is entered after all would compute on the estimate, which is a wrong picture."""
    import torch
    from zoo import ZOO

    from mindie_cache import enable_cache

    entry = next(entry for entry in ZOO if entry.name == "FluxTransformer2DModel")
    asked = {"method": "dit_block_cache", "step_interval": 2}

    def play(model):
        with torch.no_grad():
            return [model(**entry.inputs(step=step / 4))[0] for step in range(4)]

    with enable_cache(plain := entry.build(), asked, num_inference_steps=4):
        wanted = play(plain)
    model = entry.build()
    handle = enable_cache(model, asked, num_inference_steps=4) if order == "enabled first" else None
    for block in [*model.transformer_blocks, *model.single_transformer_blocks][chosen]:
        block.compile(backend="eager")
    handle = handle or enable_cache(model, asked, num_inference_steps=4)
    assert all(torch.equal(one, other) for one, other in zip(play(model), wanted, strict=True))
    assert handle.report().share_computed == 0.5


EARLY = """
import sys, warnings
warnings.simplefilter("ignore")
sys.path.insert(0, {tests!r})
from pathlib import Path
import torch
import mindie_cache
from hooked import EVERY_OTHER, Stepper

model = Stepper()
mindie_cache.enable_cache(model, EVERY_OTHER, num_inference_steps=4)
assert "torch._dynamo" not in sys.modules
compiled = torch.compile(model, backend="eager")
with torch.no_grad():
    print("RESULT", [float(compiled(torch.zeros(1), torch.tensor([4.0 - step]))) for step in range(4)])
package = str(Path(mindie_cache.__file__).parent)
frames = torch._dynamo.utils.get_compilation_metrics()
assert any(str(frame.co_filename).endswith("hooked.py") for frame in frames)
own = {{frame.co_name for frame in frames if str(frame.co_filename).startswith(package)}}
print("OWN", sorted(own - {{"__call__", "forward", "stay_eager", "_compiler"}}))  # those that find the compiler
"""


def test_what_looks_at_a_forward_is_not_compiled_also_if_the_compiler_came_later():
    code = EARLY.format(tests=str(Path(__file__).parent))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "RESULT [24.0, 24.0, 12.0, 12.0]" in done.stdout
    assert "OWN []" in done.stdout
