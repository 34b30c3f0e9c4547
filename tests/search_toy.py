"""A small model for the tests of the searches, as a user would give it: build, generate, decode.

In a rank that DIE_RANK names the process is killed in its second generation, as a machine would do it.
"""

import os
import signal

import torch
from torch import nn

STEPS, BLOCKS, DIM = 10, 8, 8
made = []


class Block(nn.Module):
    """What it adds changes with the step; the third block's changes fast."""

    def __init__(self, index):
        super().__init__()
        self.mix, self.up, self.down = (nn.Linear(DIM, DIM) for _ in range(3))
        self.speed = 3.0 if index == 2 else 0.1 * index

    def forward(self, hidden_states, timestep):
        change = self.down(torch.tanh(self.up(self.mix(hidden_states))))
        return hidden_states + 0.1 * torch.cos(self.speed * timestep) * change


class Toy(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.transformer_blocks = nn.ModuleList([Block(index) for index in range(BLOCKS)])

    def forward(self, hidden_states, timestep):
        for block in self.transformer_blocks:
            hidden_states = block(hidden_states, timestep)
        return hidden_states


def build():
    return Toy().eval().requires_grad_(False)


def generate(model, prompt, seed, on_step=None):
    made.append(prompt)
    if os.environ.get("DIE_RANK") == os.environ.get("RANK", "none") and len(made) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    latents = torch.randn(1, 4, DIM, generator=torch.Generator().manual_seed(seed)) + len(prompt) / 10
    for step in range(STEPS):
        output = model(latents, torch.tensor(float(STEPS - step)))
        latents = latents - 0.1 * output
        if on_step is not None:
            on_step(output, latents)
    return latents


def sigmas():
    return [1 - step / STEPS for step in range(STEPS + 1)]


def decode(model, latents):
    return latents.sigmoid().reshape(1, 1, 4, DIM, 1).expand(-1, -1, 4, -1, 3)


def largest(made_one, reference):
    """A score of one's own."""
    return float((made_one.latents - reference.latents).abs().max())
