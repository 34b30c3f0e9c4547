"""mindie_cache: caching for diffusion-transformer inference on Ascend NPU, CUDA and CPU."""

from pathlib import Path

if not (Path(__file__).parent / "ops").is_dir():  # installed, ops/ is inside the package; in a checkout it lies beside it
    __path__.append(str(Path(__file__).parents[1]))

from mindie_cache.agent import CacheAgent
from mindie_cache.calibration import Calibration
from mindie_cache.clock import branch, forget_request, run
from mindie_cache.config import CacheConfig
from mindie_cache.errors import CacheError, CacheWarning, ConfigError, ModelExecError, ParametersInvalid
from mindie_cache.hooks import CacheHandle, CacheReport, disable_cache, enable_cache
from mindie_cache.methods.broadcast import PabOptions
from mindie_cache.methods.calibrator import CalibratorOptions
from mindie_cache.methods.fastercache import CfgCacheOptions, FasterCacheOptions
from mindie_cache.methods.mindie import AdastepOptions, ReuseOptions
from mindie_cache.methods.planned import PlanOptions
from mindie_cache.methods.probes import DualBlockOptions, DynamicBlockOptions, FirstBlockOptions
from mindie_cache.methods.seacache import SeaCacheOptions
from mindie_cache.methods.signals import AdaCacheOptions, CustomOptions, EasyCacheOptions, TeaCacheOptions
from mindie_cache.methods.tables import AdaTaylorOptions, MagCacheOptions, TaylorSeerOptions
from mindie_cache.report import Report, StepRecord
from mindie_cache.version import __version__

__all__ = [
    "AdaCacheOptions",
    "AdaTaylorOptions",
    "AdastepOptions",
    "CacheAgent",
    "CacheConfig",
    "CacheError",
    "CacheHandle",
    "CacheReport",
    "CacheWarning",
    "Calibration",
    "CalibratorOptions",
    "CfgCacheOptions",
    "ConfigError",
    "CustomOptions",
    "DualBlockOptions",
    "DynamicBlockOptions",
    "EasyCacheOptions",
    "FasterCacheOptions",
    "FirstBlockOptions",
    "MagCacheOptions",
    "ModelExecError",
    "PabOptions",
    "ParametersInvalid",
    "PlanOptions",
    "Report",
    "ReuseOptions",
    "SeaCacheOptions",
    "StepRecord",
    "TaylorSeerOptions",
    "TeaCacheOptions",
    "__version__",
    "branch",
    "disable_cache",
    "enable_cache",
    "forget_request",
    "run",
]
