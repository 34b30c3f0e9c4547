"""What a model consists of: its lists of blocks, the attentions and feed-forwards in them. Looks, and changes nothing."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from mindie_cache.errors import ConfigError
from mindie_cache.hooks.families import AUXILIARY
from mindie_cache.wrappers import unwrapped

LEAST_SHARE = 0.1  # of the blocks of the longest list: a shorter list is not worth a region
_MATRICES = 3  # of a block without attention; an entry of a list of projections has fewer
_ATTENTION = re.compile(r"Attention|Attn(?!.*Norm)")
_FEED_FORWARD = re.compile(r"FeedForward|MLP|Mlp|FFN|GLUMBConv|SwiGLU|MoE")
_CROSS = re.compile(r"cross|attn2|encoder_attn")
KINDS = ("self", "temporal", "cross")


@dataclass(frozen=True)
class BlockList:
    """A list of blocks: its name in the model, and its blocks in order."""

    name: str
    blocks: tuple[nn.Module, ...]

    def __str__(self) -> str:
        names = dict.fromkeys(type(block).__name__ for block in self.blocks)
        return f"{self.name} ({len(self.blocks)} x {', '.join(names)})"


@dataclass(frozen=True)
class Part:
    """A module inside a block: an attention of one of KINDS, or a feed-forward ("mlp")."""

    name: str
    module: nn.Module
    kind: str


def block_lists(model: nn.Module) -> list[BlockList]:
    """Every list of modules that look like transformer blocks, in the order of the model; none from inside a block."""
    found: list[BlockList] = []
    for name, module in model.named_modules():
        inside = any(name.startswith(other.name + ".") for other in found)
        if isinstance(module, nn.ModuleList) and not inside and len(module) and all(map(_is_block, module)):
            found.append(BlockList(name, tuple(module)))
    return found


def _is_block(module: nn.Module) -> bool:
    module = unwrapped(module)
    attends = any(_ATTENTION.search(type(inner).__name__) for inner in module.modules() if inner is not module)
    if _ATTENTION.search(type(module).__name__) and not attends:  # added between blocks, not one of them
        return False
    matrices = [parameter for parameter in module.parameters() if parameter.dim() >= 2]
    return (attends or len(matrices) >= _MATRICES) and type(module).forward is not nn.Module.forward


def main_lists(model: nn.Module, names: tuple[str, ...] | None = None) -> list[BlockList]:
    """The lists that are worth caching; those of `names`, if given.

    Raises:
        ConfigError: there is none; the message says what was looked for and what there is.
    """
    if names is not None:
        return _each_once([_named(model, name) for name in names])
    lists = block_lists(model)
    main = [entry for entry in lists if not any(part in entry.name for part in AUXILIARY)]
    longest = max([len(entry.blocks) for entry in main], default=0)
    main = [entry for entry in main if len(entry.blocks) >= LEAST_SHARE * longest and "." not in entry.name] or main
    if not main:
        shown = "; ".join(map(str, lists)) or "none"
        raise ConfigError(
            f"{type(model).__name__} has no list of transformer blocks. Looked for torch.nn.ModuleList whose entries have "
            f"an attention or at least {_MATRICES} weight matrices each, and a forward; found: {shown}. Lists of any "
            f'modules: {_all_lists(model)}. Name the right one: enable_cache(model, config, blocks="transformer_blocks").'
        )
    return _each_once(main)


def _each_once(lists: list[BlockList]) -> list[BlockList]:
    """Without lists of blocks that other lists have."""
    met: set[nn.Module] = set()
    kept = []
    for entry in lists:
        blocks = {*entry.blocks}
        if blocks <= met:
            continue
        if blocks & met or len(blocks) < len(entry.blocks):
            raise ConfigError(
                f"Some blocks of the list {entry} stand twice in the model, so that one call of theirs cannot be told from "
                "the other. Use a method for whole forwards, e.g. easycache."
            )
        met |= blocks
        kept.append(entry)
    return kept


def _named(model: nn.Module, name: str) -> BlockList:
    try:
        found = model.get_submodule(name)
    except AttributeError:
        found = None
    if not isinstance(found, nn.ModuleList | nn.Sequential) or not len(found):
        raise ConfigError(
            f"blocks={name!r} is no list of modules in {type(model).__name__}. Lists in it: {_all_lists(model)}."
        )
    return BlockList(name, tuple(found))


def _all_lists(model: nn.Module) -> str:
    names = [f"{name} ({len(m)})" for name, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m)]
    return ", ".join(names[:12]) or "none"


def attentions(lists: list[BlockList], kinds: tuple[str, ...] = KINDS) -> list[Part]:
    """The attentions in the blocks, in the order of the model; none from inside another attention."""
    return [part for part in _parts(lists, _ATTENTION) if part.kind in kinds]


def feed_forwards(lists: list[BlockList]) -> list[Part]:
    """The feed-forward networks in the blocks, in the order of the model."""
    return [Part(part.name, part.module, "mlp") for part in _parts(lists, _FEED_FORWARD)]


def _parts(lists: list[BlockList], pattern: re.Pattern[str]) -> Iterator[Part]:
    met: set[nn.Module] = set()  # one module may serve several blocks
    for entry in lists:
        for index, block in enumerate(entry.blocks):
            taken: list[str] = []
            for name, module in block.named_modules():
                inside = any(name.startswith(other + ".") for other in taken)
                if name and not inside and pattern.search(type(module).__name__):
                    taken.append(name)
                    if module in met:
                        continue
                    met.add(module)
                    yield Part(f"{entry.name}.{index}.{name}", module, _kind(entry.name, name, block, module))


def _kind(list_name: str, name: str, block: nn.Module, module: nn.Module) -> str:
    if _CROSS.search(name) or getattr(module, "is_cross_attention", False):
        return "cross"
    words = f"{list_name} {name} {type(block).__name__}".casefold()
    return "temporal" if "temporal" in words else "self"
