"""The calibrator against oracles in NumPy: what it measures, when it refuses, what it writes and when."""

from __future__ import annotations

import gc
import itertools
import json
import math
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from toy import quiet

from mindie_cache import (
    CacheAgent,
    CacheConfig,
    Calibration,
    CalibratorOptions,
    ConfigError,
    ModelExecError,
    ParametersInvalid,
    branch,
    run,
)
from mindie_cache.calibration import files

STEPS, TOKENS, CHANNELS = 12, 7, 16
BRANCHES = ("cond", "uncond")


def residuals(seed: int = 0, steps: int = STEPS, batch: int = 2, tokens: int = TOKENS) -> dict[str, torch.Tensor]:
    """Residuals `(steps, batch, tokens, channels)` by branch, which change a little from step to step."""
    generator = torch.Generator().manual_seed(seed)
    start, *changes = torch.randn(steps * len(BRANCHES) + 1, batch, tokens, CHANNELS, generator=generator)
    walks = torch.stack(changes).unflatten(0, (len(BRANCHES), steps)).mul(0.1).cumsum(1) + start
    return dict(zip(BRANCHES, walks, strict=True))


class Adds(nn.Module):
    """A block that adds what it is told; half of it, because two of them make the range."""

    def forward(self, hidden_states: torch.Tensor, residual: torch.Tensor, temb: torch.Tensor) -> torch.Tensor:
        return hidden_states + residual / 2


def temb(step: int) -> torch.Tensor:
    return torch.tensor([1.0 + math.sin(step / 3), 2.0])


def make(steps: int = STEPS, group=None, **options) -> CacheAgent:
    config = CacheConfig("calibrator", 2, steps, options=CalibratorOptions(**{"model_name": "toy", **options}))
    return CacheAgent(config, group)


def generate(agent, given, branches=BRANCHES, dtype=torch.float32, experts=None) -> None:
    """One generation; `experts` are (first step, blocks)."""
    experts = experts or [(0, [Adds(), Adds()])]
    steps = len(next(iter(given.values())))
    with run():
        for step in range(steps):
            blocks = [blocks for first, blocks in experts if first <= step][-1]
            for name in branches(step) if callable(branches) else branches:
                with branch(name):
                    more = given[name][step].to(dtype)
                    hidden = torch.zeros(more.shape, dtype=dtype)
                    for block in blocks:
                        hidden = agent.apply(block, hidden_states=hidden, residual=more, temb=temb(step))


def oracle(walk: torch.Tensor) -> tuple[list[float], list[float], list[float]]:
    """Ratios, unbiased stds, cosine distances of residuals `(steps, ...)`, in float64."""
    given = walk.double().numpy()
    ratios, stds, distances = [1.0], [0.0], [0.0]
    for before, now in itertools.pairwise(given):
        sizes = np.linalg.norm(before, axis=-1), np.linalg.norm(now, axis=-1)
        factors = sizes[1] / sizes[0]
        ratios.append(factors.mean())
        stds.append(factors.std(ddof=1))
        distances.append((1 - (before * now).sum(-1) / (sizes[0] * sizes[1])).mean())
    return ratios, stds, distances


def assert_measured(calibration: Calibration, given: dict[str, torch.Tensor], branches=BRANCHES) -> None:
    assert list(calibration.branches) == list(branches)
    for name in branches:
        curves = calibration.branches[name]
        for measured, expected in zip(curves[:3], oracle(given[name]), strict=True):
            np.testing.assert_allclose(measured, expected, rtol=1e-5, atol=1e-6)


# ------------------------------------------------------------------------------------------------ what is measured


@pytest.mark.parametrize("branches", [BRANCHES, BRANCHES[:1], BRANCHES[1:]], ids="-".join)
def test_values_of_every_branch(branches):
    agent, given = make(), residuals()
    generate(agent, given, branches)
    assert_measured(agent.calibration(), given, branches)
    assert all(not record.reused for record in agent.report().steps)


def test_large_residuals_are_measured_in_chunks(monkeypatch):
    monkeypatch.setattr(sys.modules["mindie_cache.ops.memory"], "CACHED", 3 * CHANNELS)
    agent, given = make(signal="temb"), residuals()
    generate(agent, given)
    assert_measured(agent.calibration(), given)
    change = (given["cond"][1] - given["cond"][0]).abs().sum() / given["cond"][0].abs().sum()
    assert agent.calibration().branches["cond"].changes[0][1] == pytest.approx(change.item(), rel=1e-5)


