"""Calibration on several ranks: they share a sequence, or each has a branch of its own. Two processes, gloo."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from test_calibrator import BRANCHES, assert_measured, generate, make, oracle, residuals

from mindie_cache import ConfigError, ParametersInvalid
from mindie_cache.calibration import gather_branches

TOKENS_OF_RANKS = (3, 4)  # a sequence does not always divide evenly


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=timedelta(seconds=60))
    both, given = dist.new_group([0, 1]), residuals()
    alone = [dist.new_group([0]), dist.new_group([1])][rank]
    shards = {name: walk.split(TOKENS_OF_RANKS, dim=2)[rank] for name, walk in given.items()}
    # the sequence is shared; one file is written, in a folder that only rank 0 knows
    path = Path(folder, "shared.json") if rank == 0 else Path("/dev/null/elsewhere.json")
    agent = make(group=both, output_path=path, signal="temb")
    generate(agent, shards)
    assert_measured(agent.calibration(), given)
    assert agent.calibration().provenance.ranks == 2
    # CFG-parallel: each rank sees one branch
    agent = make()
    generate(agent, given, BRANCHES[rank : rank + 1])
    calibration = gather_branches(agent.calibration(), None)
    assert_measured(calibration, given)
    messages = []
    agent = make(group=both)
    generate(agent, given, BRANCHES[rank : rank + 1])
    for attempt in (
        agent.calibration,
        lambda: make(output_path=Path(folder, "raced.json")),
        lambda: make(group=alone, output_path=Path(folder, "raced.json")),
    ):
        with pytest.raises((ParametersInvalid, ConfigError)) as caught:
            attempt()
        messages.append(str(caught.value))
    Path(folder, f"rank{rank}").write_text("\n".join(messages))
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    if not dist.is_gloo_available():
        pytest.skip("this PyTorch has no gloo")
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(worker, args=(str(folder),), nprocs=2)
    return folder


def test_T7_ranks_that_share_a_sequence_write_one_file_with_the_statistics_of_all(ranks):
    document = json.loads((ranks / "shared.json").read_text())
    assert document["cond_mag_ratios"] == pytest.approx(oracle(residuals()["cond"])[0], abs=1.1e-5)
    assert (document["provenance"]["ranks"], document["provenance"]["tokens"]) == (2, 14)
    assert len(document["teacache"]["coefficients"]) == 5


def test_T7_a_race_for_the_file_and_a_wrong_group_are_refused(ranks):
    for rank in range(2):
        wrong_group, *raced = (ranks / f"rank{rank}").read_text().splitlines()
        assert "measured different branches" in wrong_group
        assert all("would be written by several ranks" in message for message in raced)
    assert not (ranks / "raced.json").exists()


def test_merging_refuses_different_runs_and_branches_of_one_name():
    agents = [make(), make(model_name="other"), make()]
    for seed, agent in enumerate(agents):
        generate(agent, residuals(seed))
    first, other_model, other_seed = (agent.calibration() for agent in agents)
    assert first.merged(first) == first
    with pytest.raises(ParametersInvalid, match="model is 'toy' and 'other'"):
        first.merged(other_model)
    with pytest.raises(ParametersInvalid, match="Name the branches apart"):
        first.merged(other_seed)
