"""MVMAE as PyTorch modules, written from the facts of its published code.

Names and shapes of the state dict are those of the authors' checkpoints: positions and
views as parameters, LayerNorms of q and k, and no projection before the decoder. Blocks
have an epsilon of 1e-6, the last LayerNorms PyTorch's 1e-5. Masks are given, not drawn.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from launch.benchmarks import torch_models


class Attention(torch_models.Attention):
    """With a LayerNorm of each head's q and of its k."""

    def __init__(self, d: int, heads: int, eps: float):
        super().__init__(d, heads)
        self.q_norm = nn.LayerNorm(d // heads, eps=eps)
        self.k_norm = nn.LayerNorm(d // heads, eps=eps)

    def forward(self, x):
        b, n, d = x.shape
        qkv = self.qkv(x).reshape(b, n, 3, self.heads, d // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        x = F.scaled_dot_product_attention(self.q_norm(q), self.k_norm(k), v)
        return self.proj(x.transpose(1, 2).reshape(b, n, d))


def transformer(d: int, heads: int, depth: int, eps: float = 1e-6) -> nn.Sequential:
    """Blocks under the names 0, 1, ..."""
    blocks = [torch_models.Block(d, heads, eps) for _ in range(depth)]
    for block in blocks:
        block.attn = Attention(d, heads, eps)
    return nn.Sequential(*blocks)


def zeros(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.zeros(shape))


class Encoder(nn.Module):
    """Grey images and their views -> tokens, CLS first."""

    def __init__(self, grid, patch, d, depth, heads, views=3):
        super().__init__()
        self.cls_token = zeros(1, 1, d)
        self.pos_embedding = zeros(grid[0] * grid[1], 1, d)
        self.mod_embedding = zeros(views, d)
        self.patchify = nn.Conv2d(1, d, patch, stride=patch)
        self.transformer = transformer(d, heads, depth)
        self.layer_norm = nn.LayerNorm(d)

    def forward(self, images, view, ids_keep=None):
        """(b, 1, h, w), (b,), (b, k) -> (b, 1 + n or 1 + k, d)."""
        x = self.patchify(images).flatten(2).transpose(1, 2)
        x = x + self.pos_embedding.transpose(0, 1)
        x = x + self.mod_embedding[view][:, None]
        if ids_keep is not None:
            x = x.gather(1, ids_keep[..., None].expand(-1, -1, x.shape[-1]))
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1)
        return self.layer_norm(self.transformer(x))


class Decoder(nn.Module):
    """Tokens of the kept patches -> pixels of every patch."""

    def __init__(self, grid, patch, d, depth, heads, views=3):
        super().__init__()
        self.mask_token = zeros(1, 1, d)
        self.pos_embedding = zeros(1 + grid[0] * grid[1], 1, d)
        self.mod_embedding = zeros(views, d)
        self.transformer = transformer(d, heads, depth)
        self.layer_norm = nn.LayerNorm(d)
        self.head = nn.Linear(d, patch * patch)

    def forward(self, tokens, ids_restore, view):
        """(b, 1 + k, d), (b, n), (b,) -> (b, n, patch * patch)."""
        missing = 1 + ids_restore.shape[1] - tokens.shape[1]
        masked = self.mask_token.expand(len(tokens), missing, -1)
        patches = torch.cat([tokens[:, 1:], masked], dim=1)
        index = ids_restore[..., None].expand(-1, -1, tokens.shape[-1])
        x = torch.cat([tokens[:, :1], patches.gather(1, index)], dim=1)
        x = x + self.pos_embedding.transpose(0, 1) + self.mod_embedding[view][:, None]
        return self.head(self.layer_norm(self.transformer(x))[:, 1:])


class MVMAE(nn.Module):
    """Encoder and decoder of images, shared by the views, under the authors' names."""

    def __init__(self, grid, patch, d, depth, heads, dec_depth, dec_heads, views=3):
        super().__init__()
        self.patch = patch
        encoder = Encoder(grid, patch, d, depth, heads, views)
        decoder = Decoder(grid, patch, d, dec_depth, dec_heads, views)
        self.encoders = nn.ModuleDict({"vision": encoder})
        self.decoders = nn.ModuleDict({"vision": decoder})

    def forward(self, images, view, ids_keep, ids_restore):
        """Predicted pixels of every patch, (b, n, patch * patch)."""
        tokens = self.encoders["vision"](images, view, ids_keep)
        return self.decoders["vision"](tokens, ids_restore, view)

    def loss(self, images, pred, mask):
        """Mean squared error of the masked pixels."""
        target = F.unfold(images, self.patch, stride=self.patch).transpose(1, 2)
        error = ((pred - target) ** 2).mean(-1)
        return (error * mask).sum() / mask.sum()
