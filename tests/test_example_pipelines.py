"""The examples for diffusers run with tiny pipelines: what they print and write; by hand equals in one line."""

import json
import re
import runpy
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
sys.path[:0] = [str(EXAMPLES), str(EXAMPLES / "cache")]

from tiny_pipelines import TINY, generate  # noqa: E402

from mindie_cache import CacheAgent, CacheConfig, enable_cache  # noqa: E402
from mindie_cache.hooks.levels import LEVELS  # noqa: E402

NEEDED = ("diffusers", "transformers", "ftfy", "PIL")
needs_diffusers = pytest.mark.skipif(
    any([find_spec(name) is None for name in NEEDED]), reason=f"needs all of {', '.join(NEEDED)}"
)
BY_HAND = "cache/qwen_image_edit_by_hand.py"
FAMILIES = {  # script: models in its report, frames
    "flux.py": (1, 1),
    "wan.py": (1, 4),
    "wan22.py": (2, 4),
    "qwen_image_edit.py": (1, 1),
    "hunyuan_video.py": (1, 4),
    "cogvideox.py": (1, 4),
}


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    """Runs a script with arguments, in an empty folder; returns what it printed."""
    monkeypatch.chdir(tmp_path)

    def script(name, *arguments):
        monkeypatch.setattr(sys, "argv", [str(EXAMPLES / name), *arguments])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    return script


@needs_diffusers
@pytest.mark.parametrize("name", FAMILIES)
def test_an_example_compares_cached_with_uncached(run, tmp_path, name):
    from PIL import Image

    printed = run(name, "--tiny", "--compare", "--steps", "10", "--config", "fast")
    models, frames = FAMILIES[name]
    assert printed.startswith("fast: 3 times fewer steps computed")
    assert printed.count("a step: # computed, . reused") == models
    (decibels,) = re.findall(r"PSNR ([\d.]+) dB, SSIM 0\.\d{4}", printed)
    assert 20 < float(decibels) < 100
    out = tmp_path / "out" / Path(name).stem
    report = json.loads((out / "report.json").read_text())
    assert 0.3 < report["share_computed"] < 0.9
    assert len(report["models"]) == models
    sheet = Image.open(out / "comparison.png")
    assert (sheet.width > 4 * 256, sheet.height > 2 * 256) == (frames == 4, frames == 4)
    assert {path.stem for path in out.iterdir()} == {"cached", "uncached", "comparison", "report"}


@needs_diffusers
def test_without_compare_there_is_the_result_alone(run, tmp_path):
    printed = run("flux.py", "--tiny", "--steps", "4", "--out", "here")
    assert "PSNR" not in printed
    assert sorted(path.name for path in (tmp_path / "here").iterdir()) == ["cached.png", "report.json"]


@needs_diffusers
def test_seed_prompt_and_size_arrive(run, tmp_path):
    from PIL import Image

    def result(*arguments):
        run("flux.py", "--tiny", "--steps", "6", *arguments)
        return Image.open(tmp_path / "out/flux/cached.png").copy()

    first = result()
    assert result() == first
    assert result("--seed", "1") != first
    assert result("--prompt", "two blue cubes") != first
    assert result("--height", "32").size == (64, 32)


@needs_diffusers
def test_config_may_be_a_method_or_a_file(run, tmp_path):
    assert run("flux.py", "--tiny", "--steps", "8", "--config", "taylorseer").startswith("taylorseer")
    (tmp_path / "mine.yaml").write_text("method: dit_block_cache\nstep_start: 2\nstep_interval: 3\nstep_end: 7\n")
    printed = run("flux.py", "--tiny", "--steps", "8", "--config", "mine.yaml")
    assert printed.startswith("mine.yaml")
    assert re.findall(r"cond +(\S+)", printed) == ["###..#.#"]


@needs_diffusers
def test_weights_from_a_folder(run, tmp_path):
    TINY["flux"].build().save_pretrained(tmp_path / "weights")
    printed = run("flux.py", "--model", "weights", "--height", "64", "--width", "64", "--steps", "6", "--device", "cpu")
    assert "50% of the calls computed" in printed or "reused" in printed


@needs_diffusers
@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("flux.py", ["--tiny", "--config", "balancd"], "^error: 'balancd' is no level"),
        ("flux.py", ["--tiny", "--device", "xpu"], "^error: device='xpu' is not known"),
        ("flux.py", ["--tiny", "--device", "cpu", "--offload"], "^error: --offload needs an accelerator"),
        ("flux.py", ["--model", "no/such/folder"], "^error: --model no/such/folder cannot be loaded"),
        ("qwen_image_edit.py", [], "^2$"),
        ("qwen_image_edit.py", ["--tiny", "--image", "missing.png"], "^error: .*missing.png"),
    ],
)
def test_errors_are_one_line(run, name, arguments, message):
    with pytest.raises(SystemExit, match=message):
        run(name, *arguments)


