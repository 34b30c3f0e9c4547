"""What enable_cache finds in a model: lists, kinds of attentions, streams, regions; against what the families are."""

from __future__ import annotations

import pytest

pytest.importorskip("diffusers")

import torch
from torch import nn
from zoo import ZOO

from mindie_cache import ConfigError, enable_cache
from mindie_cache.hooks.discover import attentions, block_lists, main_lists
from mindie_cache.hooks.regions import scope_of
from mindie_cache.hooks.signatures import form_of
from mindie_cache.hooks.wish import read_wish

ENTRIES = {entry.name: entry for entry in ZOO}
PAIR, SWAPPED = ("hidden_states", "encoder_hidden_states"), ("encoder_hidden_states", "hidden_states")

REGIONS = {  # class: lists in one region, regions; streams of each region
    "FluxTransformer2DModel": ([["transformer_blocks", "single_transformer_blocks"]], [SWAPPED]),
    "Flux2Transformer2DModel": ([["transformer_blocks"], ["single_transformer_blocks"]], [SWAPPED, SWAPPED]),
    "ChromaTransformer2DModel": ([["transformer_blocks"], ["single_transformer_blocks"]], [SWAPPED, ("hidden_states",)]),
    "HunyuanVideoTransformer3DModel": ([["transformer_blocks", "single_transformer_blocks"]], [PAIR]),
    "HiDreamImageTransformer2DModel": ([["double_stream_blocks"], ["single_stream_blocks"]], [PAIR, PAIR]),
    "ZImageTransformer2DModel": ([["layers"]], [("x",)]),
    "Lumina2Transformer2DModel": ([["layers"]], [("hidden_states",)]),
    "WanTransformer3DModel": ([["blocks"]], [("hidden_states",)]),
    "WanVACETransformer3DModel": ([["blocks"]], [("hidden_states",)]),
    "QwenImageTransformer2DModel": ([["transformer_blocks"]], [SWAPPED]),
    "CogVideoXTransformer3DModel": ([["transformer_blocks"]], [PAIR]),
    "SD3Transformer2DModel": ([["transformer_blocks"]], [SWAPPED]),
    "LTX2VideoTransformer3DModel": ([["transformer_blocks"]], [("hidden_states", "audio_hidden_states")]),
}


@pytest.mark.parametrize("name", REGIONS)
def test_regions(name):
    lists, streams = REGIONS[name]
    model = ENTRIES[name].build()
    scope = scope_of(model, read_wish("dit_block_cache"))
    sizes = [sum(len(model.get_submodule(part)) for part in region) for region in lists]
    assert [span.stop - span.start for span in scope.spans] == sizes
    assert [scope.forms[span.stop - 1].streams for span in scope.spans] == streams


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("WanTransformer3DModel", {"self": "attn1", "cross": "attn2"}),
        ("LatteTransformer3DModel", {"self": "attn1", "cross": "attn2", "temporal": "attn1"}),
        ("FluxTransformer2DModel", {"self": "attn"}),
    ],
)
def test_kinds_of_attentions(name, wanted):
    found = attentions(main_lists(ENTRIES[name].build()))
    assert {part.kind for part in found} == set(wanted)
    assert all(part.name.endswith(wanted[part.kind]) for part in found)


def test_attentions_of_one_kind_are_cached():
    entry = ENTRIES["WanTransformer3DModel"]
    model, ran = entry.build(), []
    for index, block in enumerate(model.blocks):
        for kind in ("attn1", "attn2"):
            inner = getattr(block, kind).to_q
            inner.register_forward_hook(lambda *_, name=f"{kind} {index}": ran.append(name))
    with enable_cache(model, {"method": "attention_cache", "step_interval": 2}, num_inference_steps=4, attentions=["cross"]):
        for step in range(2):
            ran.clear()
            with torch.no_grad():
                model(**entry.inputs(step=step / 4))
    assert ran
    assert all(name.startswith("attn1") for name in ran)
    with pytest.raises(ConfigError, match="attentions"):
        enable_cache(model, "attention_cache", num_inference_steps=4, attentions=["spatial"])


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.heads = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

    def forward(self, hidden_states, timestep):
        for head in self.heads:
            hidden_states = head(hidden_states)
        return hidden_states


def test_nothing_found_says_what_was_looked_for_and_what_there_is():
    with pytest.raises(ConfigError, match=r"torch.nn.ModuleList whose entries.*heads \(3\).*blocks="):
        enable_cache(Plain(), "balanced", num_inference_steps=4)


def test_a_list_that_is_named_is_taken():
    model = Plain().eval()
    steps = [torch.tensor([1.0 - step / 6]) for step in range(6)]
    asked = {"method": "dit_block_cache", "step_interval": 2}
    with torch.no_grad(), enable_cache(model, asked, num_inference_steps=6, blocks="heads", streams=["input"]) as handle:
        for step in steps:
            model(torch.ones(2, 4), step)
        assert handle.report().share_computed == 0.5
    with pytest.raises(ConfigError, match=r"blocks='head' is no list.*heads \(3\)"):
        enable_cache(model, asked, num_inference_steps=6, blocks="head")


def test_streams_that_a_block_does_not_take():
    with pytest.raises(ValueError, match=r"is no argument of Linear\.forward, which takes input"):
        enable_cache(Plain(), "dit_block_cache", num_inference_steps=4, blocks="heads", streams=["hidden_states"])


def test_the_streams_are_read_from_the_code_of_a_block():
    class Block(nn.Module):
        def forward(self, image, text, temb):
            image = image + text.mean() * temb
            return text, image

    assert form_of(Block()).streams == ("text", "image")


def test_lists_of_projections_are_no_blocks():
    model = ENTRIES["HiDreamImageTransformer2DModel"].build()
    names = {entry.name for entry in block_lists(model)}
    assert "caption_projection" not in names
    assert {"double_stream_blocks", "single_stream_blocks"} <= names
