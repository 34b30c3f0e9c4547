"""Plans: which steps to compute, found from one or two recorded generations."""

from mindie_cache.calibration.planning.plan import Entry, Plan
from mindie_cache.calibration.planning.planner import made_on, make_plan, plan
from mindie_cache.calibration.planning.program import Program, Schedule
from mindie_cache.calibration.planning.recording import Recorder, Recording, record, record_run, record_testbed, recording
from mindie_cache.calibration.planning.samplers import Sampler, sampler_of
from mindie_cache.calibration.planning.trial import safest

__all__ = [
    "Entry",
    "Plan",
    "Program",
    "Recorder",
    "Recording",
    "Sampler",
    "Schedule",
    "made_on",
    "make_plan",
    "plan",
    "record",
    "record_run",
    "record_testbed",
    "recording",
    "safest",
    "sampler_of",
]
