"""What `overhead_diffusers.py` measures: the models, and each cache on them through its public interface. Times nothing.

A decision is forced by a fixed schedule where the cache has one, else by a threshold of next to nothing or of nearly one.
Computed steps are those of a schedule that reuses every other step, so that what they compute is kept; hits follow each
other. diffusers and cache-dit are imported where they are used.
"""

from __future__ import annotations

import importlib
import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

COMPUTE, HIT = "compute", "hit"
WARM_UP = 6  # steps before the first measured one, all histories are filled then
NEVER, ALWAYS = 1e-9, 0.99  # thresholds: of 0, or from 1 on, cache-dit does not look at the signal
TEXT = 8  # tokens
FOREVER = 10_000  # steps


@dataclass(frozen=True)
class Subject:
    """A model and its inputs. `attention`: diffusers' pattern for the names of its attentions; None: its own default."""

    title: str
    build: Callable[[], nn.Module]
    lists: tuple[str, ...]
    shape: tuple[int, ...]  # of the latents
    inputs: Callable[[], dict[str, Tensor]]  # those that are the same in every step
    unit: float  # the timestep runs from here to 0
    attention: str | None = None


def _flux(double: int, single: int) -> nn.Module:
    return importlib.import_module("diffusers").FluxTransformer2DModel(
        num_layers=double,
        num_single_layers=single,
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=8,
        joint_attention_dim=24,
        pooled_projection_dim=20,
        axes_dims_rope=(4, 6, 6),
    )


def _flux_inputs() -> dict[str, Tensor]:
    rows, columns = torch.meshgrid(torch.arange(4.0), torch.arange(4.0), indexing="ij")
    ids = torch.stack([torch.zeros(16), rows.flatten(), columns.flatten()], dim=1)
    text = {"encoder_hidden_states": torch.randn(1, TEXT, 24), "pooled_projections": torch.randn(1, 20)}
    return {**text, "img_ids": ids, "txt_ids": torch.zeros(TEXT, 3)}


def _wan() -> nn.Module:
    return importlib.import_module("diffusers").WanTransformer3DModel(
        num_layers=8,
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        text_dim=24,
        freq_dim=32,
        ffn_dim=64,
        rope_max_seq_len=64,
    )


_FLUX_LISTS = ("transformer_blocks", "single_transformer_blocks")
SUBJECTS = {
    "flux-4-8": Subject("Flux 4+8 blocks", lambda: _flux(4, 8), _FLUX_LISTS, (1, 16, 8), _flux_inputs, 1.0),
    "wan-8": Subject(
        "Wan 8",
        _wan,
        ("blocks",),
        (1, 4, 2, 8, 8),
        lambda: {"encoder_hidden_states": torch.randn(1, TEXT, 24)},
        1000.0,
        attention=r"blocks\.\d+\.attn[12]",
    ),
    "flux-19-38": Subject("Flux 19+38", lambda: _flux(19, 38), _FLUX_LISTS, (1, 16, 8), _flux_inputs, 1.0),
}


def make(subject: Subject) -> nn.Module:
    """The same random model every time."""
    torch.manual_seed(0)
    return subject.build().eval()


class Sampler:
    """The forwards of one generation: latents that move slowly, a timestep that falls, the same text."""

    def __init__(self, subject: Subject, steps: int):
        torch.manual_seed(1)
        start, change, self.same = torch.randn(subject.shape), torch.randn(subject.shape), subject.inputs()
        self.latents = [start + change * (0.1 * step / steps) for step in range(steps)]
        self.timesteps = [torch.tensor([subject.unit * (steps - step) / steps]) for step in range(steps)]

    def inputs(self, step: int) -> dict[str, Any]:
        values = {"hidden_states": self.latents[step], "timestep": self.timesteps[step]}
        return {**values, **self.same, "return_dict": False}


# ---------------------------------------------------------------------------------------------- what a hit leaves to do


def no_blocks(model: nn.Module, subject: Subject, inputs: dict[str, Any]) -> None:
    for name in subject.lists:
        setattr(model, name, nn.ModuleList())


def first_block(model: nn.Module, subject: Subject, inputs: dict[str, Any]) -> None:
    kept = getattr(model, subject.lists[0])[:1]
    no_blocks(model, subject, inputs)
    setattr(model, subject.lists[0], kept)


def _without(wanted: Callable[[str], bool]) -> Callable[..., None]:
    """Modules whose last part of the name is `wanted` return what they have returned once."""

    def cut(model: nn.Module, subject: Subject, inputs: dict[str, Any]) -> None:
        parts = [m for name, m in model.named_modules() if name.count(".") == 2 and wanted(name.rsplit(".", 1)[1])]
        seen: dict[nn.Module, Any] = {}
        handles = [part.register_forward_hook(lambda m, args, out: seen.update({m: out})) for part in parts]
        with torch.no_grad():
            model(**inputs)
        for handle in handles:
            handle.remove()
        for part in parts:
            part.forward = lambda *args, _kept=seen[part], **kwargs: _kept

    return cut


no_attention = _without(lambda name: name.startswith("attn"))
no_parts = _without(lambda name: name.startswith(("attn", "ff")))


