"""The small table of what cannot be inferred from a model's structure. Everything else is found, see discover.py."""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Any

# Parts of the names of block lists that prepare a stream or a control signal; they are computed in every step.
AUXILIARY = ("refiner", "vace", "text_", "txt_", "controlnet")

# Arguments under which transformers pass the time embedding to their blocks, the usual name first.
TIME_EMBEDDINGS = (
    *("temb", "time_embed", "timestep_embed", "embedded_timestep", "emb", "timestep", "t", "time_emb"),
    *("adaln_input", "temb_mod_img", "temb_mod", "global_modulation", "modulation", "conditioning_embedding"),
    *("added_cond_kwargs", "t0"),
)

# Arguments under which transformers are given the latents, the usual name first.
LATENTS = ("hidden_states", "x", "latents", "sample", "vision_tokens", "local_latents", "decoder_input_tokens")
TIMESTEPS = ("timestep", "timesteps", "t", "vision_timesteps", "bb_ca_time", "decoder_noise_time")

# Transformers whose timestep rises during sampling, because it is 1 - t. Others are recognised after a few steps.
RISING = frozenset(
    {
        *("ZImageTransformer2DModel", "Lumina2Transformer2DModel", "LuminaNextDiT2DModel", "OmniGenTransformer2DModel"),
        *("Ideogram4Transformer2DModel", "LongCatAudioDiTTransformer", "MiniMaxMusic3Transformer1DModel"),
        "RFD4ProteinaTransformer",
    }
)

# Transformers whose lists take turns block by block: every block is a region of its own.
INTERLEAVED = frozenset({"LatteTransformer3DModel"})

# Transformers whose last blocks start again from other streams: the attribute that counts these blocks.
RESTARTS = {"MotifVideoTransformer3DModel": "num_decoder_layers"}

# Streams of blocks whose `forward` does not return its parameters under their names, in the order of the outputs.
STREAMS: dict[str, tuple[str, ...]] = {
    "HiDreamBlock": ("hidden_states", "encoder_hidden_states"),
    "Cosmos3VLTextMoTDecoderLayer": ("und_seq", "gen_seq"),
}


def known_as(kind: type, table: Container[str]) -> str:
    """The name in a table of a class, or of the one that its `forward` is from: sharding makes classes of its own."""
    forward = getattr(kind, "forward", None)
    bases = [base for base in kind.__mro__ if getattr(base, "forward", None) is forward]
    return next((base.__name__ for base in bases if base.__name__ in table), "")


OWN_CACHE = ("kv_cache_mode", "kv_cache_flag", "kv_caches")


def fills_own_cache(values: Mapping[str, Any]) -> bool:
    """Whether a pass only fills a key-value cache of the model's own: it is computed, and is no step."""
    flags = values.get("kv_cache_flag")
    is_cache_step = isinstance(flags, Mapping) and bool(flags.get("is_cache_step"))
    layers = getattr(values.get("kv_caches"), "caches", None)  # each of them knows the mode
    is_written = isinstance(layers, list) and bool(layers) and getattr(layers[0], "mode", None) == "write"
    return is_cache_step or is_written or values.get("kv_cache_mode") == "extract"
