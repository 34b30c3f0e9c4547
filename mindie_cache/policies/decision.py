"""What a policy answers."""

from __future__ import annotations

from typing import Any, NamedTuple


class Decision(NamedTuple):
    """`reuse`; the policy's next `state`; and a word of `reason` for the report."""

    reuse: bool
    state: Any
    reason: str
