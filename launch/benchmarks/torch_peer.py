"""The peer of `bench.py mae|mvmae|unified|distill|embed|ecg`, in PyTorch.

Modules of the published shapes (torch_models.py) with F.scaled_dot_product_attention,
fused AdamW, autocast, and torch.compile where asked for. Images come as uint8 and are
normalised in the step, as ours; a batch stays on the device.

  python -m launch.benchmarks.torch_peer WORK KIND   (WORK: JSON of ours.py)

KIND is eager or compile, in the dtype of WORK, or reference: eager under float16
autocast with a scaled loss, as the authors' code runs on a GPU.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time

import torch
import torch.nn.functional as F

from launch.benchmarks import (
    measure,
    torch_models,
    torch_mvmae,
    torch_unified,
    worker,
)
from pacx_jax.errors import PacxError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Step(torch.nn.Module):
    """What a mode computes of its inputs: a loss, or embeddings."""

    def __init__(self, work: dict):
        super().__init__()
        self.mode, self.trains, c = work["mode"], work["train"], work["config"]
        if self.mode == "ecg":
            names = ("base_filters", "filters", "blocks", "kernel", "groups_width")
            sizes = [c["model"][name] for name in names]
            classes = len(c["data"]["label_columns"])
            self.net = torch_models.Net1D(*sizes, classes)
            return
        a = work["encoder"]
        if self.mode == "unified":
            names = ("widths", "blocks", "codes", "code_width")
            tokenizer = torch_unified.Tokenizer(*(work["vq"][name] for name in names))
            codes = (a["image_size"] // 2 ** len(work["vq"]["widths"])) ** 2
            length = codes + 2 + c["data"]["report_length"]
            sizes = [a[k] for k in ("width", "depth", "num_heads", "ln_eps")]
            self.net = torch_unified.Unified(tokenizer, work["words"], length, *sizes)
            return
        side, eps = a["image_size"] // a["patch_size"], a["ln_eps"]
        sizes = [a[k] for k in ("patch_size", "width", "depth", "num_heads")]
        self.n = side * side
        if self.mode == "mae":
            self.keep = int(self.n * (1 - c["loss"]["mask_ratio"]))
            d = [c["model"]["decoder"][k] for k in ("width", "depth", "num_heads")]
            self.net = torch_models.MAE((side, side), *sizes, *d, eps)
            return
        if self.mode == "mvmae":
            self.ratio, self.beta = c["loss"]["mask_ratio"], c["loss"]["beta"]
            self.keep, self.views = int(self.n * (1 - self.ratio)), work["views"]
            d = [c["model"]["decoder"][k] for k in ("depth", "num_heads")]
            self.net = torch_mvmae.MVMAE((side, side), *sizes, *d)
            return
        self.net = torch_models.Encoder((side, side), *sizes, eps)
        if self.mode == "distill":
            widths = [work["widths"][m] for m in ("ecg", "labs")]
            lora = [c["lora"][k] for k in ("rank", "alpha", "dropout")]
            h, names = c["heads"], ("clip_weight", "regression_weight")
            self.net = torch_models.Pacx(
                self.net, *widths, h["shared_dim"], *lora, h["dropout"]
            )
            self.net.loss_module = torch_models.Losses(
                *(c["loss"][k] for k in (*names, "label_smoothing"))
            )
            for module in self.net.modules():  # ours trains all LayerNorms
                if isinstance(module, torch.nn.LayerNorm):
                    module.requires_grad_(True)

    def forward(self, x, *rest):
        """Normalised images, or ECGs, and what else there is in a batch."""
        if self.mode in ("mae", "mvmae"):
            noise = torch.rand(len(x), self.n, device=x.device)
            shuffle = noise.argsort(dim=1)
            restore = shuffle.argsort(dim=1)
            mask = (restore >= self.keep).float()
            keep = shuffle[:, : self.keep]
            if self.mode == "mvmae":
                return self._mvmae(x, keep, restore, mask)
            pred = self.net(x, keep, restore)
            return self.net.loss(x, pred.float(), mask)
        if self.mode == "ecg":
            if not self.trains:
                return self.net.features(x)
            return F.binary_cross_entropy_with_logits(self.net(x), *rest)
        if self.mode == "unified":
            return self.net(x, *rest, torch.rand(len(x), device=x.device) < 0.5)
        out = self.net(x, *rest)
        return out[0] if self.mode == "distill" else out

    def _mvmae(self, x, keep, restore, mask):
        """Reconstruction of all views, and the distance of a study's two."""
        view = torch.arange(self.views, device=x.device).repeat(len(x) // self.views)
        tokens = self.net.encoders["vision"](x, view, keep)
        pred = self.net.decoders["vision"](tokens, restore, view)
        z = F.normalize(tokens.float().mean(1), dim=-1)
        first, second = z.unflatten(0, (-1, self.views)).unbind(1)
        align = ((first - second) ** 2).mean() / (1 - self.ratio)
        return self.net.loss(x, pred.float(), mask) + self.beta * align


class Peer:
    """A step of PyTorch's on one synthetic batch."""

    def __init__(self, work: dict, kind: str):
        self._work = work
        cuda = work["backend"] == "gpu"
        if cuda and not torch.cuda.is_available():
            raise PacxError("PyTorch sees no GPU")
        self._device = torch.device("cuda" if cuda else "cpu")
        torch.set_num_threads(measure.cores())
        torch.set_float32_matmul_precision("high" if cuda else "highest")
        c = work["config"]
        dtype = torch.float16 if kind == "reference" else getattr(torch, c["dtype"])
        model = Step(work).to(self._device).train(work["train"])
        self._model = torch.compile(model) if kind == "compile" else model
        self._cast = contextlib.nullcontext
        if dtype != torch.float32:
            self._cast = lambda: torch.autocast(self._device.type, dtype)
        self._trained = [p for p in model.parameters() if p.requires_grad]
        if work["train"]:
            o = c["optim"]
            self._optimizer = torch.optim.AdamW(
                torch_models.decay_groups(model, o["weight_decay"]),
                lr=o["peak_lr"],
                betas=(o["b1"], o["b2"]),
                eps=o["eps"],
                fused=True,
            )
            scaled = dtype == torch.float16
            self._scaler = torch.amp.GradScaler(self._device.type, enabled=scaled)
        self._batch = _batch(work, self._device)
        start = time.perf_counter()
        try:
            self._run(1)
        except Exception as e:
            if kind != "compile":
                raise
            text = str(e).strip().partition("\n")[0][:200]
            raise PacxError(f"torch.compile does not work here ({text})") from None
        trained = [p.numel() for p in self._trained if p.grad is not None]
        self.about = {
            "dtype": str(dtype).removeprefix("torch."),
            "first_step_s": round(time.perf_counter() - start, 3),
            "trained_parameters": sum(trained),
            "threads": torch.get_num_threads(),
            "device": torch.cuda.get_device_name() if cuda else "cpu",
        }

    def turn(self, steps: int) -> measure.Turn:
        """Its figures of so many steps."""
        found = measure.timed(self._run, steps, self._work["batch"])
        found["device_peak_mib"] = None
        if self._device.type == "cuda":
            found["device_peak_mib"] = torch.cuda.max_memory_allocated() / 2**20
        return found

    def _run(self, steps: int) -> float:
        """Takes steps; returns the last one's loss, or its embeddings' mean."""
        for _ in range(steps):
            last = self._train() if self._work["train"] else self._embed()
        if self._device.type == "cuda":
            torch.cuda.synchronize()
        return float(last.mean())

    def _inputs(self) -> tuple:
        first, *rest = self._batch
        if first.dtype == torch.uint8:
            of = self._work["config"]["data"]
            stated = (of["mean"] or MEAN, of["std"] or STD)
            mean, std = (
                torch.tensor(x, device=self._device).view(1, -1, 1, 1) for x in stated
            )
            first = (first.float() / 255 - mean) / std
        return first, *rest

    def _train(self) -> torch.Tensor:
        self._optimizer.zero_grad(set_to_none=True)
        with self._cast():
            loss = self._model(*self._inputs())
        self._scaler.scale(loss).backward()
        clip = self._work["config"]["optim"]["clip_norm"]
        if clip:
            self._scaler.unscale_(self._optimizer)
            torch.nn.utils.clip_grad_norm_(self._trained, clip)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        return loss.detach()

    @torch.inference_mode()
    def _embed(self) -> torch.Tensor:
        with self._cast():
            return self._model(*self._inputs()).float()


def _batch(work: dict, device: torch.device) -> list[torch.Tensor]:
    """uint8 images or ECGs first, then the other inputs of the model."""
    b = work["batch"]
    if work["mode"] == "ecg":
        batch = [torch.randn(b, 12, work["length"])]
        if work["train"]:
            classes = len(work["config"]["data"]["label_columns"])
            batch.append((torch.rand(b, classes) < 0.1).float())
    else:
        side = work["encoder"]["image_size"]
        shape = (b, work["config"]["data"]["channels"], side, side)
        batch = [torch.randint(0, 256, shape, dtype=torch.uint8)]
        if work["mode"] == "unified":
            shape = b, work["config"]["data"]["report_length"]
            text = torch.randint(4, work["words"], shape)
            text[:, 0], text[:, -1] = 2, 3
            batch.append(text)
        if widths := work.get("widths"):
            batch += [torch.randn(b, widths[m]) for m in ("ecg", "labs")]
    return [x.to(device) for x in batch]


if __name__ == "__main__":
    worker.serve(lambda: Peer(json.loads(sys.argv[1]), sys.argv[2]))
