"""Models of sound and music, and one of molecules."""

from __future__ import annotations

from typing import Any

import torch

from .core import entry, fraction, level, moving, normal, padded, rope_table, whole

LENGTHS = (16, 24)
TEXT = 6


def _stable(batch: int = 1, size: int = 0, seed: int = 0, step: float = 0.0) -> dict[str, Any]:
    """The time and the length of the piece are one token in front of the latents; half of each head is rotated."""
    length = LENGTHS[size]
    return {
        "hidden_states": moving(seed, step, batch, 8, length),
        "timestep": level(batch, step),
        "encoder_hidden_states": normal(seed, "text", batch, TEXT, 24),
        "global_hidden_states": normal(seed, "length", batch, 1, 20),
        "rotary_embedding": rope_table(length + 1, 8),
    }


def _stable3(batch: int = 1, size: int = 0, seed: int = 0, step: float = 0.0) -> dict[str, Any]:
    """With a mask to inpaint, which each block adds to its audio tokens."""
    return {
        "hidden_states": moving(seed, step, batch, 8, LENGTHS[size]),
        "timestep": level(batch, step),
        "encoder_hidden_states": normal(seed, "text", batch, TEXT, 24),
        "encoder_attention_mask": padded(batch, TEXT),
        "global_hidden_states": normal(seed, "length", batch, 20),
        "local_add_cond": normal(seed, "inpaint", batch, 9, LENGTHS[size]),
    }


def _ace(batch: int = 1, size: int = 0, seed: int = 0, step: float = 0.0) -> dict[str, Any]:
    length = LENGTHS[size]
    return {
        "hidden_states": moving(seed, step, batch, length, 8),
        "timestep": level(batch, step),
        "timestep_r": level(batch, step),
        "encoder_hidden_states": normal(seed, "text", batch, TEXT, 24),
        "context_latents": normal(seed, "context", batch, length, 16),
    }


def _longcat(batch: int = 1, size: int = 0, seed: int = 0, step: float = 0.0) -> dict[str, Any]:
    length = LENGTHS[size]
    return {
        "hidden_states": moving(seed, step, batch, length, 8),
        "encoder_hidden_states": normal(seed, "text", batch, TEXT, 24),
        "encoder_attention_mask": padded(batch, TEXT).bool(),
        "timestep": 1 - level(batch, step),
        "attention_mask": torch.ones(batch, length, dtype=torch.bool),
        "latent_cond": normal(seed, "prompt", batch, length, 8),
    }


def _music(batch: int = 1, size: int = 0, seed: int = 0, step: float = 0.0) -> dict[str, Any]:
    """The condition has as many frames as the latents; the time is a token in front."""
    length = LENGTHS[size]
    return {
        "hidden_states": moving(seed, step, batch, 8, length),
        "timestep": 1 - level(batch, step),
        "encoder_hidden_states": normal(seed, "codes", batch, length, 24),
    }


def _spectrogram(batch: int = 1, size: int = 0, seed: int = 0, step: float = 0.0) -> dict[str, Any]:
    """Encoded notes and what was made before, each with its mask."""
    return {
        "encodings_and_masks": [
            (normal(seed, "notes", batch, TEXT, 32), padded(batch, TEXT).float()),
            (normal(seed, "before", batch, 4, 32), torch.ones(batch, 4)),
        ],
        "decoder_input_tokens": moving(seed, step, batch, LENGTHS[size], 8),
        "decoder_noise_time": level(batch, step),
    }


def _molecule(batch: int = 1, size: int = 0, seed: int = 0, step: float = 0.0) -> dict[str, Any]:
    """Coordinates and latents of residues move together; the time of both goes from noise (0) to data (1)."""
    length = (10, 14)[size]
    time = torch.full((batch,), 1 - fraction(step))
    everywhere = torch.ones(batch, length, dtype=torch.bool)
    return {
        "bb_ca": moving(seed, step, batch, length, 3, name="coordinates"),
        "local_latents": moving(seed, step, batch, length, 8),
        "bb_ca_time": time,
        "local_latents_time": time,
        "padding_mask": padded(batch, length).bool(),
        "token_type": whole(seed, "types", 4, batch, length),
        "conditioning": {"is_in_context_conditioning": ~everywhere, "supports_local_latent": everywhere},
    }


ENTRIES = (
    entry(
        "StableAudioDiTModel",
        _stable,
        sample_size=16,
        in_channels=8,
        num_layers=5,
        attention_head_dim=16,
        num_attention_heads=2,
        num_key_value_attention_heads=1,
        out_channels=8,
        cross_attention_dim=16,
        time_proj_dim=16,
        global_states_input_dim=20,
        cross_attention_input_dim=24,
    ),
    entry(
        "StableAudio3DiTModel",
        _stable3,
        io_channels=8,
        embed_dim=32,
        depth=5,
        num_heads=2,
        cond_token_dim=24,
        global_cond_dim=20,
        local_add_cond_dim=9,
        timestep_features_dim=16,
        ff_mult=2.0,
        num_memory_tokens=4,
    ),
    entry(
        "AceStepTransformer1DModel",
        _ace,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=5,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        in_channels=24,
        audio_acoustic_hidden_dim=8,
        rope_theta=10000.0,
        sliding_window=3,
        encoder_hidden_size=24,
    ),
    entry(
        "LongCatAudioDiTTransformer",
        _longcat,
        dit_dim=32,
        dit_depth=5,
        dit_heads=2,
        dit_text_dim=24,
        latent_dim=8,
        ff_mult=2.0,
    ),
    entry(
        "LongCatAudioDiTTransformer/local",
        _longcat,
        dit_dim=32,
        dit_depth=5,
        dit_heads=2,
        dit_text_dim=24,
        latent_dim=8,
        ff_mult=2.0,
        adaln_type="local",
        adaln_use_text_cond=False,
        long_skip=False,
    ),
    entry(
        "MiniMaxMusic3Transformer1DModel",
        _music,
        in_channels=8,
        condition_dim=24,
        num_layers=5,
        num_attention_heads=2,
        attention_head_dim=16,
        ff_inner_dim=64,
        rotary_dim=8,
        fourier_embedding_dim=16,
    ),
    entry(
        "T5FilmDecoder",
        _spectrogram,
        denoised="decoder_input_tokens",
        input_dims=8,
        targets_length=24,
        d_model=32,
        num_layers=5,
        num_heads=2,
        d_kv=16,
        d_ff=64,
    ),
    entry(
        "RFD4ProteinaTransformer",
        _molecule,
        denoised="bb_ca",
        nlayers=5,
        token_dim=32,
        nheads=2,
        dim_cond=16,
        pair_repr_dim=12,
        latent_dim=8,
        token_type_emb_dim=6,
        t_emb_dim=16,
        xt_pair_dist_dim=10,
        feats_seq=("xt_bb_ca", "xt_local_latents", "token_type"),
        feats_cond_seq=("time_emb_bb_ca", "time_emb_local_latents"),
        feats_pair_repr=("xt_bb_ca_pair_dists",),
        feats_pair_cond=("time_emb_bb_ca", "time_emb_local_latents"),
        tri_mult_c=12,
        num_sequence_classes=20,
    ),
)
