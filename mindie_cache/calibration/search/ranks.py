"""Several processes of one search, as torchrun starts them.

Either each has a model of its own: they talk once, at the start; then the folder is enough. Or they hold one model together
(sharded by context, tensors or layers): rank 0 searches, and tells the others what to generate with it.
"""

from __future__ import annotations

import gc
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from mindie_cache import CacheConfig, enable_cache
from mindie_cache.calibration.search.targets import Target
from mindie_cache.checks import whole
from mindie_cache.device import of_rank, resolve
from mindie_cache.errors import CacheError, ConfigError

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


@contextmanager
def together(where: Place) -> Iterator[None]:
    """A process group of all ranks, for as long as they hold one model: the model's own code finds it, too.

    Raises:
        ConfigError: there is one rank only.
    """
    if where.size == 1:
        raise ConfigError("--sharded is for several ranks that hold one model. Start them with torchrun, or leave it out.")
    torch.distributed.init_process_group(BACKENDS[where.device.type])
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()
        gc.collect()  # caches that are no longer used hold the group, and its threads must not outlive the interpreter


class Leader:
    """Rank 0 of those that hold one model: tells the others what is generated next."""

    def tell(self, config: CacheConfig | None, prompt: str, seed: int, frames: bool) -> None:
        self._send((None if config is None else config.to_dict(), prompt, seed, frames))

    def end(self) -> None:
        self._send(None)

    @staticmethod
    def _send(task: Any) -> None:
        torch.distributed.broadcast_object_list([task], 0)


def follow(target: Target) -> None:
    """Generate what the leader does, until it ends. A setting that does not fit is one that the leader sees fail, too."""
    while True:
        box: list[Any] = [None]
        torch.distributed.broadcast_object_list(box, 0)
        if box[0] is None:
            return
        fields, prompt, seed, frames = box[0]
        try:
            with enabled(target, None if fields is None else CacheConfig(**fields)):
                target.generate(prompt, seed, frames=frames)
        except CacheError:
            continue


def enabled(target: Target, config: CacheConfig | None) -> Any:
    """A context with this setting enabled. Ranks that hold one model decide together."""
    if config is None:
        return nullcontext()
    group = torch.distributed.group.WORLD if torch.distributed.is_initialized() else None
    steps = target.steps if isinstance(target.subject, nn.Module) else None
    return enable_cache(target.subject, config, num_inference_steps=steps, blocks=target.blocks, process_group=group)


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, "")
    if not text:
        return default
    if not text.isdigit():
        raise ConfigError(f"{name}={text!r} in the environment is no number. Start ranks with torchrun.")
    whole(name, int(text), 0)
    return int(text)
