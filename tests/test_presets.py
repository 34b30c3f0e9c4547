"""Presets: complete, usable, found by name, honest about what they were made for; calibration files; the command."""

from __future__ import annotations

import json
import sys
import warnings
from collections import Counter
from pathlib import Path

import pytest
from toy import all_warnings

from mindie_cache import CacheAgent, CacheConfig, CacheWarning, ConfigError, cli, presets
from mindie_cache.methods.base import PresetOptions
from mindie_cache.policies.magnitude import plan
from mindie_cache.presets.text import known_plans, polynomial, sparkline
from mindie_cache.recipes import METHODS

DATA = Path(__file__).with_name("data")
ALL = presets.all_presets()
TELEFUSER = {  # every name of TeleFuser's documentation and of its folder
    *("Wan2.1-T2V-1.3B", "Wan2.1-T2V-14B", "Wan2.1-I2V-14B-480P", "Wan2.1-I2V-14B-720P", "Wan2.1-FL2V-14B-720P"),
    *("Wan2.2-T2V-A14B", "Wan2.2-I2V-A14B", "Wan2.2-FL2V-A14B", "Wan2.2-I2V-A14B-Camera"),
    *("HunyuanVideo-T2V", "HunyuanVideo-I2V", "HunyuanVideo15-T2V-480P", "HunyuanVideo15-I2V-480P"),
    *("Qwen-Image", "Qwen-Image-Edit-Plus", "Qwen-Image-2512"),
}


def label(preset):
    return f"{preset.method}-{preset.name}"


def config_of(preset):
    blocks = 1 if METHODS[preset.method].whole_forward else preset.settings.get("blocks_count", 64)
    return preset.config(blocks, preset.made_for.steps or 30)


def test_how_many_there_are():
    assert Counter(preset.method for preset in ALL) == {
        "ada_taylor": 16,
        "magcache": 37,  # 24 curves of MagCache (5 of them in 3 presets), 12 of TeleFuser, 3 of LightX2V
        "teacache": 32,
        "adacache": 6,
        "fastercache": 7,
        "cfg_cache": 6,
        "pab": 18,
        "taylorseer": 10,
        "dit_block_cache": 48,
        "attention_cache": 10,
        "adastep": 5,
    }
    assert {preset.model for preset in presets.all_presets("ada_taylor")} == TELEFUSER


def test_names_are_unique():
    names = Counter((preset.method, preset.name.casefold().replace(".", "_")) for preset in ALL)
    assert max(names.values()) == 1


@pytest.mark.parametrize("preset", ALL, ids=label)
def test_every_preset_is_usable_and_has_an_origin(preset):
    assert preset.source.repo
    assert preset.source.path
    assert preset.source.commit
    assert preset.source.licence
    METHODS[preset.method].build(config_of(preset))
    assert presets.find(preset.method, preset.model, preset.variant) is preset
    assert presets.find(preset.method, preset.name) is preset
    assert json.loads(json.dumps(preset.to_dict()))["model"] == preset.model


@pytest.mark.parametrize("preset", [p for p in ALL if issubclass(METHODS[p.method].options, PresetOptions)], ids=label)
def test_every_setting_is_one_that_the_option_preset_fills_in(preset):
    kind = METHODS[preset.method].options
    assert set(preset.settings) <= set(kind.defaults)
    named = CacheConfig(
        preset.method, config_of(preset).blocks_count, preset.made_for.steps or 30, options={"preset": preset.name}
    )
    resolved, notes = named.validated().options.resolved(named)
    assert {name: getattr(resolved, name) for name in preset.settings} == dict(preset.settings)
    assert notes == ()


