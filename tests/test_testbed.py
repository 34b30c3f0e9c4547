"""The testbed keeps its promises: honest data, a judge that can be trusted, a model that any cache can be put into."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from mindie_cache.testbed import (
    TestbedConfig,
    TestbedTransformer,
    accuracy,
    all_prompts,
    data,
    generate,
    judge,
    load_testbed,
    read,
    render,
    save_testbed,
    sigmas,
    to_video,
    training,
)
from mindie_cache.testbed.weights import WEIGHTS_PATH

PROMPTS = all_prompts()
TINY = TestbedConfig(dim=24, blocks=2)


class PassThrough:
    """A cache that never skips, and counts."""

    def __init__(self) -> None:
        self.calls = 0

    def apply(self, function, /, **inputs):
        self.calls += 1
        return function(**inputs)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def tiny_model() -> TestbedTransformer:
    """An untrained model whose output depends on all of its blocks."""
    torch.manual_seed(0)
    model = TestbedTransformer(TINY).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.add_(0.05 * torch.randn(parameter.shape))
    return model


@pytest.fixture(scope="module")
def trained() -> TestbedTransformer:
    return load_testbed()


# --- data and prompts


def test_every_prompt_renders_in_range_and_inside_the_frame():
    latents = render(PROMPTS * 4, seeded())
    assert latents.shape == (4 * len(PROMPTS), 3, data.FRAMES, data.HEIGHT, data.WIDTH)
    assert latents.min() >= -1
    assert latents.max() <= 1
    light = (latents - latents.amin(dim=(2, 3, 4), keepdim=True)).sum(dim=(1, 3, 4))  # a cut shape would lose light
    assert (light.amin(dim=1) / light.amax(dim=1)).min() > 0.9


def test_rendering_is_a_function_of_the_seed():
    assert torch.equal(render(PROMPTS[:3], seeded(1)), render(PROMPTS[:3], seeded(1)))
    assert not torch.equal(render(PROMPTS[:3], seeded(1)), render(PROMPTS[:3], seeded(2)))


def test_tokens_tell_all_prompts_apart():
    ids = data.tokenize(PROMPTS)
    assert ids.shape == (len(PROMPTS), data.TOKENS)
    assert len(ids.unique(dim=0)) == len(PROMPTS)
    assert (ids != data.null_tokens(len(PROMPTS))).all()


@pytest.mark.parametrize(
    "prompt",
    ["", "a red square", "a mauve square moving left", "red square moving left a", "a <null> square moving left"],
)
def test_bad_prompt_is_refused_with_the_vocabulary_and_an_example(prompt):
    with pytest.raises(ValueError, match="is not valid") as error:
        data.tokenize([prompt])
    for expected in (repr(prompt), "magenta", "triangle", "down", data.EXAMPLE_PROMPT):
        assert expected in str(error.value)


# --- judge


def test_judge_reads_real_videos_with_mild_noise():
    prompts = PROMPTS * 5
    videos = to_video(render(prompts, seeded()))
    noisy = (videos + 0.04 * torch.randn(videos.shape, generator=seeded(1))).clamp(0, 1)
    assert accuracy(noisy, prompts).overall > 0.995


def test_judge_reads_nothing_where_there_is_nothing():
    background = torch.tensor(data.BACKGROUND).expand(1, data.FRAMES, data.HEIGHT, data.WIDTH, 3)
    assert read(background) == [judge.Reading(None, None, None, 0.0)]
    still = to_video(render(["a cyan cross moving up"], seeded()))[:, :1].expand(-1, data.FRAMES, -1, -1, -1)
    assert read(still)[0].direction is None


def test_judge_sees_the_video_played_backwards_and_turned_around():
    videos = to_video(render(["a yellow circle moving left"], seeded()))
    assert read(videos)[0].agrees("a yellow circle moving left")
    assert read(videos.flip(1))[0].agrees("a yellow circle moving right")
    assert read(videos.transpose(2, 3))[0].agrees("a yellow circle moving up")


def test_judge_refuses_latents():
    with pytest.raises(ValueError, match="to_video"):
        read(render(PROMPTS[:1]))


# --- model


def test_pass_through_cache_changes_no_bit():
    model = tiny_model()
    inputs = {
        "hidden_states": render(PROMPTS[:2], seeded()),
        "timestep": torch.tensor([900.0, 300.0]),
        "encoder_hidden_states": data.tokenize(PROMPTS[:2]),
    }
    plain = model(**inputs)
    assert plain.shape == inputs["hidden_states"].shape
    over_blocks, over_attention = PassThrough(), PassThrough()
    model.cache = over_blocks
    for block in model.transformer_blocks:
        block.cache = over_attention
    assert torch.equal(model(**inputs), plain)
    assert over_blocks.calls == over_attention.calls == TINY.blocks


def test_skipping_a_block_changes_the_output():
    """The cache decides for real: a block that it skips is missed."""

    class SkipFirst(PassThrough):
        def apply(self, function, /, **inputs):
            skipped = self.calls == 0
            result = super().apply(function, **inputs)
            return (inputs["hidden_states"], inputs["encoder_hidden_states"]) if skipped else result

    model = tiny_model()
    inputs = (render(PROMPTS[:1], seeded()), torch.tensor([500.0]), data.tokenize(PROMPTS[:1]))
    plain = model(*inputs)
    model.cache = SkipFirst()
    assert not torch.allclose(model(*inputs), plain)


def test_embeddings_may_be_given_instead_of_token_ids():
    model = tiny_model()
    latents, timestep, ids = render(PROMPTS[:1], seeded()), torch.tensor([500.0]), data.tokenize(PROMPTS[:1])
    assert torch.equal(model(latents, timestep, model.token_embedding(ids)), model(latents, timestep, ids))


def test_impossible_sizes_are_refused():
    with pytest.raises(ValueError, match="patch"):
        TestbedConfig(height=25)
    with pytest.raises(ValueError, match="heads"):
        TestbedConfig(dim=90)


def test_weights_round_trip(tmp_path):
    model = tiny_model()
    save_testbed(model, tmp_path / "weights.safetensors", {"steps": 0})
    again = load_testbed(path=tmp_path / "weights.safetensors")
    assert again.config == model.config
    for saved, loaded in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(saved.half().float(), loaded)
    assert [path.name for path in tmp_path.iterdir()] == ["weights.safetensors"]


# --- sampler


def test_sigmas_fall_from_one_to_zero_and_the_shift_keeps_them_high():
    levels = sigmas(10, shift=3.0)
    assert levels[[0, -1]].tolist() == [1, 0]
    assert (levels.diff() < 0).all()
    assert (levels[1:-1] > sigmas(10, shift=1.0)[1:-1]).all()


def test_a_sample_does_not_depend_on_its_batch():
    model = tiny_model()
    together = generate(model, PROMPTS[:3], seeds=[4, 5, 6], steps=3)
    alone = generate(model, PROMPTS[1:2], seeds=[5], steps=3)
    torch.testing.assert_close(alone.latents[0], together.latents[1], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(together.latents[0], together.latents[1])


def test_two_calls_a_step_reach_the_forward_cache_and_the_callback_sees_each_step():
    model, cache, seen = tiny_model(), PassThrough(), []
    result = generate(
        model, PROMPTS[:1], seeds=[0], steps=4, forward_cache=cache, callback=lambda step, _: seen.append(step)
    )
    assert cache.calls == 8
    assert seen == [0, 1, 2, 3]
    assert torch.equal(result.latents, generate(model, PROMPTS[:1], seeds=[0], steps=4).latents)


def test_one_seed_per_prompt():
    with pytest.raises(ValueError, match="one seed per prompt"):
        generate(tiny_model(), PROMPTS[:2], seeds=[0])


# --- training


def test_orthogonalise_brings_singular_values_near_one():
    for shape in ((2, 24, 96), (2, 96, 24)):
        values = torch.linalg.svdvals(training.orthogonalise(torch.randn(shape, generator=seeded()), iterations=5))
        assert values.min() > 0.6
        assert values.max() < 1.3


def test_learning_rate_starts_and_ends_at_zero():
    factors = [training.learning_rate_factor(step / 100) for step in range(101)]
    assert factors[0] == factors[100] == 0
    assert max(factors) == 1.0
    assert factors[2:] == sorted(factors[2:], reverse=True)


def test_a_resumed_run_continues_bit_for_bit(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "examples")
    example = importlib.import_module("train_testbed")
    options = example.parse_options(["--steps=4", "--dim=24", "--blocks=2", "--batch-size=2", "--precision=fp32"])
    straight = example.Trainer(options)
    losses = [straight.step() for _ in range(2)]
    straight.save(tmp_path / "checkpoint.pt")
    losses += [straight.step() for _ in range(2)]
    resumed = example.Trainer(options)
    resumed.restore(tmp_path / "checkpoint.pt")
    assert [resumed.step() for _ in range(2)] == losses[2:]
    for left, right in zip(straight.average.parameters(), resumed.average.parameters(), strict=True):
        assert torch.equal(left, right)


# --- shipped weights


def test_shipped_weights_are_small_and_say_how_they_were_made():
    assert WEIGHTS_PATH.stat().st_size <= 8_000_000
    with safe_open(WEIGHTS_PATH, framework="pt") as file:
        assert {"config", "provenance"} <= set(file.metadata())


def test_shipped_weights_follow_the_prompt(trained):
    prompts = PROMPTS[::12]
    videos = generate(trained, prompts, seeds=range(len(prompts)), steps=20).videos
    assert accuracy(videos, prompts).overall >= 0.75
