"""QwenImageTransformer2DModel with a CacheAgent for each branch: the integration by hand, as MindIE-SD users do it.

The forward stays that of diffusers. Only what it iterates over changes: each block stands in a module that goes through
`agent.apply`, and computes as before while no agent is set.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from diffusers import QwenImageTransformer2DModel
from torch import Tensor, nn

from mindie_cache import CacheAgent, CacheConfig

STREAMS = ("encoder_hidden_states", "hidden_states")  # what a block returns, in this order: the text first


class CachedBlock(nn.Module):
    """A block behind an agent. `owner.agent` is the agent of the branch that is running, or None."""

    def __init__(self, block: nn.Module, owner: QwenImageTransformerWithCache):
        super().__init__()
        self.block = block
        self._owner = (owner,)  # in a tuple: a module as an attribute would become a child

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        agent = self._owner[0].agent
        return self.block(*args, **kwargs) if agent is None else agent.apply(self.block, *args, **kwargs)


class QwenImageTransformerWithCache(QwenImageTransformer2DModel):
    """The transformer of Qwen-Image and Qwen-Image-Edit, with caching.

    transformer = QwenImageTransformerWithCache.from_pretrained(model, subfolder="transformer", torch_dtype=torch.bfloat16)
    transformer.set_cache(cond=CacheAgent(config), uncond=CacheAgent(config))
    pipe = QwenImageEditPlusPipeline.from_pretrained(model, transformer=transformer, torch_dtype=torch.bfloat16)
    """

    cond: CacheAgent | None = None
    uncond: CacheAgent | None = None
    agent: CacheAgent | None = None  # of the branch that is running

    def set_cache(self, cond: CacheAgent | None = None, uncond: CacheAgent | None = None) -> None:
        """An agent for each branch; None computes that branch. Call it after weights and adapters are loaded: the names of
        the blocks' parameters change."""
        self.cond, self.uncond = cond, uncond
        if not isinstance(self.transformer_blocks[0], CachedBlock):
            self.transformer_blocks = nn.ModuleList([CachedBlock(block, self) for block in self.transformer_blocks])

    @contextmanager
    def cache_context(self, name: str, **kwargs: Any) -> Iterator[None]:
        """The pipeline says here which branch comes next: "cond" or "uncond"."""
        with super().cache_context(name, **kwargs):
            self.agent = {"cond": self.cond, "uncond": self.uncond}.get(name)
            try:
                yield
            finally:
                self.agent = None


def config(blocks: int, steps: int, interval: int = 2) -> CacheConfig:
    """MindIE-SD's block cache: the first fifth of the steps and the last one computed, then every `interval`-th step."""
    return CacheConfig(
        method="dit_block_cache",
        blocks_count=blocks,
        steps_count=steps,
        step_start=max(1, steps // 5),
        step_interval=interval,
        step_end=steps - 1,
        block_start=0,
        block_end=blocks,
        streams=STREAMS,
    )