@pytest.mark.parametrize("name", json.loads(DATA.joinpath("ada_taylor_tables.json").read_text()))
def test_telefusers_tables_are_as_published(name):
    table = json.loads(DATA.joinpath("ada_taylor_tables.json").read_text())[name]
    settings = presets.find("ada_taylor", name).settings
    assert settings["cond_ratios"] == tuple(table["cond_mag_ratios"])
    assert settings["uncond_ratios"] == tuple(table["uncond_mag_ratios"])
    assert (settings["max_skip_steps"], settings["threshold"]) == (table["K"], table["thresh"])
    assert settings["retention_ratio"] == table["retention_ratio"]


@pytest.mark.parametrize("preset", [p for p in ALL if "cond_ratios" in p.settings], ids=label)
def test_tables_have_one_ratio_a_step(preset):
    for name in ("cond_ratios", "uncond_ratios"):
        ratios = preset.settings.get(name)
        if ratios is not None:
            assert ratios[0] == 1.0
            assert len(ratios) == preset.made_for.steps
            assert all(0.4 < ratio < 2 for ratio in ratios)


def test_interleaved_lists_are_separated():
    """MagCache's list for Wan2.1-T2V-1.3B begins 1.0124, 1.02213, 1.00166, 1.0041; LightX2V separated it as well."""
    settings = presets.find("magcache", "Wan2.1-T2V-1.3B").settings
    assert settings["cond_ratios"][:3] == (1.0, 1.0124, 1.00166)
    assert settings["uncond_ratios"][:3] == (1.0, 1.02213, 1.0041)
    lightx2v = presets.find("magcache", "Wan2.1-T2V-1.3B@lightx2v").settings
    assert settings["cond_ratios"] == lightx2v["cond_ratios"]
    assert settings["uncond_ratios"] == lightx2v["uncond_ratios"]


@pytest.mark.parametrize("model", ["Wan2.1-T2V-1.3B", "Wan2.1-T2V-14B", "Wan2.1-I2V-14B-480P"])
def test_equal_tables_credit_both_projects(model):
    own, origin = presets.find("ada_taylor", model), presets.find("magcache", model)
    assert own.settings["cond_ratios"] == origin.settings["cond_ratios"]
    assert "MagCache" in own.source.credit


@pytest.mark.parametrize("model", ["HunyuanVideo-T2V", "HunyuanVideo-I2V", "Qwen-Image", "Qwen-Image-Edit-Plus"])
def test_models_that_telefuser_only_documents_have_magcaches_curves(model):
    preset = presets.find("ada_taylor", model)
    assert (preset.source.repo, preset.made_for.steps) == ("Zehong-Ma/MagCache", 50)
    assert "TeleFuser" in preset.source.credit
    assert "without shipping" in preset.note


def steps_where(count, rule):
    """0-based steps of which the 1-based number fulfils `rule`."""
    return {number - 1 for number in range(1, count + 1) if rule(number)}


@pytest.mark.parametrize(
    ("model", "count", "reused"),
    [
        ("Open-Sora-1.2", 30, lambda c: c > 7 and c % 2 == 0),
        ("Open-Sora-Plan-1.1@temporal", 150, lambda c: c >= 45 and c % 3),
        ("Latte-1", 50, lambda c: c >= 16 and c % 2 == 0),
        ("CogVideoX", 50, lambda c: c >= 18 and c % 3),
        ("Vchitect-2.0", 100, lambda c: c > 30 and c % 2 == 0),
        ("Mochi-1", 64, lambda c: c - 1 >= 20 and (c - 1) % 2 == 0),
    ],
)
def test_fastercaches_counters_from_one_became_steps_from_zero(model, count, reused):
    computed = presets.plan_for(presets.find("fastercache", model))
    last = {count - 1}  # which this package computes
    assert set(range(count)) - computed == steps_where(count, reused) - last


