"""DINOv2, EVA-02, DenseNet in PyTorch, from papers and published state dicts' names.

DINOv2 (Oquab 2023, registers: Darcet 2023): positions of CLS and patches, then
registers without; layer scale on both branches; an MLP, or SwiGLU as w12 and w3.
EVA-02 (Fang 2023): q, k, v of which k has no bias, 2-D rotary positions of the patches,
SwiGLU as w1 (gate), w2, w3 with a norm before w3 (sub-LN).
DenseNet (Huang 2017): each layer joins its output to its input, transitions halve.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

EPS = 1e-6


class Attention(nn.Module):
    def __init__(self, d: int, heads: int, eva: bool):
        super().__init__()
        self.heads, self.eva = heads, eva
        if eva:
            for name in ("q_proj", "k_proj", "v_proj"):
                setattr(self, name, nn.Linear(d, d, bias=False))
            self.q_bias, self.v_bias = (nn.Parameter(torch.zeros(d)) for _ in range(2))
        else:
            self.qkv = nn.Linear(d, 3 * d)
        self.proj = nn.Linear(d, d)

    def forward(self, x, turn=None):
        b, n, d = x.shape
        if self.eva:
            q = self.q_proj(x) + self.q_bias
            k, v = self.k_proj(x), self.v_proj(x) + self.v_bias
        else:
            q, k, v = self.qkv(x).chunk(3, -1)
        q, k, v = (y.view(b, n, self.heads, -1).transpose(1, 2) for y in (q, k, v))
        if turn:
            q, k = turn(q), turn(k)
        weights = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(b, n, d))


class Scale(nn.Module):
    def __init__(self, d: int):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(d))

    def forward(self, x):
        return self.gamma * x


class Mlp(nn.Module):
    def __init__(self, d: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(d, 4 * d), nn.Linear(4 * d, d)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x)))


class PackedSwiGLU(nn.Module):
    """DINOv2's: one layer gives the gate and the value."""

    def __init__(self, d: int, hidden: int):
        super().__init__()
        self.w12, self.w3 = nn.Linear(d, 2 * hidden), nn.Linear(hidden, d)

    def forward(self, x):
        gate, value = self.w12(x).chunk(2, -1)
        return self.w3(F.silu(gate) * value)


class NormedSwiGLU(nn.Module):
    """EVA-02's."""

    def __init__(self, d: int, hidden: int):
        super().__init__()
        self.w1, self.w2 = nn.Linear(d, hidden), nn.Linear(d, hidden)
        self.ffn_ln, self.w3 = nn.LayerNorm(hidden, eps=EPS), nn.Linear(hidden, d)

    def forward(self, x):
        return self.w3(self.ffn_ln(F.silu(self.w1(x)) * self.w2(x)))


class Block(nn.Module):
    def __init__(self, d: int, heads: int, mlp: nn.Module, eva: bool):
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(d, eps=EPS) for _ in range(2))
        self.attn, self.mlp = Attention(d, heads, eva), mlp
        self.ls1, self.ls2 = (nn.Identity() if eva else Scale(d) for _ in range(2))

    def forward(self, x, turn=None):
        x = x + self.ls1(self.attn(self.norm1(x), turn))
        return x + self.ls2(self.mlp(self.norm2(x)))


class _Encoder(nn.Module):
    def __init__(self, patch: int, d: int, side: int):
        super().__init__()
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(3, d, patch, patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, d))
        self.mask_token = nn.Parameter(torch.zeros(1, d))  # of pretraining
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + side**2, d))

    def embedded(self, images):
        x = self.patch_embed.proj(images).flatten(2).transpose(1, 2)
        return torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1)


