"""What an agent tells its user about the calls that it gets: as a warning, once, and in its report. Decides nothing."""

from __future__ import annotations

from mindie_cache.config import CacheConfig
from mindie_cache.errors import WarnOnce
from mindie_cache.recipes import advice
from mindie_cache.report import Log


def review(config: CacheConfig, warn: WarnOnce, branch: str, log: Log) -> None:
    """After the last step: never stay silent about a branch in which nothing, or everything, was reused."""
    later = [record for record in log.steps if record.branch == branch and record.step > 0]
    if not later:
        return
    more, less = advice(config)
    reasons = ", ".join(dict.fromkeys(record.reason for record in later))
    if not any(record.reused for record in later):
        warn("nothing reused", f"{config.method} reused nothing in branch {branch!r} ({reasons}). {more}")
    elif all(record.reused for record in later):
        warn(
            "all reused",
            f"{config.method} reused every step after the first in branch {branch!r}. "
            f"The result depends on one computed step only. {less}",
        )


class Notices:
    """The messages of one agent; `note` is the last one, for the report."""

    def __init__(self, method: str, blocks_count: int, steps_count: int, warn: WarnOnce):
        self.note = ""
        self._method = method
        self._blocks_count = blocks_count
        self._steps_count = steps_count
        self._warn = warn

    def blind(self, how: str) -> None:
        self._say(
            "blind",
            f"The calls of {self._method} {how}, so it is not known which call is which: they are computed. Pass modules to "
            f"apply (not lambdas), check blocks_count={self._blocks_count}, and open run() for each generation.",
        )

    def count(self, found: int, what: str) -> None:
        self._say(
            "calls count",
            f"{what} after {found} calls, but blocks_count={self._blocks_count}. Set blocks_count={found}; or, if a step is "
            "several forwards (cond and uncond), put each into agent.branch(name) with the number of calls of one.",
        )

    def long(self) -> None:
        if not self._warn.given("calls count"):
            self._warn(
                "long run",
                f"The run goes on after steps_count={self._steps_count} steps: starting afresh. "
                "Set steps_count to the number of denoising steps, or open run() once per generation.",
            )

    def order_only(self) -> None:
        """No warning: such calls are cached, and rightly as long as every generation goes to its end."""
        self.note = self.note or (
            "Calls are told apart by their order only: a generation that is interrupted between two calls would shift the "
            "next one. Pass modules to apply, or open run() for each generation."
        )

    def _say(self, kind: str, message: str) -> None:
        self.note = message
        self._warn(kind, message)