@pytest.mark.parametrize(
    ("model", "count", "skipped"),
    [
        ("Open-Sora-1.2", 30, lambda c: c > 11 and c % 5),
        ("Open-Sora-Plan-1.1", 150, lambda c: c >= 40 and c % 6),
        ("Latte-1", 50, lambda c: c >= 18 and c % 5),
        ("CogVideoX", 50, lambda c: c >= 18 and c % 5),
        ("Vchitect-2.0", 100, lambda c: c > 30 and c % 5),
        ("Mochi-1", 64, lambda c: c - 1 >= 22 and (c - 1) % 5 and c - 1 != 63),
    ],
)
def test_guidance_is_skipped_where_fastercache_skips_it(model, count, skipped):
    computed = presets.plan_for(presets.find("cfg_cache", model), branch="uncond")
    assert set(range(count)) - computed == steps_where(count, skipped)


@pytest.mark.parametrize("preset", [p for p in ALL if "compute_steps" in p.settings], ids=label)
def test_schedules_compute_what_their_names_say(preset):
    assert presets.plan_for(preset) == set(preset.settings["compute_steps"])
    assert len(preset.settings["compute_steps"]) == int(preset.variant.rpartition("-")[2])


def test_plans_come_from_the_rule_of_the_method():
    preset = presets.find("magcache", "Wan2.1-T2V-1.3B")
    settings = dict(preset.settings)
    expected = plan(settings["cond_ratios"], 50, settings["threshold"], settings["max_skip_steps"], 0.2, rule="magcache")
    assert presets.plan_for(preset) == expected
    assert len(presets.plan_for(preset, 20)) < 20
    assert presets.plan_for(presets.find("teacache", "FLUX.1-dev")) is None
    with pytest.raises(ConfigError, match="does not know the number of steps"):
        presets.plan_for(presets.find("pab", "CogVideoX"))


@pytest.mark.parametrize("name", ["Wan2.1-T2V-1.3B", "Wan2_1-T2V-1_3B", "wan2/1-t2v-1.3b", "WAN2.1-T2V-1.3B@"])
def test_spellings_of_one_name(name):
    assert presets.find("ada_taylor", name).model == "Wan2.1-T2V-1.3B"


def test_a_single_variant_needs_no_name():
    assert presets.find("magcache", "Qwen-Image-2512").variant == "telefuser"


@pytest.mark.parametrize(
    ("method", "model", "variant", "message"),
    [
        ("ada_taylor", "Wan2.1-T2V-1.3", "", "Did you mean 'Wan2.1-T2V-1.3B'"),
        ("ada_taylor", "../../config", "", "There is no preset"),
        ("ada_taylor", "/etc/passwd", "", "There is no preset"),
        ("ada_taylor", "", "", "There is no preset"),
        ("ada_taylor", None, "", "both are names"),
        ("magcach", "Qwen-Image", "", "Did you mean 'magcache'"),
        ("dit_block_cache", "Qwen-Image", "", "has several presets of dit_block_cache.*lemica-25"),
        ("dit_block_cache", "Qwen-Image", "lemica-24", "Did you mean 'Qwen-Image@lemica-25'"),
        ("teacache", "Wan2.1-T2V-14B@retsteps", "", "Did you mean 'Wan2.1-T2V-14B@ret-steps'"),
    ],
)
def test_unknown_names(method, model, variant, message):
    with pytest.raises(presets.PresetNotFound, match=message) as caught:
        presets.find(method, model, variant)
    assert isinstance(caught.value, ConfigError)
    assert isinstance(caught.value, FileNotFoundError)


def test_settings_cannot_be_changed():
    settings = presets.find("ada_taylor", "Qwen-Image").settings
    with pytest.raises(TypeError):
        settings["threshold"] = 1
    assert isinstance(settings["cond_ratios"], tuple)


def test_mismatches():
    preset = presets.find("magcache", "Wan2.1-T2V-1.3B@lightx2v")
    assert preset.mismatches() == preset.mismatches(steps=50, sigma_shift=8.0, resolution="480x832") == []
    steps, shift, size = preset.mismatches(steps=30, sigma_shift=5, resolution="1280x720")
    assert "made for 50 steps, but this run has 30" in steps
    assert "Calibrate" in steps
    assert "sigma_shift=8, but this run has 5" in shift
    assert "made for 832x480, but this run has 1280x720" in size
    assert "Adapt" in presets.find("fastercache", "Mochi-1").mismatches(steps=20)[0]
    assert "threshold" in presets.find("teacache", "Mochi-1").mismatches(steps=20)[0]


