"""CheXmix as PyTorch modules: frozen image tokenizer, transformer, and the loss.

Shapes are ours (models/vq.py, models/unified.py), for nobody published a training code.
Convolutions run channels last, which their LayerNorms over channels ask for. Logits of
all places exist at once. Shape letters: b batch, k codes, t text tokens, n = k + 2 + t.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from launch.benchmarks import torch_models

BASE = 10_000.0  # of the rotary positions


class Norm(nn.LayerNorm):
    """LayerNorm over the channels of (b, c, h, w)."""

    def forward(self, x):
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Residual(nn.Module):
    """Two 3x3 convolutions, each after a LayerNorm and SiLU."""

    def __init__(self, width: int):
        super().__init__()
        self.norm1, self.norm2 = Norm(width, eps=1e-6), Norm(width, eps=1e-6)
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x):
        y = self.conv1(F.silu(self.norm1(x)))
        return x + self.conv2(F.silu(self.norm2(y)))


class Tokenizer(nn.Module):
    """Grey images -> numbers of codes; the half of the autoencoder that encodes."""

    def __init__(self, widths, blocks, codes, code_width):
        super().__init__()
        layers, before = [], 1
        for width, count in zip(widths, blocks, strict=True):
            layers.append(nn.Conv2d(before, width, 4, stride=2, padding=1))
            layers += [Residual(width) for _ in range(count)]
            before = width
        layers += [Norm(before, eps=1e-6), nn.SiLU()]
        self.layers = nn.Sequential(*layers)
        self.out = nn.Linear(before, code_width)
        self.codes = nn.Parameter(torch.randn(codes, code_width))
        self.requires_grad_(False)

    @torch.no_grad()
    def forward(self, images):
        """(b, 1, h, w) -> (b, k)."""
        with torch.autocast(images.device.type, enabled=False):
            z = self.out(self.layers(images.float()).permute(0, 2, 3, 1)).flatten(1, 2)
            near = F.normalize(z, dim=-1) @ F.normalize(self.codes, dim=-1).T
        return near.argmax(-1)


class Attention(torch_models.Attention):
    """Causal, q and k turned by their places in the sequence (Su 2021)."""

    def __init__(self, d: int, heads: int, length: int):
        super().__init__(d, heads)
        c = d // heads
        bands = BASE ** (-torch.arange(0, c, 2, dtype=torch.float64) / c)
        angles = torch.arange(length)[:, None] * bands.repeat_interleave(2)
        self.register_buffer("cos", angles.cos().float(), persistent=False)
        self.register_buffer("sin", angles.sin().float(), persistent=False)

    def forward(self, x):
        b, n, d = x.shape
        qkv = self.qkv(x).reshape(b, n, 3, self.heads, d // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        q, k = (turned(y, self.cos[:n], self.sin[:n]) for y in (q, k))
        x = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.proj(x.transpose(1, 2).reshape(b, n, d))


def turned(x, cos, sin):
    """Turns neighbouring pairs of channels of (b, heads, n, c)."""
    pairs = x.unflatten(-1, (-1, 2))
    across = torch.stack([-pairs[..., 1], pairs[..., 0]], dim=-1).flatten(-2)
    return x * cos.to(x.dtype) + across * sin.to(x.dtype)


class Unified(nn.Module):
    """Image tokenizer and transformer; text ids first, then [IMG], [/IMG], [MASK]."""

    def __init__(self, tokenizer, text_size, length, d, depth, heads, eps=1e-6):
        super().__init__()
        self.tokenizer, self.text_size = tokenizer, text_size
        vocabulary = text_size + 3 + len(tokenizer.codes)
        self.token_embed = nn.Embedding(vocabulary, d)
        self.blocks = nn.ModuleList(
            torch_models.Block(d, heads, eps) for _ in range(depth)
        )
        for block in self.blocks:
            block.attn = Attention(d, heads, length)
        self.norm = nn.LayerNorm(d, eps=eps)
        self.head = nn.Linear(d, vocabulary, bias=False)

    def forward(self, images, text, text_first):
        """(b, 1, h, w), texts (b, t) without padding, (b,) bool -> mean loss, ()."""
        codes = self.tokenizer(images) + self.text_size + 3
        first = torch.full_like(codes[:, :1], self.text_size)
        image = torch.cat([first, codes, first + 1], dim=1)
        tokens = torch.where(
            text_first[:, None],
            torch.cat([text, image], dim=1),
            torch.cat([image, text], dim=1),
        )
        x = self.token_embed(tokens)
        for block in self.blocks:
            x = block(x)
        logits = self.head(self.norm(x)[:, :-1]).flatten(0, 1)
        return F.cross_entropy(logits.float(), tokens[:, 1:].flatten())
