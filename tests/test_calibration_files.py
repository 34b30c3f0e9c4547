"""Calibration files: forms that TeleFuser, LightX2V and the presets of this package read, provenance."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from test_calibrator import BRANCHES, STEPS, generate, make, oracle, residuals

from mindie_cache import CacheAgent, CacheConfig, CacheWarning, ConfigError, ParametersInvalid, __version__
from mindie_cache.calibration import Calibration, Curves, Provenance, fit
from mindie_cache.presets import load_file

FACTS = {"sigma_shift": 5.0, "scheduler": "UniPC", "resolution": "832x480", "guidance_scale": 6.0}


def written(file: Path, given, branches=BRANCHES, **options) -> dict:
    generate(make(output_path=file, **{**FACTS, **options}), given, branches)
    return json.loads(file.read_text())


def five_digits(values) -> list[float]:
    return [round(float(value), 5) for value in values]


# ------------------------------------------------------------------------------------------------ forms


def test_the_telefuser_file(tmp_path):
    given = residuals()
    document = written(tmp_path / "table.json", given)
    assert (document["K"], document["retention_ratio"], document["thresh"]) == (1, 0.2, 0.12)
    assert (document["sigma_shift"], document["num_inference_steps"]) == (5.0, STEPS)
    assert [type(document[key]) for key in ("K", "retention_ratio", "num_inference_steps")] == [int, float, int]
    for name in BRANCHES:
        expected = oracle(given[name])
        for key, values in zip(("mag_ratios", "mag_std", "cos_dis"), expected, strict=True):
            assert document[f"{name}_{key}"] == pytest.approx(five_digits(values), abs=1.1e-5)
            assert document[f"{name}_{key}"] == five_digits(document[f"{name}_{key}"])
    assert document["cond_mag_ratios"][0] == 1.0
    assert "teacache" not in document


@pytest.mark.parametrize(("steps", "expected"), [(2, 1), (19, 1), (20, 2), (30, 3), (40, 4), (100, 4)])
def test_most_skipped_steps_by_telefusers_rule(steps, expected):
    curves = Curves((1.0,) * steps, (0.0,) * steps, (0.0,) * steps)
    calibration = Calibration(provenance=Provenance(model="toy", steps=steps), branches={"cond": curves})
    assert calibration.to_telefuser()["K"] == expected


def test_the_lightx2v_file(tmp_path):
    given = residuals()
    document = written(tmp_path / "table.json", given, format="lightx2v")
    keys = ("magcache_ratios", "mag_std", "cos_dis")
    for index, name in enumerate(BRANCHES):
        for key, values in zip(keys, oracle(given[name]), strict=True):
            assert document[key][index] == pytest.approx(five_digits(values), abs=1.1e-5)
    assert [document[key][0][0] for key in keys] == [1.0, 0.0, 0.0]
    assert (document["feature_caching"], document["magcache_K"], document["infer_steps"]) == ("Mag", 1, STEPS)
    assert document["sample_shift"] == 5.0


def test_L10_a_file_says_that_calibration_is_over_and_no_file_is_written_unasked(tmp_path, monkeypatch):
    """LightX2V: calibration is the default of one model, and three files go to the working directory."""
    assert written(tmp_path / "table.json", residuals(), format="lightx2v")["magcache_calibration"] is False
    folder = tmp_path / "empty"
    folder.mkdir()
    monkeypatch.chdir(folder)
    generate(make(), residuals())
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("only", BRANCHES)
def test_T7_one_branch_fills_both_lists_and_says_so(tmp_path, only):  # TeleFuser never writes without an uncond branch
    given = residuals()
    document = written(tmp_path / "table.json", given, [only])
    assert document["cond_mag_ratios"] == document["uncond_mag_ratios"]
    assert document["cond_mag_ratios"] == pytest.approx(five_digits(oracle(given[only])[0]), abs=1.1e-5)
    assert document["provenance"]["branches"] == [only]
    assert f"only branch '{only}' was measured" in document["provenance"]["note"]


def test_branches_of_other_names():
    curves = [Curves((1.0, ratio), (0.0, 0.0), (0.0, 0.0)) for ratio in (1.1, 1.2, 1.3)]

    def of(*names):
        facts = Provenance(model="toy", steps=2)
        return Calibration(provenance=facts, branches=dict(zip(names, curves, strict=False)))

    document = of("text", "empty").to_telefuser()
    assert (document["cond_mag_ratios"], document["uncond_mag_ratios"]) == ([1.0, 1.1], [1.0, 1.2])
    assert document["provenance"]["note"] == "'text' stands as cond, 'empty' as uncond"
    document = of("image", "uncond", "cond").to_telefuser()
    assert (document["cond_mag_ratios"], document["uncond_mag_ratios"]) == ([1.0, 1.3], [1.0, 1.2])
    assert document["provenance"]["note"] == "not in this file: branches image"
    with pytest.raises(ParametersInvalid, match="'cond' and 'uncond'"):
        of("a", "b", "c").to_telefuser()


def test_provenance(tmp_path):
    facts = written(tmp_path / "table.json", residuals())["provenance"]
    assert {name: facts[name] for name in FACTS} == FACTS
    assert (facts["model"], facts["steps"], facts["branches"]) == ("toy", STEPS, ["cond", "uncond"])
    assert (facts["tokens"], facts["ranks"], facts["dtype"], facts["device"]) == (14, 1, "float32", "cpu")
    assert facts["versions"]["mindie_cache"] == __version__
    assert facts["versions"]["torch"] == torch.__version__
    assert facts["created"].endswith("+00:00")
    assert "note" not in facts


# ------------------------------------------------------------------------------------------------ presets


@pytest.mark.parametrize("form", ["telefuser", "lightx2v"])
@pytest.mark.parametrize("method", ["magcache", "ada_taylor"])
def test_files_are_presets(tmp_path, form, method):
    file = tmp_path / "table.json"
    written(file, residuals(), format=form)
    preset = load_file(file, method=method)
    assert preset.model == "toy"
    assert len(preset.settings["cond_ratios"]) == STEPS
    assert preset.settings["cond_ratios"] != preset.settings["uncond_ratios"]
    assert (preset.made_for.steps, preset.made_for.sigma_shift) == (STEPS, 5.0)
    agent = CacheAgent(CacheConfig(method, 2, STEPS, options={"preset": str(file), "sigma_shift": 5.0}))
    generate(agent, residuals())
    assert agent.report().share_computed < 1


@pytest.mark.parametrize(
    ("change", "message"),
    [({"sigma_shift": 3.0}, "sigma_shift=5, but this run has 3"), ({"resolution": "1280x720"}, "832x480.*1280x720")],
)
def test_T15_a_file_made_for_other_settings_is_announced(tmp_path, change, message):
    file = tmp_path / "table.json"
    written(file, residuals())
    options = {"preset": str(file), **change}
    with pytest.warns(CacheWarning, match=message):
        CacheAgent(CacheConfig("magcache", 2, STEPS, options=options))
    with pytest.raises(ConfigError, match="does not fit, and strict is set"):
        CacheAgent(CacheConfig("magcache", 2, STEPS, options={**options, "strict": True}))


def test_the_polynomial_of_a_file_is_a_preset_of_teacache(tmp_path):
    file = tmp_path / "table.json"
    document = written(file, residuals(), signal="temb")["teacache"]
    assert sorted(document) == ["coefficients", "fitted_range", "signal"]
    assert (len(document["coefficients"]), document["signal"]) == (5, "temb")
    assert load_file(file, method="teacache").settings["coefficients"] == tuple(document["coefficients"])
    agent = CacheAgent(
        CacheConfig("teacache", 2, STEPS, options={"preset": str(file), "sigma_shift": 5.0, "threshold": 1e9})
    )
    generate(agent, residuals())
    assert agent.report().share_computed < 1


def test_a_polynomial_through_exact_points():
    coefficients = (3.0, -2.0, 0.5, 1.0, 0.25)
    points = [0.1, 0.2, 0.4, 0.5, 0.7, 0.9]
    changes = [(x, sum(c * x**power for power, c in zip((4, 3, 2, 1, 0), coefficients, strict=True))) for x in points]
    polynomial = fit(changes)
    assert polynomial.coefficients == pytest.approx(coefficients, rel=1e-6)
    assert polynomial.fitted_range == (0.1, 0.9)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ([(0.1, 0.2)] * 9, "1 different changes"),
        ([(float("nan"), 0.1)] * 9, "NaN"),
        ([(0.1 * i, 1.0) for i in range(4)], "4"),
    ],
)
def test_a_polynomial_that_is_not_determined(changes, message):
    with pytest.raises(ParametersInvalid, match=message):
        fit(changes)


def test_a_signal_that_never_changes_costs_the_polynomial_only():
    curves = Curves((1.0,) * 8, (0.0,) * 8, (0.0,) * 8, changes=((0.0, 0.1),) * 7)
    calibration = Calibration(provenance=Provenance(model="toy", steps=8), branches={"cond": curves}, signal="temb")
    with pytest.warns(CacheWarning, match="no polynomial for TeaCache"):
        assert "teacache" not in calibration.to_telefuser()
