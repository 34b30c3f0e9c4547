"""Parts that several families share: random weights, tokenizers and text encoders, a VAE, and a picture."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from diffusers import AutoencoderKL
    from PIL.Image import Image
    from transformers import CLIPTextModel, CLIPTokenizer, PreTrainedTokenizerFast, T5EncoderModel

TEXT_DIM = 32  # width of every text encoder
TEXT_LENGTH = 64  # the longest prompt in tokens, where a pipeline lets the caller say so; a token is a character
LETTERS = [chr(code) for code in range(33, 127)]


def seeded(make: Callable[[], nn.Module], seed: int = 0, gain: float = 0.7) -> Any:
    """The module that `make` builds, in evaluation mode, with random weights that depend on `seed` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = make()
    randomize(module, torch.Generator().manual_seed(seed), gain)
    return module.eval()


@torch.no_grad()
def randomize(module: nn.Module, generator: torch.Generator, gain: float) -> None:
    """Random values for every parameter, so that no gate is left at zero and hides what stands behind it."""
    for child in module.modules():
        for name, parameter in child.named_parameters(recurse=False):
            noise = torch.randn(parameter.shape, generator=generator)
            if isinstance(child, nn.Embedding):
                parameter.copy_(noise)
            elif name == "gamma" or (name == "weight" and parameter.ndim == 1):  # of a norm
                parameter.copy_(1 + 0.1 * noise)
            elif name.endswith("weight") and parameter.ndim > 1:
                parameter.copy_(noise * gain / parameter[0].numel() ** 0.5)
            else:
                parameter.copy_(0.2 * noise)


def t5_tokenizer() -> PreTrainedTokenizerFast:
    from transformers import T5TokenizerFast

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *((letter, -3.0) for letter in LETTERS)]
    return T5TokenizerFast(vocab=pieces, extra_ids=0, model_max_length=TEXT_LENGTH)


def t5_encoder(seed: int = 1, width: int = TEXT_DIM) -> T5EncoderModel:
    from transformers import T5Config, T5EncoderModel

    config = T5Config(
        vocab_size=len(LETTERS) + 4,
        d_model=width,
        d_kv=8,
        d_ff=64,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
    )
    return seeded(lambda: T5EncoderModel(config), seed)


def clip_tokenizer() -> CLIPTokenizer:
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer

    letters = sorted(ByteLevel.alphabet())
    pieces = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocab = {piece: index for index, piece in enumerate(pieces)}
    return CLIPTokenizer(vocab=vocab, merges=[], model_max_length=TEXT_LENGTH)


def clip_encoder(seed: int = 2, projection: int | None = None) -> CLIPTextModel:
    """A CLIPTextModel; with `projection`, a CLIPTextModelWithProjection to that width."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=514,
        hidden_size=TEXT_DIM,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=77,
        projection_dim=projection or TEXT_DIM,
        bos_token_id=512,
        eos_token_id=513,
        pad_token_id=513,
    )
    return seeded(lambda: (CLIPTextModelWithProjection if projection else CLIPTextModel)(config), seed)


def byte_tokenizer(specials: tuple[str, ...], chat_template: str | None = None) -> PreTrainedTokenizerFast:
    """The tokenizer of Qwen with a token for each byte, `<|endoftext|>` and the `specials`, in this order."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import Qwen2Tokenizer

    pieces = [*sorted(ByteLevel.alphabet()), "<|endoftext|>", *specials]
    vocab = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = Qwen2Tokenizer(vocab=vocab, merges=[], extra_special_tokens=list(specials))
    tokenizer.chat_template = chat_template
    return tokenizer


def image_vae(latent_channels: int = 16, seed: int = 3, **config: Any) -> AutoencoderKL:
    """An AutoencoderKL, four times smaller in each direction."""
    from diffusers import AutoencoderKL

    return seeded(
        lambda: AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            block_out_channels=(8, 8, 16),
            norm_num_groups=4,
            latent_channels=latent_channels,
            sample_size=64,
            **config,
        ),
        seed,
    )


def picture(height: int = 64, width: int = 64) -> Image:
    """A picture for the pipelines that start from one: a dark disc on a gradient."""
    from PIL import Image

    y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    colours = torch.stack([(1 + x) / 2, (1 + y) / 2, torch.full_like(x, 0.5)], dim=-1)
    colours[x**2 + y**2 < 0.3] = 0.1
    return Image.fromarray((255 * colours).byte().numpy())