@pytest.mark.parametrize(
    ("mine", "fits"),
    [("832x480", True), ("480P", True), ("480p", True), ("1280x720", False), ("720p", False), ("big", False)],
)
def test_a_class_of_resolution(mine, fits):
    assert (presets.find("ada_taylor", "Wan2.1-I2V-14B-480P").mismatches(resolution=mine) == []) == fits


def test_config_needs_what_the_preset_does_not_know():
    with pytest.raises(ConfigError, match="does not know blocks_count"):
        presets.find("ada_taylor", "Qwen-Image").config()
    with pytest.raises(ConfigError, match="does not know steps_count"):
        presets.find("pab", "CogVideoX@spatial").config(42)
    config = presets.find("dit_block_cache", "HunyuanVideo-T2V", "double").config()
    assert (config.blocks_count, config.block_start, config.block_end, config.step_end) == (20, 3, 18, 49)


@pytest.mark.parametrize("steps", [100, 60])
def test_T15_config_for_other_steps_is_announced_and_refused_under_strict(steps):
    """A schedule of 50 steps in a run of 100: the second half would be reused without a word."""
    preset = presets.find("dit_block_cache", "FLUX.1-dev@lemica-10")
    with pytest.warns(CacheWarning, match=f"made for 50 steps, but this run has {steps}"):
        assert preset.config(19, steps).steps_count == steps
    with pytest.raises(ConfigError, match=r"made for 50 steps.*strict"):
        preset.config(19, steps, strict=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        preset.config(19, 50, strict=True)
        presets.plan_for(preset, steps)  # to look at it: the command says beside it what does not fit


def test_a_table_for_other_steps_is_announced_once():
    preset = presets.find("magcache", "Wan2.1-T2V-1.3B")
    with all_warnings() as caught:
        CacheAgent(preset.config(30, 25))
    assert len(caught) == 1
    with pytest.raises(ConfigError, match=r"made for 50 steps.*strict"):
        preset.config(30, 25, strict=True)


GOOD = {
    "K": 4,
    "retention_ratio": 0.2,
    "thresh": 0.12,
    "cond_mag_ratios": [1.0, 0.9, 0.8],
    "uncond_mag_ratios": [1.0, 0.9, 0.7],
}


@pytest.fixture
def file(tmp_path):
    def of(document):
        path = tmp_path / "mine.json"
        path.write_text(document if isinstance(document, str) else json.dumps(document))
        return path

    return of


def test_a_telefuser_file(file):
    document = {
        **GOOD,
        "sigma_shift": 5.0,
        "num_inference_steps": 3,
        "measured_by": "me",
        "provenance": {"model": "My-Model"},
    }
    preset = presets.load_file(file(document), method="magcache")
    assert (preset.method, preset.model, preset.made_for.steps, preset.made_for.sigma_shift) == (
        "magcache",
        "My-Model",
        3,
        5.0,
    )
    assert preset.settings == {
        "threshold": 0.12,
        "max_skip_steps": 4,
        "retention_ratio": 0.2,
        "cond_ratios": (1.0, 0.9, 0.8),
        "uncond_ratios": (1.0, 0.9, 0.7),
    }
    options = {"preset": str(file(document)), "sigma_shift": 5.0}
    assert CacheConfig("magcache", 4, 3, options=options).validated().options.resolved(CacheConfig("magcache", 4, 3))


def test_lightx2v_files(file):
    pair = [[1.0, 0.9], [1.0, 0.8]]
    alone = presets.load_file(file(pair))
    assert (alone.method, alone.model, alone.made_for.steps) == ("ada_taylor", "mine", 2)
    assert alone.settings == {"cond_ratios": (1.0, 0.9), "uncond_ratios": (1.0, 0.8)}
    keys = {"magcache_K": 2, "magcache_thresh": 0.1, "magcache_retention_ratio": 0.3, "infer_steps": 2, "sample_shift": 8}
    whole = presets.load_file(file({"magcache_ratios": pair, **keys}))
    assert whole.settings["max_skip_steps"] == 2
    assert whole.made_for.sigma_shift == 8
    shipped = presets.load_file(DATA / "lightx2v" / "caching__magcache__wan_t2v_mag_1_3b.json", "magcache")
    assert shipped.settings == presets.find("magcache", "Wan2.1-T2V-1.3B@lightx2v").settings


def test_one_branch_is_enough(file):
    assert "uncond_ratios" not in presets.load_file(file({**GOOD, "uncond_mag_ratios": None})).settings


def test_a_polynomial_in_a_calibration_file(file):
    document = {**GOOD, "teacache": {"coefficients": [2.0, 0.1], "signal": "temb", "fitted_range": [0, 1]}}
    assert presets.load_file(file(document), "teacache").settings == {"coefficients": (2.0, 0.1), "signal": "temb"}
    with pytest.raises(ConfigError, match="no polynomial in this file"):
        presets.load_file(file(GOOD), "teacache")


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ('{"cond_mag_ratios": [1.0, NaN]}', r"cond_mag_ratios\[1\]=nan must be a finite number"),
        ('{"cond_mag_ratios": [1.0, Infinity]}', "must be a finite number"),
        ('{"K": 1, "K": 2}', "given twice"),
        ("{", "not valid JSON"),
        ("", "is empty"),
        ("3", "but this is a int"),
        ("[1.0, 0.9, 0.8]", "must be two lists"),
        ("[[1.0], 3]", r"mag_ratio\[1\] must be a list of numbers"),
        ({}, "cond_mag_ratios .* is missing"),
        ({"cond_mag_ratio": [1.0]}, "Allowed: cond_mag_ratio"),
        ({**GOOD, "uncond_mag_ratios": [1.0, 0.9]}, "cond_mag_ratios has 3 entries, uncond_mag_ratios 2"),
        ({**GOOD, "num_inference_steps": 50}, "cond_mag_ratios has 3 entries for 50 steps"),
        ({**GOOD, "num_inference_steps": "3"}, "num_inference_steps='3' must be a whole number"),
        ({**GOOD, "cond_mag_ratios": "1.0"}, "must be a list of numbers"),
        ({**GOOD, "cond_mag_ratios": []}, "cond_mag_ratios is empty"),
        ({**GOOD, "cond_mag_ratios": [1.0, "0.9", 0.8]}, r"cond_mag_ratios\[1\]='0.9' must be"),
        ({**GOOD, "cond_mag_ratios": [1.0, True, 0.8]}, r"cond_mag_ratios\[1\]=True must be"),
        ({**GOOD, "cond_mag_ratios": [1.0, 0.0, 0.8]}, r"cond_mag_ratios\[1\]=0.0, but a ratio"),
        ({**GOOD, "cond_mag_ratios": [0.9, 0.8, 0.7]}, "Put 1.0 in front"),
        ({**GOOD, "K": 2.5}, "K=2.5 must be a whole number"),
        ({**GOOD, "thresh": "0.1"}, "thresh='0.1' must be a number"),
        ({**GOOD, "retention_ratio": 1.5}, "retention_ratio=1.5 is out of range"),
        ({**GOOD, "sigma_shift": "5"}, "sigma_shift='5' must be a number"),
        ({**GOOD, "resolution": 480}, "resolution=480 must be text"),
    ],
)
def test_bad_calibration_files(file, document, message):
    with pytest.raises(ConfigError, match=message) as caught:
        presets.load_file(file(document))
    assert "mine.json" in str(caught.value)


