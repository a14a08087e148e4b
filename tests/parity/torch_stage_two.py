"""Stage 2 in PyTorch, and the reference's training rules and attention rollout."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from launch.benchmarks.torch_models import (
    Encoder,
    Lora,
    Pacx,
    cosine_regression,
    decay_groups,
    info_nce,
)

__all__ = ("Pacx", "cosine_regression", "decay_groups", "info_nce")


def merged(lora: Lora) -> nn.Linear:
    """A plain layer with W' = W + (alpha / r) B A."""
    base, b, a = lora.base_layer, lora.lora_B["default"], lora.lora_A["default"]
    layer = nn.Linear(base.in_features, base.out_features)
    layer.to(base.weight.dtype)
    layer.weight.data = base.weight + lora.scale * b.weight @ a.weight
    layer.bias.data = base.bias.data
    return layer


def merge(encoder: Encoder) -> Encoder:
    """Puts plain layers with merged weights in the adapters' places."""
    for block in encoder.blocks:
        block.attn.qkv = merged(block.attn.qkv)
        block.mlp.fc1 = merged(block.mlp.fc1)
        block.mlp.fc2 = merged(block.mlp.fc2)
    return encoder


def normalized_regression(pred, target):
    """The same value; below eps, where rows never are, another gradient."""
    pred, target = (F.normalize(x, dim=-1, eps=1e-6) for x in (pred, target.detach()))
    return 1 - (pred * target).sum(-1).mean()


def per_epoch(warmup: int, epochs: int, floor: float = 0.0):
    """Factor of epoch e: (e + 1) / warmup, then the cosine, not below `floor`."""

    def factor(e):
        if e < warmup:
            return (e + 1) / warmup
        cosine = 0.5 * (1 + math.cos(math.pi * (e - warmup) / (epochs - warmup)))
        return max(floor, cosine)

    return factor


def per_step(warmup: int, steps: int):
    """Factor of step s: s / warmup from zero, then the cosine."""

    def factor(s):
        if s < warmup:
            return s / warmup
        return 0.5 * (1 + math.cos(math.pi * (s - warmup) / (steps - warmup)))

    return factor


def train(optimizer, factor, loss_of_step, steps, steps_per_epoch=1, clip_norm=0.0):
    """`steps` updates; the schedule advances after every `steps_per_epoch` of them.

    Returns the losses and the rates used, a float each step.
    """
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    losses, rates = [], []
    for step in range(steps):
        optimizer.zero_grad()
        loss = loss_of_step(step)
        loss.backward()
        if clip_norm:
            every = [p for g in optimizer.param_groups for p in g["params"]]
            nn.utils.clip_grad_norm_(every, clip_norm)
        losses.append(loss.item())
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if (step + 1) % steps_per_epoch == 0:
            scheduler.step()
    return losses, rates


def probabilities(encoder: Encoder, images) -> list[torch.Tensor]:
    """Softmax of every block's scores, (b, heads, n, n), from what its qkv gives."""
    found = []

    def note(module, _, qkv):
        q, k = qkv.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)[:2]
        found.append((q @ k.mT * q.shape[-1] ** -0.5).softmax(-1).detach())

    heads = encoder.blocks[0].attn.heads
    hooks = [b.attn.qkv.register_forward_hook(note) for b in encoder.blocks]
    encoder(images)
    for hook in hooks:
        hook.remove()
    return found


def rollout(attentions: Sequence[torch.Tensor], size: int) -> torch.Tensor:
    """Maps (b, size, size) in [0, 1] from one (b, heads, n, n) a layer."""
    n = attentions[0].shape[-1]
    rolled = torch.eye(n, dtype=attentions[0].dtype)
    for attention in attentions:
        mixing = attention.mean(1) + torch.eye(n, dtype=attention.dtype)
        rolled = mixing / mixing.sum(-1, keepdim=True) @ rolled
    side = math.isqrt(n - 1)
    maps = rolled[:, 0, 1:].reshape(-1, 1, side, side)
    maps = F.interpolate(maps, (size, size), mode="bilinear", align_corners=False)[:, 0]
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    return (maps - low) / (high - low)
