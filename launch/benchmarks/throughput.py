"""A step's figures: images a second and the share of the peak, ours and the peers'."""

from __future__ import annotations

from launch.benchmarks import flops, measure


def result(options, turns, about: dict, peers: dict, notes: list[str], **more) -> dict:
    """The JSON's contents, and the table.

    Args:
      turns: of "ours" and of each kind of peer.
      about: what our process said of itself: its devices, and what it needs.
      peers: kind -> what it said of itself.
    """
    need, n = about["flops"], about["devices"]
    rate = measure.spread([t["images_per_s"] for t in turns["ours"]])["median"] / n
    used = flops.utilisation(
        rate * need, about["device_kind"], about["dtype"], options.peak_flops
    )
    notes = [
        used.pop("mfu_text"),
        f"{need / 1e9:,.3f} GFLOP an image, {rate * need / 1e9:,.0f} GFLOP/s a device",
        *notes,
    ]
    more |= {
        "variant": options.variant,
        "images_per_s_per_device": round(rate, 4),
        "gflop_step": round(need / 1e9, 4),
        "peers": peers,
    }
    against = [("ours", kind) for kind in peers]
    more |= about | used
    return measure.result(options, turns, "ours", against, notes=notes, **more)
