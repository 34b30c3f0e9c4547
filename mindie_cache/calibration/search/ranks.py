"""Several processes of one search, as torchrun starts them. They talk once, at the start; then the folder is enough."""

from __future__ import annotations

import os
import uuid
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import torch

from mindie_cache.checks import whole
from mindie_cache.device import of_rank, resolve
from mindie_cache.errors import ConfigError

BACKENDS = {"npu": "hccl", "cuda": "nccl", "cpu": "gloo"}
_PATIENCE = timedelta(minutes=5)  # ranks may load their libraries at very different speeds


class Place(NamedTuple):
    """This process among the others, and its device."""

    rank: int
    size: int
    device: torch.device


def place(kind: str = "auto") -> Place:
    """Where torchrun put this process (RANK, WORLD_SIZE, LOCAL_RANK); alone without it. Ranks share out the devices.

    Raises:
        ConfigError: there is no such device, or it has an index although every rank needs its own.
    """
    size = _number("WORLD_SIZE", 1)
    if size == 1:
        return Place(0, 1, resolve(kind))
    if ":" in kind:
        raise ConfigError(f"--device {kind}: {size} ranks cannot share one device. Use --device {kind.partition(':')[0]}.")
    rank = _number("RANK", 0)
    device = of_rank(_number("LOCAL_RANK", rank), kind)
    if device.type != "cpu":
        getattr(torch, device.type).set_device(device)
    return Place(rank, size, device)


def agree_on(folder: Path, where: Place) -> None:
    """See that all ranks share `folder`: rank 0 puts a word there, which all others must find. The group ends with it, so
    that no rank can wait for a dead one later.

    Raises:
        ConfigError: a rank does not see the folder of rank 0.
    """
    if where.size == 1:
        return
    dist = torch.distributed
    dist.init_process_group(BACKENDS[where.device.type], timeout=_PATIENCE)
    try:
        word = torch.tensor(list(uuid.uuid4().bytes), dtype=torch.int64, device=where.device)
        dist.broadcast(word, 0)
        note = folder / ".locks" / f"hello-{bytes(word.tolist()).hex()}"
        if where.rank == 0:
            note.parent.mkdir(parents=True, exist_ok=True)
            note.touch()
        dist.barrier()
        seen = torch.tensor(int(note.exists()), device=where.device)
        dist.all_reduce(seen, op=dist.ReduceOp.MIN)
        if where.rank == 0:
            note.unlink()
        if not seen.item():
            raise ConfigError(f"--out {folder} is not the same folder on all ranks. Use one on a shared file system.")
    finally:
        dist.destroy_process_group()


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, "")
    if not text:
        return default
    if not text.isdigit():
        raise ConfigError(f"{name}={text!r} in the environment is no number. Start ranks with torchrun.")
    whole(name, int(text), 0)
    return int(text)
