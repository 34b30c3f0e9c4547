"""`mindie-cache calibrate` on pipelines: what it measures, against plain hooks; and caches that run on what it wrote."""

import itertools
import json
import statistics
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).parents[1] / "examples"
sys.path.insert(0, str(EXAMPLES))

from tiny_pipelines import TINY, generate  # noqa: E402

from mindie_cache import ConfigError, cli, enable_cache  # noqa: E402
from mindie_cache.calibration import Calibration, Curves, Provenance, loading  # noqa: E402
from mindie_cache.calibration.pipeline import PipelineCalibration, pooled  # noqa: E402

NEEDED = ("diffusers", "transformers", "ftfy", "PIL")
needs_diffusers = pytest.mark.skipif(
    any([find_spec(name) is None for name in NEEDED]), reason=f"needs all of {', '.join(NEEDED)}"
)
STEPS = 10
FAMILIES = {  # tiny pipeline: forwards a step
    "wan": 2,
    "wan-i2v": 2,
    "wan22": 2,
    "hunyuan-video": 1,
    "hunyuan-video-i2v": 1,
    "qwen-image": 2,
    "qwen-image-edit-plus": 2,
    "flux": 1,
}
LOADER = """
import sys
sys.path.insert(0, {examples!r})
from tiny_pipelines import TINY

def plain():
    return TINY[{name!r}].build()

def with_call():
    return TINY[{name!r}].build(), TINY[{name!r}].call()

def nothing():
    return "no pipeline"

def a_module():
    return plain().transformer
"""


@pytest.fixture
def calibrate(tmp_path, capsys):
    """Runs the command on a tiny pipeline; returns its exit code, the file's content or None, and what it printed."""

    def run(name, *arguments, function="with_call"):
        loader, file = tmp_path / "mine.py", tmp_path / "table.json"
        loader.write_text(LOADER.format(examples=str(EXAMPLES), name=name))
        source = ["--pipeline", f"{loader}:{function}"] if function else []
        code = cli.main(["calibrate", *source, "--device", "cpu", "--out", str(file), *arguments])
        return code, json.loads(file.read_text()) if file.exists() else None, capsys.readouterr()

    run.file = tmp_path / "table.json"
    return run


def ratios_by_hooks(pipe, name, forwards, **call):
    """By branch the mean of |r_k| / |r_(k-1)| over tokens, of the stream hidden_states; and what was generated."""
    residuals, entered = [], []

    def hidden(block, args, kwargs):
        entered.append((args[0] if args else kwargs["hidden_states"]).clone())

    def leave(block, args, output):
        place = 1 if name.startswith(("flux", "qwen")) else 0  # they return the text first
        residuals.append((output[place] if isinstance(output, tuple) else output) - entered.pop())

    hooks = []
    for expert in (pipe.transformer, getattr(pipe, "transformer_2", None)):
        if expert is not None:
            first = getattr(expert, "blocks", None) or expert.transformer_blocks
            last = getattr(expert, "single_transformer_blocks", None) or first
            hooks.append(first[0].register_forward_pre_hook(hidden, with_kwargs=True))
            hooks.append(last[-1].register_forward_hook(leave))
    result = generate(name, pipe, **call)
    for hook in hooks:
        hook.remove()
    found = []
    for branch in range(forwards):
        mine = [residual.norm(dim=-1) for residual in residuals[branch::forwards]]
        found.append([1.0] + [(now / old).mean().item() for old, now in itertools.pairwise(mine)])
    return found, result


@needs_diffusers
@pytest.mark.parametrize("name", FAMILIES)
def test_a_pipeline_is_measured_and_its_file_drives_two_methods(calibrate, name):
    code, document, printed = calibrate(name, "--steps", str(STEPS), "--name", "tiny")
    assert code == 0
    assert "calibrating" in printed.err
    assert "is a preset of magcache and ada_taylor" in printed.out
    pipe = TINY[name].build()
    expected, uncached = ratios_by_hooks(pipe, name, FAMILIES[name], steps=STEPS)
    found = [document["cond_mag_ratios"], document["uncond_mag_ratios"]]
    for mine, oracle in zip(found, expected if FAMILIES[name] == 2 else 2 * expected, strict=True):
        assert mine == pytest.approx(oracle, abs=2e-5)

    for method in ("magcache", "ada_taylor"):
        asked = {"method": method, "options": {"preset": str(calibrate.file)}}
        with enable_cache(pipe, asked, num_inference_steps=STEPS) as cache:
            cached = generate(name, pipe, steps=STEPS)
            assert cache.report().share_computed <= 0.8
            assert len(cache.report().models) == (2 if name == "wan22" else 1)
        assert 0 < (cached - uncached).abs().mean() < 0.1


