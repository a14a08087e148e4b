"""Stage 2 and the training rules in PyTorch, written from reference.md.

LoRA with peft's names, heads, losses, optimizer groups, schedules, attention rollout.
The tests' live cases and the bench import this file: PyTorch is an extra.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from launch.benchmarks.torch_modules import Encoder

TARGETS = ("qkv", "fc1", "fc2")


class Lora(nn.Module):
    """y = W x + b + (alpha / r) B A drop(x), with the names that peft gives."""

    def __init__(self, base: nn.Linear, rank: int, alpha: float, dropout: float):
        super().__init__()
        self.base_layer = base
        self.scale, self.drop = alpha / rank, nn.Dropout(dropout)
        a = nn.Linear(base.in_features, rank, bias=False)
        b = nn.Linear(rank, base.out_features, bias=False)
        nn.init.zeros_(b.weight)
        self.lora_A = nn.ModuleDict({"default": a})
        self.lora_B = nn.ModuleDict({"default": b})

    def forward(self, x):
        low = self.lora_B["default"](self.lora_A["default"](self.drop(x)))
        return self.base_layer(x) + self.scale * low

    def merged(self) -> nn.Linear:
        """A plain layer with W' = W + (alpha / r) B A."""
        base, b, a = self.base_layer, self.lora_B["default"], self.lora_A["default"]
        layer = nn.Linear(base.in_features, base.out_features)
        layer.to(base.weight.dtype)
        layer.weight.data = base.weight + self.scale * b.weight @ a.weight
        layer.bias.data = base.bias.data
        return layer


class Holder(nn.Module):
    """A module with one child: peft's `base_model.model.`."""

    def __init__(self, name: str, child: nn.Module):
        super().__init__()
        self.add_module(name, child)


def adapt(encoder: Encoder, rank: int, alpha: float, dropout: float) -> nn.Module:
    """The encoder frozen and wrapped, at every block's qkv, fc1 and fc2."""
    encoder.requires_grad_(False)
    for block in encoder.blocks:
        for parent in (block.attn, block.mlp):
            for name, layer in list(parent.named_children()):
                if name in TARGETS:
                    setattr(parent, name, Lora(layer, rank, alpha, dropout))
    return Holder("base_model", Holder("model", encoder))


def merge(encoder: Encoder) -> Encoder:
    """Puts plain layers with merged weights in the adapters' places."""
    for block in encoder.blocks:
        for parent in (block.attn, block.mlp):
            for name, layer in list(parent.named_children()):
                if isinstance(layer, Lora):
                    setattr(parent, name, layer.merged())
    return encoder


class Head(nn.Module):
    """Dropout, Linear, LayerNorm."""

    def __init__(self, d_in: int, d_out: int, dropout: float):
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Dropout(dropout), nn.Linear(d_in, d_out), nn.LayerNorm(d_out)
        )

    def forward(self, x):
        return self.mlp(x)


class Losses(nn.Module):
    """The learnable temperature, and Stage 2's weighted sum of losses."""

    def __init__(self, clip_weight=0.5, regression_weight=1.0, smoothing=0.02):
        super().__init__()
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        self.weights, self.smoothing = (clip_weight, regression_weight), smoothing

    def forward(self, shared, pairs):
        """Shared-space embeddings {m: (b, d)} with "cxr"; pairs {m: (pred, target)}."""
        clip = {
            m: info_nce(shared["cxr"], z, self.logit_scale, self.smoothing)
            for m, z in shared.items() if m != "cxr"
        }  # fmt: skip
        reg = {m: cosine_regression(*pair) for m, pair in pairs.items()}
        parts = [sum(v.values()) / len(v) for v in (clip, reg)]
        total = self.weights[0] * parts[0] + self.weights[1] * parts[1]
        found = {f"clip_{m}": v for m, v in clip.items()}
        found |= {f"regression_{m}": v for m, v in reg.items()}
        return total, found


class Pacx(nn.Module):
    """Everything a PaCX checkpoint holds."""

    def __init__(self, encoder: Encoder, d_ecg=1024, d_labs=256, shared=256, rank=8,
                 alpha=16.0, lora_dropout=0.1, head_dropout=0.2):  # fmt: skip
        super().__init__()
        d = encoder.norm.normalized_shape[0]
        final = encoder.norm
        self.cxr_encoder = adapt(encoder, rank, alpha, lora_dropout)
        final.requires_grad_(True)  # the one norm that the reference trains (D2)
        self.cxr_to_shared = Head(d, shared, head_dropout)
        self.ecg_to_shared = Head(d_ecg, shared, head_dropout)
        self.labs_to_shared = Head(d_labs, shared, head_dropout)
        self.cxr_to_ecg = Head(d, d_ecg, head_dropout)
        self.cxr_to_labs = Head(d, d_labs, head_dropout)
        self.loss_module = Losses()

    @property
    def encoder(self) -> Encoder:
        return self.cxr_encoder.base_model.model

    def forward(self, images, ecg, labs):
        """Total loss, its parts, and every head's output."""
        z = self.encoder(images)
        inputs = {"cxr": z, "ecg": ecg, "labs": labs}
        out = {f"{m}_to_shared": getattr(self, f"{m}_to_shared")(x)
               for m, x in inputs.items()}  # fmt: skip
        out |= {f"cxr_to_{m}": getattr(self, f"cxr_to_{m}")(z) for m in ("ecg", "labs")}
        total, parts = self.loss_module(
            {m: out[f"{m}_to_shared"] for m in inputs},
            {m: (out[f"cxr_to_{m}"], inputs[m]) for m in ("ecg", "labs")},
        )
        return total, parts, out | {"z": z}


def info_nce(za, zb, logit_scale, smoothing):
    """Symmetric, over the whole batch; the scale is clamped, not its parameter."""
    scale = logit_scale.exp().clamp(1, 100)
    za, zb = (F.normalize(z, dim=-1, eps=1e-6) for z in (za, zb))
    logits, labels = scale * za @ zb.T, torch.arange(len(za), device=za.device)
    return 0.5 * sum(
        F.cross_entropy(x, labels, label_smoothing=smoothing)
        for x in (logits, logits.T)
    )


def cosine_regression(pred, target):
    return 1 - F.cosine_similarity(pred, target.detach(), dim=-1, eps=1e-6).mean()


def normalized_regression(pred, target):
    """The same value; below eps, where rows never are, another gradient."""
    pred, target = (F.normalize(x, dim=-1, eps=1e-6) for x in (pred, target.detach()))
    return 1 - (pred * target).sum(-1).mean()


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Trainable parameters in two groups: no decay iff 1-D or named `.bias`."""
    plain, decayed = [], []
    for name, p in model.named_parameters():
        if p.requires_grad:
            (plain if p.ndim == 1 or name.endswith(".bias") else decayed).append(p)
    return [{"params": decayed, "weight_decay": weight_decay},
            {"params": plain, "weight_decay": 0.0}]  # fmt: skip


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
