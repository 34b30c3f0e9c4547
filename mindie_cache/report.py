"""What a run did: which steps were computed or reused and why, calls saved, bytes kept, time. Decides nothing."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from time import perf_counter


@dataclass(frozen=True)
class StepRecord:
    """One pass of one branch: `calls_reused` of its `calls` were not executed; `reason` is the policy's word."""

    branch: str
    step: int
    calls: int
    calls_reused: int
    reason: str

    @property
    def reused(self) -> bool:
        return self.calls_reused > 0


@dataclass(frozen=True)
class Report:
    """One run of one agent.

    `unit` names what a call is (block, attention call, forward). Bytes are those of kept features; `seconds` is wall time
    from the first call of the run to the end of its last. `note` says why nothing is cached, if so.
    """

    method: str
    unit: str
    steps: tuple[StepRecord, ...] = ()
    bytes_now: int = 0
    bytes_peak: int = 0
    seconds: float = 0.0
    note: str = ""

    @property
    def calls(self) -> int:
        return sum(record.calls for record in self.steps)

    @property
    def calls_reused(self) -> int:
        return sum(record.calls_reused for record in self.steps)

    @property
    def share_computed(self) -> float:
        """Executed calls over all calls, 1.0 for an empty run."""
        return 1.0 - self.calls_reused / self.calls if self.calls else 1.0

    def to_json(self) -> str:
        """A JSON object: the fields, and the totals that follow from them."""
        totals = {"calls": self.calls, "calls_reused": self.calls_reused, "share_computed": self.share_computed}
        return json.dumps({**asdict(self), **totals}, indent=2)

    def __str__(self) -> str:
        head = f"{self.method}: {self.calls_reused} of {self.calls} {self.unit}s reused"
        if self.calls:
            head += f" ({self.calls_reused / self.calls:.0%})"
        lines = [
            f"{head}, {_mebibytes(self.bytes_now)} kept, {_mebibytes(self.bytes_peak)} at peak, {self.seconds:.3f} s",
        ]
        for branch in dict.fromkeys(record.branch for record in self.steps):
            mine = {record.step: record for record in self.steps if record.branch == branch}
            marks = [_mark(mine.get(step)) for step in range(max(mine) + 1)]
            lines.append(f"  {branch:<8} {''.join(marks)}")
        if self.steps:
            lines.append("  one mark a step: # computed, . reused, ' ' not called")
        if self.note:
            lines.append(f"  {self.note}")
        return "\n".join(lines)


def _mark(record: StepRecord | None) -> str:
    return " " if record is None else "." if record.reused else "#"


def _mebibytes(count: int) -> str:
    return f"{count / 2**20:.2f} MiB"


@dataclass
class Log:
    """The growing form of a report, shared by the branches of one run."""

    rows: list[tuple[str, int, int, int, str]] = field(default_factory=list)  # the fields of StepRecord
    bytes_peak: int = 0
    started: float = field(default_factory=perf_counter)
    stopped: float = 0.0

    @property
    def steps(self) -> list[StepRecord]:
        return [StepRecord(*row) for row in self.rows]

    def add(self, row: tuple[str, int, int, int, str], bytes_now: int) -> None:
        """A pass has ended, with `bytes_now` kept."""
        self.rows.append(row)
        if bytes_now > self.bytes_peak:
            self.bytes_peak = bytes_now
        self.stopped = perf_counter()

    def report(self, method: str, unit: str, bytes_now: int) -> Report:
        seconds = max(0.0, self.stopped - self.started)
        return Report(method, unit, tuple(self.steps), bytes_now, self.bytes_peak, seconds)
