"""The benchmark of other libraries' caches: request and answer, counted work, and failures that are results. No installs."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mindie_cache.demo import Batch
from mindie_cache.testbed import generate, load_testbed

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
import peer_methods  # noqa: E402
import peer_worker  # noqa: E402
import peers  # noqa: E402

STEPS = 2
BATCHES = (Batch(("a red square moving left",), (3,)), Batch(("a cyan cross moving up",), (4,)))
NONE = peers.PeerSetting("none", "", "uncached", {})


@pytest.fixture
def fake(monkeypatch):
    """Runs the worker, in this process, with a method of the test's own; returns its answer and the videos."""

    def run(method) -> tuple[dict, dict]:
        monkeypatch.setitem(peer_methods.METHODS, "fake", method)
        batches = [{"prompts": batch.prompts, "seeds": batch.seeds} for batch in BATCHES]
        request = {"method": "fake", "options": {}, "steps": STEPS, "device": "cpu", "batches": batches}
        return peer_worker.answer({**request, "threads": torch.get_num_threads()})

    return run


@pytest.fixture(scope="module")
def expected():
    model = load_testbed()
    return [generate(model, batch.prompts, seeds=batch.seeds, steps=STEPS).videos for batch in BATCHES]


def test_a_process_answers_with_the_videos_of_every_batch_and_all_of_the_work(expected):
    (result,) = peers.run_peers(BATCHES, STEPS, [NONE], python=Path(sys.executable))
    assert result.error is None
    assert len(result.seconds) == 2
    assert result.seconds_uncached > 0
    assert result.shares == result.blocks == [1.0, 1.0]
    for made, wanted in zip(result.videos, expected, strict=True):
        assert torch.equal(made, wanted)
    row = peers.as_row(result, BATCHES, expected, STEPS)
    assert row["psnr"] == [float("inf")] * 2
    assert row["share"] == 1.0
    assert "100% | 100%" in peers.table([row])
    json.dumps(row)


def test_a_skipped_layer_is_not_counted_and_the_peer_knows_where_it_is(fake):
    places, begun = [], []

    def skips_half(model, options, place):
        model.transformer_blocks = model.transformer_blocks[:6]

        def around():
            places.append((place.branch, place.step, round(place.timestep)))
            return peer_methods.nullcontext()

        return peer_methods.Peer(lambda: begun.append(len(places)), around)

    reply, _ = fake(skips_half)
    share, blocks = peers.shares(reply["rows"][1], 1, STEPS)
    assert blocks == 0.5
    assert 0.5 < share < 0.55
    assert begun == [0, 4]
    assert places == 2 * [("cond", 0, 1000), ("uncond", 0, 1000), ("cond", 1, 750), ("uncond", 1, 750)]


def test_a_joint_call_gives_the_same_videos_and_counts_the_same_work(fake, expected):
    calls = []

    def joint(model, options, place):
        model.register_forward_hook(lambda module, args, output: calls.append(len(output)))
        return peer_methods.Peer(joint=True)

    reply, videos = fake(joint)
    assert calls == [2] * (2 * STEPS)
    assert peers.shares(reply["rows"][0], 1, STEPS) == (1.0, 1.0)
    torch.testing.assert_close(videos["0"], expected[0], atol=1e-4, rtol=0)


def test_what_a_peer_raises_is_its_result():
    unknown = replace(NONE, method="diffusers", options={"config": "Nothing"})
    (failed,) = peers.run_peers(BATCHES[:1], 1, [unknown], python=Path(sys.executable))
    assert "Error: " in failed.error
    row = peers.as_row(failed, BATCHES[:1], [], 1)
    assert (row["error"], "psnr" in row) == (failed.error, False)


def test_rows_of_what_ran_and_a_file_of_everything(monkeypatch, tmp_path, expected, capsys):
    def pretend(setting, batches, steps, python, device):
        if setting.name == "broken":
            return peers.PeerResult(setting, error="why")
        return peers.PeerResult(setting, None, [1.0, 1.0], 2.0, [0.5, 0.5], [0.4, 0.4], list(expected))

    monkeypatch.setattr(peers, "prepare", lambda folder: Path(sys.executable))
    monkeypatch.setattr(peers, "run_setting", pretend)
    (row,) = peers.peer_rows(BATCHES, STEPS, tmp_path, [NONE, replace(NONE, name="broken")])
    assert (row["name"], row["share"], row["speedup"], row["ratios"]) == ("none", 0.5, 2.0, [2.0, 2.0])
    assert [one["error"] for one in json.loads((tmp_path / "peers.json").read_text())] == [None, "why"]
    assert "broken, : why" in capsys.readouterr().err


def test_a_process_that_dies_is_a_result(tmp_path):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho out of memory >&2\nexit 3\n")
    python.chmod(0o755)
    (result,) = peers.run_peers(BATCHES, STEPS, [NONE], python=python)
    assert result.error == "the process ended with 3: out of memory"


def test_a_side_venv_that_cannot_be_set_up_is_a_result(monkeypatch, tmp_path):
    def refuse(words):
        raise peers.PeersUnavailableError("pip failed: no network")

    monkeypatch.setattr(peers, "command", refuse)
    (result,) = peers.run_peers(BATCHES, STEPS, [NONE], folder=tmp_path / "venv")
    assert result.error == "pip failed: no network"


def test_the_side_venv_is_set_up_once_and_says_one_line(monkeypatch, tmp_path, capfd):
    commands = []

    def create(words):
        commands.append(words)
        (tmp_path / "lib/python3/site-packages").mkdir(parents=True, exist_ok=True)

    monkeypatch.setattr(peers, "command", create)
    assert peers.prepare(tmp_path) == peers.prepare(tmp_path) == tmp_path / "bin/python"
    assert len(commands) == 3
    assert capfd.readouterr().err.count("\n") == 1
    host = (tmp_path / "lib/python3/site-packages/host.pth").read_text().strip()
    assert Path(host) == Path(torch.__file__).parents[1]


def test_settings_are_distinct_plain_data():
    labels = [(setting.name, setting.knob) for setting in peers.PEER_SETTINGS]
    assert len(set(labels)) == len(labels)
    for setting in peers.PEER_SETTINGS:
        assert setting.method in peer_methods.METHODS
        json.dumps(setting.options)


def test_help():
    done = subprocess.run([sys.executable, BENCHMARKS / "peers.py", "--help"], capture_output=True, text=True, check=True)
    assert "--worker" in done.stdout
