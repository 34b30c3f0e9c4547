"""The benchmark of full-size models, on tiny ones: rows do the work that they say, the loop, and its table. No installs."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
import full_size  # noqa: E402
import full_size_models as models  # noqa: E402
import full_size_worker as worker  # noqa: E402
import overhead_variants as variants  # noqa: E402

diffusers = pytest.importorskip("diffusers")
CPU = torch.device("cpu")
STEPS = 6
SIZES = {"num_attention_heads": 2, "attention_head_dim": 16}
FLUX = {**SIZES, "in_channels": 8, "joint_attention_dim": 24, "pooled_projection_dim": 20, "axes_dims_rope": (4, 6, 6)}
WAN = {**SIZES, "in_channels": 4, "out_channels": 4, "text_dim": 24, "freq_dim": 32, "ffn_dim": 64, "rope_max_seq_len": 64}


def tiny_flux() -> models.RealSubject:
    def build(double, single):
        return diffusers.FluxTransformer2DModel(num_layers=double, num_single_layers=single, guidance_embeds=True, **FLUX)

    prompt = {"encoder_hidden_states": torch.randn(1, 8, 24), "pooled_projections": torch.randn(1, 20)}
    changes = {"build": lambda: build(1, 2), "hollow": lambda: build(0, 0), "shape": (1, 16, 8), "prompt": lambda: prompt}
    return replace(models.flux(1, 2, side=4, text=8), **changes)


def tiny_wan() -> models.RealSubject:
    def build(layers):
        return diffusers.WanTransformer3DModel(num_layers=layers, **WAN)

    def prompt():
        return {"encoder_hidden_states": torch.randn(1, 8, 24)}

    changes = {"build": lambda: build(3), "hollow": lambda: build(0), "shape": (1, 4, 2, 8, 8), "prompt": prompt}
    return replace(models.wan(3, 2, 8, 8, text=8), **changes)


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


@pytest.fixture
def race(monkeypatch):
    def run(subject: models.RealSubject, library: str = "") -> worker.Race:
        monkeypatch.setitem(models.SCALES, "tiny", {"it": subject})
        labels = [row.label for row in worker.rows(subject, STEPS) if row.library.startswith(library)]
        found = worker.Race({"device": "cpu", "scale": "tiny", "model": "it", "steps": STEPS, "rows": labels})
        for number, found.turns in enumerate((STEPS, STEPS, 1)):  # by steps as on the CPU, then whole loops
            found.round(number)
        return found

    return run


@pytest.mark.filterwarnings("ignore::mindie_cache.errors.CacheWarning")  # as `serve` does
@pytest.mark.parametrize(("subject", "branches"), [(tiny_flux, 1), (tiny_wan, 2)], ids=["flux", "wan"])
def test_rows_that_are_compared_compute_the_same_blocks_in_every_generation(race, subject, branches):
    found = race(subject())
    results = found.results
    half, first, once = [3, 0] * 3, [3, 1] * 3, [3] + [1] * 5
    expected = {"uncached": [3] * 6, "0 blocks": [0] * 6, "1 blocks": [1] * 6}
    expected |= {"mindie_cache dit_block_cache": half, "diffusers MagCache, forced": half}
    expected |= {"mindie_cache dit_block_cache F1": first, "mindie_cache dit_block_cache F1, once": once}
    expected |= {"diffusers FirstBlock, forced": once}
    for name, forwards in expected.items():
        assert results[name]["error"] is None, name
        assert results[name]["forwards"] == [blocks for blocks in forwards for _ in range(branches)], name
        assert len(results[name]["seconds"]) == 3
    assert "cache-dit static mask F1B0" in results  # measured or, without the library, an error; the others went on
    table = full_size.table([{"request": {"rows": list(results)[3:], "model": "it"}, "error": None, **worker.reply(found)}])
    assert f"| mindie_cache dit_block_cache | {9 * branches} of {18 * branches} |" in table
    assert "compared with" not in table


@pytest.mark.filterwarnings("ignore::mindie_cache.errors.CacheWarning")
@pytest.mark.parametrize("subject", [tiny_flux, tiny_wan], ids=["flux", "wan"])
def test_ours_do_the_same_work_where_the_timestep_cannot_be_read_as_on_an_accelerator(race, subject, monkeypatch):
    expected = race(subject(), variants.OURS).results
    monkeypatch.setattr("mindie_cache.hooks.sight.host_value", lambda timestep: None)
    results = race(subject(), variants.OURS).results
    assert [one["error"] for one in results.values()] == [None] * 7
    assert {name: one["forwards"] for name, one in results.items()} == {
        name: one["forwards"] for name, one in expected.items()
    }


def test_models_share_weights_and_have_the_buffers_of_one_that_was_built_as_usual():
    subject = tiny_wan()
    weights = models.random_weights(subject, CPU)
    one, other = models.assemble(subject, weights), models.assemble(subject, weights)
    assert one.proj_out.weight.data_ptr() == other.proj_out.weight.data_ptr()
    assert one.proj_out.weight.dtype == torch.bfloat16
    assert one.scale_shift_table.dtype == torch.float32  # diffusers keeps it so
    usual = dict(subject.build().named_buffers())
    assert usual
    for name, buffer in one.named_buffers():
        assert torch.equal(buffer, usual[name])


class Constant:
    """A model whose velocity is known."""

    def __init__(self, **velocities: float):
        self.velocities, self.timesteps, self.branch = velocities, [], ""

    def cache_context(self, name):
        self.branch = name
        return torch.no_grad()

    def __call__(self, hidden_states, timestep, **inputs):
        self.timesteps.append(float(timestep))
        return (torch.full_like(hidden_states, self.velocities[self.branch]),)


def test_the_loop_goes_from_noise_to_the_end_of_the_flow():
    loop, model, seen = models.Denoising(tiny_flux(), STEPS, CPU), Constant(cond=2.0), []
    *_, latents = loop.run(model, lambda: seen.append(1))
    torch.testing.assert_close(latents, loop.noise - 2.0)  # a straight flow over a time of 1
    assert len(seen) == loop.forwards == STEPS
    assert model.timesteps[0] == 1.0
    assert model.timesteps == sorted(model.timesteps, reverse=True)
    loop = models.Denoising(tiny_wan(), STEPS, CPU)
    *_, guided = loop.run(Constant(cond=3.0, uncond=1.0), lambda: None)
    torch.testing.assert_close(guided, loop.noise - (1.0 + models.GUIDANCE_SCALE * (3.0 - 1.0)), rtol=1e-5, atol=1e-5)
    assert loop.forwards == 2 * STEPS


def answer(**changed) -> dict:
    """4 forwards of 10 blocks at 2 s; a forward without blocks takes 0.5 s, one with the first block 0.7 s."""
    results = {
        "uncached": {"seconds": [8.0], "forwards": [10] * 4, "error": None},
        "0 blocks": {"seconds": [2.0], "forwards": [0] * 4, "error": None},
        "1 blocks": {"seconds": [2.8], "forwards": [1] * 4, "error": None},
        "a": {"seconds": [5.3], "forwards": [10, 0, 10, 0], "error": None, "kept": 0, "work": "x"},
        "b": {"seconds": [5.4], "forwards": [10, 1, 10, 1], "error": None, "kept": 1, "work": "y"},
    }
    for name, change in changed.items():
        results[name] = {**results[name], **change}
    request = {"rows": ["a", "b"], "model": "m"}
    return {"request": request, "title": "M", "error": None, "blocks": 10, "forwards": 4, "results": results}


def test_the_share_of_the_ideal_saving():
    table = full_size.table([answer()])
    # 2 computed forwards of 2 s; ideal hits 2 * 0.5 s, 5 s in all: 2.7 s of 3 s saved; 2 * 0.7 s, 5.4 s: all that is there
    assert "| M | a | 20 of 40 | 8.00 | 5.00 | 5.30 | 1.51 | 0.900 |" in table
    assert "| M | b | 22 of 40 | 8.00 | 5.40 | 5.40 | 1.48 | 1.000 |" in table
    everything = full_size.table([answer(a={"forwards": [10] * 4, "seconds": [8.1]})])
    assert "| 40 of 40 | 8.00 | 8.00 | 8.10 | 0.99 | - |" in everything


def test_shares_are_taken_within_a_round():
    seconds = {"uncached": [8.0, 80.0, 8.0], "0 blocks": [2.0, 20.0, 2.0], "1 blocks": [3.0] * 3, "b": [6.0] * 3}
    seconds["a"] = [5.3, 50.0, 5.6]  # the machine was slow in the second round
    table = full_size.table([answer(**{name: {"seconds": values} for name, values in seconds.items()})])
    assert "| M | a | 20 of 40 | 8.00 | 5.00 | 5.60 | 1.51 | 0.900 (0.800 to 1.000) |" in table


def test_other_work_than_that_of_the_row_it_is_compared_with_is_said():
    table = full_size.table([answer(b={"work": "x"})])
    assert "| 20 of 40, not 22 as the row that it is compared with |" in table
    assert "| 22 of 40, not 20 as the row that it is compared with |" in table


def test_errors_are_shown_and_no_number_is_made_up():
    failed = full_size.table([answer(a={"error": "RuntimeError: it | broke"})])
    assert "| M | a | a: RuntimeError: it / broke | - | - | - | - | - |" in failed
    assert "| M | b | 22 of 40 |" in failed
    assert "| M | b | 1 blocks: no memory | - " in full_size.table([answer(**{"1 blocks": {"error": "no memory"}})])
    died = {"request": {"rows": ["a"], "model": "m"}, "results": {}, "error": "the process ended with -9"}
    assert "| m | a | uncached: the process ended with -9 | - " in full_size.table([died])


def test_a_process_that_died_is_named_with_the_rounds_that_it_left():
    died = {**answer(), "error": "the process ended with -15", "machine": {"device": "cpu", "threads": 1}}
    died["request"]["rounds"] = 3
    assert full_size.facts([died]) == "device cpu, threads 1\nm: the process ended with -15, after 1 of 3 rounds"
    nothing = {"request": {"rows": [], "model": "m", "rounds": 3}, "results": {}, "error": "the process ended with 1"}
    assert "after 0 of 3 rounds" in full_size.facts([nothing])


def test_a_hit_with_other_blocks_than_the_cut_model_is_an_error():
    worker.check_hits([10, 0, 10], 10, 0)
    with pytest.raises(worker.WrongWorkError, match="a forward computed 1 of 10 blocks; a hit should compute 0"):
        worker.check_hits([10, 1, 10], 10, 0)


@pytest.mark.filterwarnings("ignore::mindie_cache.errors.CacheWarning")
def test_a_cache_that_fails_does_not_stop_the_others(race, monkeypatch):
    def broken(model, subject, steps):
        raise RuntimeError("no such model")

    made = worker.rows
    monkeypatch.setattr(
        worker, "rows", lambda *args: [replace(row, apply=broken) if i == 0 else row for i, row in enumerate(made(*args))]
    )
    results = race(tiny_wan()).results
    assert results["mindie_cache dit_block_cache"]["error"] == "RuntimeError: no such model"
    assert len(results["mindie_cache dit_block_cache F1"]["seconds"]) == 3


def test_full_size_has_the_published_sizes():
    assert variants.Subject in models.RealSubject.__mro__
    sizes = {}
    for name, subject in models.SCALES["full"].items():
        with torch.device("meta"):
            model = subject.build()
        sizes[name] = sum(parameter.numel() for parameter in model.parameters()) / 1e9
    assert sizes["flux"] == pytest.approx(11.9, abs=0.05)  # "12 billion"
    assert sizes["wan"] == pytest.approx(1.42, abs=0.05)  # "1.3 billion"


def test_help():
    done = subprocess.run(
        [sys.executable, BENCHMARKS / "full_size.py", "--help"], capture_output=True, text=True, check=True
    )
    assert "share of ideal" in done.stdout
