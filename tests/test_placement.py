"""placement="int8": kept features take half of bf16's memory and return to within half a code; all else stays as it is."""

from __future__ import annotations

import pytest
import torch
from test_face_agreement import ON_BLOCKS, ON_CALLS, STEPS
from toy import AddBoth, agent_for, marks, plain

from mindie_cache import CacheAgent, CacheConfig
from mindie_cache.history import History
from mindie_cache.placement import PLACEMENTS, Codes, Int8Rows, OnDevice
from mindie_cache.testbed import generate, load_testbed


def step(row: torch.Tensor) -> torch.Tensor:
    """The largest error of one code, row by row."""
    return row.double().abs().amax(-1, keepdim=True) / 254 * 1.001


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_line_through_two_snapshots(dtype):
    torch.manual_seed(0)
    old, new, reference = (torch.randn(2, 9, 40).to(dtype) for _ in range(3))
    history = History(2, Int8Rows())
    for at, feature in enumerate((old, new)):
        history.push(at, (feature.clone(),))
    (got,) = history.combine((-1.5, 2.5), (reference,))
    exact = reference.double() - 1.5 * old.double() + 2.5 * new.double()
    assert got.dtype == dtype
    assert ((got.double() - exact).abs() <= 1.5 * step(old) + 2.5 * step(new) + exact.abs() * torch.finfo(dtype).eps).all()
    (held,) = history.combine((0.0, 1.0), None)
    assert held.dtype == dtype
    assert ((held.double() - new.double()).abs() <= step(new) + new.abs() * torch.finfo(dtype).eps).all()
    (taken,) = history.take()
    assert torch.equal(taken, held)


def test_memory():
    feature = torch.randn(4, 100, 64, dtype=torch.bfloat16)
    kept = {}
    for placement in (OnDevice(), Int8Rows()):
        history = History(1, placement)
        history.push(0, (feature.clone(),))
        kept[type(placement)] = history.nbytes
    assert kept == {OnDevice: feature.numel() * 2, Int8Rows: feature.numel() + feature.shape[:-1].numel() * 4}


def test_what_has_no_rows_stays_as_it_is():
    for value in (torch.arange(6).view(2, 3), torch.randn(5), torch.tensor(2.0)):
        assert Int8Rows().keep(value) is value
    assert isinstance(Int8Rows().keep(torch.randn(2, 3)), Codes)
    history = History(1, Int8Rows())
    history.push(0, (torch.arange(6).view(2, 3), "text", None))
    whole, text, none = history.combine((1.0,), None)
    assert (plain(whole), text, none) == ([[0, 1, 2], [3, 4, 5]], "text", None)


def test_the_residual_is_rounded_once():
    output, reference = torch.randn(3, 64).bfloat16(), torch.randn(3, 64).bfloat16()
    exact = output.double() - reference.double()
    kept = Int8Rows().residual(output, reference)
    assert kept.dtype == torch.bfloat16
    assert ((kept.codes.double() * kept.scales.double().unsqueeze(-1) - exact).abs() <= step(exact)).all()
    assert Int8Rows().residual(output, reference.float()).dtype == torch.float32


def test_blocks_whose_residual_is_constant_along_a_row_are_exact():
    """127 codes to the row's largest value: a row of equal values is met by all of its codes."""
    given = {"hidden_states": torch.zeros(2, 8), "encoder_hidden_states": torch.zeros(3, 8)}
    results = {}
    for placement in ("device", "int8"):
        agent = agent_for("dit_block_cache", 3, 8, placement=placement)
        blocks = [AddBoth(0.5 * index) for index in range(1, 4)]
        rows = []
        for at in range(8):
            hidden = {name: tensor.clone() for name, tensor in given.items()}
            for block in blocks:
                hidden = dict(zip(hidden, agent.apply(block, **hidden, step=at), strict=True))
            rows.append(hidden)
        results[placement] = rows, marks(agent)
    assert results["int8"][1] == results["device"][1]
    assert "." in results["int8"][1]
    for one, other in zip(results["int8"][0], results["device"][0], strict=True):
        for name in given:
            assert torch.allclose(one[name], other[name], rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("method", "fields", "options"),
    [pytest.param(*case[:3], id=f"{case[0]}-{index}") for index, case in enumerate((*ON_BLOCKS, *ON_CALLS))],
)
def test_every_method_on_the_testbed(method, fields, options):
    """As good as without codes, to within 1.5 % of the latents, in little more than a quarter of float32's memory."""
    model = load_testbed("cpu")
    asked = dict(prompts=["a red square moving left"], seeds=[3], steps=STEPS)
    exact, found, kept = generate(model, **asked).latents, {}, {}
    for placement in PLACEMENTS:
        config = CacheConfig(method, model.config.blocks, STEPS, **fields, options=options or None, placement=placement)
        model.cache = agent = CacheAgent(config)
        found[placement] = generate(model, **asked).latents
        kept[placement] = agent.report().bytes_peak
        assert agent.report().calls_reused
    error = {placement: float((latents - exact).norm() / exact.norm()) for placement, latents in found.items()}
    assert 0 < abs(error["int8"] - error["device"]) < 0.015  # extrapolation widens what codes lose
    assert 0.25 < kept["int8"] / kept["device"] < 0.3


def test_configuration_files_name_it(tmp_path):
    config = CacheConfig("dit_block_cache", 4, 20, step_interval=2, placement="int8").validated()
    path = tmp_path / "cache.yaml"
    config.to_yaml(path)
    assert "placement: int8" in path.read_text()
    assert CacheConfig.from_yaml(path) == config
