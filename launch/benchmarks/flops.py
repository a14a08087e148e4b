"""How many floating-point operations a step needs, and how many devices give.

A multiplication and an addition are two, and products alone count: what is elementwise
is a few per cent of them, and no device's peak is about it. They are counted in the
step as it is traced without hand-written forms, attention's kernels and recomputation,
so that what a form computes again is no work.
"""

from __future__ import annotations

from typing import Any

from launch.planning import flops
from pacx_jax import target

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


def of_image(make, config) -> float:
    """FLOPs that a step needs for each image, or ECG, of a batch.

    Args:
      make: config -> the step's jitted function and the shapes of its arguments.
    """
    plain = config.copy_and_resolve_references()
    plain.num_devices, plain.attention, plain.remat = 1, "xla", "none"
    with target.forced(**dict.fromkeys(target.HAND_WRITTEN, False)):
        return flops.count(*make(plain), devices=1).flops / config.global_batch_size


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
      mfu, of the data sheet's peak, and mfu_measured, of the measured one; None where a
      peak is not known. Both in words under `mfu_text`.
    """
    sheet = peak_flops or peak(device_kind, dtype)
    measured = peak(device_kind, dtype, MEASURED)
    shares = [value and round(work_per_s / value, 4) for value in (sheet, measured)]
    text = "MFU not known"
    if sheet:
        source = "--peak_flops" if peak_flops else "data sheet"
        text = f"MFU {shares[0]} of {sheet / 1e12:,.4g} TFLOP/s ({source})"
    if sheet and measured:
        text += f", {shares[1]} of {measured / 1e12:,.4g} (dense products, measured)"
    return {"mfu": shares[0], "mfu_measured": shares[1], "mfu_text": text}
