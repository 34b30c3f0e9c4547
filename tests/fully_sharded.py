"""One rank of two: the model of the zoo that is named on the command line, sharded by PyTorch in both of its ways, and as a
replica, cached before and after, beside the whole model. Fails where they differ."""

from __future__ import annotations

import sys
from functools import partial

import torch
from hooked import EVERY_OTHER
from test_hooks_wrappers import ENTRIES, LISTS, played
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.fsdp.wrap import lambda_auto_wrap_policy
from torch.nn.parallel import DistributedDataParallel

from mindie_cache import enable_cache

PAB = {"method": "pab"}


def blocks_of(model):
    return [block for name in LISTS[type(model).__name__] for block in getattr(model, name)]


def by_wrapping(model):
    blocks = {*blocks_of(model)}
    policy = partial(lambda_auto_wrap_policy, lambda_fn=lambda module: module in blocks)
    return FullyShardedDataParallel(model, auto_wrap_policy=policy, device_id=torch.device("cpu"), use_orig_params=True)


def in_place(model):
    mesh = init_device_mesh("cpu", (distributed.get_world_size(),))
    for block in blocks_of(model):
        fully_shard(block, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def in_parallel(model):
    return DistributedDataParallel(model.requires_grad_(True))  # it takes no other


def check(name, shard, config):
    whole = played(name, config)
    for wanted, found in zip(whole[0], played(name, config, shard)[0], strict=True):
        torch.testing.assert_close(found, wanted)
    assert played(name, config, shard)[2] == whole[2]


@torch.no_grad()
def check_sharded_afterwards(name, shard):
    entry = ENTRIES[name]
    wanted = played(name, EVERY_OTHER)[0]
    inner = entry.build()
    handle = enable_cache(inner, EVERY_OTHER, num_inference_steps=len(wanted))
    model = shard(inner)
    for step, one in enumerate(wanted):
        found = model(**entry.inputs(1, 1, 0, step / len(wanted)), return_dict=False)[0]
        torch.testing.assert_close(found, one)
    (report,) = handle.report().models.values()
    assert report.calls_reused == report.calls // 2
    handle.disable()
    entry_inputs = entry.inputs(1, 1, 0, 0.0)
    torch.testing.assert_close(model(**entry_inputs, return_dict=False)[0], wanted[0])


def main():
    distributed.init_process_group("gloo")
    (name,) = sys.argv[1:]
    for shard in (by_wrapping, in_place, in_parallel):
        for config in (EVERY_OTHER, PAB):
            check(name, shard, config)
        check_sharded_afterwards(name, shard)
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