# ---------------------------------------------------------------------------------------------- the caches


def ours(method: str, **options: Any) -> Callable[..., object]:
    fields = options if method == "dit_block_cache" else {"options": options}

    def apply(model: nn.Module, subject: Subject, steps: int) -> object:
        enable = importlib.import_module("mindie_cache").enable_cache
        return enable(model, {"method": method, **fields}, num_inference_steps=steps)

    return apply


def diffusers(name: str, **options: Any) -> Callable[..., object]:
    def apply(model: Any, subject: Subject, steps: int) -> object:
        fields = dict(options)
        if name == "TaylorSeerCache" and subject.attention is not None:
            fields["cache_identifiers"] = [subject.attention]
        return model.enable_cache(getattr(importlib.import_module("diffusers.hooks"), f"{name}Config")(**fields))

    return apply


def cache_dit(every: int = 0, **options: Any) -> Callable[..., object]:
    """F1B0, the model's lists as one, which is what its registry does for these models.
    `every`: a static mask."""

    def apply(model: nn.Module, subject: Subject, steps: int) -> object:
        library = importlib.import_module("cache_dit")
        fields = {"enable_separate_cfg": False, **options}
        if every:
            fields |= {"steps_computation_mask": [int(not step % every) for step in range(steps)]}
            fields |= {"steps_computation_policy": "static"}
        config = library.DBCacheConfig(
            num_inference_steps=steps,
            Fn_compute_blocks=1,
            Bn_compute_blocks=0,
            max_warmup_steps=WARM_UP - 2,
            **fields,
        )
        return library.enable_cache(model, cache_config=config)

    return apply


@dataclass(frozen=True)
class Phase:
    """One enabled cache. Of every `every` steps from WARM_UP on, the first is of `kind` and timed; the others only run."""

    kind: str
    apply: Callable[..., object]
    every: int = 1


@dataclass(frozen=True)
class Variant:
    """One row. `cut` makes the model that a hit is compared with; without it, nothing is skipped."""

    library: str
    name: str
    phases: tuple[Phase, ...]
    cut: Callable[..., None] | None = None


def _row(
    library: str,
    name: str,
    compute: Callable[..., object],
    hit: Callable[..., object],
    cut: Callable[..., None],
    every: int = 2,
) -> Variant:
    """`compute` computes one of `every` steps, `hit` none after the warm-up."""
    return Variant(library, name, (Phase(COMPUTE, compute, every), Phase(HIT, hit)), cut)


def _first_block(threshold: float) -> Callable[..., object]:
    return ours("first_block", threshold=threshold, max_skip_steps=0)


def _broadcast(every: int) -> Callable[..., object]:
    options: dict[str, Any] = {"current_timestep_callback": lambda: 500}
    for kind in ("spatial_attention", "cross_attention"):
        options |= {f"{kind}_block_skip_range": every, f"{kind}_timestep_skip_range": (-1, 2000)}
    return diffusers("PyramidAttentionBroadcast", **options)


def _range(every: int) -> Callable[..., object]:
    return ours("dit_block_cache", step_start=0, step_interval=every)


def _taylor(every: int, lite: bool) -> Callable[..., object]:
    return ours("taylorseer", interval=every, warmup_steps=3, lite=lite)


def _pab(every: int) -> Callable[..., object]:
    return ours("pab", broadcast=every, window=(-1, 2000))


OURS, DIFFUSERS, CACHE_DIT = "mindie_cache", "diffusers", "cache-dit"
VARIANTS = (
    Variant("-", "no cache", (Phase(COMPUTE, lambda model, subject, steps: None),)),
    _row(OURS, "dit_block_cache", _range(2), _range(FOREVER), no_blocks),
    _row(OURS, "taylorseer lite", _taylor(2, True), _taylor(FOREVER, True), no_blocks),
    _row(OURS, "first_block", _first_block(NEVER), _first_block(ALWAYS), first_block, every=1),
    _row(OURS, "pab", _pab(2), _pab(FOREVER), no_attention),
    _row(OURS, "taylorseer", _taylor(2, False), _taylor(FOREVER, False), no_parts),
    _row(
        CACHE_DIT,
        "DBCache F1B0",
        cache_dit(residual_diff_threshold=NEVER),
        cache_dit(residual_diff_threshold=ALWAYS),
        first_block,
        every=1,
    ),
    _row(CACHE_DIT, "static mask F1B0", cache_dit(2), cache_dit(FOREVER), first_block),
    _row(
        DIFFUSERS,
        "FirstBlock",
        diffusers("FirstBlockCache", threshold=NEVER),
        diffusers("FirstBlockCache", threshold=ALWAYS),
        first_block,
        every=1,
    ),
    _row(DIFFUSERS, "PAB", _broadcast(2), _broadcast(FOREVER), no_attention),
    _row(
        DIFFUSERS,
        "TaylorSeer",
        diffusers("TaylorSeerCache", cache_interval=2),
        diffusers("TaylorSeerCache", cache_interval=FOREVER),
        no_attention,
    ),
)


def quiet() -> None:
    """Libraries announce what they do; the table is the output."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
