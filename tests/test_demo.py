"""The demo: what it compares, that its numbers are right, its files, and that the model stays as it was."""

import json
import math
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image

from mindie_cache import CacheAgent, CacheConfig, ConfigError, ParametersInvalid
from mindie_cache.demo import Batch, DemoOptions, attached, compare, default_settings, psnr, run_demo, runner, session
from mindie_cache.demo.attach import ATTENTION, BLOCK, FORWARD
from mindie_cache.demo.options import QUICK_PROMPTS, QUICK_STEPS
from mindie_cache.demo.plan import LEAST_STEPS, Setting, default_prompts, quick_settings, read_settings, uncached
from mindie_cache.demo.runner import run_sample, steps_total
from mindie_cache.demo.table import summary
from mindie_cache.demo.work import operations, share_computed
from mindie_cache.recipes import METHODS, bypass_reason
from mindie_cache.testbed import TestbedConfig, TestbedTransformer, all_prompts

BLOCKS = 3
PROMPT = "a red square moving left"
BATCH = Batch((PROMPT, "a cyan cross moving up"), (0, 1))


@pytest.fixture
def model():
    """Random weights, none of them silent."""
    torch.manual_seed(0)
    transformer = TestbedTransformer(TestbedConfig(patch=(4, 8, 8), dim=24, blocks=BLOCKS, heads=2))
    for weight in transformer.parameters():
        torch.nn.init.normal_(weight, std=0.1)
    return transformer.eval().requires_grad_(False)


def caches(model):
    return [place.cache for place in (model, *model.transformer_blocks)]


def one_setting(folder):
    """Options of a demo that is over soon; its files go to `folder`."""
    block_cache(steps=4).to_yaml(folder / "mine.yaml")
    return DemoOptions(prompts=(PROMPT,), steps=4, repeats=1, configs=(folder / "mine.yaml",), only_config=True, out=folder)


def block_cache(steps=6, **fields):
    return CacheConfig("dit_block_cache", BLOCKS, steps, **{"step_start": 1, "step_interval": 2, **fields})


# ------------------------------------------------------------------------------------------------ plan


@pytest.mark.parametrize(("steps", "blocks"), [(LEAST_STEPS, 2), (5, 2), (6, 3), (9, 12), (30, 12), (50, 40)])
def test_settings_are_valid_for_any_size(steps, blocks):
    settings = default_settings(steps, blocks)
    assert len({setting.name for setting in settings}) == len(settings)
    for setting in settings:
        assert setting.steps >= 1
        assert [bypass_reason(config.validated()) for config in setting.configs] == [""] * len(setting.configs)
        assert all(config.steps_count == steps for config in setting.configs)


def test_every_method_is_in_the_demo():
    full = default_settings(30, 12)
    methods = {config.method for setting in full for config in setting.configs}
    assert methods == set(METHODS) - {"calibrator", "dual_block", "plan_blocks"}  # the last two are others on other blocks
    for settings in (full, quick_settings(30, 12)):
        assert any(not setting.configs and setting.steps < 30 for setting in settings)  # the honest baseline


def test_default_prompts_are_valid_and_cover_much():
    prompts = [prompt for batch in range(4) for prompt in default_prompts(batch, 6)]
    assert set(prompts) <= set(all_prompts())
    assert len(set(prompts)) == 24
    assert all(len({prompt.split()[1] for prompt in default_prompts(batch, 6)}) == 6 for batch in range(4))


def test_no_seed_comes_twice():
    seeds = [seed for batch in DemoOptions(seed=5).batches() for seed in batch.seeds]
    assert seeds == list(range(5, 23))
    assert DemoOptions(prompts=(PROMPT,), repeats=3).batches() == [Batch((PROMPT,), (seed,)) for seed in range(3)]


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"steps": 3}, ConfigError, "steps=3 .*from 4"),
        ({"repeats": 0}, ConfigError, "repeats=0"),
        ({"seed": -1}, ConfigError, "seed=-1"),
        ({"only_config": True}, ConfigError, "--config"),
        ({"prompts": (PROMPT, "a red dog moving left")}, ParametersInvalid, r"\['dog'\].*square"),
    ],
)
def test_options_are_checked(fields, error, message):
    with pytest.raises(error, match=message):
        DemoOptions(**fields)


