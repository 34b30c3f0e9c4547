"""Presets: calibrated numbers for a method and a model, with what they were made for and where they come from.

`mindie-cache presets` shows them. Nothing is read before something is asked for; nothing is measured here.
"""

from mindie_cache.presets.catalogue import PresetNotFound, all_presets, find
from mindie_cache.presets.files import load_file
from mindie_cache.presets.plans import plan_for
from mindie_cache.presets.preset import Conditions, Preset, Source

__all__ = ["Conditions", "Preset", "PresetNotFound", "Source", "all_presets", "find", "load_file", "plan_for"]
