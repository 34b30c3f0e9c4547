"""The contract of a feature cache, TeleFuser's three verbs, and the cache that computes always. Owns no state."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch


class BaseFeatureCache(ABC):
    """What a model's forward calls. `is_cond` tells the conditioning branch: True "cond", False "uncond"."""

    @abstractmethod
    def should_compute(self, is_cond: bool, signal: torch.Tensor | None = None) -> bool:
        """Begin the next step of this branch and decide about it. Call it once per branch and step, before the others.

        Args:
            is_cond: the branch.
            signal: what the method looks at, e.g. the time embedding; only for methods that decide from data.
        """

    @abstractmethod
    def update(
        self, output: torch.Tensor, ori_input: torch.Tensor, is_cond: bool, observed: torch.Tensor | None = None
    ) -> None:
        """After a computed step: give what left the cached part, and what entered it (unchanged).

        Args:
            output, ori_input: tensors of one shape.
            is_cond: the branch.
            observed: what the method looks at in computed steps, e.g. the attention residual of adacache.
        """

    @abstractmethod
    def approximate(self, input: torch.Tensor, is_cond: bool) -> torch.Tensor:  # noqa: A002 - the published name
        """At a skipped step: return the estimate of the output for `input`, as a new tensor. Changes nothing."""

    def reset(self) -> None:  # noqa: B027 - optional
        """Forget everything: the next `should_compute` begins a generation."""


class NoOpCache(BaseFeatureCache):
    """Computes always."""

    def should_compute(self, is_cond: bool, signal: torch.Tensor | None = None) -> bool:
        return True

    def update(
        self, output: torch.Tensor, ori_input: torch.Tensor, is_cond: bool, observed: torch.Tensor | None = None
    ) -> None:
        """Nothing is kept."""

    def approximate(self, input: torch.Tensor, is_cond: bool) -> torch.Tensor:  # noqa: A002 - the published name
        return input
