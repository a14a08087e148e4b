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
