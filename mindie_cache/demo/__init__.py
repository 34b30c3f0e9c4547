"""The demo: the same prompts and seeds without cache and with every method, compared in a table and in pictures."""

from mindie_cache.demo.attach import attached
from mindie_cache.demo.metrics import psnr, ssim
from mindie_cache.demo.options import DemoOptions
from mindie_cache.demo.plan import Setting, default_settings
from mindie_cache.demo.runner import Batch, Outcome, compare
from mindie_cache.demo.session import run_demo

__all__ = [
    "Batch",
    "DemoOptions",
    "Outcome",
    "Setting",
    "attached",
    "compare",
    "default_settings",
    "psnr",
    "run_demo",
    "ssim",
]
