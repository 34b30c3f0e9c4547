"""Policies: compute or reuse, decided once per run, branch and step. They never touch kept features. One file each."""

from mindie_cache.policies.adacache import AdaCache, Motion
from mindie_cache.policies.adastep import Adastep
from mindie_cache.policies.compute_all import ComputeAll
from mindie_cache.policies.decision import Decision, Limits, Policy, Signal
from mindie_cache.policies.dynamic_block import DynamicBlock
from mindie_cache.policies.easycache import EasyCache
from mindie_cache.policies.reference import Reference
from mindie_cache.policies.residual_change import ResidualChange
from mindie_cache.policies.schedule import PerBranch, Schedule, interval
from mindie_cache.policies.seacache import SeaCache
from mindie_cache.policies.teacache import TeaCache

__all__ = [
    "AdaCache",
    "Adastep",
    "ComputeAll",
    "Decision",
    "DynamicBlock",
    "EasyCache",
    "Limits",
    "Motion",
    "PerBranch",
    "Policy",
    "Reference",
    "ResidualChange",
    "Schedule",
    "SeaCache",
    "Signal",
    "TeaCache",
    "interval",
]
