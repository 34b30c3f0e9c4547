"""The uncached generations of a search, each made once, whatever number of ranks shares the folder; and work shared out."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import cached_property, partial
from typing import Any

from tqdm import tqdm

from mindie_cache import CacheConfig
from mindie_cache.calibration.planning import Recording
from mindie_cache.calibration.search.made import Made
from mindie_cache.calibration.search.profile import Meter, Profile
from mindie_cache.calibration.search.ranks import Leader
from mindie_cache.calibration.search.scores import relative_mse
from mindie_cache.calibration.search.store import PROFILE, Store
from mindie_cache.calibration.search.targets import Target
from mindie_cache.errors import ConfigError, ModelExecError

_POLL = 0.1  # seconds between looks at what other ranks do
REPEATS = 1e-2  # relative squared error between two runs of the same: kernels that add up in any order stay far below


class Baselines:
    """What others are compared with: the uncached generation of each prompt, and the times that the model takes.

    Args:
        target: generates.
        prompts, seeds: one seed a prompt.
        store: the folder.
        needs_frames: whether latents are decoded.
        progress: whether to show a bar.
        block_ms: milliseconds of a block, by list of blocks, instead of the measured ones.
        leader: of ranks that hold the model together.
    """

    def __init__(
        self,
        target: Target,
        prompts: Sequence[str],
        seeds: Sequence[int],
        store: Store,
        *,
        needs_frames: bool = False,
        progress: bool = False,
        block_ms: Mapping[str, float] | None = None,
        leader: Leader | None = None,
    ):
        self.target, self.store = target, store
        self.prompts, self._seeds = tuple(prompts), tuple(seeds)
        self.needs_frames, self.progress = needs_frames, progress
        self._block_ms, self._leader = block_ms or {}, leader
        self._uncached: dict[int, Made] = {}
        self.generations = 0  # of this process
        self._pace = 1.0
        self._is_prepared = False

    @cached_property
    def profile(self) -> Profile:
        """Measured in the first uncached generation."""
        self.prepare()
        found = self.store.read(PROFILE)
        assert found is not None
        return Profile.from_dict(found).with_times(self._block_ms)

    def say(self, text: str) -> None:
        """A line between the bars."""
        if self.progress:
            tqdm.write(text)

    def prepare(self) -> None:
        """Make the uncached generations, and measure the model in the first of them."""
        if self._is_prepared:
            return
        works: dict[str, Callable[[], Any]] = {"profile": self._measure}
        works |= {f"uncached-{p}": partial(self._make_uncached, p) for p in range(1, len(self.prompts))}
        self.share_out(works, self._has_prepared, "uncached")
        self._is_prepared = True

    @property
    def is_measured(self) -> bool:
        """Whether the profile is there."""
        return self._has_prepared("profile")

    def _has_prepared(self, key: str) -> bool:
        if key == "profile":
            return self.store.read(PROFILE) is not None and (self.store.path / "uncached-0.pt").exists()
        return (self.store.path / f"{key}.pt").exists()

    def _measure(self) -> None:
        meter = Meter(self.target)
        with meter.watching():
            made = self._generate(0)
        self._add_baseline(0, made)
        self.store.write(PROFILE, meter.profile(made.seconds).to_dict())

    def _make_uncached(self, prompt: int) -> None:
        self._add_baseline(prompt, self._generate(prompt))

    def _add_baseline(self, prompt: int, made: Made) -> None:
        """Keep an uncached generation, if others can be compared with it."""
        text = self.prompts[prompt]
        if made.latents is not None and not (made.latents.isfinite().all() and made.latents.any()):
            raise ModelExecError(
                f"{text!r} gives latents of NaN, infinity or zeros only, without a cache. Look for overflow."
            )
        known = self.store.baseline(prompt)
        if known is not None and known.latents is not None and relative_mse(made, known) > REPEATS:
            raise ConfigError(
                f"{text!r} with seed {self._seeds[prompt]} gives other latents each time (relative squared error "
                f"{relative_mse(made, known):.2g}), so nothing can be compared. Draw all noise from the seed."
            )
        self.store.add_baseline(prompt, made)

    def _generate(self, prompt: int, config: CacheConfig | None = None, **resumed: Any) -> Made:
        self._begin(prompt, config)
        return self.target.generate(self.prompts[prompt], self._seeds[prompt], frames=self.needs_frames, **resumed)

    def uncached(self, prompt: int) -> Made:
        if prompt not in self._uncached:
            found = self.store.baseline(prompt)
            assert found is not None, "prepare() has made it"
            self._uncached[prompt] = found
        return self._uncached[prompt]

    def _begin(self, prompt: int, config: CacheConfig | None = None) -> None:
        self.generations += 1
        if self._leader is not None:
            self._leader.tell(config, self.prompts[prompt], self._seeds[prompt], self.needs_frames)

    def record(self, prompt: int) -> Recording:
        """Make the uncached generation of a prompt, with what the planner needs of it."""
        self._begin(prompt)
        made, found = self.target.record(self.prompts[prompt], self._seeds[prompt], frames=self.needs_frames)
        self._add_baseline(prompt, made)
        return found

    def warm_up(self) -> None:
        """One generation whose time nobody looks at."""
        self._generate(0)

    def has_uncached(self, prompt: int) -> bool:
        return self._has_prepared(f"uncached-{prompt}")

    def pace(self) -> None:
        """Time the first prompt uncached once more: from now on the machine is as fast as it is now."""
        self._pace = self._generate(0).seconds / self.uncached(0).seconds

    def prepare_one(self, prompt: int) -> None:
        """Make the uncached generation of one prompt, without measuring the model."""
        key = f"uncached-{prompt}"
        self.share_out({key: partial(self._make_uncached, prompt)}, self._has_prepared)

    def share_out(
        self, works: dict[str, Callable[[], Any]], is_done: Callable[[str], bool], title: str = "", bar: Any = None
    ) -> None:
        """Do what no rank has done or is doing; return when all is done. What a dead rank left is done again. Progress goes
        to a bar of that title, or to the given one."""
        with self._bar(len(works), title) as own:
            bar, left, done = bar or own, dict(works), 0
            while True:
                self.store.refresh()
                left = {key: work for key, work in left.items() if not is_done(key)}
                if bar is not None:
                    bar.update(len(works) - len(left) - done)
                done = len(works) - len(left)
                if not left:
                    return
                if not self._take_one(left, is_done):
                    time.sleep(_POLL)

    def _take_one(self, left: dict[str, Callable[[], Any]], is_done: Callable[[str], bool]) -> bool:
        for key, work in left.items():
            with self.store.claim(key) as mine:
                if not mine:
                    continue
                self.store.refresh()  # it may have been finished just before
                if not is_done(key):
                    work()
                return True
        return False

    def _bar(self, total: int, title: str) -> Any:
        if not self.progress or not total or not title:
            return nullcontext()
        return tqdm(total=total, desc=title, unit="generation", dynamic_ncols=True)
