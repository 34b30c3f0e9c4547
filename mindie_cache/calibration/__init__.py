"""Measure a model, and write what was measured where the user says, with provenance. Nothing here prints or caches."""

from mindie_cache.calibration.meter import ResidualMeter
from mindie_cache.calibration.polynomial import Polynomial, fit
from mindie_cache.calibration.result import Calibration, Curves, Provenance, gather_branches

__all__ = ["Calibration", "Curves", "Polynomial", "Provenance", "ResidualMeter", "fit", "gather_branches"]
