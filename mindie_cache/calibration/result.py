"""Calibration: what was measured, with where it comes from; its two file formats. It measures nothing."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple

from mindie_cache.calibration import files
from mindie_cache.calibration.polynomial import Polynomial, fit
from mindie_cache.checks import choice
from mindie_cache.errors import CacheWarning, ModelExecError, ParametersInvalid

DIGITS = 5  # of the numbers in files, as TeleFuser and LightX2V have them
RETENTION_RATIO, THRESHOLD = 0.2, 0.12


class Curves(NamedTuple):
    """One branch, one entry a step: mean and unbiased standard deviation over tokens of |r| / |r_previous|, and the mean
    of 1 - cosine. Step 0 has nothing before it: 1, 0, 0."""

    ratios: tuple[float, ...]
    stds: tuple[float, ...]
    cosine_distances: tuple[float, ...]
    changes: tuple[tuple[float, float], ...] = ()  # from step 1 on: relative L1 of the signal, and of the residual


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """What was measured, how, when, by which versions. `tokens` are those of one step, over batch and ranks."""

    model: str
    steps: int
    sigma_shift: float | None = None
    scheduler: str | None = None
    resolution: str | None = None
    guidance_scale: float | None = None
    blocks: tuple[int, int] | None = None  # half-open range; None: all of them
    dtype: str = ""
    device: str = ""
    tokens: int = 0
    ranks: int = 1
    versions: Mapping[str, str] = field(default_factory=dict)
    created: str = ""  # UTC


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """The measurements of one generation by branch, unrounded. Holds finite numbers only.

    Raises:
        ModelExecError: a number is NaN or infinite, or the curves of a branch have different lengths.
    """

    provenance: Provenance
    branches: Mapping[str, Curves]
    signal: str | None = None

    def __post_init__(self) -> None:
        for branch, curves in self.branches.items():
            for name in ("ratios", "stds", "cosine_distances"):
                values = getattr(curves, name)
                if len(values) != self.provenance.steps:
                    raise ModelExecError(
                        f"{name} of branch {branch!r} has {len(values)} entries for {self.provenance.steps} steps."
                    )
                for step, value in enumerate(values):
                    if not math.isfinite(value):
                        raise ModelExecError(_refusal(branch, step, value))

    def merged(self, other: Calibration) -> Calibration:
        """Both calibrations' branches, these ones first: for CFG-parallel, where each rank sees one branch."""
        mine, theirs = self.provenance, other.provenance
        for name in ("model", "steps", "sigma_shift"):
            if getattr(mine, name) != getattr(theirs, name):
                raise ParametersInvalid(
                    f"Calibrations of different runs cannot be merged: {name} is {getattr(mine, name)!r} and "
                    f"{getattr(theirs, name)!r}. Measure both branches in one generation."
                )
        for branch in self.branches.keys() & other.branches.keys():
            if self.branches[branch] != other.branches[branch]:
                raise ParametersInvalid(
                    f"Both calibrations have measured a branch {branch!r}, with different results. Name the branches apart: "
                    "call the unconditional one inside mindie_cache.branch('uncond')."
                )
        return replace(self, branches={**self.branches, **other.branches})

    def polynomial(self) -> Polynomial | None:
        """TeaCache's polynomial over all branches, or None if no signal was watched.

        Raises:
            ParametersInvalid: the signal does not determine one.
        """
        if self.signal is None:
            return None
        return fit([pair for curves in self.branches.values() for pair in curves.changes])

    def to_telefuser(self) -> dict[str, Any]:
        """TeleFuser's preset file, which `options={"preset": file}` reads too. TeleFuser ignores the further keys."""
        cond, uncond, note = self._pair()
        document: dict[str, Any] = {
            "K": max_skip_steps(self.provenance.steps),
            "retention_ratio": RETENTION_RATIO,
            "thresh": THRESHOLD,
            "sigma_shift": self.provenance.sigma_shift,
            "num_inference_steps": self.provenance.steps,
            "cond_mag_ratios": _rounded(cond.ratios),
            "uncond_mag_ratios": _rounded(uncond.ratios),
            "cond_mag_std": _rounded(cond.stds),
            "uncond_mag_std": _rounded(uncond.stds),
            "cond_cos_dis": _rounded(cond.cosine_distances),
            "uncond_cos_dis": _rounded(uncond.cosine_distances),
            "provenance": self._provenance(note),
        }
        polynomial = self._polynomial_or_warning()
        if polynomial is not None:
            document["teacache"] = {
                "coefficients": [float(f"{value:.9g}") for value in polynomial.coefficients],
                "signal": self.signal,
                "fitted_range": _rounded(polynomial.fitted_range),
            }
        return document

    def to_lightx2v(self) -> dict[str, Any]:
        """Keys of a LightX2V configuration (`--config_json`); standard deviation and cosine distance are for information."""
        cond, uncond, note = self._pair()
        shift = self.provenance.sigma_shift
        return {
            "feature_caching": "Mag",
            "magcache_calibration": False,
            "magcache_K": max_skip_steps(self.provenance.steps),
            "magcache_thresh": THRESHOLD,
            "magcache_retention_ratio": RETENTION_RATIO,
            "infer_steps": self.provenance.steps,
            **({} if shift is None else {"sample_shift": shift}),
            "magcache_ratios": [_rounded(cond.ratios), _rounded(uncond.ratios)],
            "mag_std": [_rounded(cond.stds), _rounded(uncond.stds)],
            "cos_dis": [_rounded(cond.cosine_distances), _rounded(uncond.cosine_distances)],
            "provenance": self._provenance(note),
        }

    def save(self, path: str | os.PathLike[str], format: str = "telefuser") -> None:  # noqa: A002
        """Write a file of FORMATS, whole or not at all. On several ranks call it on one of them."""
        choice("format", format, tuple(FORMATS))
        files.write(path, FORMATS[format](self))

    def _pair(self) -> tuple[Curves, Curves, str]:
        """The two branches that files have, and a note if they are not just the two that were measured."""
        names = list(self.branches)
        if len(names) == 1:
            only = self.branches[names[0]]
            return only, only, f"only branch {names[0]!r} was measured: both lists are the same"
        if "cond" in names and "uncond" in names:
            left_out = [name for name in names if name not in ("cond", "uncond")]
            note = f"not in this file: branches {', '.join(left_out)}" if left_out else ""
            return self.branches["cond"], self.branches["uncond"], note
        if len(names) != 2:
            raise ParametersInvalid(
                f"Files hold two branches, but {', '.join(map(repr, names)) or 'none'} were measured. Name the two that "
                "guidance combines 'cond' and 'uncond', with mindie_cache.branch(name)."
            )
        return self.branches[names[0]], self.branches[names[1]], f"{names[0]!r} stands as cond, {names[1]!r} as uncond"

    def _provenance(self, note: str) -> dict[str, Any]:
        facts = {**asdict(self.provenance), "branches": list(self.branches)}
        return {**facts, "note": note} if note else facts

    def _polynomial_or_warning(self) -> Polynomial | None:
        try:
            return self.polynomial()
        except ParametersInvalid as error:  # the table is worth keeping
            warnings.warn(f"The file gets no polynomial for TeaCache. {error}", CacheWarning, stacklevel=4)
            return None


FORMATS: dict[str, Callable[[Calibration], dict[str, Any]]] = {
    "telefuser": Calibration.to_telefuser,
    "lightx2v": Calibration.to_lightx2v,
}


def max_skip_steps(steps: int) -> int:
    """TeleFuser's K for a run of `steps`: 1 below 20 steps, 4 from 40 on."""
    return min(4, max(1, steps // 10))


def gather_branches(calibration: Calibration, group: Any) -> Calibration:
    """The branches of all ranks of `group`, on every rank: for CFG-parallel. Every rank has to call it."""
    import torch.distributed as dist

    found: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(found, calibration, group=group)
    total: Calibration = found[0]
    for other in found[1:]:
        total = total.merged(other)
    return total


def _rounded(values: tuple[float, ...]) -> list[float]:
    return [round(value, DIGITS) for value in values]


def _refusal(branch: str, step: int, value: float) -> str:
    return (
        f"Branch {branch!r}, step {step}: what was measured is {value}. Either a token's residual is exactly zero in step "
        f"{step - 1}, or the model overflows. Leave padding tokens and blocks that do nothing out of the measured range "
        "(block_start, block_end), use bf16 or fp32 instead of fp16, and measure again. Nothing was written."
    )