def test_configurations_from_files(tmp_path):
    block_cache(step_end=5).to_yaml(tmp_path / "mine.yaml")
    CacheConfig("adastep", 1, 6).to_json(tmp_path / "mine.json")
    names = [setting.name for setting in read_settings([tmp_path / "mine.yaml", tmp_path / "mine.json"], 6, BLOCKS)]
    assert names == ["mine", "mine #2"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.yaml", None, "cannot be read: No such file"),
        ("a.toml", "", "a.toml: '.toml' is not a known format. .*Allowed: .json, .yaml, .yml"),
        ("a.yaml", "method: dit_block_cache\nblocks_count: 4\nsteps_count: 6", "blocks_count=4 .*Set blocks_count: 3"),
        ("a.yaml", "method: adastep\nblocks_count: 1\nsteps_count: 7", "steps_count=7 .*Set steps_count: 6 .*--steps"),
        ("a.json", '{"method": "adastep", "block_count": 1}', "Did you mean 'blocks_count'"),
        ("a.json", "{", "not valid JSON"),
        ("a.yaml", "- method", "mapping"),
    ],
)
def test_wrong_configuration_files(tmp_path, name, text, message):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_settings([tmp_path / name], 6, BLOCKS)


# ------------------------------------------------------------------------------------------------ attach


def test_each_method_goes_to_its_place_and_away_again(model):
    configs = [block_cache(), CacheConfig("attention_cache", BLOCKS, 6, 1, 2), CacheConfig("adastep", 1, 6)]
    with attached(model, configs) as on:
        assert [agent.config for agent in on.agents] == [config.validated() for config in configs]
        assert caches(model) == [on.agents[0], *[on.agents[1]] * BLOCKS]
        assert on.forward_cache is on.agents[2]
    assert caches(model) == [None] * (1 + BLOCKS)


def test_a_cache_that_was_there_comes_back_also_after_an_error(model):
    mine = model.cache = CacheAgent(block_cache())

    def fail(*args):
        raise RuntimeError("out of memory")

    model.transformer_blocks[1].attn.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        run_sample(model, Setting("all", "", 6, (CacheConfig("attention_cache", BLOCKS, 6, 1, 2),)), BATCH)
    assert caches(model) == [mine, *[None] * BLOCKS]


def test_two_caches_for_the_same_calls(model):
    with pytest.raises(ConfigError, match="Keep one of each kind"), attached(model, [block_cache(), block_cache()]):
        pass
    assert caches(model) == [None] * (1 + BLOCKS)


# ------------------------------------------------------------------------------------------------ measurements


def test_operations_are_those_of_the_layers(model):
    """Matrix products of one block by hand: two streams of tokens through their layers, and attention over both."""
    cost, dim, video, text = operations(model.config), 24, 2 * 3 * 3, 5
    projections = 2 * (video + text) * dim * (3 * dim + dim)  # to_qkv and to_out
    attention = 2 * 2 * (video + text) ** 2 * dim  # scores and their use
    feed_forward = 2 * (video + text) * 2 * dim * 4 * dim
    assert cost[ATTENTION] == projections + attention
    assert cost[BLOCK] == projections + attention + feed_forward
    assert cost[FORWARD] > BLOCKS * cost[BLOCK]


@pytest.mark.parametrize("setting", [uncached(8), *default_settings(8, BLOCKS)], ids=lambda setting: setting.name)
def test_share_computed_agrees_with_the_calls_that_were_made(model, setting):
    """Hooks on the modules count what ran: the forwards, the attentions, and the rest of the blocks."""
    counts = dict.fromkeys(("forward", "attention", "rest"), 0)

    def count(name):
        def hook(*args):
            counts[name] += 1

        return hook

    model.register_forward_hook(count("forward"))
    for block in model.transformer_blocks:
        block.attn.register_forward_hook(count("attention"))
        block.ff.register_forward_hook(count("rest"))
    cost = operations(model.config)
    sample = run_sample(model, setting, BATCH)
    rest = cost[BLOCK] - cost[ATTENTION]
    done = counts["attention"] * cost[ATTENTION] + counts["rest"] * rest
    done += counts["forward"] * (cost[FORWARD] - BLOCKS * cost[BLOCK])
    expected = done / (2 * 8 * cost[FORWARD])
    assert share_computed(cost, sample.reports, setting.steps, 8) == pytest.approx(expected)
    assert expected == 1 if setting.name == "uncached" else expected <= 1


def test_compare_measures_likeness_to_the_uncached_run_of_the_same_batch(model):
    off = Setting("off", "", 6, (block_cache(step_interval=1),))
    some = Setting("some", "", 6, (block_cache(),))
    steps = []
    settings, batches = [uncached(6), off, some], [BATCH, BATCH, BATCH]
    reference, same, other = compare(model, settings, batches, steps.append)
    order = ["uncached", "off", "some", "uncached"]
    assert steps == [name for names in (order, order[::-1], order) for name in names for _ in range(6)]
    assert len(steps) == steps_total(settings, batches)
    assert reference.ratios == [1.0] * 3
    assert same.psnr == [math.inf] * 6
    assert same.share == 1.0
    assert "step_interval=1" in same.notes[0]
    assert other.psnr == psnr(other.videos, reference.videos) * 3
    assert all(value < 100 for value in other.psnr)
    assert other.ratios == [a / b for a, b in zip(reference.seconds, other.seconds, strict=True)]
    assert other.bytes_peak > 0
    text = summary([reference, same, other])
    assert "same" in text
    assert "##.#.#  blocks" in text
    assert "note: off: dit_block_cache is off" in text


