"""ResidualMeter: measures the residual of a block range at every step. Its sums stay on the device until the run is over.

After MagCache and the calibrators of TeleFuser and LightX2V. Per token: f = |r_k| / |r_(k-1)|, norms over channels in fp32.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

import torch

from mindie_cache.calibration import files
from mindie_cache.calibration.result import Calibration, Curves, Provenance
from mindie_cache.distributed import Ranks
from mindie_cache.errors import ConfigError, ModelExecError, ParametersInvalid
from mindie_cache.ops import magnitude_ratio, relative_l1
from mindie_cache.policies.decision import relative

Rows = dict[str, dict[int, tuple[int, torch.Tensor]]]  # by branch and step: tokens, and seven sums on the device


class Latest(NamedTuple):
    """What the next step of a branch is compared with."""

    step: int
    residual: torch.Tensor


class Row(NamedTuple):
    """One step of one branch on one rank: `std` of f, and `cosine`, the mean of 1 - cosine."""

    tokens: float
    mean: float
    std: float
    cosine: float
    signal_change: float
    signal_size: float
    residual_change: float
    residual_size: float


@dataclass(frozen=True, kw_only=True)
class ResidualMeter:
    """A Meter, see methods/base.py. One run's state is in `measured`:

    "rows": Rows; "form": dtype and kind of device; "calibration": the result, once it is known;
    "latest": by branch and part, the tensors of the run under way, which an interrupted run gives back.

    Args:
        provenance: what is known before the run.
        signal: name of the signal that is watched for TeaCache, or None.
        output_path: written after the last step of every branch; None leaves that to the caller.
        format: of the file.
    """

    provenance: Provenance
    signal: str | None = None
    output_path: Path | None = None
    format: str = "telefuser"

    def prepare(self, ranks: Ranks) -> None:
        """Before a run: see that the file can be written, and that one rank only will do it."""
        if self.output_path is None:
            return
        if not ranks.is_everyone:
            raise ConfigError(
                f"output_path={str(self.output_path)!r} would be written by several ranks: process_group has {ranks.size} "
                "of them, but more are running. Leave output_path out, and save agent.calibration() on one rank; under "
                "CFG-parallel, gather_branches(agent.calibration(), cfg_group)."
            )
        if ranks.is_first:
            files.prepare(self.output_path)

    # ------------------------------------------------------------------------------------------------ during the run

    def see(self, measured: dict[str, Any], branch: str, step: int, signal: torch.Tensor) -> None:
        """The signal of a step, before its residual."""
        latest = measured.setdefault("latest", {})
        before: torch.Tensor | None = latest.get((branch, "signal"))
        latest[branch, "signal"] = signal.detach().clone()
        if before is not None and before.shape == signal.shape:
            latest[branch, "change"] = step, relative_l1(signal.detach(), before.to(signal.device))

    def add(self, measured: dict[str, Any], branch: str, step: int, residual: Any, ranks: Ranks) -> None:
        """The residual `(..., tokens, channels)` of a computed step. Of several evaluations in a step, the first counts."""
        if not isinstance(residual, torch.Tensor):
            raise ModelExecError(f"A calibration measures tensors, but hidden_states is {type(residual).__name__}.")
        rows: Rows = measured.setdefault("rows", {})
        latest = measured.setdefault("latest", {})
        mine = rows.setdefault(branch, {})
        before: Latest | None = latest.get((branch, "residual"))
        if before is not None and before.step >= step:
            return
        if not mine:
            measured["form"] = str(residual.dtype).removeprefix("torch."), residual.device.type
        latest[branch, "residual"] = Latest(step, residual)
        if before is None or before.step != step - 1:  # a step is missing: `result` will say so
            return
        if before.residual.shape != residual.shape:
            raise ModelExecError(
                f"Branch {branch!r}, step {step}: the residual's shape changes from {tuple(before.residual.shape)} to "
                f"{tuple(residual.shape)}. Calibrate at one resolution and batch size."
            )
        seen_at, change = latest.get((branch, "change"), (-1, None))
        seen = change if seen_at == step else None
        mine[step] = residual.shape[:-1].numel(), _sums(residual, before.residual, seen, self.signal is not None)
        if step == self.provenance.steps - 1 and self.output_path is not None:
            self._close(measured, ranks)

    def _close(self, measured: dict[str, Any], ranks: Ranks) -> None:
        """A branch has done its last step: if it was the last branch to do so, write the file."""
        assert self.output_path is not None
        if any(self._missing(mine) == [self.provenance.steps - 1] for mine in measured["rows"].values()):
            return
        calibration = self.result(measured, ranks)
        self.prepare(ranks)
        if ranks.is_first:
            calibration.save(self.output_path, self.format)

    # ------------------------------------------------------------------------------------------------ after the run

    def result(self, measured: dict[str, Any], ranks: Ranks) -> Calibration:
        """What was measured. The first call is a collective operation of the ranks.

        Raises:
            ParametersInvalid: the run is not over, or left steps out.
            ModelExecError: something measured is NaN or infinite.
        """
        found: Calibration | None = measured.get("calibration")
        if found is None:
            self._check_complete(measured.get("rows", {}))
            measured.pop("latest", None)
            found = measured["calibration"] = self._evaluate(measured, ranks)
        return found

    def _missing(self, mine: dict[int, Any]) -> list[int]:
        return [step for step in range(1, self.provenance.steps) if step not in mine]

    def _check_complete(self, rows: Rows) -> None:
        if not rows:
            raise ParametersInvalid("Nothing was measured yet. Run one whole generation through the agent first.")
        for branch, mine in rows.items():
            missing = self._missing(mine)
            if missing:
                raise ParametersInvalid(
                    f"Branch {branch!r} was not measured at {len(missing)} of {self.provenance.steps} steps, first at step "
                    f"{missing[0]}. Run one whole generation of steps_count={self.provenance.steps} steps, without "
                    "another cache around this one and with guidance at every step."
                )

    def _evaluate(self, measured: dict[str, Any], ranks: Ranks) -> Calibration:
        rows: Rows = measured["rows"]
        places = [(branch, step) for branch in rows for step in sorted(rows[branch])]
        parts = _read([rows[branch][step] for branch, step in places], ",".join(rows), ranks)
        table = {place: [Row(*part[index]) for part in parts] for index, place in enumerate(places)}
        branches = {branch: self._curves([table[branch, step] for step in sorted(rows[branch])]) for branch in rows}
        from mindie_cache.doctor import NOT_INSTALLED, versions

        dtype, device = measured["form"]
        provenance = replace(
            self.provenance,
            dtype=dtype,
            device=device,
            tokens=round(sum(row.tokens for row in table[places[0]])),
            ranks=len(parts),
            versions={name: version for name, version in versions().items() if version != NOT_INSTALLED},
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        )
        return Calibration(provenance=provenance, branches=branches, signal=self.signal)

    def _curves(self, steps: list[list[Row]]) -> Curves:
        merged = [_merge(parts) for parts in steps]
        ratios, stds, cosines = ((first, *[row[i] for row in merged]) for i, first in enumerate((1.0, 0.0, 0.0)))
        changes = tuple([(row[3], row[4]) for row in merged]) if self.signal is not None else ()
        return Curves(ratios, stds, cosines, changes)


def _sums(residual: torch.Tensor, before: torch.Tensor, change: torch.Tensor | None, watching: bool) -> torch.Tensor:
    """The entries of a Row but the first, as a tensor `(7,)` on the residual's device. Does not synchronise."""
    before = before.to(residual.device)
    three = magnitude_ratio(residual, before)
    if not watching:
        return torch.cat((three, three.new_zeros(4)))
    seen = three.new_full((2,), math.nan) if change is None else change.to(three.device)
    return torch.cat((three, seen, relative_l1(residual, before)))


