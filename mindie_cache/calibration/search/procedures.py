"""The searches over windows: which blocks (dit_block_cache) or attentions (attention_cache) to reuse, in which steps."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from mindie_cache import CacheConfig, CacheWarning
from mindie_cache.calibration.search.cost import Window, Work
from mindie_cache.calibration.search.evaluator import Evaluator, Outcome, calls_of
from mindie_cache.calibration.search.findings import Findings, Goal, conclude
from mindie_cache.calibration.search.profile import Stack
from mindie_cache.calibration.search.windows import BEST, Space, attention_windows, top
from mindie_cache.checks import real, whole
from mindie_cache.device import memory
from mindie_cache.errors import ConfigError
from mindie_cache.methods.base import NO_END

TOGETHER, SEPARATE = "together", "separate"
GIB = 2**30


@dataclass(frozen=True)
class BlockSearch:
    """The two stages of the published search for `dit_block_cache`, over more settings, or exactly (`published`).

    Args:
        stacks: "together": a window may span all lists of blocks; "separate": one search a list; or the name of one list.
        intervals, starts, stops: see `Space`; empty are its defaults.
        order: of the extrapolation; 0 reuses.
    """

    goal: Goal
    stacks: str = TOGETHER
    intervals: tuple[int, ...] = ()
    starts: tuple[int, ...] = ()
    stops: tuple[int, ...] = ()
    order: int = 0
    published: bool = False

    def run(self, evaluator: Evaluator) -> list[Findings]:
        """One finding for each search.

        Raises:
            ConfigError: the ratio is out of reach, or an argument is out of range.
        """
        ranges = list(self._ranges(evaluator))
        if len(ranges) == 1:
            return [self._search(evaluator, *ranges[0])]
        found, refused = [], []
        for name, stack in ranges:
            try:
                found.append(self._search(evaluator, name, stack))
            except ConfigError as error:  # noqa: PERF203 - one list may be too short for the ratio
                refused.append(f"{stack.name}: {error}")
        if not found:
            raise ConfigError(" ".join(refused))
        for reason in refused:
            warnings.warn(f"No search in {reason}", CacheWarning, stacklevel=2)
        return found

    def _ranges(self, evaluator: Evaluator) -> Iterator[tuple[str, Stack]]:
        profile = evaluator.profile
        if self.stacks == TOGETHER:
            yield "dit_block_cache", Stack("all", 0, len(profile.block_ms))
            return
        wanted = profile.stacks if self.stacks == SEPARATE else (profile.stack(self.stacks),)
        for stack in wanted:
            yield f"dit_block_cache-{stack.name}" if len(profile.stacks) > 1 else "dit_block_cache", stack

    def space(self, evaluator: Evaluator, stack: Stack) -> Space:
        """What is searched in one list of blocks. Its first block is never cached."""
        profile = evaluator.profile
        return Space(
            work=profile.work if self.goal.cost == "time" else Work.counted(len(profile.block_ms)),
            steps=evaluator.target.steps,
            ratio=self.goal.ratio,
            first=stack.start + 1,
            last=stack.stop,
            intervals=self.intervals or ((2,) if self.published else (2, 3, 4)),
            starts=self.starts,
            stops=self.stops,
            published=self.published,
        )

    def _search(self, evaluator: Evaluator, name: str, stack: Stack) -> Findings:
        space = self.space(evaluator, stack)
        score = evaluator.scores[0].name
        first: dict[Window, Outcome] = {}
        stage_one = space.stage_one()
        most = len(space.stage_two(top(stage_one, [0.0] * len(stage_one), together=self.published)))
        seconds, prompts = evaluator.uncached(0).seconds, len(evaluator.prompts)
        evaluator.say(f"{name}: {len(stage_one)} block starts, then up to {most} lengths and steps")
        evaluator.say(f"on {prompts} prompts; an uncached generation took {seconds:.2f} s")
        for interval in dict.fromkeys(window.interval for window in stage_one):
            windows = [window for window in stage_one if window.interval == interval]
            first |= self._evaluated(evaluator, windows, f"block starts, interval {interval}")
        best = top(list(first), [one.scores[score] for one in first.values()], together=self.published)
        stage_two = space.stage_two(best)
        starts = ", ".join(f"{window.first} (every {window.interval})" for window in best)
        evaluator.say(f"best block starts: {starts}; {len(stage_two)} settings follow")
        second = self._evaluated(evaluator, stage_two, "lengths and steps")
        everything = first | second
        considered = {window: everything[window] for window in (*best, *second)} if self.published else everything
        facts: dict[str, Any] = {"stage_one": len(stage_one), "stage_two": len(stage_two), "blocks": list(stack)}
        if self.published:
            ranked = sorted(considered, key=lambda window: (considered[window].scores[score], window))[:BEST]
            facts["published"] = [[w.first - stack.start, w.interval, w.length, w.start] for w in ranked]
        found = conclude(name, evaluator, list(considered.values()), self.goal, facts)
        if not self.published:
            return found
        # The published tool takes the least error, whatever the ratio really is.
        wanted = considered[ranked[0]].config.to_dict()
        return replace(found, chosen=[row.outcome.config.to_dict() for row in found.rows].index(wanted))

    def _evaluated(self, evaluator: Evaluator, windows: list[Window], title: str) -> dict[Window, Outcome]:
        steps, blocks = evaluator.target.steps, len(evaluator.profile.block_ms)
        options = {"order": self.order} if self.order else None
        configs = {
            str(config.to_dict()): window for window in windows for config in [window_config(window, blocks, steps, options)]
        }
        asked = [window_config(window, blocks, steps, options) for window in windows]
        outcomes = evaluator.run(asked, title, every=self.published)
        return {configs[str(one.config.to_dict())]: one for one in outcomes}


def window_config(window: Window, blocks: int, steps: int, options: dict[str, Any] | None = None) -> CacheConfig:
    """The setting of `dit_block_cache` that a window means."""
    stop = window.stop if window.stop < steps else NO_END
    return CacheConfig(
        "dit_block_cache",
        blocks,
        steps,
        window.start,
        window.interval,
        stop,
        window.first,
        window.first + window.length,
        options=options,
    )


@dataclass(frozen=True)
class AttentionSearch:
    """The search for `attention_cache`: for each start the smallest interval that will do, and where it may end.

    Args:
        starts: step_start; empty: from 0.15 to 0.35 of the steps.
        extra_intervals: so many larger intervals for each start, too.
        block_start, block_end: only the attentions of these calls are reused.
        order: of the extrapolation; 0 reuses.
        memory_gib: what may be kept; None: what is free on the device.
    """

    goal: Goal
    starts: tuple[int, ...] = ()
    extra_intervals: int = 1
    block_start: int = 0
    block_end: int | None = None
    order: int = 0
    memory_gib: float | None = None

    def run(self, evaluator: Evaluator) -> list[Findings]:
        """One finding.

        Raises:
            ConfigError: what has to be kept does not fit, the ratio is out of reach, or an argument is out of range.
        """
        profile, steps = evaluator.profile, evaluator.target.steps
        count = calls_of(evaluator.target, "attention_cache")
        end = count if self.block_end is None else self.block_end
        whole("--block-end", end, 1, count)
        whole("--block-start", self.block_start, 0, end - 1)
        kept = self._check_memory(evaluator, count, end - self.block_start)
        share = (end - self.block_start) / count * (profile.attention_share if self.goal.cost == "time" else 1.0)
        windows = attention_windows(
            steps, self.goal.ratio, share=share, starts=self.starts, extra_intervals=self.extra_intervals
        )
        options = {"order": self.order} if self.order else None
        configs = [
            CacheConfig("attention_cache", count, steps, *window, self.block_start, end, options=options)
            for window in windows
        ]
        outcomes = evaluator.run(configs, "attention windows")
        facts = {"candidates": len(configs), "bytes_kept": kept, "attention_share_of_time": profile.attention_share}
        return [conclude("attention_cache", evaluator, outcomes, self.goal, facts)]

    def _check_memory(self, evaluator: Evaluator, count: int, used: int) -> int:
        each = evaluator.profile.attention_bytes * (self.order + 1) / count
        needed, free = round(each * used), self._free(evaluator)
        if needed <= free:
            return needed
        fits = int(free / each)
        advice = f"--block-end {self.block_start + fits}" if fits else "another method: dit_block_cache keeps one residual"
        raise ConfigError(
            f"attention_cache would keep {_gib(needed)}: {used} attentions of {each / 2**20:.1f} MiB each (all branches), "
            f"and {_gib(free)} are free; {fits} attentions fit. Use {advice}, smaller pictures, or --memory-gib if more is "
            "free in production."
        )

    def _free(self, evaluator: Evaluator) -> float:
        if self.memory_gib is not None:
            real("--memory-gib", self.memory_gib, 0.0, None)
            return self.memory_gib * GIB
        held = memory(evaluator.target.device)
        if held is not None:
            return held.free + held.reserved - held.held
        return free_ram()


def _gib(count: float) -> str:
    return f"{count / GIB:.2f} GiB" if count >= GIB / 10 else f"{count / 2**20:.1f} MiB"


def free_ram() -> int:
    """Bytes that the host can give without swapping; where the system does not say it, all of its memory."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            for line in file:
                if line.startswith("MemAvailable:"):
                    return 1024 * int(line.split()[1])
    except OSError:
        pass
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
