"""The published models as PyTorch modules: the bench's, and those it does not run.

Names, order and shapes of every state dict are those of the published checkpoints.
"""

from __future__ import annotations

import torch
from torch import nn

from launch.benchmarks.torch_models import MAE, Encoder, Net1D

__all__ = ("MAE", "Encoder", "Net1D")


class LabsDAE(nn.Module):
    """Denoising autoencoder of laboratory values."""

    def __init__(self, features=50, hidden=512, latent=256):
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Linear(2 * features, hidden), nn.LayerNorm(hidden), nn.GELU(),
            nn.Linear(hidden, latent))  # fmt: skip
        self.decoder = nn.Sequential(
            nn.Linear(latent, hidden), nn.GELU(), nn.Linear(hidden, features),
            nn.Sigmoid())  # fmt: skip

    def forward(self, values, mask):
        """Values and mask (b, f), 1 = observed -> latent, percentiles."""
        z = self.encoder(torch.cat([values, mask], dim=-1))
        return z, self.decoder(z)


def masked_mse(pred, values, mask):
    return (mask * (pred - values) ** 2).sum() / (mask.sum() + 1e-6)


class Classifier(nn.Module):
    """Stage 3: one linear layer on the CLS token."""

    def __init__(self, backbone: Encoder, classes: int):
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(backbone.norm.normalized_shape[0], classes)

    def forward(self, images):
        return self.head(self.backbone(images))


class Segmenter(nn.Module):
    """Stage 3: the patch tokens' map, convolved and up-sampled to the image."""

    def __init__(self, backbone: Encoder, grid, widths=(256, 128, 64, 32)):
        super().__init__()
        self.backbone, self.grid = backbone, grid
        d, last = backbone.norm.normalized_shape[0], len(widths) - 1
        layers = [nn.Conv2d(d, widths[0], 3, padding=1), nn.ReLU()]
        for i, c in enumerate(widths):
            layers += [nn.ConvTranspose2d(c, 1 if i == last else widths[i + 1], 2, 2)]
            layers += [] if i == last else [nn.ReLU()]
        self.decoder = nn.Sequential(*layers)

    def forward(self, images):
        """(b, 3, h, w) -> logits (b, 1, 16 grid_h, 16 grid_w)."""
        tokens = self.backbone.encode(images)[:, 1:]
        maps = tokens.transpose(1, 2).reshape(len(tokens), -1, *self.grid)
        return self.decoder(maps)


class Lightning(nn.Module):
    """What puts the prefix `model.` before the names in a published checkpoint."""

    def __init__(self, model: nn.Module, statistics: bool = False):
        super().__init__()
        if statistics:  # the segmentation module keeps those of its images
            mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
            self.register_buffer("mean", torch.tensor(mean).reshape(1, 3, 1, 1))
            self.register_buffer("std", torch.tensor(std).reshape(1, 3, 1, 1))
        self.model = model


class TextAttention(nn.Module):
    """Attention without biases, of text to itself (causal) or to image tokens."""

    def __init__(self, d: int, heads: int, memory: int = 0):
        super().__init__()
        self.heads = heads
        if memory:
            self.q = nn.Linear(d, d, bias=False)
            self.kv = nn.Linear(memory, 2 * d, bias=False)
        else:
            self.qkv = nn.Linear(d, 3 * d, bias=False)
        self.proj = nn.Linear(d, d, bias=False)

    def forward(self, x, memory=None):
        if memory is None:
            q, k, v = self.qkv(x).chunk(3, dim=-1)
        else:
            q, (k, v) = self.q(x), self.kv(memory).chunk(2, dim=-1)
        q, k, v = (y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in (q, k, v))
        y = nn.functional.scaled_dot_product_attention(
            q, k, v, is_causal=memory is None
        )
        return self.proj(y.transpose(1, 2).flatten(2))


class TextBlock(nn.Module):
    """Post-norm decoder block."""

    def __init__(self, d: int, heads: int, mlp: int, memory: int, eps: float):
        super().__init__()
        self.self_attn = TextAttention(d, heads)
        self.cross_attn = TextAttention(d, heads, memory)
        fc1, fc2 = nn.Linear(d, mlp, bias=False), nn.Linear(mlp, d, bias=False)
        self.mlp = nn.ModuleDict({"fc1": fc1, "fc2": fc2})
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(d, eps) for _ in range(3))

    def forward(self, x, memory):
        x = self.norm1(x + self.self_attn(x))
        x = self.norm2(x + self.cross_attn(x, memory))
        hidden = nn.functional.gelu(self.mlp["fc1"](x))
        return self.norm3(x + self.mlp["fc2"](hidden))


