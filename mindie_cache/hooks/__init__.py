"""Face 3: caching for a model whose own loop stays in place. Never imports diffusers: it works on modules and names."""

from mindie_cache.hooks.handle import CacheHandle, CacheReport, disable_cache, enable_cache

__all__ = ["CacheHandle", "CacheReport", "disable_cache", "enable_cache"]
