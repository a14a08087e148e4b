"""Lets timm and transformers be imported where PyTorch is the CPU build.

Both import torchvision, whose wheel on PyPI is built for CUDA: beside a CPU build of
PyTorch its compiled operators do not load, and its import then fails at declaring two
of them. Nothing here calls them, so their signatures are enough. Import this first.
"""

import torch

_LIBRARY = torch.library.Library("torchvision", "FRAGMENT")  # kept: it dies with us
for _name in ("nms", "qnms"):
    if not hasattr(torch.ops.torchvision, _name):
        _LIBRARY.define(
            f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
        )
