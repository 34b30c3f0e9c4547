"""A generation of a face that is told where its steps begin: its counter, and what each branch keeps."""

from __future__ import annotations

from collections.abc import Callable

from mindie_cache.errors import WarnOnce
from mindie_cache.lanes import Common, Track
from mindie_cache.report import Log
from mindie_cache.steps import StepCounter

Review = Callable[[str, Log], None]  # says so if nothing, or everything, was reused in a branch


def no_review(branch: str, log: Log) -> None:
    """Nothing is said."""


class Session:
    """One generation in one context: its steps, and what each branch keeps.

    A steps.Cursor, so that a named request is not released before its last step, and this with it.
    """

    key, step, began, opened, nested, open = -1, -1, 0, False, False, False

    def __init__(self, first_step: int, steps_count: int, warn: WarnOnce, review: Review = no_review):
        self.steps_count = steps_count
        self.steps = StepCounter(first_step)
        self.common = Common(warn, review)
        self.tracks: dict[str, Track] = {}

    def stop(self) -> None:
        """A step is one call here: it is never under way between two of them."""

    def forget(self) -> None:
        for track in self.tracks.values():
            track.forget()

    def release(self, last_step: int | None, rise: str = "") -> None:
        self.forget()
        self.steps.step = self.steps_count  # whatever comes next is another generation