@needs_diffusers
def test_the_file_says_what_was_measured(calibrate):
    code, document, _ = calibrate(
        "wan22", "--steps", "6", "--shift", "1.5", "--guidance", "3.5", "--frames", "5", "--name", "mine"
    )
    assert code == 0
    facts = document["provenance"]
    assert (facts["model"], facts["steps"], facts["sigma_shift"], facts["guidance_scale"]) == ("mine", 6, 1.5, 3.5)
    assert (facts["scheduler"], facts["resolution"]) == ("UniPCMultistepScheduler", "64x64x5")
    assert facts["branches"] == ["cond", "uncond"]
    assert {"torch", "diffusers", "transformers"} <= set(facts["versions"])
    assert facts["tokens"] == 2 * 4 * 4  # of one step: latents of 2 x 8 x 8 in patches of 1 x 2 x 2


@needs_diffusers
def test_the_pipeline_is_left_as_it_was():
    pipe = TINY["wan"].build()
    before = generate("wan", pipe, steps=4)
    scheduler, bar = pipe.scheduler, dict(pipe._progress_bar_config)
    PipelineCalibration(name="tiny", steps=4, call=TINY["wan"].call(), shift=2.0).run(pipe)
    assert pipe.scheduler is scheduler
    assert pipe._progress_bar_config == bar
    assert not any(
        block._forward_hooks or block._forward_pre_hooks or "forward" in vars(block) for block in pipe.transformer.blocks
    )
    assert torch.equal(generate("wan", pipe, steps=4), before)


@needs_diffusers
def test_a_picture_prompts_from_a_file_and_other_arguments(calibrate, tmp_path):
    from PIL import Image

    Image.new("RGB", (64, 64), "red").save(tmp_path / "start.png")
    (tmp_path / "prompts.txt").write_text("a cat\n\na dog\n")
    more = ["--prompt-file", str(tmp_path / "prompts.txt"), "--prompt", "a bird", "--image", str(tmp_path / "start.png")]
    sizes = ["--height", "32", "--width", "32", "--frames", "5", "--call", "max_sequence_length=64", "--steps", "4"]
    code, document, printed = calibrate("wan-i2v", *more, *sizes, function="plain")
    assert code == 0, printed.err
    assert document["provenance"]["tokens"] == 3 * (2 * 2 * 2)  # of three generations


@needs_diffusers
@pytest.mark.parametrize(("name", "signal"), [("flux", "temb"), ("flux", "hidden_states"), ("wan22", "temb")])
def test_a_signal_gives_a_polynomial_too(calibrate, name, signal):
    _, document, printed = calibrate(name, "--steps", "12", "--signal", signal)
    assert document["teacache"]["signal"] == signal
    assert len(document["teacache"]["coefficients"]) == 5
    assert "magcache, ada_taylor and teacache" in printed.out


@needs_diffusers
def test_lightx2v_gets_its_keys(calibrate):
    _, document, printed = calibrate("wan", "--steps", "4", "--format", "lightx2v")
    assert (len(document["magcache_ratios"]), document["sample_shift"]) == (2, 3.0)
    assert "--config_json" in printed.out


@needs_diffusers
def test_a_run_that_starts_from_a_picture_has_fewer_steps(calibrate):
    _, document, _ = calibrate("flux-img2img", "--steps", "8")
    assert len(document["cond_mag_ratios"]) == document["num_inference_steps"] == 6


@needs_diffusers
def test_the_bar_counts_the_steps_of_all_generations(calibrate):
    code, document, printed = calibrate("wan22", "--steps", "6", "--seed", "0", "--seed", "1")
    assert code == 0
    assert "| 12/12 [" in printed.err
    assert document["provenance"]["tokens"] == 2 * 3 * 4 * 4


@needs_diffusers
def test_an_expert_that_never_runs_leaves_the_table_to_the_other():
    pipe = TINY["wan22"].build()
    pipe.register_to_config(boundary_ratio=1.1)  # everything is below: transformer_2
    found = PipelineCalibration(name="tiny", steps=4, call=TINY["wan22"].call()).run(pipe)
    assert {name: len(curves.ratios) for name, curves in found.branches.items()} == {"cond": 4, "uncond": 4}


