"""Generations that are broken off, fail, change half-way or run beside each other leave nothing to the next one."""

from __future__ import annotations

import contextlib
import copy
import functools
import threading

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from hooked import ENTRIES, EVERY_OTHER, TINY, Stepper, error, latents, marks, only
from zoo.matrix import METHODS

from mindie_cache import branch, enable_cache

NAMES = ("flux", "flux-img2img", "wan", "wan22", "sd3", "z-image", "qwen-image", "cogvideox")


@pytest.fixture(scope="module", params=NAMES)
def tiny(request):
    return request.param, TINY[request.param].build()


def stop(pipe, step, timestep, values):
    pipe._interrupt = step >= 1
    return values


def fail(pipe, step, timestep, values):
    if step == 1:
        raise InterruptedError
    return values


@contextlib.contextmanager
def raising(pipe, error, after, inner):
    """An inner linear layer, or the last of the model, raises `error` at its call number `after`."""
    model = pipe.transformer
    linears = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
    calls = iter(range(10**6))

    def hook(*_):
        if next(calls) == after:
            raise error

    handle = linears[len(linears) // 2 if inner else -1].register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def disturbances(pipe):
    nothing = contextlib.nullcontext()
    yield "interrupted", {"callback_on_step_end": stop}, nothing, ()
    yield "the callback fails", {"callback_on_step_end": fail}, nothing, InterruptedError
    for after in (0, 1):
        yield "a block fails", {}, raising(pipe, ArithmeticError, after, inner=True), ArithmeticError
    yield "behind the blocks", {}, raising(pipe, KeyboardInterrupt, 1, inner=False), KeyboardInterrupt


@pytest.mark.filterwarnings("ignore::mindie_cache.CacheWarning")
@pytest.mark.parametrize("method", ["whole stack", "taylorseer", "fastercache"])
def test_the_next_generation_is_as_the_first(tiny, method):
    name, pipe = tiny
    with enable_cache(pipe, METHODS[method]):
        wanted = latents(name, pipe)
        for what, options, context, expected in disturbances(pipe):
            with context, pytest.raises(expected) if expected else contextlib.nullcontext():
                latents(name, pipe, seed=3, prompt="something else", **options)
            pipe._interrupt = False
            assert torch.equal(latents(name, pipe), wanted), what


@pytest.mark.parametrize("embedded", [False, True], ids=["timestep", "timestep and embeddings"])
def test_a_loop_of_ones_own_is_played_again_and_again(embedded):
    """A transformer without its pipeline: generations have the same steps, also after one that was broken off."""
    model = Stepper()

    def play(prompt, steps=6):
        found = []
        for step in range(steps):
            given = {"timestep": torch.tensor([5.0 - step])}
            if embedded:
                given["encoder_hidden_states"] = torch.full((1, 3), prompt)
            found.append(float(model(torch.zeros(1, 2), **given)[0, 0]) / 6 - (prompt if embedded else 0))
        return found

    with enable_cache(model, EVERY_OTHER, num_inference_steps=6) as handle:
        for broken in (6, 2, 3, 4, 5, 6):
            play(100.0, broken)
            assert play(300.0) == [5, 5, 3, 3, 1, 1], broken
            assert marks(only(handle)) == {"first": "#.#.#."}
        play(100.0, 1)  # the next generation begins at the same timestep: perhaps it is only another call in this step
        computed = play(300.0)
        assert all(0 <= source - (5 - step) <= 1 for step, source in enumerate(computed))


@pytest.mark.filterwarnings("ignore:fastercache reused nothing")
@pytest.mark.parametrize("method", ["whole stack", "first_block", "taylorseer", "fastercache", "teacache"])
@pytest.mark.parametrize("change", [{"batch": 2}, {"size": 1}], ids=["batch", "size"])
def test_another_batch_or_size_half_way_is_computed(method, change):
    entry = ENTRIES["FluxTransformer2DModel"]
    model = entry.build()
    with torch.no_grad(), enable_cache(model, METHODS[method], num_inference_steps=6):
        for step in range(6):
            given = entry.inputs(step=step / 6, **(change if step >= 3 else {}))
            found = model(**given, return_dict=False)[0]
            if step == 3:
                changed = found, given
    found, given = changed
    assert torch.equal(found, model(**given, return_dict=False)[0])


@pytest.mark.parametrize("method", ["first_block", "teacache", "dynamic_block", "custom"])
def test_a_signal_that_is_not_a_number_is_computed_and_said(method):
    entry = ENTRIES["FluxTransformer2DModel"]
    model = entry.build()
    given = entry.inputs()
    given["hidden_states"] = given["hidden_states"] * float("nan")
    config = {"method": method, "options": {"threshold": 1e6}}
    if method in ("teacache", "custom"):
        given = {**entry.inputs(), "timestep": torch.full((1,), float("nan"))}

    def play():
        for step in range(4):
            with branch(step=step):
                model(**given)

    with torch.no_grad(), enable_cache(model, config, num_inference_steps=4) as handle:
        with pytest.warns() as caught:
            play()
        messages = [str(entry.message) for entry in caught]
        assert len([text for text in messages if "NaN or infinite" in text]) == 1
        assert "." not in "".join(marks(only(handle)).values())


def other_pipeline(pipe):
    """Another pipeline around the same models, with a scheduler of its own."""
    return type(pipe)(**{**pipe.components, "scheduler": copy.deepcopy(pipe.scheduler)})


def in_turns(function, lock):
    @functools.wraps(function)
    def locked(*args, **kwargs):
        with lock:
            return function(*args, **kwargs)

    return locked


@pytest.mark.filterwarnings("ignore:The model is used by another pipeline")  # which has as many steps here
@pytest.mark.parametrize("method", ["whole stack", "first_block"])
@pytest.mark.parametrize("name", ["flux", "wan", "flux-true-cfg", "sd3", "z-image"])
def test_two_threads_on_one_transformer(name, method):
    """One generation in each, in turns: what each gives is what it gives alone."""
    pipe = TINY[name].build()
    other = other_pipeline(pipe)
    other.set_progress_bar_config(disable=True)
    lock = threading.Lock()  # the tokenizers that both share are not for two threads
    for owner in (pipe, other):
        owner.encode_prompt = in_turns(owner.encode_prompt, lock)
    jobs = [(pipe, {"steps": 6}), (other, {"steps": 6, "seed": 5, "prompt": "two blue cubes"})]
    with enable_cache(pipe, METHODS[method]):
        alone = [latents(name, owner, **options) for owner, options in jobs]
        gate = threading.Barrier(2, timeout=10)
        hook = pipe.transformer.register_forward_pre_hook(lambda *_: [gate.wait()][1:] or None)
        found = {}
        threads = [
            threading.Thread(target=lambda i=i, o=o, c=c: found.update({i: latents(name, o, **c)}))
            for i, (o, c) in enumerate(jobs)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        hook.remove()
        assert torch.equal(found[0], alone[0])
        assert torch.equal(found[1], alone[1])
    bare = latents(name, pipe, steps=6)
    assert error(alone[0], bare) > 0


def test_another_pipeline_with_more_steps_and_a_scheduler_of_its_own():
    """The number of its steps is not known, which is said; what it computes is right."""
    pipe = TINY["flux"].build()
    other = other_pipeline(pipe)
    other.set_progress_bar_config(disable=True)
    with enable_cache(other, EVERY_OTHER):
        wanted = latents("flux", other, steps=8)
    with enable_cache(pipe, EVERY_OTHER):
        latents("flux", pipe, steps=4)
        with pytest.warns(match="used by another pipeline|the one that generates"):
            found = latents("flux", other, steps=8)
    assert torch.equal(found, wanted)  # the schedule is the same after a fresh start at step 4
