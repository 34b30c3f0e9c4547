"""Ranks that share a tensor agree: adastep skips only where every rank of its group wishes so. Two processes, gloo."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from toy import Add, agent_for, marks, quiet

STEPS = 12


def latents(step: int, even: bool) -> torch.Tensor:
    """Latents that move evenly, or by lengths that grow threefold."""
    return torch.full((4,), float(step) if even else 3.0**step)


def generate(rank: int, group: dist.ProcessGroup | None, even: bool) -> str:
    agent = agent_for("adastep", 1, STEPS, options={"skip_thr": 0.5, "max_skip_steps": 0})
    agent = type(agent)(agent.config, process_group=group)
    transformer = Add(1.0)
    for step in range(STEPS):
        agent.apply(transformer, hidden_states=latents(step, even))
    return marks(agent) + " " + str([record.reason for record in agent.report().steps].count("ranks disagree"))


def worker(rank: int, folder: str) -> None:
    """Rank 0 sees even latents. Every line written is the outcome of one run."""
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=timedelta(seconds=60))
    both = dist.new_group([0, 1])
    alone = [dist.new_group([0]), dist.new_group([1])][rank]
    with quiet():
        lines = [
            generate(rank, both, even=rank == 0),  # they disagree
            generate(rank, both, even=True),  # they agree
            generate(rank, alone, even=rank == 0),  # a group of its own: nobody else is asked
            generate(rank, None, even=rank == 0),  # no group, the default group exists nevertheless
        ]
        if rank == 0:  # the other rank takes no part: whoever asks the default group waits in vain
            lines.append(generate(rank, alone, even=True))
    Path(folder, f"rank{rank}").write_text("\n".join(lines))
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    if not dist.is_gloo_available():
        pytest.skip("this PyTorch has no gloo")
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(worker, args=(str(folder),), nprocs=2)
    return [Path(folder, f"rank{rank}").read_text().splitlines() for rank in range(2)]


SKIPPED = "####" + "." * (STEPS - 5) + "#"
COMPUTED = "#" * STEPS


def test_where_one_rank_wants_to_compute_all_of_its_group_do(outcomes):
    assert outcomes[0][0] == f"{COMPUTED} {SKIPPED.count('.')}"
    assert outcomes[1][0] == f"{COMPUTED} 0"


def test_where_all_ranks_agree_they_skip(outcomes):
    assert [ranks[1] for ranks in outcomes] == [f"{SKIPPED} 0"] * 2


def test_only_the_given_group_is_asked(outcomes):
    assert [ranks[2] for ranks in outcomes] == [f"{SKIPPED} 0", f"{COMPUTED} 0"]
    assert outcomes[0][4] == f"{SKIPPED} 0"


def test_without_a_group_nobody_is_asked(outcomes):
    assert [ranks[3] for ranks in outcomes] == [f"{SKIPPED} 0", f"{COMPUTED} 0"]
