"""What training the testbed needs besides the model: objective, optimiser, learning rate, average of the weights."""

from __future__ import annotations

import time
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from mindie_cache.testbed import data

_ORTHOGONAL = (3.4445, -4.7750, 2.0315)  # quintic whose iteration drives singular values towards 1


def flow_loss(model: nn.Module, latents: Tensor, ids: Tensor, *, shift: float, generator: torch.Generator) -> Tensor:
    """Mean squared error of the velocity at logit-normal noise levels, moved by the sampler's ``shift``."""
    even = torch.randn(len(latents), generator=generator).sigmoid()
    sigma = (shift * even / (1 + (shift - 1) * even)).to(latents.device)
    noise = torch.randn(latents.shape, generator=generator).to(latents.device)
    noisy = torch.lerp(latents, noise, sigma[:, None, None, None, None])
    velocity = model(hidden_states=noisy, timestep=1000 * sigma, encoder_hidden_states=ids)
    return (velocity.float() - (noise - latents)).square().mean()


def training_batch(batch: int, *, text_dropout: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Fresh latents and token ids; a share of the prompts is replaced by the null prompt."""
    prompts = data.sample_prompts(batch, generator)
    dropped = torch.rand(batch, generator=generator) < text_dropout
    ids = torch.where(dropped[:, None], data.null_tokens(batch), data.tokenize(prompts))
    return data.render(prompts, generator), ids


def learning_rate_factor(progress: float, warmup: float = 0.02) -> float:
    """Factor in [0, 1] at ``progress`` in [0, 1]: linear warm-up, then linear decay that ends at zero."""
    return min(progress / warmup, (1 - progress) / (1 - warmup), 1.0) if progress < 1 else 0.0


class Muon(torch.optim.Optimizer):
    """Momentum whose update is orthogonalised (Jordan et al., "Muon", 2024), in the weights' own precision.

    Weights of one shape are orthogonalised together. The update is scaled to the usual size of an Adam update
    (Liu et al., "Muon is scalable for LLM training", 2025), so both optimisers share a learning rate.
    """

    def __init__(
        self, params: Iterable[Tensor], lr: float, momentum: float = 0.95, weight_decay: float = 0.01, iterations: int = 5
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "iterations": iterations}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of every matrix that has a gradient."""
        assert closure is None
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = {}
            for weight in group["params"]:
                if weight.grad is not None:
                    by_shape.setdefault(weight.shape, []).append(weight)
            for shape, weights in by_shape.items():
                update = orthogonalise(
                    torch.stack([self._momentum(w, group["momentum"]) for w in weights]), group["iterations"]
                )
                scale = 0.2 * max(shape) ** 0.5
                for weight, direction in zip(weights, update, strict=True):
                    weight.mul_(1 - group["lr"] * group["weight_decay"]).add_(direction, alpha=-group["lr"] * scale)

    def _momentum(self, weight: Tensor, momentum: float) -> Tensor:
        """Nesterov momentum of the gradient."""
        gradient = weight.grad
        assert gradient is not None
        average = self.state[weight].setdefault("average", torch.zeros_like(weight))
        average.lerp_(gradient, 1 - momentum)
        return torch.lerp(gradient, average, momentum)


def orthogonalise(matrices: Tensor, iterations: int) -> Tensor:
    """Nearest orthogonal matrices, roughly, of ``(count, rows, columns)``, by a Newton-Schulz iteration."""
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp_min(1e-7)
    a, b, c = _ORTHOGONAL
    for _ in range(iterations):
        gram = x @ x.mT
        x = torch.baddbmm(a * x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x)
    return x.mT if tall else x


def make_optimisers(model: nn.Module, lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks, AdamW for all the rest."""
    named = list(model.named_parameters())
    matrices = [p for name, p in named if name.startswith("transformer_blocks.") and p.ndim == 2]
    chosen = {id(p) for p in matrices}
    rest = [p for _, p in named if id(p) not in chosen]
    return [Muon(matrices, lr=lr), torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.95), weight_decay=0.0)]


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, step: int, decay: float) -> None:
    """Moves the running average of the weights towards ``model``; young averages forget faster."""
    decay = min(decay, (1 + step) / (10 + step))
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)


def faster_precision(device: str) -> torch.dtype:
    """float32 or bfloat16, whichever multiplies matrices faster on ``device``."""
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        left, right = (torch.randn(shape, device=device, dtype=dtype) for shape in ((2048, 96), (96, 384)))
        (left @ right).sum().item()  # warm up; item() waits for the device
        start = time.perf_counter()
        for _ in range(10):
            product = left @ right
        product.sum().item()
        seconds[dtype] = time.perf_counter() - start
    return min(seconds, key=seconds.__getitem__)
