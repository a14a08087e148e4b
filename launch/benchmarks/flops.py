"""How many floating-point operations the models need, and how many devices give.

A multiplication and an addition are two. Products alone count: what is elementwise is
a few per cent of them and no device's peak is about it. A trained product costs three
times its forward pass, a frozen one that gradients pass through twice, one of two
activations (attention) three times. `work` is what `recipes.py` says of the step.

Letters: t tokens, w tokens that are wanted of the last block, d width, n patches, k
kept patches, p numbers in a patch, r rank. The last block projects all tokens; what
follows is of the wanted ones alone: the CLS token, or an MAE's masked patches.
"""

from __future__ import annotations

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Flops:
    """Of one image (or ECG).

    Attributes:
      forward: of the forward pass.
      step: of what is timed: the forward pass, or a whole training step's share.
      formula: how they were found, for people.
    """

    forward: float
    step: float
    formula: str


def of(work: dict[str, Any]) -> Flops:
    """FLOPs of the step that `work` describes."""
    return {"mae": _mae, "distill": _distill, "embed": _embed, "ecg": _ecg}[
        work["mode"]
    ](work)


def _dense(t: int, d_in: int, d_out: int) -> int:
    return 2 * t * d_in * d_out


def _attention(depth: int, t: int, d: int, w: int) -> int:
    """q k^T and the weighted sum of v: 4 t d a token."""
    return (depth * t - (t - w)) * 4 * t * d


def _blocks(depth: int, t: int, d: int, w: int) -> int:
    """qkv 6 t d^2, proj 2 t d^2, the MLP 16 t d^2, and attention."""
    products = depth * 24 * t * d * d - 18 * (t - w) * d * d
    return products + _attention(depth, t, d, w)


