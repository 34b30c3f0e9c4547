"""Tensor operations of the engine: one file an op, with its contract and its PyTorch reference; kernels in triton/.

No work at import.
"""

from mindie_cache.ops.axis_filter import axis_filter
from mindie_cache.ops.band_split import band_split
from mindie_cache.ops.combine import combine
from mindie_cache.ops.dispatch import Choice, explain, use
from mindie_cache.ops.low_pass import low_pass
from mindie_cache.ops.magnitude_ratio import magnitude_ratio
from mindie_cache.ops.quantize_rows import dequantize_rows, quantize_rows
from mindie_cache.ops.relative_l1 import relative_l1
from mindie_cache.ops.residual_delta import quantized_delta, residual_delta

__all__ = [
    "Choice",
    "axis_filter",
    "band_split",
    "combine",
    "dequantize_rows",
    "explain",
    "low_pass",
    "magnitude_ratio",
    "quantize_rows",
    "quantized_delta",
    "relative_l1",
    "residual_delta",
    "use",
]
