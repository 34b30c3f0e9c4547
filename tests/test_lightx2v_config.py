"""LightX2V's shipped configurations become ours; the expected values are written down here by hand, key by key."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mindie_cache import CacheAgent, CacheConfig, ConfigError
from mindie_cache.recipes import METHODS

FILES = Path(__file__).parent / "data" / "lightx2v"  # folders of the original's configs/ are joined by two underscores

T2V_1_3B = (-52186.2437, 9230.41404, -528.275948, 13.6987616, -0.0499875664)
T2V_1_3B_PLAIN = (2396.76752, -1311.10545, 201.331979, -8.29855975, 0.137887774)
T2V_14B_PLAIN = (-5784.54975374, 5449.50911966, -1811.16591783, 256.27178429, -13.02252404)
I2V_480P = (257151.496, -35422.9917, 1402.86849, -13.5890334, 0.132517977)
I2V_480P_PLAIN = (-302.33167, 223.948934, -52.546397, 5.8734844, -0.201973289)
I2V_720P = (8107.0546, 2133.93892, -372.934672, 16.6203073, -0.0417769401)
I2V_720P_PLAIN = (-114.36346466, 65.26524496, -18.82220707, 4.91518089, -0.23412683)
TI2V_5B = (157472.669, -115702.395, 31076.1669, -3831.16651, 221.608777, -4.81179567)
HY_T2V_480P = (-29719.0924, 22283.4983, -4374.1836, 339.340251, -10.1365855, 0.129101768)
HY_I2V_480P = (8085.28429, -2446.07178, 249.489589, -9.10697865, 0.120261379)
HY_T2V_720P = (-30890.7507, 16778.6188, -3191.78643, 260.740519, -8.19205881, 0.107913775)
HY_I2V_720P = (3843.00014, -1392.47433, 169.167679, -7.07679232, 0.102419011)


def tea(threshold, coefficients, warmup_steps, signal="temb"):
    return {"threshold": threshold, "coefficients": coefficients, "warmup_steps": warmup_steps, "signal": signal}


def mag(threshold, max_skip_steps, *, second, last, uncond_last):
    """Of the tables: entry 1 and the last one of cond, the last one of uncond."""
    return {
        "threshold": threshold,
        "max_skip_steps": max_skip_steps,
        "retention_ratio": 0.2,
        "_ratios": (1.0, second, last, uncond_last),
    }


MAG_I2V = mag(0.24, 6, second=0.98783, last=0.92617, uncond_last=0.92616)
MAG_T2V = mag(0.12, 4, second=1.0124, last=0.81838, uncond_last=0.81939)
MOTION = {"motion": True, "frame_tokens": 1560, "otherwise": None, "codebook": None}
EXPECTED = {  # file: method, blocks_count, steps_count, options
    "caching__adacache__wan_i2v_ada": ("adacache", 30, 40, MOTION),
    "caching__adacache__wan_t2v_ada": ("adacache", 30, 50, MOTION),
    "caching__custom__wan_i2v_custom_480p": ("custom", 1, 40, {**tea(0.26, I2V_480P_PLAIN, 1), "order": 1}),
    "caching__custom__wan_i2v_custom_720p": ("custom", 1, 40, {**tea(0.26, I2V_720P_PLAIN, 1), "order": 1}),
    "caching__custom__wan_t2v_custom_14b": ("custom", 1, 50, {**tea(0.26, T2V_14B_PLAIN, 1), "order": 1}),
    "caching__custom__wan_t2v_custom_1_3b": ("custom", 1, 50, {**tea(0.26, T2V_1_3B_PLAIN, 1), "order": 1}),
    "caching__dualblock__wan_t2v_1_3b": (
        "dual_block",
        30,
        50,
        {"threshold": 0.03, "downsample": 2, "compare": "previous"},
    ),
    "caching__dynamicblock__wan_t2v_1_3b": (
        "dynamic_block",
        30,
        50,
        {"threshold": 0.003, "downsample": 2, "parity": True},
    ),
    "caching__firstblock__wan_t2v_1_3b": (
        "first_block",
        30,
        50,
        {"threshold": 0.02, "downsample": 2, "compare": "previous"},
    ),
    "caching__magcache__wan_i2v_dist_cfg_ulysses_mag_480p": ("magcache", 1, 40, MAG_I2V),
    "caching__magcache__wan_i2v_mag_480p": ("magcache", 1, 40, MAG_I2V),
    "caching__magcache__wan_t2v_dist_cfg_ulysses_mag_1_3b": ("magcache", 1, 50, MAG_T2V),
    "caching__magcache__wan_t2v_mag_1_3b": ("magcache", 1, 50, MAG_T2V),
    "caching__taylorseer__wan_t2v_taylorseer": (
        "taylorseer",
        90,
        50,
        {"interval": 4, "order": 1, "warmup_steps": 1, "lite": None},
    ),
    "caching__teacache__wan_i2v_tea_480p": ("teacache", 1, 40, tea(0.26, I2V_480P, 5)),
    "caching__teacache__wan_i2v_tea_720p": ("teacache", 1, 40, tea(0.26, I2V_720P, 5)),
    "caching__teacache__wan_t2v_1_3b_tea_480p": ("teacache", 1, 50, tea(0.26, T2V_1_3B, 5)),
    "caching__teacache__wan_ti2v_tea_720p": ("teacache", 1, 50, tea(0.26, TI2V_5B, 1)),
    "hunyuan_video_15__cache__hy_15_i2v_480p_magcache": (
        "magcache",
        1,
        50,
        mag(0.24, 6, second=1.01562, last=0.88672, uncond_last=0.88672),
    ),
    "hunyuan_video_15__cache__hy_15_i2v_480p_teacache": ("teacache", 1, 50, tea(0.15, HY_I2V_480P, 1, "modulated")),
    "hunyuan_video_15__cache__hy_15_i2v_720p_teacache": ("teacache", 1, 50, tea(0.15, HY_I2V_720P, 1, "modulated")),
    "hunyuan_video_15__cache__hy_15_t2v_480p_teacache": ("teacache", 1, 50, tea(0.15, HY_T2V_480P, 1, "modulated")),
    "hunyuan_video_15__cache__hy_15_t2v_720p_teacache": ("teacache", 1, 50, tea(0.15, HY_T2V_720P, 1, "modulated")),
    "flux2__flux2_klein_i2i_inpaint_mask_cache": ("adacache", 30, 40, {"motion": False, "frame_tokens": None}),
    "flux2__flux2_klein_i2i_inpaint_mask_cfg_parallel_cache": ("adacache", 30, 40, {"motion": False}),
    "changing_resolution__wan_t2v_U_teacache": ("teacache", 1, 50, tea(0.1, T2V_1_3B_PLAIN, 1)),
    "platforms__intel_xpu__wan_t2v_1_3_teacache": ("teacache", 1, 20, tea(0.26, I2V_480P, 5)),
    "bench__lightx2v_4": ("teacache", 1, 40, tea(0.2, I2V_480P_PLAIN, 1)),
}
CALIBRATIONS = {  # file: steps_count, model_name, sigma_shift, guidance_scale
    "caching__magcache__wan_i2v_mag_calibration_480p": (40, "caching__magcache__wan_i2v_mag_calibration_480p", 5, 5),
    "caching__magcache__wan_t2v_mag_calibration_1_3b": (50, "caching__magcache__wan_t2v_mag_calibration_1_3b", 8, 6),
    "hunyuan_video_15__cache__hy_15_i2v_480p_magcache_calibration": (50, "480p_i2v", 5.0, 6.0),
}


def test_every_shipped_configuration_is_expected_here():
    assert {file.stem for file in FILES.iterdir()} == set(EXPECTED) | set(CALIBRATIONS)
    assert len(EXPECTED) + len(CALIBRATIONS) == 31


@pytest.mark.parametrize("name", EXPECTED)
def test_shipped_configuration(name):
    method, blocks, steps, options = EXPECTED[name]
    config = CacheConfig.from_lightx2v(FILES / f"{name}.json")
    assert (config.method, config.blocks_count, config.steps_count) == (method, blocks, steps)
    given = dict(options)
    ratios = given.pop("_ratios", None)
    assert {key: getattr(config.options, key) for key in given} == given
    assert config.options.final_steps == 1  # LightX2V forces the last step in some methods only
    if ratios:
        cond, uncond = config.options.cond_ratios, config.options.uncond_ratios
        assert (cond[0], cond[1], cond[-1], uncond[-1]) == ratios
        assert len(cond) == len(uncond) == steps
    METHODS[method].build(config)


@pytest.mark.parametrize("name", CALIBRATIONS)
def test_L10_a_calibrating_configuration_measures_and_writes_nothing_unasked(name, tmp_path, monkeypatch):
    """LightX2V writes three files to the working directory, and appends to its lists at every request."""
    config = CacheConfig.from_lightx2v(FILES / f"{name}.json", 1)
    steps, model, shift, guidance = CALIBRATIONS[name]
    options = config.options
    assert (config.method, config.steps_count, options.model_name) == ("calibrator", steps, model)
    assert (options.sigma_shift, options.guidance_scale, options.output_path) == (shift, guidance, None)
    monkeypatch.chdir(tmp_path)
    agent = CacheAgent(config)
    for _ in range(2):
        for step in range(steps):
            for branch in ("cond", "uncond"):
                with agent.branch(branch):
                    agent.apply(grow, hidden_states=torch.ones(1, 2, 3), step=step)
        assert not list(tmp_path.iterdir())
    agent.calibration().save("measured.json", options.format)
    assert [path.name for path in tmp_path.iterdir()] == ["measured.json"]
    measured = CacheConfig.from_lightx2v(tmp_path / "measured.json")
    assert (measured.method, measured.steps_count, len(measured.options.cond_ratios)) == ("magcache", steps, steps)


def grow(hidden_states: torch.Tensor, step: int) -> torch.Tensor:
    return hidden_states * (2 + 0.1 * step)


def test_dual_block_keeps_five_blocks_at_both_ends():
    config = CacheConfig.from_lightx2v(FILES / "caching__dualblock__wan_t2v_1_3b.json", 40)
    assert METHODS["dual_block"].build(config).site.start == 5
    assert METHODS["dual_block"].build(config).site.stop == 35


@pytest.fixture
def read(tmp_path):
    """Read a configuration of these keys; a key that is ... is left out."""

    def of(blocks_count=None, **keys):
        path = tmp_path / "wan.json"
        values = {"infer_steps": 50, "feature_caching": "Tea", "coefficients": [[1.0, 0.0], [2.0, 0.0]], **keys}
        path.write_text(json.dumps({key: value for key, value in values.items() if value is not ...}))
        return CacheConfig.from_lightx2v(path, blocks_count)

    return of


def test_defaults_of_teacache(read):
    config = read()
    assert config.options.threshold == 0.26
    assert config.options.coefficients == (2.0, 0.0)  # use_ret_steps is false by default
    assert config.options.warmup_steps == 1


@pytest.mark.parametrize(("given", "layers", "expected"), [(None, ..., 1), (None, 40, 40), (12, 40, 12)])
def test_where_the_number_of_blocks_comes_from(read, given, layers, expected):
    assert read(given, num_layers=layers).blocks_count == expected


def test_the_last_step_can_be_left_to_the_method(read):
    config = read()
    told = replace(config, options=replace(config.options, final_steps=0)).validated()
    assert told.options.final_steps == 0


@pytest.mark.parametrize("name", ["NoCaching", "None", None, ...])
def test_no_caching_computes_everything(read, name):
    config = read(feature_caching=name, coefficients=...)
    assert (config.method, config.step_interval, config.steps_count) == ("dit_block_cache", 1, 50)


def test_hunyuan_video_has_defaults_for_magcache(read):
    ratios = [[1.0, 0.9], [1.0, 0.8]]
    options = read(feature_caching="Mag", magcache_ratios=ratios, transformer_model_name="480p_i2v").options
    assert (options.threshold, options.max_skip_steps, options.retention_ratio) == (0.2, 6, 0.2)


def test_a_branch_without_a_table_follows_the_other(read):
    keys = {"magcache_K": 2, "magcache_thresh": 0.1, "magcache_retention_ratio": 0.2}
    assert read(feature_caching="Mag", magcache_ratios=[[1.0, 0.9], []], **keys).options.uncond_ratios is None


def test_ada_takes_the_number_of_tokens_from_the_key_the_size_or_the_constant(read):
    assert read(feature_caching="Ada", adacache_spatial_dim=99).options.frame_tokens == 99
    assert read(feature_caching="Ada", target_height=720, target_width=1280).options.frame_tokens == 45 * 80
    assert read(feature_caching="Ada").options.frame_tokens == 1536
    assert not read(feature_caching="Ada", adacache_spatial_dim=0).options.motion


def test_hunyuan_image_3(read):
    config = read(feature_caching=..., coefficients=..., use_taylor_cache=True)
    options = config.options
    assert (config.method, config.blocks_count, options.lite) == ("taylorseer", 1, True)
    assert (options.interval, options.low_order, options.high_order) == (5, 2, 2)
    assert (options.warmup_steps, options.final_steps) == (1, 1)
    enhanced = {
        "taylor_cache_enable_first_enhance": True,
        "taylor_cache_first_enhance_steps": 3,
        "taylor_cache_enable_tailing_enhance": True,
        "taylor_cache_tailing_enhance_steps": 2,
        "taylor_cache_interval": 4,
        "taylor_cache_order": 1,
        "taylor_cache_low_freqs_order": 0,
    }
    options = read(feature_caching=..., coefficients=..., use_taylor_cache=True, **enhanced).options
    assert (options.interval, options.low_order, options.high_order) == (4, 0, 1)  # the order limits both parts
    assert (options.warmup_steps, options.final_steps) == (3, 2)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"feature_caching": "TeaCache"}, r"wan\.json: feature_caching='TeaCache' is not supported. Did you mean 'Tea'"),
        ({"feature_caching": "tea"}, "Did you mean 'Tea'"),
        ({"feature_caching": 3}, "feature_caching=3 is not supported"),
        ({"feature_caching": "use_taylor_cache"}, "is not supported"),
        ({"feature_caching": ...}, "coefficients is set, but feature_caching is missing"),
        ({"feature_caching": ..., "coefficients": ..., "taylor_cache_order": 2}, "use_taylor_cache is missing"),
        ({"infer_steps": ...}, "infer_steps is missing"),
        ({"infer_steps": "50"}, "infer_steps='50' must be a whole number"),
        ({"num_layers": 0}, "num_layers=0 is out of range"),
        ({"coefficients": ...}, "coefficients is missing: feature_caching='Tea' needs it"),
        ({"coefficients": []}, "coefficients=.* must be a list"),
        ({"coefficients": [[1.0]]}, "coefficients has 1 lists. Give two"),
        ({"coefficients": [[], [1.0]], "use_ret_steps": True}, r"coefficients\[0\] is empty"),
        ({"coefficients": [1.0, 0.0], "use_ret_steps": True}, "one flat list"),
        ({"coefficients": [["1"], ["2"]]}, r"coefficients\[1\]\[0\]='2' must be a finite number"),
        ({"coefficients": [1.0, [2.0]]}, r"coefficients\[1\]=\[2.0\] must be a finite number"),
        ({"coefficients": {"a": 1}}, "must be a list"),
        ({"use_ret_steps": 1}, "use_ret_steps=1 must be true or false"),
        ({"teacache_thresh": -1}, "teacache_thresh=-1 is out of range"),
        ({"teacache_thresh": True}, "teacache_thresh=True must be a number"),
        ({"teacache_tresh": 0.2}, "unknown key 'teacache_tresh'. Did you mean 'teacache_thresh'"),
        ({"teacache_threshold_of_mine": 0.2}, "unknown key 'teacache_threshold_of_mine'"),
        ({"magcache_k": 4}, "unknown key 'magcache_k'. Did you mean 'magcache_K'"),
        ({"feature_cachin": "Tea"}, "unknown key 'feature_cachin'. Did you mean 'feature_caching'"),
        ({"use_retsteps": True}, "unknown key 'use_retsteps'. Did you mean 'use_ret_steps'"),
        ({"coeficients": []}, "unknown key 'coeficients'. Did you mean 'coefficients'"),
        ({"use_taylor_cache": True}, "exclude each other"),
        ({"use_taylor_cache": "yes"}, "use_taylor_cache='yes' must be true or false"),
        ({"feature_caching": "Mag"}, "magcache_ratios is missing"),
        ({"feature_caching": "Mag", "magcache_ratios": [1.0, 0.9]}, r"two lists, \[\[cond\], \[uncond\]\]"),
        ({"feature_caching": "Mag", "magcache_ratios": [[], [1.0]]}, r"magcache_ratios\[0\]=\[\] must be a list"),
        ({"feature_caching": "Mag", "magcache_ratios": [[1.0], [1.0]]}, "magcache_thresh is missing"),
        ({"feature_caching": "Mag", "magcache_calibration": "no"}, "magcache_calibration='no' must be true or false"),
        ({"feature_caching": "FirstBlock"}, "residual_diff_threshold is missing"),
        ({"feature_caching": "FirstBlock", "residual_diff_threshold": 0.1}, "downsample_factor is missing"),
        (
            {"feature_caching": "DualBlock", "residual_diff_threshold": 0.1, "downsample_factor": 0},
            "downsample_factor=0 is out of range",
        ),
        (
            {"feature_caching": "DualBlock", "residual_diff_threshold": 1, "downsample_factor": 2, "num_layers": 10},
            "leaves no block to skip",
        ),
        ({"feature_caching": "Ada", "target_height": "480", "target_width": 832}, "target_height='480' must be"),
    ],
)
def test_bad_configurations(read, keys, message):
    with pytest.raises(ConfigError, match=message) as caught:
        read(**keys)
    assert "wan.json" in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", "3", "{", '{"infer_steps": 3, "infer_steps": 4}', "\x00"])
def test_files_that_are_no_configuration(tmp_path, text):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"x\.json"):
        CacheConfig.from_lightx2v(path)


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        CacheConfig.from_lightx2v(tmp_path / "none.json")
