"""TeleFuser's names for feature caches: AdaTaylorCache and create_feature_cache. Owns no algorithm."""

from __future__ import annotations

from typing import Any

from mindie_cache.checks import whole
from mindie_cache.config import CacheConfig
from mindie_cache.errors import ConfigError, did_you_mean
from mindie_cache.feature_cache import BaseFeatureCache, FeatureCache, NoOpCache
from mindie_cache.methods.tables import AdaTaylorOptions
from mindie_cache.policies import PerBranch, Schedule
from mindie_cache.recipes import METHODS

_BLOCKS = 16  # of the configuration; behind the three verbs the cached part is one call, whatever its blocks


class AdaTaylorCache(FeatureCache):
    """TeleFuser's AdaTaylorCache: a magnitude table decides, a Taylor ladder estimates.

    By default with TeleFuser's numbers: the table resampled by nearest pick, the published ladder. For tables of other
    lengths ``resampling="product"`` is better, ``ladder="newton"`` is exact on unequal gaps; docs/methods.md has what they
    measured.

    Args:
        model_type: name of a preset, or path of a calibration file (.json).
        num_inference_steps: steps of a generation.
        n_derivatives: order of the extrapolation; 0 reuses the last residual.
        taylor_threshold: extrapolate at most so many steps ahead, reuse the last residual beyond.
        init_step: the first step of this object, always computed: where the second of two experts takes over.
        resampling, ladder: see `AdaTaylorOptions`.
        K, thresh, retention_ratio: instead of the preset's most skipped steps in a row, error budget, share of warm-up.
        sigma_shift, strict: to check the preset against your schedule.

    Raises:
        ConfigError: (a ValueError) a number is out of range. PresetNotFound: (a FileNotFoundError) no such preset.
    """

    def __init__(
        self,
        model_type: str,
        num_inference_steps: int,
        n_derivatives: int = 1,
        taylor_threshold: int = 2,
        init_step: int = 0,
        *,
        resampling: str = "nearest",
        ladder: str = "published",
        K: int | None = None,  # noqa: N803 - the published name
        thresh: float | None = None,
        retention_ratio: float | None = None,
        sigma_shift: float | None = None,
        strict: bool = False,
    ):
        whole("num_inference_steps", num_inference_steps, 1)
        whole("n_derivatives", n_derivatives, 0, 8)
        whole("taylor_threshold", taylor_threshold, 1)
        options = AdaTaylorOptions(
            preset=model_type,
            order=n_derivatives,
            max_distance=taylor_threshold if n_derivatives else None,
            ladder=ladder if n_derivatives else "newton",
            init_step=init_step,
            resampling=resampling,
            max_skip_steps=K,
            threshold=thresh,
            retention_ratio=retention_ratio,
            sigma_shift=sigma_shift,
            strict=strict,
        )
        super().__init__(CacheConfig("ada_taylor", _BLOCKS, num_inference_steps, options=options), init_step=init_step)

    def get_compute_steps(self, is_cond: bool = True) -> list[int]:
        """The computed steps of a branch, ascending."""
        policy = self._engine.recipe.policy
        assert isinstance(policy, PerBranch)
        schedule = policy.of("cond" if is_cond else "uncond")
        assert isinstance(schedule, Schedule)
        return sorted(schedule.compute_steps)

    def last_step_was_compute(self, is_cond: bool = True) -> bool:
        """Whether the step that `should_compute` was asked for last is a computed one."""
        return not self._current(is_cond)[1].reuse


def create_feature_cache(cache_type: str = "none", **kwargs: Any) -> BaseFeatureCache:
    """Build a feature cache by name.

    Args:
        cache_type: "none"; "ada_taylor" with the arguments of `AdaTaylorCache`; any other method's name with
            `num_inference_steps` and the method's options.

    Raises:
        ConfigError: (a ValueError) an unknown name or option. TypeError: a required argument is missing.
    """
    if cache_type == "none":
        return NoOpCache()
    if cache_type == "ada_taylor":
        return AdaTaylorCache(**kwargs)
    names = ("none", *METHODS)
    if not isinstance(cache_type, str) or cache_type not in METHODS:
        raise ConfigError(f"cache_type={cache_type!r} is not supported. {did_you_mean(cache_type, names)}")
    return _by_method(cache_type, **kwargs)


def _by_method(
    method: str, *, num_inference_steps: int, init_step: int = 0, process_group: Any = None, **options: Any
) -> FeatureCache:
    blocks = 1 if METHODS[method].whole_forward else _BLOCKS
    window = {name: options.pop(name) for name in ("step_start", "step_interval", "step_end") if name in options}
    config = CacheConfig(method, blocks, num_inference_steps, **window, options=options or None)
    return FeatureCache(config, init_step=init_step, process_group=process_group)
