"""Puts caches on a testbed model for the time of a `with`, and takes them off again. Owns no measurement."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from mindie_cache import CacheAgent, CacheConfig, ConfigError
from mindie_cache.recipes import METHODS
from mindie_cache.testbed import TestbedTransformer

FORWARD, BLOCK, ATTENTION = "forward", "block", "attention call"  # what one call of a method is, as recipes name it


class Attached(NamedTuple):
    """The agents, one per configuration, and the one that has to be given to `generate` (or None)."""

    agents: tuple[CacheAgent, ...]
    forward_cache: CacheAgent | None


def unit(config: CacheConfig) -> str:
    """What one call of the configured method is: a whole forward, a block, an attention call."""
    return METHODS[config.method].build(config.validated()).unit


@contextmanager
def attached(model: TestbedTransformer, configs: Sequence[CacheConfig]) -> Iterator[Attached]:
    """Attach a new agent for each configuration; the model is afterwards as it was, also after an error.

    Raises:
        ConfigError: a configuration is not valid, or two of them cache the same calls.
    """
    agents = {unit(config): CacheAgent(config) for config in configs}
    if len(agents) < len(configs):
        raise ConfigError(f"{len(configs)} configurations for the same calls ({', '.join(agents)}). Keep one of each kind.")
    places: tuple[Any, ...] = (model, *model.transformer_blocks)
    before = [place.cache for place in places]
    try:
        for place in places:
            place.cache = agents.get(BLOCK if place is model else ATTENTION)
        yield Attached(tuple(agents.values()), agents.get(FORWARD))
    finally:
        for place, cache in zip(places, before, strict=True):
            place.cache = cache