@needs_diffusers
def test_a_folder_is_loaded(calibrate, tmp_path):
    folder = tmp_path / "tiny-flux"
    TINY["flux"].build().save_pretrained(folder)
    arguments = [
        "--model",
        str(folder),
        "--height",
        "64",
        "--width",
        "64",
        "--call",
        "max_sequence_length=64",
        "--steps",
        "4",
    ]
    code, document, printed = calibrate("flux", *arguments, function=None)
    assert code == 0, printed.err
    assert document["provenance"]["model"] == "tiny-flux"
    assert document["provenance"]["guidance_scale"] == 3.5  # the pipeline's own


@needs_diffusers
@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("flux", "--steps 1", "steps=1 is out of range"),
        ("flux", "--steps 4 --shift 3", "no sigma shift of its own"),
        ("wan", "--steps 4 --shift -3", "sigma_shift=-3.0 must be above 0"),
        ("wan", "--steps 4 --height 33", "WanPipeline refuses its arguments"),
        ("wan", "--steps 4 --call numframes=5", "takes no argument 'numframes'. Did you mean 'num_frames'?"),
        ("wan", "--steps 4 --call numframes", "give NAME=VALUE"),
        ("wan", "--steps 4 --dtype bf16", "--dtype is for --model"),
        ("wan", "--steps 4 --offload", "--offload needs an accelerator"),
        ("wan", "--steps 4 --image {mine}", "--image: cannot identify image file"),
        ("wan", "--steps 4 --image missing.png", "No such file"),
        ("wan", "--steps 4 --prompt-file {empty}", "holds no prompt"),
        ("wan", "--seed -1", "seed=-1"),
    ],
)
def test_errors_are_one_line_and_no_file(calibrate, tmp_path, name, arguments, message):
    (tmp_path / "empty.txt").touch()
    words = arguments.format(mine=tmp_path / "mine.py", empty=tmp_path / "empty.txt").split()
    code, document, printed = calibrate(name, *words)
    assert (code, document) == (2, None)
    assert message in printed.err.splitlines()[-1]


@needs_diffusers
@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("with_cal", "has no function 'with_cal'. Did you mean 'with_call'?"),
        ("nothing", "nothing() returned str"),
        ("a_module", "returned FluxTransformer2DModel"),
        ("no.name", "give the path of a Python file"),
    ],
)
def test_errors_of_the_users_function(calibrate, function, message):
    code, _, printed = calibrate("flux", "--steps", "4", function=function)
    assert code == 2
    assert message in printed.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--height", "64"], "--height is for a pipeline"),
        (["--prompt-file", "x"], "--prompt-file is for a pipeline"),
    ],
)
def test_arguments_of_pipelines_are_refused_for_the_testbed(calibrate, arguments, message):
    code, document, printed = calibrate("", *arguments, function=None)
    assert (code, document) == (2, None)
    assert message in printed.err


@needs_diffusers
def test_a_folder_without_a_pipeline(calibrate, tmp_path):
    code, _, printed = calibrate("", "--model", str(tmp_path), function=None)
    assert code == 2
    assert "holds no pipeline of diffusers" in printed.err


def test_without_diffusers_the_command_says_what_to_install(calibrate, monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    code, _, printed = calibrate("", "--model", "some/model", function=None)
    assert code == 2
    assert loading.GET_DIFFUSERS in printed.err


def test_generations_are_pooled_as_if_they_were_one_batch():
    generator = torch.Generator().manual_seed(0)
    parts = [1 + 0.1 * torch.randn(size, generator=generator, dtype=torch.float64) for size in (7, 12, 30)]
    one = [
        Calibration(
            provenance=Provenance(model="toy", steps=2, tokens=len(part)),
            branches={
                "cond": Curves((1.0, part.mean().item()), (0.0, part.std().item()), (0.0, index / 10), ((index, 1.0),))
            },
        )
        for index, part in enumerate(parts)
    ]
    whole = pooled(one)
    values = torch.cat(parts).tolist()
    curves = whole.branches["cond"]
    assert whole.provenance.tokens == 49
    assert curves.ratios == pytest.approx((1.0, statistics.mean(values)))
    assert curves.stds == pytest.approx((0.0, statistics.stdev(values)))
    assert curves.cosine_distances == pytest.approx((0.0, (0.1 * 12 + 0.2 * 30) / 49))
    assert curves.changes == ((0, 1.0), (1, 1.0), (2, 1.0))
    other = Calibration(provenance=Provenance(model="toy", steps=2, tokens=7), branches={"uncond": curves})
    with pytest.raises(ConfigError, match="different branches"):
        pooled([one[0], other])
