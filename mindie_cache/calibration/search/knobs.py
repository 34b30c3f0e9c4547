"""The searches over options: adastep's three, and the thresholds of the methods that decide from data. Grids, or Optuna.

Optuna (Akiba et al., KDD 2019) is imported when it is used.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from tqdm import tqdm

from mindie_cache import CacheConfig
from mindie_cache.calibration.search.evaluator import Evaluator, calls_of
from mindie_cache.calibration.search.findings import Findings, Goal, conclude
from mindie_cache.checks import whole
from mindie_cache.errors import ConfigError, did_you_mean
from mindie_cache.recipes import METHODS

ADASTEP_GRID: dict[str, tuple[float, ...]] = {
    "skip_thr": (0.004, 0.006, 0.009, 0.012, 0.015, 0.02),
    "max_skip_steps": (1, 2, 3, 4),
    "decay_ratio": (0.95, 0.99),
}
SPANS: dict[str, tuple[float, float]] = {  # of `threshold`: from next to nothing to most steps, on models that were tried
    "teacache": (0.02, 1.0),
    "custom": (0.02, 1.0),
    "seacache": (0.02, 2.0),
    "magcache": (0.01, 1.0),
    "ada_taylor": (0.01, 1.0),
    "first_block": (0.005, 0.6),
    "dual_block": (0.005, 0.6),
    "dynamic_block": (0.005, 0.6),
    "easycache": (0.005, 0.6),
}
MOST_KNOBS = 2
_DIGITS = 4  # of a threshold: more make no difference that an error shows
_MISSED = 10.0  # value of a trial that does not reach the ratio: above the logarithm of every error that is of use


@dataclass(frozen=True)
class Knob:
    """An option and its range; of an option that is a whole number, whole numbers."""

    name: str
    low: float
    high: float
    is_whole: bool = False

    def grid(self, points: int) -> list[float]:
        """Evenly spread values, by their logarithms unless they are whole numbers or start at 0."""
        if self.is_whole:
            every = max(1, math.ceil((self.high - self.low + 1) / points))
            return list(range(int(self.low), int(self.high) + 1, every))
        parts = [i / max(1, points - 1) for i in range(points)]
        if self.low > 0:
            return [rounded(self.low * (self.high / self.low) ** part) for part in parts]
        return [rounded(self.low + (self.high - self.low) * part) for part in parts]

    def suggest(self, trial: Any) -> float:
        if self.is_whole:
            return trial.suggest_int(self.name, int(self.low), int(self.high))
        return rounded(trial.suggest_float(self.name, self.low, self.high, log=self.low > 0))


def rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")


def knob(method: str, text: str) -> Knob:
    """`NAME=LOW:HIGH` as a knob of the method.

    Raises:
        ConfigError: the method has no such option, or it is no number, or the range is none.
    """
    name, _, span = text.partition("=")
    low, sign, high = span.partition(":")
    types = {one.name: str(one.type).split(" | ") for one in fields(METHODS[method].options)}  # annotations are text
    numbers = [option for option, kinds in types.items() if {"int", "float"} & {*kinds} and not {"tuple", "str"} & {*kinds}]
    if name not in numbers:
        raise ConfigError(f"--range {text}: {name!r} is no numeric option of {method}. {did_you_mean(name, numbers)}")
    try:
        bounds = float(low), float(high)
    except ValueError:
        bounds = (math.nan, math.nan)
    if not sign or not bounds[0] < bounds[1]:
        raise ConfigError(f"--range {text}: give NAME=LOW:HIGH with LOW below HIGH, e.g. --range threshold=0.05:0.5.")
    is_whole = "float" not in types[name] and all(bound == int(bound) for bound in bounds)
    return Knob(name, *bounds, is_whole=is_whole)


def config_for(evaluator: Evaluator, method: str, options: Mapping[str, Any]) -> CacheConfig:
    """The setting of a method with these options on this model.

    Raises:
        ConfigError: the options do not fit.
    """
    calls = 1 if METHODS[method].whole_forward else calls_of(evaluator.target, "dit_block_cache")
    if options.get("signal") == "latents":
        calls = 1
    return CacheConfig(method, calls, evaluator.target.steps, options=dict(options) or None).validated()


@dataclass(frozen=True)
class GridSearch:
    """Every combination of the values of some options of a method."""

    goal: Goal
    method: str
    grid: Mapping[str, Sequence[float]]
    options: Mapping[str, Any] = field(default_factory=dict)  # the same in all

    def configs(self, evaluator: Evaluator) -> list[CacheConfig]:
        first = config_for(evaluator, self.method, {**self.options, **{name: v[0] for name, v in self.grid.items()}})
        calls, steps = first.blocks_count, first.steps_count
        points = [dict(zip(self.grid, values, strict=True)) for values in itertools.product(*self.grid.values())]
        return [CacheConfig(self.method, calls, steps, options={**self.options, **point}).validated() for point in points]

    def run(self, evaluator: Evaluator) -> list[Findings]:
        evaluator.prepare()
        configs = self.configs(evaluator)
        outcomes = evaluator.run(configs, self.method)
        return [conclude(self.method, evaluator, outcomes, self.goal, {"candidates": len(configs)})]


@dataclass(frozen=True)
class OptunaSearch:
    """One or two options of a method by Optuna's TPE: least error among those that reach the ratio; poor ones are pruned
    after their first prompts. The study is in `storage`, where other processes can join, and a later one can go on.

    Args:
        knobs: at most two, or three of adastep.
        trials: finished or pruned, over all processes.
        storage: URL; None: SQLite in the folder of the search.
        options: of the method, the same in all trials.
    """

    goal: Goal
    method: str
    knobs: tuple[Knob, ...]
    trials: int = 40
    storage: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0

    def run(self, evaluator: Evaluator) -> list[Findings]:
        """One finding, from all trials of the study that were not pruned.

        Raises:
            ConfigError: Optuna is not installed, the storage cannot be used, or an option does not fit.
        """
        optuna = _optuna()
        whole("--trials", self.trials, 1)
        middle = {one.name: one.low for one in self.knobs}
        config_for(evaluator, self.method, {**self.options, **middle})  # refused before anything is generated
        evaluator.prepare()
        study = self._study(evaluator, optuna)
        ended = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
        with tqdm(total=self.trials, desc=self.method, unit="trial", disable=not evaluator.progress) as bar:
            while (count := len(study.get_trials(deepcopy=False, states=ended))) < self.trials:
                bar.update(count - bar.n)
                study.optimize(lambda trial: self._objective(trial, evaluator, optuna), n_trials=1)
            bar.update(self.trials - bar.n)
        evaluator.store.refresh()
        done = study.get_trials(deepcopy=False, states=ended[:1])
        done = sorted(done, key=lambda trial: trial.number)
        configs = [self._config(evaluator, trial.params) for trial in done]
        outcomes = evaluator.run(configs, "what the trials have")  # all of it is known, unless the folder is another one
        facts = {"trials": count, "pruned": count - len(done), "storage": self._url(evaluator)}
        return [conclude(self.method, evaluator, outcomes, self.goal, facts)]

    def _config(self, evaluator: Evaluator, values: Mapping[str, Any]) -> CacheConfig:
        point = {name: rounded(v) if isinstance(v, float) else v for name, v in values.items()}
        return config_for(evaluator, self.method, {**self.options, **point})

    def _objective(self, trial: Any, evaluator: Evaluator, optuna: Any) -> float:
        config = self._config(evaluator, {one.name: one.suggest(trial) for one in self.knobs})
        shares, errors, value = [], [], math.inf
        for prompt in range(len(evaluator.prompts)):
            entry = evaluator.evaluate(config, prompt)
            error = entry.scores[evaluator.scores[0].name]
            shares.append(entry.share)
            errors.append(math.inf if error is None else error)
            value = self._value(sum(shares) / len(shares), sum(errors) / len(errors))
            trial.report(value, prompt)
            if prompt + 1 < len(evaluator.prompts) and trial.should_prune():
                raise optuna.TrialPruned
        return value

    def _value(self, share: float, error: float) -> float:
        """What is minimised: the error, or with most_error the share; what misses the goal is worse than all that reach it,
        by how far it is away, so that the search finds the way there."""
        if self.goal.most_error is not None:
            if error <= self.goal.most_error:
                return share
            return _MISSED + min(20.0, math.log(error / self.goal.most_error))
        excess = share * self.goal.ratio - 1
        if excess > 1e-9:
            return _MISSED + excess
        return math.atan(error) if math.isfinite(error) else 2 * _MISSED  # rises with the error, and stays below 2

    def _url(self, evaluator: Evaluator) -> str:
        return self.storage or f"sqlite:///{(evaluator.store.path / 'optuna.db').absolute()}"

    def _study(self, evaluator: Evaluator, optuna: Any) -> Any:
        """The study of this method, model and goal. Ranks make it one after the other."""
        url = self._url(evaluator)
        name = f"{self.method} {evaluator.store.mark} {self.goal} {self.knobs} {dict(self.options)}"
        sampler = optuna.samplers.TPESampler(seed=self.seed + evaluator.store.rank)
        pruner = optuna.pruners.MedianPruner(n_startup_trials=5)
        try:
            with evaluator.store.waiting("optuna"):
                return optuna.create_study(
                    storage=url, study_name=name, sampler=sampler, pruner=pruner, direction="minimize", load_if_exists=True
                )
        except Exception as error:  # SQLAlchemy has many kinds, and so have the drivers of data bases
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ConfigError(
                f"--storage {url} cannot be used: {reason}. Nothing was changed. Give the URL of a data base of Optuna, "
                "e.g. sqlite:///study.db, or leave it out."
            ) from error


def adastep_knobs() -> tuple[Knob, ...]:
    """The ranges of adastep's grid."""
    whole_numbers = {"max_skip_steps"}
    return tuple([Knob(name, min(v), max(v), name in whole_numbers) for name, v in ADASTEP_GRID.items()])


def threshold_knobs(method: str, ranges: Sequence[str]) -> tuple[Knob, ...]:
    """What is searched of a method: `--range`s, or its threshold.

    Raises:
        ConfigError: the method has no threshold, or there are too many ranges.
    """
    if method not in METHODS:
        raise ConfigError(f"--method {method} is not supported. {did_you_mean(method, SPANS)}")
    if len(ranges) > MOST_KNOBS:
        raise ConfigError(f"{len(ranges)} ranges are given. Search at most {MOST_KNOBS} options at once.")
    found = tuple([knob(method, text) for text in ranges])
    if len({one.name for one in found}) < len(found):
        raise ConfigError(f"--range {found[0].name} is given twice. Keep one of them.")
    if found:
        return found
    if method not in SPANS:
        raise ConfigError(f"--method {method} has no threshold. {did_you_mean(method, SPANS)} Or give a --range.")
    return (Knob("threshold", *SPANS[method]),)


def _optuna() -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import optuna
    except ImportError as error:
        raise ConfigError(
            f"this search needs Optuna, which cannot be imported ({error}): pip install 'mindie_cache[search]'. Or leave "
            "--trials out and search a grid."
        ) from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