def _read(rows: list[tuple[int, torch.Tensor]], names: str, ranks: Ranks) -> list[list[list[float]]]:
    """The rows of every rank as host numbers: one collective, one host read."""
    device = rows[-1][1].device
    sums = torch.stack([row.to(device) for _, row in rows])
    tokens = torch.tensor([[count] for count, _ in rows], dtype=torch.float32, device=device)
    head = sums.new_full((1, 8), float(zlib.crc32(names.encode()) % 2**24))  # 24 bits: exact in float32
    parts = ranks.gather(torch.cat((head, torch.cat((tokens, sums), dim=1))))
    if any(part[0] != parts[0][0] for part in parts):
        raise ParametersInvalid(
            f"The ranks of process_group measured different branches, here {names}. It is the group of the ranks that share "
            "a sequence, not the CFG-parallel one: for that, gather_branches(agent.calibration(), cfg_group)."
        )
    return [part[1:] for part in parts]


def _merge(parts: list[Row]) -> tuple[float, float, float, float, float]:
    """One step over ranks: mean, unbiased std, cosine distance, changes of signal and residual (Chan et al., 1979)."""
    parts = [part for part in parts if part.tokens]
    tokens = sum(part.tokens for part in parts)
    if not tokens:
        return (math.nan,) * 5
    mean = sum(part.tokens * part.mean for part in parts) / tokens
    moment = sum((part.tokens - 1) * part.std**2 + part.tokens * (part.mean - mean) ** 2 for part in parts)
    std = math.sqrt(moment / (tokens - 1)) if tokens > 1 else 0.0
    cosine = sum(part.tokens * part.cosine for part in parts) / tokens
    signal = relative(sum(part.signal_change for part in parts), sum(part.signal_size for part in parts))
    residual = relative(sum(part.residual_change for part in parts), sum(part.residual_size for part in parts))
    return mean, std, cosine, signal, residual