@pytest.mark.parametrize("name", [*FAMILIES, BY_HAND])
def test_without_diffusers_an_example_says_what_to_install(run, monkeypatch, name):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(SystemExit, match=r"^error: This example needs diffusers.*pip install 'mindie_cache\[diffusers\]'"):
        run(name, "--tiny")


@pytest.mark.parametrize("name", [*FAMILIES, BY_HAND])
def test_help_teaches(run, capsys, name):
    with pytest.raises(SystemExit, match=r"^0$"):
        run(name, "--help")
    text = capsys.readouterr().out
    assert f"python examples/{name}" in text
    assert "--tiny --compare" in text
    assert ("a preset   method:model" in text) != (name == BY_HAND)
    assert len((EXAMPLES / name).read_text().splitlines()) <= 80


@pytest.mark.parametrize("name", ["README.md", "README.zh.md", "docs/diffusers.md", "docs/calibration.md"])
def test_what_the_docs_point_to_exists(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)", text) if not link.startswith("http")]
    assert [link for link in links if not ((ROOT / name).parent / link).exists()] == []
    scripts = re.findall(r"examples/[\w/]+(?:\.py)?", text)
    assert [script for script in scripts if not (ROOT / script).exists()] == []


def test_the_docs_show_what_the_levels_are():
    text = (ROOT / "docs/diffusers.md").read_text(encoding="utf-8")
    for name, level in LEVELS.items():
        assert f"| `{name}` | {level.speedup:g} | {level.threshold}, {level.max_skip_steps} |" in text


# ---------------------------------------------------------------------------------------------------- by hand


@pytest.fixture(scope="module")
def edit():
    """The tiny editing pipeline with the transformer that is integrated by hand, and its result without agents."""
    if any([find_spec(name) is None for name in NEEDED]):
        pytest.skip(f"needs all of {', '.join(NEEDED)}")
    from cached_transformer import QwenImageTransformerWithCache

    name = "qwen-image-edit-plus"
    plain = TINY[name].build()
    before = generate(name, plain, steps=8)
    twin = QwenImageTransformerWithCache.from_config(plain.transformer.config)
    twin.load_state_dict(plain.transformer.state_dict())
    pipe = TINY[name].build()
    pipe.transformer = twin.eval()
    twin.set_cache()
    assert torch.equal(generate(name, pipe, steps=8), before)
    return plain, pipe, before, lambda one: generate(name, one, steps=8)


@pytest.mark.filterwarnings("ignore:dit_block_cache is off")
def test_an_interval_of_one_step_changes_nothing(edit):
    from cached_transformer import config

    _, pipe, before, make = edit
    settings = config(len(pipe.transformer.transformer_blocks), 8, interval=1)
    pipe.transformer.set_cache(cond=CacheAgent(settings), uncond=CacheAgent(settings))
    assert torch.equal(make(pipe), before)


@pytest.mark.parametrize("method", ["dit_block_cache", "first_block"])
def test_by_hand_and_in_one_line_give_the_same_picture(edit, method):
    from cached_transformer import STREAMS, config

    plain, pipe, before, make = edit
    settings = config(len(plain.transformer.transformer_blocks), 8)
    if method == "first_block":
        settings = CacheConfig(
            method, settings.blocks_count, 8, streams=STREAMS, options={"threshold": 0.4, "together": False}
        )
    agents = CacheAgent(settings), CacheAgent(settings)
    pipe.transformer.set_cache(*agents)
    by_hand = make(pipe)
    with enable_cache(plain, settings) as cache:
        assert torch.equal(make(plain), by_hand)
        report = cache.report().models["transformer"]
    assert sum(agent.report().calls_reused for agent in agents) == report.calls_reused > 0
    assert not torch.equal(by_hand, before)


@pytest.mark.parametrize("branch", ["cond", "uncond"])
def test_one_branch_alone_can_be_cached(edit, branch):
    from cached_transformer import config

    _, pipe, before, make = edit
    inner = pipe.transformer.transformer_blocks[1].block
    calls = []
    hook = inner.register_forward_hook(lambda *_: calls.append(1))
    agent = CacheAgent(config(4, 8))
    pipe.transformer.set_cache(**{branch: agent})
    assert not torch.equal(make(pipe), before)
    hook.remove()
    assert agent.report().calls_reused == 3 * 4
    assert len(calls) == 16 - 3  # every step of the other branch


@needs_diffusers
def test_the_script_by_hand(run, monkeypatch):
    monkeypatch.setenv("UNCOND_CACHE", "0")
    printed = run(BY_HAND, "--tiny", "--steps", "8")
    assert "cond: dit_block_cache: 12 of 32 blocks reused" in printed
    assert "uncond:" not in printed
    monkeypatch.setenv("UNCOND_CACHE", "no")
    with pytest.raises(SystemExit, match=r"^error: UNCOND_CACHE='no': set it to 1"):
        run(BY_HAND, "--tiny")