class TextDecoder(nn.Module):
    """MVMAE-V2T's report decoder; positions are ours, and optional."""

    def __init__(self, vocab, d, depth, heads, mlp, memory, length=0, eps=1e-5):
        super().__init__()
        self.token_embed = nn.Embedding(vocab, d)
        self.positions = nn.Embedding(length, d) if length else None
        self.blocks = nn.ModuleList(
            TextBlock(d, heads, mlp, memory, eps) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(d, eps)
        self.head = nn.Linear(d, vocab, bias=False)

    def forward(self, tokens, memory):
        """Tokens (b, t), memory (b, m, e) -> logits (b, t, vocab)."""
        x = self.token_embed(tokens)
        if self.positions is not None:
            x = x + self.positions.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x, memory)
        return self.head(self.norm(x))


def caption_loss(logits, tokens, present, pad: int):
    """Mean cross-entropy of the next tokens that are no padding, where present."""
    following = torch.where(present[:, None] > 0, tokens[:, 1:], pad)
    return nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), following.flatten(), ignore_index=pad
    )


class CausalBlock(nn.Module):
    """Pre-norm block of CheXmix's transformer; rotary positions turn pairs of q, k."""

    def __init__(self, d: int, heads: int, rotary: bool, eps: float):
        super().__init__()
        self.heads, self.rotary = heads, rotary
        self.norm1, self.norm2 = nn.LayerNorm(d, eps), nn.LayerNorm(d, eps)
        self.attn = nn.ModuleDict({"qkv": nn.Linear(d, 3 * d), "proj": nn.Linear(d, d)})
        self.mlp = nn.ModuleDict(
            {"fc1": nn.Linear(d, 4 * d), "fc2": nn.Linear(4 * d, d)}
        )

    def forward(self, x):
        qkv = self.attn["qkv"](self.norm1(x)).chunk(3, dim=-1)
        q, k, v = (y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in qkv)
        if self.rotary:
            q, k = turned(q), turned(k)
        y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.attn["proj"](y.transpose(1, 2).flatten(2))
        hidden = nn.functional.gelu(self.mlp["fc1"](self.norm2(x)))
        return x + self.mlp["fc2"](hidden)


def turned(x):
    """Rotary positions (Su 2021) as products of complex numbers; x (b, h, n, c)."""
    n, c = x.shape[-2:]
    bands = 10000.0 ** (-torch.arange(0, c, 2, dtype=torch.float64) / c)
    angles = torch.arange(n, dtype=torch.float64)[:, None] * bands
    turns = torch.polar(torch.ones_like(angles), angles)
    if x.dtype == torch.float32:
        turns = turns.to(torch.complex64)
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * turns).flatten(-2)


class Unified(nn.Module):
    """CheXmix's transformer; without rotary positions learned ones, and tied."""

    def __init__(self, vocab, d, depth, heads, length, rotary: bool, eps=1e-6):
        super().__init__()
        self.token_embed = nn.Embedding(vocab, d)
        self.positions = None if rotary else nn.Embedding(length, d)
        self.blocks = nn.ModuleList(
            CausalBlock(d, heads, rotary, eps) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(d, eps)
        self.head = nn.Linear(d, vocab, bias=False) if rotary else None

    def forward(self, tokens):
        """Tokens (b, n) -> logits (b, n, vocab), and the blocks' mean output."""
        x = self.token_embed(tokens)
        if self.positions is not None:
            x = x + self.positions.weight[: tokens.shape[1]]
        each = []
        for block in self.blocks:
            x = block(x)
            each.append(x)
        kernel = self.token_embed if self.head is None else self.head
        return self.norm(x) @ kernel.weight.T, torch.stack(each).mean(0)


def weighted_loss(logits, tokens, text_size: int, weights, pad: int):
    """Mean cross-entropy of the next tokens, those of image and text weighted."""
    following = tokens[:, 1:]
    each = nn.functional.cross_entropy(
        logits[:, :-1].transpose(1, 2), following, reduction="none"
    )
    image, text = (torch.tensor(w, dtype=logits.dtype) for w in weights)
    weight = torch.where(following >= text_size, image, text)
    weight = torch.where(following == pad, 0 * image, weight)
    return (each * weight).sum() / weight.sum()
