"""The side of `peers.py` that runs in the side venv: one request, one setting, all its batches in one process.

A request is a JSON file: method, options, steps, device, threads, batches of prompts and seeds, and the paths of the answer
(JSON) and of the videos (safetensors). Work is counted by hooks on linear layers inside the blocks, in videos ("rows"), so
that a peer's own report is not needed: a layer that was skipped was not called.
"""

from __future__ import annotations

import importlib.metadata
import json
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from peer_methods import METHODS, Peer, Place
from safetensors.torch import save_file
from torch import Tensor

from mindie_cache.device import synchronize
from mindie_cache.testbed import TestbedTransformer, generate, load_testbed

WARM_UP_STEPS = 2


def count_rows(model: TestbedTransformer) -> Counter[str]:
    """A counter that grows with every call: "forward", "attention" and "feed_forward", in videos."""
    rows: Counter[str] = Counter()

    def counts(name: str) -> Callable[..., None]:
        return lambda module, args, output: rows.update({name: len(output)})

    model.patch_in.register_forward_hook(counts("forward"))
    for block in model.transformer_blocks:
        block.attn.to_qkv.register_forward_hook(counts("attention"))
        block.ff.up.register_forward_hook(counts("feed_forward"))
    return rows


class Guidance:
    """Stands between the testbed's sampler and the model: says where the sampler is, and calls the model as the peer needs.

    The sampler calls the conditional branch first. The unconditional prompt is all zeros.
    """

    def __init__(self, peer: Peer, place: Place):
        self.peer, self.place = peer, place
        self.kept: Tensor | None = None  # unconditional result of a joint call

    def apply(self, model: TestbedTransformer, /, **inputs: Tensor) -> Tensor:
        """The velocity of one branch, computed or from the joint call before it."""
        ids = inputs["encoder_hidden_states"]
        self.place.branch = "cond" if ids.any() else "uncond"
        if self.place.branch == "cond":
            self.place.step += 1
            self.place.timestep = float(inputs["timestep"][0])
        if not self.peer.joint:
            with self.peer.around():
                return model(**inputs)
        if self.place.branch == "uncond":
            assert self.kept is not None
            return self.kept
        both = {name: torch.cat([value, value]) for name, value in inputs.items()}
        both["encoder_hidden_states"] = torch.cat([torch.zeros_like(ids), ids])
        with self.peer.around():
            self.kept, cond = model(**both).chunk(2)
        return cond


def answer(request: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Seconds and rows of each batch, and the videos by the batch's number."""
    torch.set_num_threads(request["threads"])
    model = load_testbed(request["device"])
    batches, steps = request["batches"], request["steps"]

    def run(peer: Peer, place: Place, batch: dict[str, Any], steps: int) -> tuple[Tensor, float]:
        place.step = -1
        peer.begin()
        synchronize(model.position.device)
        start = perf_counter()
        guidance = Guidance(peer, place)
        made = generate(model, batch["prompts"], seeds=batch["seeds"], steps=steps, forward_cache=guidance)
        synchronize(model.position.device)
        return made.videos.cpu().contiguous(), perf_counter() - start

    run(Peer(), Place(WARM_UP_STEPS), batches[0], WARM_UP_STEPS)
    _, seconds_uncached = run(Peer(), Place(steps), batches[0], steps)
    rows = count_rows(model)
    place = Place(steps)
    peer = METHODS[request["method"]](model, request["options"], place)
    seconds, counted, videos = [], [], {}
    for number, batch in enumerate(batches):
        rows.clear()
        videos[str(number)], spent = run(peer, place, batch, steps)
        seconds.append(spent)
        counted.append(dict(rows))
    return {"seconds": seconds, "seconds_uncached": seconds_uncached, "rows": counted, "error": None}, videos


def versions() -> dict[str, str]:
    """Of what is measured, where it is installed."""
    found = {name: list(importlib.metadata.distributions(name=name)) for name in ("torch", "diffusers", "cache-dit")}
    return {name: copies[0].version for name, copies in found.items() if copies}


def serve(path: Path) -> None:
    """Answer the request at `path`. What the peer raises becomes the answer's `error`, in one line."""
    request = json.loads(Path(path).read_text(encoding="utf-8"))
    try:
        reply, videos = answer(request)
        save_file(videos, request["videos"])
    except Exception as error:
        text = " ".join(str(error).split())
        reply = {"error": f"{type(error).__name__}: {text}"[:400], "traceback": traceback.format_exc()}
    reply["versions"] = versions()
    Path(request["answer"]).write_text(json.dumps(reply), encoding="utf-8")