def test_the_first_step_of_the_second_expert_is_measured_against_the_last_of_the_first():
    agent, given = make(), residuals()
    generate(agent, given, experts=[(0, [Adds(), Adds()]), (5, [Adds(), Adds()])])
    assert_measured(agent.calibration(), given)


def test_a_second_run_starts_afresh():
    """TeleFuser's and LightX2V's calibrators append to the lists of the run before."""
    agent = make()
    for seed in (1, 2):
        given = residuals(seed)
        generate(agent, given)
        assert_measured(agent.calibration(), given)


def test_an_interrupted_run_leaves_nothing_behind():
    agent, given = make(), residuals(3)
    given["cond"][7] = torch.nan  # where the generation breaks off

    class Breaks(Adds):
        def forward(self, hidden_states, residual, temb):
            if residual.isnan().any():
                raise RuntimeError("power cut")
            return super().forward(hidden_states, residual, temb)

    with pytest.raises(RuntimeError, match="power cut"):
        generate(agent, given, experts=[(0, [Breaks(), Breaks()])])
    given = residuals(3)
    gc.collect()
    assert "latest" not in agent._positions.latest.measured
    generate(agent, given)
    assert_measured(agent.calibration(), given)


def test_T8_a_bf16_model_is_measured_in_fp32():  # TeleFuser: norms in bf16 give ratios in steps of 1/256
    agent, given = make(), residuals(4)
    generate(agent, given, dtype=torch.bfloat16)
    calibration = agent.calibration()
    assert calibration.provenance.dtype == "bfloat16"
    for name in BRANCHES:
        ratios = calibration.branches[name].ratios[1:]
        np.testing.assert_allclose(ratios, oracle(given[name])[0][1:], rtol=2e-3)  # the model itself has 8 bits
        assert not any((256 * ratio).is_integer() for ratio in ratios)


def test_L11_written_ratios_have_five_digits_not_bf16_steps(tmp_path):  # LightX2V's tables hold 0.99609 = 255/256
    agent, given = make(output_path=tmp_path / "table.json", format="lightx2v"), residuals(5)
    generate(agent, given, dtype=torch.bfloat16)
    ratios = json.loads((tmp_path / "table.json").read_text())["magcache_ratios"]
    assert len({ratio for row in ratios for ratio in row}) > 1.5 * STEPS
    assert not any(abs(256 * ratio - round(256 * ratio)) < 2e-3 for row in ratios for ratio in row[1:])


def test_nothing_is_read_from_the_device_before_the_end(monkeypatch):
    reads = []
    for name in ("item", "tolist", "__bool__", "__float__", "numpy", "cpu"):
        real = getattr(torch.Tensor, name)
        monkeypatch.setattr(torch.Tensor, name, lambda self, *a, _r=real, _n=name: reads.append(_n) or _r(self, *a))
    agent = make(signal="temb")
    generate(agent, residuals())
    assert reads == []
    agent.calibration()
    assert reads == ["tolist"]


def test_the_polynomial_is_the_least_squares_fit_of_the_changes():
    agent, given = make(signal="temb"), residuals(6)
    generate(agent, given)
    signals = np.stack([temb(step).double().numpy() for step in range(STEPS)])

    def changes(values):
        rows = values.reshape(STEPS, -1)
        return np.abs(np.diff(rows, axis=0)).sum(1) / np.abs(rows[:-1]).sum(1)

    x = np.tile(changes(signals), 2)
    y = np.concatenate([changes(given[name].double().numpy()) for name in BRANCHES])
    powers = np.stack([x**power for power in range(4, -1, -1)], axis=1)
    expected, *_ = np.linalg.lstsq(powers, y, rcond=None)
    polynomial = agent.calibration().polynomial()
    np.testing.assert_allclose(np.polyval(polynomial.coefficients, x), powers @ expected, rtol=1e-3)
    np.testing.assert_allclose(polynomial.fitted_range, (x.min(), x.max()), rtol=1e-5)


# ------------------------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("step", "value", "measured_at"), [(3, math.nan, 3), (3, math.inf, 3), (3, 0.0, 4)], ids=["nan", "inf", "zero"]
)
def test_T8_nan_and_inf_are_refused_and_nothing_is_written(tmp_path, step, value, measured_at):
    file = tmp_path / "table.json"
    file.write_text("what was there")
    agent, given = make(output_path=file), residuals()
    given["uncond"][step, 0, 2] = value
    with pytest.raises(ModelExecError, match=f"'uncond', step {measured_at}: .*block_start.*Nothing was written"):
        generate(agent, given)
    assert file.read_text() == "what was there"
    assert os.listdir(tmp_path) == ["table.json"]


