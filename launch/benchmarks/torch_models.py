"""The published models as PyTorch modules: the bench's peer, and the parity tests'.

Names, order and shapes of every state dict are those of the published checkpoints.
Written from the facts (reference.md), not copied; sizes are arguments. Attention and
its products are PyTorch's own fused kernels. PyTorch is an extra.

Shape letters: b batch, n tokens, k kept tokens, d width, c channels, t time.
"""

from __future__ import annotations

import math
from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import nn


class Attention(nn.Module):
    """Fused qkv, rows [q | k | v], each (heads, d / heads)."""

    def __init__(self, d: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(d, 3 * d)
        self.proj = nn.Linear(d, d)

    def forward(self, x):
        b, n, d = x.shape
        qkv = self.qkv(x).reshape(b, n, 3, self.heads, d // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        x = F.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 2).reshape(b, n, d))


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, d: int, heads: int, eps: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(d, eps=eps)
        self.attn = Attention(d, heads)
        self.norm2 = nn.LayerNorm(d, eps=eps)
        fc1, fc2 = nn.Linear(d, 4 * d), nn.Linear(4 * d, d)
        self.mlp = nn.Sequential(OrderedDict(fc1=fc1, gelu=nn.GELU(), fc2=fc2))

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


def positions(grid: tuple[int, int], d: int) -> nn.Parameter:
    """(1, 1 + n, d): zeros for CLS; half the channels from x, half from y; frozen."""
    omega = 10000.0 ** (-torch.arange(d // 4, dtype=torch.float64) / (d / 4))
    y, x = torch.meshgrid(*map(torch.arange, grid), indexing="ij")
    angles = [v.reshape(-1, 1) * omega for v in (x, y)]
    table = torch.cat([f(a) for a in angles for f in (torch.sin, torch.cos)], dim=1)
    return nn.Parameter(F.pad(table, (0, 0, 1, 0)).float()[None], requires_grad=False)


class Encoder(nn.Module):
    """The MAE's ViT encoder: all patches, or those of `ids_keep` (b, k)."""

    def __init__(self, grid, patch, d, depth, heads, eps=1e-6):
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, d))
        self.pos_embed = positions(grid, d)
        proj = nn.Conv2d(3, d, patch, stride=patch)
        self.patch_embed = nn.ModuleDict({"proj": proj})
        self.blocks = nn.ModuleList(Block(d, heads, eps) for _ in range(depth))
        self.norm = nn.LayerNorm(d, eps=eps)

    def encode(self, images, ids_keep=None):
        """(b, 3, h, w) -> tokens (b, 1 + n or 1 + k, d), CLS first."""
        x = self.patch_embed["proj"](images).flatten(2).transpose(1, 2)
        x = x + self.pos_embed[:, 1:]
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
        masked = self.mask_token.expand(len(x), missing, -1)
        patches = torch.cat([x[:, 1:], masked], dim=1)
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
            var, mean = torch.var_mean(target, -1, keepdim=True)
            target = (target - mean) / (var + 1e-6) ** 0.5
        error = ((pred - target) ** 2).mean(-1)
        return (error * mask).sum() / (mask.sum() + 1e-8)


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


class Net1D(nn.Module):
    """ECGFounder's 1-D CNN; `dense` is its pretraining's head."""

    def __init__(self, base=64, filters=(64, 160, 160, 400, 400, 1024, 1024),
                 blocks=(2, 2, 2, 3, 3, 4, 4), kernel=16, width=16, classes=150,
                 leads=12):  # fmt: skip
        super().__init__()
        self.first_conv = SameConv1d(leads, base, kernel, 2)
        self.first_bn = nn.BatchNorm1d(base)
        before, self.stage_list = base, nn.ModuleList()
        for c, count in zip(filters, blocks, strict=True):
            sizes = [(before, c, kernel, 2, width, not self.stage_list)]
            sizes += [(c, c, kernel, 1, width, False)] * (count - 1)
            stage = nn.ModuleList(NetBlock(*each) for each in sizes)
            self.stage_list.append(nn.ModuleDict({"block_list": stage}))
            before = c
        self.dense = nn.Linear(before, classes)

    def features(self, ecg):
        """(b, leads, t) -> (b, filters[-1])."""
        x = F.silu(self.first_conv(ecg))
        for stage in self.stage_list:
            for block in stage["block_list"]:
                x = block(x)
        return x.mean(-1)

    def forward(self, ecg):
        return self.dense(self.features(ecg))


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


def adapt(encoder: Encoder, rank: int, alpha: float, dropout: float) -> nn.Module:
    """The encoder frozen and wrapped, at every block's qkv, fc1 and fc2."""
    encoder.requires_grad_(False)
    for block in encoder.blocks:
        block.attn.qkv = Lora(block.attn.qkv, rank, alpha, dropout)
        block.mlp.fc1 = Lora(block.mlp.fc1, rank, alpha, dropout)
        block.mlp.fc2 = Lora(block.mlp.fc2, rank, alpha, dropout)
    return nn.ModuleDict({"base_model": nn.ModuleDict({"model": encoder})})


def head(d_in: int, d_out: int, dropout: float) -> nn.Module:
    """Dropout, Linear, LayerNorm."""
    layers = nn.Dropout(dropout), nn.Linear(d_in, d_out), nn.LayerNorm(d_out)
    return nn.Sequential(OrderedDict(mlp=nn.Sequential(*layers)))


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
        return total, found | {f"regression_{m}": v for m, v in reg.items()}


class Pacx(nn.Module):
    """Everything a PaCX checkpoint holds."""

    def __init__(self, encoder: Encoder, d_ecg=1024, d_labs=256, shared=256, rank=8,
                 alpha=16.0, lora_dropout=0.1, head_dropout=0.2):  # fmt: skip
        super().__init__()
        d = encoder.norm.normalized_shape[0]
        final = encoder.norm
        self.cxr_encoder = adapt(encoder, rank, alpha, lora_dropout)
        final.requires_grad_(True)  # the one norm that the reference trains (D2)
        self.cxr_to_shared = head(d, shared, head_dropout)
        self.ecg_to_shared = head(d_ecg, shared, head_dropout)
        self.labs_to_shared = head(d_labs, shared, head_dropout)
        self.cxr_to_ecg = head(d, d_ecg, head_dropout)
        self.cxr_to_labs = head(d, d_labs, head_dropout)
        self.loss_module = Losses()

    @property
    def encoder(self) -> Encoder:
        return self.cxr_encoder["base_model"]["model"]

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
    both = [F.cross_entropy(x, labels, label_smoothing=smoothing)
            for x in (logits, logits.T)]  # fmt: skip
    return 0.5 * sum(both)


def cosine_regression(pred, target):
    return 1 - F.cosine_similarity(pred, target.detach(), dim=-1, eps=1e-6).mean()


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Trainable parameters in two groups: no decay iff 1-D or named `.bias`."""
    plain, decayed = [], []
    for name, p in model.named_parameters():
        if p.requires_grad:
            (plain if p.ndim == 1 or name.endswith(".bias") else decayed).append(p)
    return [{"params": decayed, "weight_decay": weight_decay},
            {"params": plain, "weight_decay": 0.0}]  # fmt: skip
