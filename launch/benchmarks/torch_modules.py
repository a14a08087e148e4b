"""The published models as PyTorch modules, written from reference.md.

Names, order and shapes of every state dict are those of the published checkpoints
(reference.md section 8). Written from the facts, not copied; sizes are arguments.
The tests' live cases and the bench import this file: PyTorch is an extra.

Shape letters: b batch, n tokens, k kept tokens, d width, c channels, t time.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn


class Attention(nn.Module):
    """Fused qkv, rows [q | k | v], each (heads, d / heads).

    Keeps its softmax, as rollout needs; where `fused`, PyTorch's own kernel runs.
    """

    fused = False

    def __init__(self, d: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(d, 3 * d)
        self.proj = nn.Linear(d, d)

    def forward(self, x):
        b, n, d = x.shape
        qkv = self.qkv(x).reshape(b, n, 3, self.heads, d // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        if self.fused:
            x = F.scaled_dot_product_attention(q, k, v)
            return self.proj(x.transpose(1, 2).reshape(b, n, d))
        logits = q @ k.transpose(-2, -1) * (d // self.heads) ** -0.5
        probs = logits.softmax(dim=-1)
        self.last = probs.detach()
        return self.proj((probs @ v).transpose(1, 2).reshape(b, n, d))


class Mlp(nn.Module):
    def __init__(self, d: int):
        super().__init__()
        self.fc1 = nn.Linear(d, 4 * d)
        self.fc2 = nn.Linear(4 * d, d)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, d: int, heads: int, eps: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(d, eps=eps)
        self.attn = Attention(d, heads)
        self.norm2 = nn.LayerNorm(d, eps=eps)
        self.mlp = Mlp(d)

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PatchEmbed(nn.Module):
    def __init__(self, patch: int, d: int):
        super().__init__()
        self.proj = nn.Conv2d(3, d, patch, stride=patch)

    def forward(self, images):
        return self.proj(images).flatten(2).transpose(1, 2)


def positions(grid: tuple[int, int], d: int) -> nn.Parameter:
    """(1, 1 + n, d): zeros for CLS; half the channels from x, half from y; frozen."""
    omega = 10000.0 ** (-torch.arange(d // 4, dtype=torch.float64) / (d / 4))
    y, x = (v.reshape(-1, 1).double() for v in torch.meshgrid(
        torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij"))  # fmt: skip
    parts = [f(pos * omega) for pos in (x, y) for f in (torch.sin, torch.cos)]
    table = torch.cat(parts, dim=1)
    table = torch.cat([torch.zeros(1, d, dtype=torch.float64), table])
    return nn.Parameter(table.float()[None], requires_grad=False)


class Encoder(nn.Module):
    """The MAE's ViT encoder: all patches, or those of `ids_keep` (b, k)."""

    def __init__(self, grid, patch, d, depth, heads, eps=1e-6):
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, d))
        self.pos_embed = positions(grid, d)
        self.patch_embed = PatchEmbed(patch, d)
        self.blocks = nn.ModuleList(Block(d, heads, eps) for _ in range(depth))
        self.norm = nn.LayerNorm(d, eps=eps)

    def encode(self, images, ids_keep=None):
        """(b, 3, h, w) -> tokens (b, 1 + n or 1 + k, d), CLS first."""
        x = self.patch_embed(images) + self.pos_embed[:, 1:]
        if ids_keep is not None:
            x = x.gather(1, ids_keep[..., None].expand(-1, -1, x.shape[-1]))
        cls = (self.cls_token + self.pos_embed[:, :1]).expand(len(x), -1, -1)
        x = torch.cat([cls, x], dim=1)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def forward(self, images):
        """The CLS token after the last norm, (b, d)."""
        return self.encode(images)[:, 0]


