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
