"""Cases of training: 20 updates with AdamW, groups, schedules and clipping."""

from __future__ import annotations

import copy

import numpy as np

from tests.parity import cases_models, cases_stage_two, making, sizes
from tests.parity.making import Case


def _trained(model, make_optimizer, factor, loss, steps_per_epoch=1, clip_norm=0.0):
    """Both precisions' states, losses and rates of STEPS updates."""
    from tests.parity import torch_stage_two as ts

    case = making.state(model, "state")
    for suffix, net in (("", model), ("64", copy.deepcopy(model).double())):

        def cast(x, wide=suffix):
            return x.double() if wide and x.is_floating_point() else x

        losses, rates = ts.train(
            make_optimizer(net), factor, lambda step: loss(net, step, cast),
            sizes.STEPS, steps_per_epoch, clip_norm)  # fmt: skip
        case[f"out{suffix}/losses"] = np.array(losses)
        case[f"out{suffix}/rates"] = np.array(rates)
        trained = {k for k, p in net.named_parameters() if p.requires_grad}
        case |= {k: v for k, v in making.state(net, f"final{suffix}").items()
                 if k.split("/", 1)[1] in trained}  # fmt: skip
    return case


def train_mae() -> Case:
    """Groups by `ndim == 1 or .bias`, rate changed once an epoch, betas (0.9, 0.95)."""
    import torch

    from tests.parity import torch_stage_two as ts

    rng = making.rng("train_mae")
    model = cases_models.mae_model(rng, depth=1)
    h, w = (sizes.MAE["patch"] * g for g in sizes.MAE_GRID)
    images = making.half(rng.normal(size=(3, h, w, 3)))
    n = sizes.MAE_GRID[0] * sizes.MAE_GRID[1]
    drawn = [making.masks(rng, 3, n, sizes.MAE_KEEP) for _ in range(sizes.STEPS)]
    keep, restore, mask = (np.stack(x) for x in zip(*drawn, strict=True))

    def loss(module, step, cast):
        net, x = module.model, cast(making.chw(images))
        pred = net(x, making.tensor(keep[step]), making.tensor(restore[step]))
        return net.loss(x, pred, cast(making.tensor(mask[step])))

    def optimizer(net):
        groups = ts.decay_groups(net, 0.05)
        return torch.optim.AdamW(groups, lr=1.5e-3, betas=(0.9, 0.95), eps=1e-8)

    inputs = {"images": images, "keep": keep, "restore": restore, "mask": mask}
    inputs = {k: v.astype(np.uint8) if v.dtype == np.int64 else v
              for k, v in inputs.items()}  # fmt: skip
    return {f"in/{k}": v for k, v in inputs.items()} | _trained(
        model, optimizer, ts.per_epoch(2, sizes.STEPS // sizes.EPOCH), loss, sizes.EPOCH
    )


def train_labs() -> Case:
    """One group, rate changed every step from zero, as the reference's DAE."""
    import torch

    from tests.parity import torch_modules as tm
    from tests.parity import torch_stage_two as ts

    rng = making.rng("train_labs")
    model = tm.Lightning(tm.LabsDAE(**sizes.LABS))
    making.fill(model, rng)
    drawn = [cases_models.labs_inputs(rng, 6) for _ in range(sizes.STEPS)]
    arrays = [np.stack(x) for x in zip(*drawn, strict=True)]

    def loss(module, step, cast):
        values, mask, drop = (cast(making.tensor(x[step])) for x in arrays)
        bits = mask * (1 - drop)
        return tm.masked_mse(module.model(values * bits, bits)[1], values, mask)

    def optimizer(net):
        return torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=0.01)

    named = dict(zip(("values", "mask", "drop"), arrays, strict=True))
    return {f"in/{k}": v for k, v in named.items()} | _trained(
        model, optimizer, ts.per_step(5, sizes.STEPS), loss
    )


def train_pacx() -> Case:
    """Decay on everything, gradients clipped to norm 1, a floor under the rate."""
    import torch

    from tests.parity import torch_stage_two as ts

    rng = making.rng("train_pacx")
    model = cases_stage_two.pacx_model(rng, depth=1)
    inputs = cases_stage_two.pacx_inputs(rng, 8)

    def loss(net, step, cast):
        rows = np.random.default_rng(step).permutation(8)  # pairs stay, order changes
        arrays = {k: v[rows] for k, v in inputs.items()}
        images = cast(making.chw(cases_stage_two.normalized(arrays["images"])))
        return net(images, *(cast(making.tensor(arrays[m])) for m in ("ecg", "labs")))[
            0
        ]

    def optimizer(net):
        trained = [p for p in net.parameters() if p.requires_grad]
        return torch.optim.AdamW(trained, lr=2e-3, weight_decay=0.05)

    return {f"in/{k}": v for k, v in inputs.items()} | _trained(
        model, optimizer, ts.per_epoch(1, 4, 0.01), loss, sizes.EPOCH, 1.0
    )
