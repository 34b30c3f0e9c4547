"""Tensor operations of the engine: one file an op, with its contract and its PyTorch reference. No work at import."""

from mindie_cache.ops.axis_filter import axis_filter
from mindie_cache.ops.band_split import band_split
from mindie_cache.ops.combine import combine
from mindie_cache.ops.dispatch import Choice, explain
from mindie_cache.ops.low_pass import low_pass
from mindie_cache.ops.relative_l1 import relative_l1

__all__ = ["Choice", "axis_filter", "band_split", "combine", "explain", "low_pass", "relative_l1"]
