"""A small text-to-video diffusion transformer with trained weights, to try and to test caches on.

>>> from mindie_cache.testbed import accuracy, generate, load_testbed
>>> model = load_testbed()
>>> result = generate(model, ["a red square moving left"], seeds=[0])
>>> accuracy(result.videos, ["a red square moving left"]).overall
1.0
"""

from mindie_cache.testbed.data import all_prompts, contact_sheet, render, to_video
from mindie_cache.testbed.judge import Accuracy, Reading, accuracy, read
from mindie_cache.testbed.model import TestbedConfig, TestbedTransformer
from mindie_cache.testbed.sampler import Generation, generate, sigmas
from mindie_cache.testbed.weights import load_testbed, save_testbed

__all__ = [
    "Accuracy",
    "Generation",
    "Reading",
    "TestbedConfig",
    "TestbedTransformer",
    "accuracy",
    "all_prompts",
    "contact_sheet",
    "generate",
    "load_testbed",
    "read",
    "render",
    "save_testbed",
    "sigmas",
    "to_video",
]
