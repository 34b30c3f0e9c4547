"""Two ranks that share a sequence decide alike, and as one process does on the whole of it. Two processes, gloo."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from open_loop import Inputs, Outcome, agent_of, drive, make_inputs, make_model
from toy import quiet

STEPS, TOKENS, BLOCKS = 18, 12, 12
FAST = [[0.08, 6], [0.16, 5], [0.24, 4], [0.32, 3], [0.40, 2]]
CASES: dict[str, dict[str, Any]] = {
    "teacache": {"threshold": 0.15, "signal": "modulated"},
    "custom": {"threshold": 0.15, "signal": "modulated"},
    "seacache": {"threshold": 0.12, "grid": [3, 4]},
    "adacache": {"codebook": FAST, "otherwise": 1},
    "first_block": {"threshold": 0.06},
    "first_block previous": {"threshold": 0.02, "compare": "previous"},
    "dual_block": {"threshold": 0.06},
    "dynamic_block": {"threshold": 0.06},
    "dynamic_block parity": {"threshold": 0.02, "parity": True},
    "easycache": {"threshold": 0.05, "warmup_steps": 3},
}

GATHERS = ("seacache",)  # a filter over the tokens needs all of them
ALONE = {"seacache": {"grid": [3, 2]}}  # what a rank would believe that has half of the tokens


def inputs_of(rank: int | None, seed: int = 1) -> list[Inputs]:
    """The second half of the tokens moves a good deal more than the first, so a rank by itself would be misled."""
    still, moving = make_inputs(STEPS, seed, 0.02, (1, TOKENS, 6)), make_inputs(STEPS, seed + 9, 0.25, (1, TOKENS, 6))
    half, rows = TOKENS // 2, []
    for calm, wild in zip(still, moving, strict=True):
        hidden = torch.cat((calm.hidden[:, :half], wild.hidden[:, half:]), dim=1)
        rows.append(Inputs(hidden if rank is None else hidden[:, rank * half : (rank + 1) * half], calm.temb))
    return rows


def generate(case: str, group: Any, rows: dict[str, list[Inputs]], **options: Any) -> dict[str, Outcome]:
    method, blocks = case.split()[0], 1 if case == "easycache" else BLOCKS
    agent = agent_of(method, STEPS, blocks, options={**CASES[case], **options}, process_group=group)
    return drive(agent, make_model(blocks), rows)


class Collectives:
    """Replaces the collectives by ones that note the group and the size of what they send."""

    NAMES = ("all_reduce", "all_gather", "broadcast", "all_gather_into_tensor", "all_gather_object", "barrier")

    def __init__(self) -> None:
        self.seen: list[tuple[str, Any, int]] = []
        self.real = {name: getattr(dist, name) for name in self.NAMES}

    def __enter__(self) -> Collectives:
        for name, real in self.real.items():
            setattr(dist, name, lambda *args, n=name, r=real, **kwargs: self.note(n, r, args, kwargs))
        return self

    def note(self, name: str, real: Any, args: Any, kwargs: Any) -> Any:
        sizes = [value.numel() for value in args if isinstance(value, torch.Tensor)]
        self.seen.append((name, kwargs.get("group"), sum(sizes)))
        return real(*args, **kwargs)

    def __exit__(self, *_: object) -> None:
        for name, real in self.real.items():
            setattr(dist, name, real)


def record(outcomes: dict[str, Outcome]) -> dict[str, Any]:
    return {
        name: {"marks": o.marks, "ran": o.ran, "outputs": [output.tolist() for output in o.outputs]}
        for name, o in outcomes.items()
    }


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", store=dist.FileStore(f"{folder}/store", 2), rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    both = dist.new_group([0, 1])
    found: dict[str, Any] = {}
    with quiet():
        for case in CASES:
            with Collectives() as calls:
                shared = generate(case, both, {"cond": inputs_of(rank)})
            names = {name for name, _, _ in calls.seen}
            elsewhere = sum(group is not both for _, group, _ in calls.seen)
            reduces = [name for name, _, _ in calls.seen if name == "all_reduce"]
            traffic = {"names": sorted(names), "calls": len(reduces), "elsewhere": elsewhere}
            traffic["gathers"] = len(calls.seen) - len(reduces)
            traffic["largest"] = max(size for name, _, size in calls.seen if name == "all_reduce")
            pair = generate(case, both, {"cond": inputs_of(rank), "uncond": inputs_of(rank, 5)})
            broken = inputs_of(rank)
            if rank:
                broken[7].hidden[0, 0, 0] = float("nan")
            found[case] = {
                "shared": record(shared),
                "pair": record(pair),
                "broken": record(generate(case, both, {"cond": broken})),
                "traffic": traffic,
                "alone": generate(case, None, {"cond": inputs_of(rank)}, **ALONE.get(case, {}))["cond"].ran,
            }
    Path(folder, f"rank{rank}").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    if not dist.is_gloo_available():
        pytest.skip("this PyTorch has no gloo")
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(worker, args=(str(folder),), nprocs=2)
    return [json.loads(Path(folder, f"rank{rank}").read_text()) for rank in range(2)]


def compare(found: list[dict[str, Any]], whole: dict[str, Outcome]) -> None:
    half = TOKENS // 2
    for rank, mine in enumerate(found):
        for name, outcome in whole.items():
            assert mine[name]["ran"] == outcome.ran
            for got, output in zip(mine[name]["outputs"], outcome.outputs, strict=True):
                assert np.abs(np.array(got) - output[:, rank * half : (rank + 1) * half]).max() < 1e-10


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_decide_as_one_process_does_on_the_whole(ranks, case):
    """[L6] There each rank looks at its shard alone, may decide by itself, and hangs in the next collective."""
    with quiet():
        whole = generate(case, None, {"cond": inputs_of(None)})
    assert "." in whole["cond"].marks
    compare([rank[case]["shared"] for rank in ranks], whole)


@pytest.mark.parametrize("case", CASES)
def test_also_with_two_branches(ranks, case):
    with quiet():
        whole = generate(case, None, {"cond": inputs_of(None), "uncond": inputs_of(None, 5)})
    compare([rank[case]["pair"] for rank in ranks], whole)


@pytest.mark.parametrize("case", CASES)
def test_by_itself_a_rank_would_decide_otherwise(ranks, case):
    assert ranks[0][case]["alone"] != ranks[1][case]["alone"]


@pytest.mark.parametrize("case", CASES)
def test_one_small_all_reduce_a_step_on_the_given_group(ranks, case):
    reads = BLOCKS if "parity" in case else 1
    sums = 2 * BLOCKS if case == "dynamic_block" else 4
    for rank in ranks:
        traffic = rank[case]["traffic"]
        assert traffic["names"] == (["all_gather", "all_reduce"] if case in GATHERS else ["all_reduce"])
        assert traffic["gathers"] <= STEPS
        assert traffic["elsewhere"] == 0
        assert 0 < traffic["calls"] <= reads * (STEPS - 1)
        assert traffic["largest"] <= sums


@pytest.mark.parametrize("case", CASES)
def test_nan_in_one_shard_computes_everywhere(ranks, case):
    first, second = (rank[case]["broken"]["cond"] for rank in ranks)
    assert first["ran"] == second["ran"]