def _tokens(work: dict) -> tuple[int, int, int]:
    """Patches, numbers in a patch, and width."""
    n = (work["image_size"] // work["patch"]) ** 2
    return n, 3 * work["patch"] ** 2, work["width"]


def _mae(work: dict) -> Flops:
    (n, p, d), e = _tokens(work), work["decoder"]
    k = int(n * (1 - work["mask_ratio"]))
    patches = _dense(k, p, d)
    encoder = _blocks(work["depth"], k + 1, d, k + 1)
    decoder = _blocks(e["depth"], n + 1, e["width"], n - k)
    around = _dense(k + 1, d, e["width"]) + _dense(n - k, e["width"], p)
    forward = patches + encoder + decoder + around
    return Flops(
        forward,
        3 * forward - patches,  # pixels get no gradient
        f"forward = 2 k p d + encoder {work['depth']} (24 t d^2 + 4 t^2 d) + decoder "
        f"{e['depth']} (24 t' d'^2 + 4 t'^2 d') - (k + 1) (18 d'^2 + 4 t' d') + 2 t d "
        f"d' + 2 (n - k) d' p with k {k}, t {k + 1}, d {d}, t' {n + 1}, d' "
        f"{e['width']}, n {n}, p {p}; training = 3 forward - 2 k p d",
    )


def _distill(work: dict) -> Flops:
    (n, p, d), r = _tokens(work), work["lora"]["rank"]
    t, depth = n + 1, work["depth"]
    patches = _dense(n, p, d)
    blocks, attention = _blocks(depth, t, d, 1), _attention(depth, t, d, 1)
    ends = {"qkv": (d, 3 * d), "proj": (d, d), "fc1": (d, 4 * d), "fc2": (4 * d, d)}
    adapters = work["lora"]["targets"]
    lora = depth * sum(2 * t * r * sum(ends[name]) for name in adapters)
    lora -= sum(2 * n * r * sum(ends[name]) for name in adapters if name != "qkv")
    heads = sum(_dense(1, *ends) for ends in work["heads"])
    forward = patches + blocks + lora + heads
    return Flops(
        forward,
        patches + 2 * blocks + attention + 3 * lora + 3 * heads,
        f"forward = 2 n p d + blocks {depth} (24 t d^2 + 4 t^2 d) - n (18 d^2 + 4 t d) "
        f"+ LoRA {depth} (2 t r (in + out) of each of {', '.join(adapters)}) less what "
        f"follows the last block's qkv for n tokens + heads with n {n}, t {t}, d {d}, "
        f"p {p}, r {r}; training = 2 n p d + 2 blocks + their attention + 3 LoRA + 3 "
        "heads (frozen weights get no gradient)",
    )


def _embed(work: dict) -> Flops:
    n, p, d = _tokens(work)
    forward = _dense(n, p, d) + _blocks(work["depth"], n + 1, d, 1)
    return Flops(
        forward,
        forward,
        f"forward = 2 n p d + {work['depth']} (24 t d^2 + 4 t^2 d) - n (18 d^2 + 4 t d)"
        f" with n {n}, t {n + 1}, d {d}, p {p}",
    )


def _ecg(work: dict) -> Flops:
    kernel, width, before = work["kernel"], work["groups_width"], work["base_filters"]
    t = -(-work["length"] // 2)
    stem = forward = 2 * t * kernel * 12 * before
    for c, count in zip(work["filters"], work["blocks"], strict=True):
        for i in range(count):
            first = 2 * t * before * c  # before the stride
            t = t if i else -(-t // 2)
            forward += first + 2 * t * c * (kernel * width + c) + 2 * c * c
            before = c
    if work["train"]:
        forward += 2 * before * work["classes"]
    return Flops(
        forward,
        3 * forward - stem if work["train"] else forward,
        "forward = 2 t kernel 12 base + sum over blocks of 2 t c' c + 2 t' c (kernel "
        f"{width} + c) + 2 c^2 (+ head), t samples before and t' after the block's "
        "stride, c' and c channels; training = 3 forward - the stem's",
    )


# Dense bfloat16 products without sparsity, FLOP/s of one device as JAX counts devices.
# NVIDIA: data sheets (A100 2021, H100 2023, H200 2024, L4, L40S). Google: the "System
# architecture" pages of Cloud TPU. The first name that a device's kind contains counts.
PEAKS = (
    ("H100 NVL", 835e12),
    ("H100 PCIe", 756e12),
    ("H100", 989e12),
    ("H200", 989e12),
    ("A100", 312e12),
    ("L40S", 362e12),
    ("L4", 121e12),
    ("TPU v6", 918e12),
    ("TPU v5p", 459e12),
    ("TPU v5 lite", 197e12),
    ("TPU v5", 459e12),
    ("TPU v4", 275e12),
)


# What dense bfloat16 products reach there, which is below the data sheet's peak. H200:
# 8192 x 8192 x 8192 on random data by PyTorch 2.11, 769 to 798 TFLOP/s on several
# machines (October and November 2026).
MEASURED = (("H200", 790e12),)


def peak(device_kind: str, dtype: str, of: tuple = PEAKS) -> float | None:
    """FLOP/s of a device; None where it is not known (CPUs, other dtypes).

    Args:
      of: PEAKS, the data sheets' figures, or MEASURED.
    """
    if dtype != "bfloat16":
        return None
    return next((value for name, value in of if name in device_kind), None)


def utilisation(
    work_per_s: float, device_kind: str, dtype: str, peak_flops: float = 0.0
) -> dict[str, Any]:
    """What share of a device's peak is used, for the bench's JSON.

    Args:
      work_per_s: FLOP/s that the step needs of a device.
      peak_flops: FLOP/s to go by instead of the data sheet's; 0 = the data sheet's.

    Returns:
      mfu, of the data sheet's peak, and mfu_measured, of the measured one, with both
      peaks; None where a peak is not known.
    """
    sheet = peak_flops or peak(device_kind, dtype)
    measured = peak(device_kind, dtype, MEASURED)
    return {
        "mfu": sheet and round(work_per_s / sheet, 4),
        "mfu_measured": measured and round(work_per_s / measured, 4),
        "peak_flops": sheet,
        "peak_source": sheet and ("--peak_flops" if peak_flops else "data sheet"),
        "measured_peak_flops": measured,
    }


def as_text(result: dict) -> str:
    """Both utilisations in words."""
    if result["mfu"] is None:
        return "MFU not known"
    peak = f"{result['peak_flops'] / 1e12:,.4g} TFLOP/s ({result['peak_source']})"
    text = f"MFU {result['mfu']} of {peak}"
    if result["mfu_measured"] is not None:
        measured = f"{result['measured_peak_flops'] / 1e12:,.4g} TFLOP/s"
        text += f", {result['mfu_measured']} of {measured} (dense products, measured)"
    return text