def test_methods_without_calibration_files(file):
    with pytest.raises(ConfigError, match="pab has no calibration files"):
        presets.load_file(file(GOOD), "pab")


def run(capsys, *arguments):
    code = cli.main(["presets", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_the_list(capsys):
    code, out, _ = run(capsys)
    assert code == 0
    assert out.splitlines()[0].split() == ["method", "preset", "made", "for", "licence", "source"]
    assert len([line for line in out.splitlines() if line]) == 1 + len(ALL)


def test_details(capsys):
    code, out, _ = run(capsys, "wan2_1-t2v-1_3b", "--method", "ada_taylor", "--steps", 50)
    assert code == 0
    computed = presets.plan_for(presets.find("ada_taylor", "Wan2.1-T2V-1.3B"), 50)
    row = "".join("#" if step in computed else "." for step in range(50))
    assert f"{row}  {len(computed)} computed" in out
    for words in (
        "50 entries, 0.81838 to 1.0124",
        "Tele-AI/TeleFuser",
        "MagCache",
        "Apache-2.0",
        'options={"preset": "Wan2.1',
    ):
        assert words in out


def test_details_at_other_steps_say_so(capsys):
    _, out, _ = run(capsys, "--model", "FLUX.1-dev@lemica-20", "--steps", 20)
    assert "was made for 50 steps, but this run has 20" in out
    assert "plan, " not in out  # its list of steps does not fit


def test_json(capsys):
    _, out, _ = run(capsys, "Latte-1", "--method", "cfg_cache", "--json")
    (entry,) = json.loads(out)
    assert entry["settings"]["low_boost"] == [1.1, 0, 44]
    assert set(entry["computed_steps"]) == {"uncond"}


def test_a_file_of_ones_own(capsys, file):
    code, out, _ = run(capsys, file(GOOD), "--steps", 6)
    assert code == 0
    assert "plan, 6 steps" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["FLUX.1-dov"], "There is no preset named 'FLUX.1-dov'. Did you mean 'FLUX.1-dev'"),
        (["--method", "tea"], "Did you mean 'teacache'"),
        (["--steps", "0"], "--steps=0 is out of range"),
        (["none.json"], "No such file"),
        (["FLUX.1-dev", "--plot", "x.png"], "--plot draws one preset, but these are"),
    ],
)
def test_errors_are_one_line(capsys, arguments, message):
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("method", "name"),
    [
        ("ada_taylor", "Qwen-Image"),
        ("teacache", "FLUX.1-dev"),
        ("adacache", "FLUX.2-klein"),
        ("dit_block_cache", "Z-Image@meancache-13"),
    ],
)
def test_plot(capsys, tmp_path, method, name):
    pytest.importorskip("matplotlib")
    target = tmp_path / "new" / "picture.png"
    code, out, _ = run(capsys, name, "--method", method, "--plot", target)
    assert (code, f"the picture is in {target}" in out) == (0, True)
    assert target.read_bytes().startswith(b"\x89PNG")


def test_plot_errors(capsys, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    picture = tmp_path / "x.xyz"
    assert "Name a .png file" in run(capsys, "Qwen-Image", "--method", "ada_taylor", "--plot", picture)[2]
    assert "no curve" in run(capsys, "CogVideoX", "--method", "pab", "--plot", picture)[2]
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    _, _, err = run(capsys, "Qwen-Image", "--method", "ada_taylor", "--plot", picture)
    assert "pip install 'mindie_cache[plot]'" in err


def test_curves():
    assert sparkline([0.0, 1.0, 0.5]) == "▁█▅"
    assert sparkline([2.0, 2.0]) == "▁▁"
    assert polynomial((1.0, 2.0), points=4) == pytest.approx([2.0, 2.1, 2.2, 2.3])
    assert set(known_plans(presets.find("ada_taylor", "Qwen-Image"), None)) == {"all branches"}


def test_importing_reads_no_file_and_nothing_optional():
    import subprocess

    code = "import sys, mindie_cache.presets as p; from mindie_cache.presets.catalogue import _catalogue as c; "
    code += "print(c.cache_info().currsize, 'matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "0 False\n"
