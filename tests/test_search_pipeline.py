"""The searches on pipelines of diffusers: two lists of blocks, measured times, frames."""

from __future__ import annotations

import json
import runpy
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from mindie_cache import CacheConfig, enable_cache
from mindie_cache.calibration.search.made import fact

ROOT = Path(__file__).parents[1]
NEEDED = ("diffusers", "transformers", "PIL")
needs_diffusers = pytest.mark.skipif(
    any([find_spec(name) is None for name in NEEDED]), reason=f"needs all of {', '.join(NEEDED)}"
)
LOADER = f"""
import sys
sys.path.insert(0, {str(ROOT / "examples")!r})
from tiny_pipelines import TINY

def load():
    return TINY["flux"].build(), TINY["flux"].call()
"""


@pytest.fixture
def search(tmp_path, monkeypatch, capsys):
    (tmp_path / "mine.py").write_text(LOADER)

    def run(script, *arguments, folder="out"):
        path = str(ROOT / f"search_scripts/search_{script}.py")
        common = ["--pipeline", f"{tmp_path / 'mine.py'}:load", "--device", "cpu", "--out", str(tmp_path / folder)]
        monkeypatch.setattr(sys, "argv", [path, *common, *arguments])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(path, run_name="__main__")
        printed = capsys.readouterr()
        return ended.value.code, printed, tmp_path / folder

    return run


@needs_diffusers
def test_double_and_single_blocks_apart_and_by_time(search):
    times = ["--cost", "time", "--block-ms", "transformer_blocks=40", "--block-ms", "single_transformer_blocks=20"]
    limits = ["--steps", "6", "--intervals", "2", "--starts", "0", "--ends", "6"]
    code, printed, out = search("dit_block_cache", "--stacks", "separate", "--ratio", "1.15", *times, *limits)
    assert code == 0, printed.err
    results = json.loads((out / "results.json").read_text())
    doubles, singles = "dit_block_cache-transformer_blocks", "dit_block_cache-single_transformer_blocks"
    assert {doubles, singles} <= set(results)
    rest = results["profile"]["rest_ms"]
    whole = 6 * (3 * 40 + 4 * 20 + rest)
    for name, first, last, ms in ((doubles, 0, 3, 40), (singles, 3, 7, 20)):
        config = CacheConfig.from_yaml(out / f"{name}.yaml")
        assert first < config.block_start < config.block_end <= last
        for row in results[name]["all"]:
            length = row["config"]["block_end"] - row["config"]["block_start"]
            assert row["share_computed"] == pytest.approx(1 - 3 * length / (6 * 7))
            assert row["ratios"]["time"] == pytest.approx(whole / (whole - 3 * length * ms))
        assert results[name]["chosen"]["ratios"]["time"] >= 1.15
    sys.path.insert(0, str(ROOT / "examples"))
    try:
        from tiny_pipelines import TINY, generate
    finally:
        sys.path.remove(str(ROOT / "examples"))
    pipe = TINY["flux"].build()
    with enable_cache(pipe, out / f"{doubles}.yaml") as handle:
        generate("flux", pipe, steps=6, seed=0, prompt="a red ball")
        assert handle.report().share_computed == pytest.approx(results[doubles]["chosen"]["share_computed"])


@needs_diffusers
def test_frames_latents_and_a_stack_that_cannot_reach_the_ratio(search):
    scores = ["--score", "psnr", "--score", "latents"]
    limits = ["--steps", "6", "--intervals", "2", "--ends", "6", "--prompt", "a", "--prompt", "b"]
    with pytest.warns(UserWarning, match="No search in transformer_blocks: ratio=1.12 is out of reach"):
        code, printed, out = search("dit_block_cache", "--stacks", "separate", "--ratio", "1.12", *scores, *limits)
    assert code == 0, printed.err
    (name,) = (path.stem for path in out.glob("*.yaml"))
    chosen = json.loads((out / "results.json").read_text())[name]["chosen"]
    assert chosen["scores"]["psnr"] < 0 < chosen["scores"]["latents"]
    code, printed, _ = search("attention_cache", "--ratio", "1.1", "--steps", "8", folder="attention")
    assert code == 0, printed.err
    code, printed, _ = search("adastep", "--steps", "8", "--call", "hight=3", folder="wrong")
    assert code == 2
    assert "takes no argument 'hight'. Did you mean 'height'" in printed.err


def test_arguments_are_told_apart_by_their_content():
    one, two = torch.zeros(2, 2), torch.ones(2, 2)
    assert fact(one) == fact(torch.zeros(2, 2)) != fact(two)
    assert fact({"a": [1, "x", None], "b": (2.5, True)}) == {"a": [1, "x", None], "b": [2.5, True]}
    if find_spec("PIL"):
        from PIL import Image

        assert fact(Image.new("RGB", (2, 2))) == fact(Image.new("RGB", (2, 2))) != fact(Image.new("RGB", (2, 2), "red"))
    json.dumps(fact([one, object()]))
