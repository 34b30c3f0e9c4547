"""Where kept tensors live. Owns no history and takes no decision."""

from __future__ import annotations

from typing import Any, Protocol

import torch


class Placement(Protocol):
    """`keep` takes a tensor that nobody else holds and returns what is stored; `fetch` brings it back for reading."""

    def keep(self, feature: torch.Tensor) -> Any: ...

    def fetch(self, kept: Any) -> torch.Tensor: ...

    def nbytes(self, kept: Any) -> int: ...


class OnDevice:
    """Leave tensors where the model made them."""

    def keep(self, feature: torch.Tensor) -> torch.Tensor:
        return feature

    def fetch(self, kept: torch.Tensor) -> torch.Tensor:
        return kept

    def nbytes(self, kept: torch.Tensor) -> int:
        return kept.numel() * kept.element_size()


PLACEMENTS: dict[str, type[OnDevice]] = {"device": OnDevice}
