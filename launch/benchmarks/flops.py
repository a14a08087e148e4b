"""How many floating-point operations a step needs, and how many devices give.

A multiplication and an addition are two, and products alone count: what is elementwise
is a few per cent of them, and no device's peak is about it. They are counted in the
step as it is traced without hand-written forms, attention's kernels and recomputation,
so that what a form computes again is no work.
"""

from __future__ import annotations

from launch.benchmarks import measure
from launch.planning import flops
from pacx_jax import target

# Dense bfloat16 products without sparsity, FLOP/s of one device as JAX counts devices.
# NVIDIA: data sheets (A100 2021, H100 2023, H200 2024). Google: the "System
# architecture" pages of Cloud TPU. The first name that a device's kind contains counts.
PEAKS = (
    ("H100 NVL", 835e12),
    ("H100 PCIe", 756e12),
    ("H100", 989e12),
    ("H200", 989e12),
    ("A100", 312e12),
    ("TPU v6", 918e12),
    ("TPU v5p", 459e12),
    ("TPU v5 lite", 197e12),
    ("TPU v5", 459e12),
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
    """FLOP/s of a device by PEAKS or MEASURED; None where unknown (CPUs, float32)."""
    if dtype != "bfloat16":
        return None
    return next((value for name, value in of if name in device_kind), None)


def result(options, turns, about: dict, peers: dict, notes: list[str], **more) -> dict:
    """The JSON's contents, and the table: images a second and shares of the peak.

    `about` is what our process said of itself, as `peers` say by their kind.
    """
    need, kind, dtype = about["flops"], about["device_kind"], about["dtype"]
    rate = measure.spread([turn["images_per_s"] for turn in turns["ours"]])["median"]
    rate /= about["devices"]
    sheet = options.peak_flops or peak(kind, dtype)
    shares = [
        value and round(rate * need / value, 4)
        for value in (sheet, peak(kind, dtype, MEASURED))
    ]
    text = "MFU not known"
    if sheet:
        source = "--peak_flops" if options.peak_flops else "data sheet"
        text = f"MFU {shares[0]} of {sheet / 1e12:,.4g} TFLOP/s ({source})"
    if sheet and shares[1]:
        text += f", {shares[1]} of what dense products reached (measured)"
    rate_text = f"{rate * need / 1e9:,.0f} GFLOP/s a device"
    work = f"{need / 1e9:,.3f} GFLOP an image, {rate_text}"
    more |= about | {
        "variant": options.variant,
        "images_per_s_per_device": round(rate, 4),
        "gflop_step": round(need / 1e9, 4),
        "mfu": shares[0],
        "mfu_measured": shares[1],
        "peers": peers,
    }
    pairs, notes = [("ours", kind) for kind in peers], [text, work, *notes]
    return measure.result(options, turns, "ours", pairs, notes=notes, **more)