def test_settings_are_compared_with_the_mean_of_an_uncached_run_before_and_one_after(model, monkeypatch):
    """On a clock that the settings advance: a machine that slows down evenly does not look like a slow-down by a cache."""
    seconds = iter([9.0, 1.0, 2.0, 3.0, 3.0, 2.0, 1.0])  # warm-up; a repetition each way
    ticks = iter([tick for second in seconds for tick in (0.0, second)])
    monkeypatch.setattr(runner, "perf_counter", lambda: next(ticks))
    reference, some = compare(model, [uncached(4), Setting("some", "", 4)], [BATCH, BATCH])
    assert (reference.seconds, some.seconds) == ([2.0, 2.0], [2.0, 2.0])
    assert (reference.speedup, some.speedup) == (1.0, 1.0)


# ------------------------------------------------------------------------------------------------ files


def test_the_demo_writes_its_files(model, tmp_path):
    block_cache(steps=QUICK_STEPS).to_yaml(tmp_path / "mine.yaml")
    run_demo(DemoOptions(quick=True, configs=(tmp_path / "mine.yaml",), out=tmp_path / "new" / "out"), model)
    assert caches(model) == [None] * (1 + BLOCKS)
    sheet, gif, results = (tmp_path / "new" / "out" / name for name in ("contact_sheet.png", "demo.gif", "results.json"))
    with Image.open(sheet) as picture:
        assert picture.format == "PNG"
        assert picture.width > picture.height / 2 > 200
        assert len(picture.convert("RGB").getcolors(1 << 24)) > 100
    with Image.open(gif) as picture:
        assert (picture.n_frames, picture.info["loop"]) == (model.config.frames, 0)
    found = json.loads(results.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    names = [entry["name"] for entry in found["settings"]]
    assert names == ["uncached", *(setting.name for setting in quick_settings(QUICK_STEPS, BLOCKS)), "mine"]
    assert found["versions"]["torch"] == torch.__version__.split("+")[0] or found["versions"]["torch"] == torch.__version__
    assert (found["device"], found["arguments"]["steps"], found["arguments"]["configs"]) == (
        "cpu",
        QUICK_STEPS,
        ["mine.yaml"],
    )
    assert [len(batch["prompts"]) for batch in found["batches"]] == [QUICK_PROMPTS]
    reference, mine = found["settings"][0], found["settings"][-1]
    assert (reference["psnr_db"], reference["ssim"], reference["speedup"]) == (None, pytest.approx(1.0), 1.0)
    assert mine["configs"] == [block_cache(steps=QUICK_STEPS).to_dict()]
    assert [cache["steps"] for cache in mine["caches"]] == [
        dict.fromkeys(("cond", "uncond"), "##" + ".#" * (QUICK_STEPS // 2 - 1))
    ]
    for entry in found["settings"]:
        assert len(entry["seconds"]) == 1
        assert all(len(entry[key]) == QUICK_PROMPTS for key in ("psnr_db_per_video", "ssim_per_video", "right_per_video"))


def test_long_names_many_prompts_and_only_configurations(model, tmp_path):
    path = tmp_path / f"{'a_long_name_' * 9}.json"
    block_cache(steps=4).to_json(path)
    prompts = tuple(all_prompts()[:8])
    outcomes = run_demo(
        DemoOptions(prompts=prompts, steps=4, repeats=1, configs=(path,), only_config=True, out=tmp_path), model
    )
    assert [len(outcome.psnr) for outcome in outcomes] == [8, 8]
    assert (tmp_path / "contact_sheet.png").stat().st_size > 1000


def test_a_folder_that_cannot_be_made(model, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written: Not a directory"):
        run_demo(DemoOptions(quick=True, out=tmp_path / "file" / "out"), model)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no folder in which not even root can write")
def test_a_folder_that_cannot_be_written_is_noticed_before_anything_is_measured(model):
    model.register_forward_hook(lambda *args: pytest.fail("measured"))
    with pytest.raises(ConfigError, match=r"--out /proc/self: cannot be written: .* Choose another"):
        run_demo(DemoOptions(quick=True, out=Path("/proc/self")), model)


def test_results_are_shown_before_files_are_written(model, tmp_path):
    (tmp_path / "contact_sheet.png").mkdir()
    shown = []
    with pytest.raises(IsADirectoryError):
        run_demo(one_setting(tmp_path), model, show=shown.extend)
    assert shown[0].setting.name == "uncached"


def test_the_progress_bar_may_be_disabled(model, tmp_path, monkeypatch):
    """By the environment variable TQDM_DISABLE, which tqdm reads when it is imported."""
    monkeypatch.setattr(session, "tqdm", partial(session.tqdm, disable=True))
    run_demo(one_setting(tmp_path), model)
    assert (tmp_path / "results.json").is_file()