class DINOv2(_Encoder):
    """Images -> tokens: CLS, registers, patches."""

    def __init__(self, patch, d, depth, heads, side, registers, hidden):
        super().__init__(patch, d, side)
        if registers:
            self.register_tokens = nn.Parameter(torch.zeros(1, registers, d))
        self.blocks = nn.ModuleList(
            Block(d, heads, PackedSwiGLU(d, hidden) if hidden else Mlp(d), False)
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(d, eps=EPS)
        self.side, self.registers = side, registers

    def positions(self, to: int):
        if to == self.side:
            return self.pos_embed
        grid = self.pos_embed[:, 1:].unflatten(1, (self.side, self.side))
        # With registers at the size and antialiased, before by a scale of 0.1 more.
        how = {"size": (to, to), "antialias": True}
        if not self.registers:
            how = {"scale_factor": ((to + 0.1) / self.side,) * 2}
        grid = F.interpolate(grid.permute(0, 3, 1, 2), mode="bicubic", **how)
        return torch.cat([self.pos_embed[:, :1], grid.flatten(2).transpose(1, 2)], 1)

    def forward(self, images):
        x = self.embedded(images)
        x = x + self.positions(math.isqrt(x.shape[1] - 1))
        if self.registers:
            registers = self.register_tokens.expand(len(x), -1, -1)
            x = torch.cat([x[:, :1], registers, x[:, 1:]], 1)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class EVA02(_Encoder):
    """Images -> the last LayerNorm of the tokens, or with `mean` of the patches' mean.

    Rotary positions: in a head of c channels, pair i of row r and of column s turns by
    r t^(-4 i / c) and s t^(-4 i / c), t = 10000, both scaled to a grid of `reference`.
    """

    def __init__(self, patch, d, depth, heads, side, hidden, reference, mean):
        super().__init__(patch, d, side)
        self.blocks = nn.ModuleList(
            Block(d, heads, NormedSwiGLU(d, hidden), True) for _ in range(depth)
        )
        self.mean, c = mean, d // heads
        setattr(self, "fc_norm" if mean else "norm", nn.LayerNorm(d, eps=EPS))
        place = torch.arange(side, dtype=torch.float64) * reference / side
        bands = 10000.0 ** (-torch.arange(0, c, 4, dtype=torch.float64) / c)
        angle = place[:, None] * bands
        rows = angle[:, None].expand(side, side, -1)
        columns = angle[None].expand(side, side, -1)
        self.angles = torch.cat([rows, columns], -1).flatten(0, 1)  # (n, c / 2)

    def turn(self, x):
        """(b, h, 1 + n, c): pairs of the patches' channels as complex numbers."""
        turned = torch.polar(torch.ones_like(self.angles), self.angles)
        pairs = torch.view_as_complex(x[:, :, 1:].unflatten(-1, (-1, 2)).contiguous())
        patches = torch.view_as_real(pairs * turned.to(pairs.dtype)).flatten(-2)
        return torch.cat([x[:, :, :1], patches], 2)

    def forward(self, images):
        x = self.embedded(images) + self.pos_embed
        for block in self.blocks:
            x = block(x, self.turn)
        return self.fc_norm(x[:, 1:].mean(1)) if self.mean else self.norm(x)


class DenseLayer(nn.Module):
    def __init__(self, d: int, growth: int):
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(d), nn.BatchNorm2d(4 * growth)
        self.conv1 = nn.Conv2d(d, 4 * growth, 1, bias=False)
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x):
        y = self.conv1(self.norm1(x).relu())
        return torch.cat([x, self.conv2(self.norm2(y).relu())], 1)


class DenseNet(nn.Module):
    """Images -> the last feature map, after its norm and ReLU."""

    def __init__(self, blocks, growth, stem, channels):
        super().__init__()
        self.features = f = nn.Module()
        f.conv0, d = nn.Conv2d(channels, stem, 7, 2, 3, bias=False), stem
        f.norm0, self.blocks = nn.BatchNorm2d(stem), blocks
        for b, count in enumerate(blocks, 1):
            block = nn.Module()
            for i in range(1, count + 1):
                block.add_module(f"denselayer{i}", DenseLayer(d, growth))
                d += growth
            f.add_module(f"denseblock{b}", block)
            if b < len(blocks):
                halves = nn.Module()
                halves.norm = nn.BatchNorm2d(d)
                halves.conv = nn.Conv2d(d, d // 2, 1, bias=False)
                f.add_module(f"transition{b}", halves)
                d //= 2
        f.norm5, self.classifier = nn.BatchNorm2d(d), nn.Linear(d, 3)

    def forward(self, images):
        f = self.features
        x = F.max_pool2d(f.norm0(f.conv0(images)).relu(), 3, 2, 1)
        for b in range(1, len(self.blocks) + 1):
            for layer in f.get_submodule(f"denseblock{b}").children():
                x = layer(x)
            if b < len(self.blocks):
                halves = f.get_submodule(f"transition{b}")
                x = F.avg_pool2d(halves.conv(halves.norm(x).relu()), 2)
        return f.norm5(x).relu()