def test_asking_too_early():
    agent = make()
    with pytest.raises(ParametersInvalid, match="Nothing was measured yet"):
        agent.calibration()
    with quiet():
        generate(agent, residuals(steps=5))
    with pytest.raises(ParametersInvalid, match=r"'cond' was not measured at 7 of 12 steps, first at step 5\. Run one"):
        agent.calibration()
    with pytest.raises(ParametersInvalid, match="dit_block_cache measures nothing"):
        CacheAgent(CacheConfig("dit_block_cache", 2, 8, 1, 2)).calibration()


def test_a_branch_that_guidance_left_out_is_refused(tmp_path):
    agent, given = make(output_path=tmp_path / "table.json"), residuals()
    with pytest.raises(ParametersInvalid, match="'uncond' was not measured at 4 of 12 steps, first at step 8"):
        generate(agent, given, lambda step: BRANCHES[: 1 if step >= 8 else 2])
    assert not (tmp_path / "table.json").exists()


def test_a_change_of_resolution_is_refused():
    agent, given = make(), residuals()
    smaller = {"cond": [*given["cond"][:3], *given["cond"][3:, :, :4]]}
    with pytest.raises(ModelExecError, match=r"step 3: the residual's shape changes from \(2, 7, 16\) to \(2, 4, 16\)"):
        generate(agent, smaller, BRANCHES[:1])


@pytest.mark.parametrize("path", ["taken/table.json", "."])
def test_a_wrong_path_is_an_error_before_the_run(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(ConfigError, match="output path"):
        make(output_path=path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model_name": ""}, "name the model"),
        ({"format": "csv"}, "'telefuser', 'lightx2v'"),
        ({"sigma_shift": -1.0}, "sigma_shift"),
        ({"guidance_scale": math.nan}, "guidance_scale"),
        ({"scheduler": 3}, "scheduler=3 must be a name"),
        ({"output_path": 3}, "must be the path of a file"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(ConfigError, match=message):
        make(**options)


@pytest.mark.parametrize(("steps", "options"), [(1, {}), (5, {"signal": "temb"})])
def test_too_few_steps(steps, options):
    with pytest.raises(ConfigError, match="steps_count of a calibration"):
        make(steps, **options)


# ------------------------------------------------------------------------------------------------ writing


def test_T8_a_path_without_a_folder_works(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    agent = make(output_path="table.json")
    monkeypatch.chdir("/")  # the path means what it meant when it was given
    generate(agent, residuals())
    assert os.listdir(tmp_path) == ["table.json"]


def test_folders_are_made_before_the_run(tmp_path):
    make(output_path=tmp_path / "a" / "b" / "table.json")
    assert os.listdir(tmp_path / "a" / "b") == []


def test_it_is_written_after_the_last_branch_and_not_before(tmp_path):
    file, seen = tmp_path / "table.json", []

    class Looks(Adds):
        def forward(self, hidden_states, residual, temb):
            seen.append(file.exists())
            return super().forward(hidden_states, residual, temb)

    generate(make(output_path=file), residuals(), experts=[(0, [Looks(), Looks()])])
    assert seen == [False] * (2 * len(BRANCHES) * STEPS)
    assert file.exists()


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    file = tmp_path / "table.json"
    file.write_text("what was there")

    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        generate(make(output_path=file), residuals())
    assert file.read_text() == "what was there"
    assert os.listdir(tmp_path) == ["table.json"]


def test_a_file_is_complete_when_it_gets_its_name(tmp_path, monkeypatch):
    replaced, real = [], os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (replaced.append(json.loads(Path(a).read_text())), real(a, b)))
    files.write(tmp_path / "x.json", {"a": [1, 2]})
    assert replaced == [{"a": [1, 2]}]
    with pytest.raises(ValueError, match="JSON"):
        files.write(tmp_path / "x.json", {"a": math.nan})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": [1, 2]}


def test_the_permissions_are_those_of_any_new_file(tmp_path):
    files.write(tmp_path / "x.json", {})
    (tmp_path / "y.json").touch()
    assert (tmp_path / "x.json").stat().st_mode == (tmp_path / "y.json").stat().st_mode
