"""Puts caches on a testbed model for the time of a `with`, and takes them off again. Owns no measurement."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from mindie_cache import CacheAgent, CacheConfig, ConfigError
from mindie_cache.recipes import METHODS
from mindie_cache.testbed import TestbedTransformer

FORWARD, BLOCK, ATTENTION, MODULE = "forward", "block", "attention call", "module call"  # as recipes name one call
PLACES = {FORWARD: FORWARD, BLOCK: BLOCK, ATTENTION: ATTENTION, MODULE: ATTENTION}  # the testbed's modules: attentions


class Attached(NamedTuple):
    """The agents, one per configuration, and the one that has to be given to `generate` (or None)."""

    agents: tuple[CacheAgent, ...]
    forward_cache: CacheAgent | None


def place(config: CacheConfig) -> str:
    """Which calls of the testbed the configured method serves: FORWARD, BLOCK or ATTENTION."""
    unit = METHODS[config.method].build(config.validated()).unit
    if unit not in PLACES:
        raise ConfigError(f"{config.method} serves {unit}s, and the testbed calls no cache there. Use another method.")
    return PLACES[unit]


@contextmanager
def attached(model: TestbedTransformer, configs: Sequence[CacheConfig]) -> Iterator[Attached]:
    """Attach a new agent for each configuration; the model is afterwards as it was, also after an error.

    Raises:
        ConfigError: a configuration is not valid, or two of them cache the same calls.
    """
    agents = {place(config): CacheAgent(config) for config in configs}
    if len(agents) < len(configs):
        raise ConfigError(f"{len(configs)} configurations for the same calls ({', '.join(agents)}). Keep one of each kind.")
    owners: tuple[Any, ...] = (model, *model.transformer_blocks)
    before = [owner.cache for owner in owners]
    try:
        for owner in owners:
            owner.cache = agents.get(BLOCK if owner is model else ATTENTION)
        yield Attached(tuple(agents.values()), agents.get(FORWARD))
    finally:
        for owner, cache in zip(owners, before, strict=True):
            owner.cache = cache
