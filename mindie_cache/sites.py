"""Sites: which calls of a step form one cached region, and what a feature is measured against."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from mindie_cache.engine import Engine

Passage = Callable[..., Any]  # (track, index, function, args, kwargs) -> what the call returns


class Span(NamedTuple):
    """Half-open range `[start, stop)` of call indices that are skipped together."""

    start: int
    stop: int


class Site(Protocol):
    """`span` gives the region of a call, None outside of every region; `passage` the engine's procedure for calls.
    `anchored`: the feature is measured against what enters the region."""

    @property
    def anchored(self) -> bool: ...

    def span(self, index: int) -> Span | None: ...

    def passage(self, engine: Engine) -> Passage: ...


@dataclass(frozen=True)
class BlockRange:
    """Blocks `[start, stop)` as one region; the feature is output minus input, the residual."""

    start: int
    stop: int
    anchored = True

    def span(self, index: int) -> Span | None:
        return Span(self.start, self.stop) if self.start <= index < self.stop else None

    def passage(self, engine: Engine) -> Passage:
        return engine.block_range


@dataclass(frozen=True)
class BlockSpans:
    """Several block ranges, a region each, that are computed or reused together."""

    spans: tuple[Span, ...]
    anchored = True

    def span(self, index: int) -> Span | None:
        return next((span for span in self.spans if span.start <= index < span.stop), None)

    def passage(self, engine: Engine) -> Passage:
        return engine.block_range


@dataclass(frozen=True)
class EachBlock:
    """Every block in `[start, stop)` is a region of its own; the feature is its residual."""

    start: int
    stop: int
    anchored = True

    def span(self, index: int) -> Span | None:
        return Span(index, index + 1) if self.start <= index < self.stop else None

    def passage(self, engine: Engine) -> Passage:
        return engine.block_range


@dataclass(frozen=True)
class EachCall:
    """Every call in `[start, stop)` is a region of its own (an attention, a whole forward); the feature is its output.

    `only`, if given, lists the calls of the range that are cached.
    """

    start: int
    stop: int
    only: frozenset[int] | None = None
    anchored = False

    def span(self, index: int) -> Span | None:
        inside = self.start <= index < self.stop and (self.only is None or index in self.only)
        return Span(index, index + 1) if inside else None

    def passage(self, engine: Engine) -> Passage:
        return engine.each_call