class MAE(Encoder):
    """Masked autoencoder; masks are given, not drawn."""

    def __init__(self, grid, patch, d, depth, heads, dec_d, dec_depth, dec_heads,
                 eps=1e-6):  # fmt: skip
        super().__init__(grid, patch, d, depth, heads, eps)
        self.patch = patch
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dec_d))
        self.decoder_pos_embed = positions(grid, dec_d)
        self.decoder_embed = nn.Linear(d, dec_d)
        self.decoder_blocks = nn.ModuleList(
            Block(dec_d, dec_heads, eps) for _ in range(dec_depth)
        )
        self.decoder_norm = nn.LayerNorm(dec_d, eps=eps)
        self.decoder_pred = nn.Linear(dec_d, 3 * patch * patch)

    def forward(self, images, ids_keep, ids_restore):
        """Predicted pixels of every patch, (b, n, 3 * patch * patch)."""
        x = self.decoder_embed(self.encode(images, ids_keep))
        missing = ids_restore.shape[1] - ids_keep.shape[1]
        patches = torch.cat(
            [x[:, 1:], self.mask_token.expand(len(x), missing, -1)], dim=1
        )
        index = ids_restore[..., None].expand(-1, -1, x.shape[-1])
        x = torch.cat([x[:, :1], patches.gather(1, index)], dim=1)
        x = x + self.decoder_pos_embed
        for block in self.decoder_blocks:
            x = block(x)
        return self.decoder_pred(self.decoder_norm(x))[:, 1:]

    def loss(self, images, pred, mask, norm_pix_loss=False):
        """sum(mask * patch's mean squared error) / (sum(mask) + 1e-8)."""
        b, c, h, w = images.shape
        p = self.patch
        target = images.reshape(b, c, h // p, p, w // p, p)
        target = target.permute(0, 2, 4, 3, 5, 1).reshape(b, -1, p * p * c)
        if norm_pix_loss:
            mean = target.mean(-1, keepdim=True)
            var = target.var(-1, keepdim=True, unbiased=True)
            target = (target - mean) / (var + 1e-6) ** 0.5
        error = ((pred - target) ** 2).mean(-1)
        return (error * mask).sum() / (mask.sum() + 1e-8)


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


class SameConv1d(nn.Module):
    """Zeros around it, so that the output has ceil(t / stride) samples."""

    def __init__(self, c_in, c_out, kernel, stride=1, groups=1):
        super().__init__()
        self.conv = nn.Conv1d(c_in, c_out, kernel, stride=stride, groups=groups)

    def forward(self, x):
        (k,), (s,) = self.conv.kernel_size, self.conv.stride
        total = max(0, (math.ceil(x.shape[-1] / s) - 1) * s + k - x.shape[-1])
        return self.conv(F.pad(x, (total // 2, total - total // 2)))


class NetBlock(nn.Module):
    """Bottleneck with squeeze-excitation; its three BatchNorms are never executed."""

    def __init__(self, c_in, c, kernel, stride, width, first):
        super().__init__()
        self.stride, self.first, self.grow = stride, first, c - c_in
        self.bn1 = nn.BatchNorm1d(c_in)
        self.conv1 = SameConv1d(c_in, c, 1)
        self.bn2 = nn.BatchNorm1d(c)
        self.conv2 = SameConv1d(c, c, kernel, stride, groups=c // width)
        self.bn3 = nn.BatchNorm1d(c)
        self.conv3 = SameConv1d(c, c, 1)
        self.se_fc1 = nn.Linear(c, c // 2)
        self.se_fc2 = nn.Linear(c // 2, c)

    def forward(self, x):
        y = self.conv1(x if self.first else F.silu(x))
        y = self.conv3(F.silu(self.conv2(F.silu(y))))
        gate = self.se_fc2(F.silu(self.se_fc1(y.mean(-1))))
        y = y * torch.sigmoid(gate)[..., None]
        if self.stride == 2:  # a zero on the right: odd lengths end in max(x, 0)
            x = F.max_pool1d(F.pad(x, (0, 1)), 2, 2)
        left = self.grow // 2
        return y + F.pad(x, (0, 0, left, self.grow - left))


class Stage(nn.Module):
    def __init__(self, c_in, c, count, kernel, width, first):
        super().__init__()
        self.block_list = nn.ModuleList(
            NetBlock(c if i else c_in, c, kernel, 1 if i else 2, width,
                     first and i == 0)
            for i in range(count)
        )  # fmt: skip


class Net1D(nn.Module):
    """ECGFounder's 1-D CNN; `dense` is its pretraining's head."""

    def __init__(
        self,
        base=64,
        filters=(64, 160, 160, 400, 400, 1024, 1024),
        blocks=(2, 2, 2, 3, 3, 4, 4),
        kernel=16,
        width=16,
        classes=150,
        leads=12,
    ):
        super().__init__()
        self.first_conv = SameConv1d(leads, base, kernel, 2)
        self.first_bn = nn.BatchNorm1d(base)
        before = (base, *filters[:-1])
        self.stage_list = nn.ModuleList(
            Stage(c_in, c, count, kernel, width, s == 0)
            for s, (c_in, c, count) in enumerate(
                zip(before, filters, blocks, strict=True)
            )
        )
        self.dense = nn.Linear(filters[-1], classes)

    def features(self, ecg):
        """(b, leads, t) -> (b, filters[-1])."""
        x = F.silu(self.first_conv(ecg))
        for stage in self.stage_list:
            for block in stage.block_list:
                x = block(x)
        return x.mean(-1)

    def forward(self, ecg):
        return self.dense(self.features(ecg))


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
