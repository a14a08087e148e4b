"""The peer of `bench.py mae|distill|embed|ecg`: the same work in PyTorch.

Modules of the published shapes (torch_modules.py, torch_stage_two.py) with
F.scaled_dot_product_attention, fused AdamW, autocast, and torch.compile where asked
for. Images come as uint8 and are normalised in the step, as ours; a batch stays on the
device.

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

from launch.benchmarks import measure, torch_modules, torch_stage_two, worker
from pacx_jax.errors import PacxError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class MaskedAutoencoder(torch.nn.Module):
    """Normalised images -> loss, masks drawn here."""

    def __init__(self, work: dict):
        super().__init__()
        side, e = work["image_size"] // work["patch"], work["decoder"]
        self.n = side * side
        self.keep = int(self.n * (1 - work["mask_ratio"]))
        self.mae = torch_modules.MAE(
            (side, side), work["patch"], work["width"], work["depth"],
            work["num_heads"], e["width"], e["depth"], e["num_heads"],
            work["ln_eps"])  # fmt: skip

    def forward(self, images):
        noise = torch.rand(len(images), self.n, device=images.device)
        shuffle = noise.argsort(dim=1)
        restore = shuffle.argsort(dim=1)
        mask = (restore >= self.keep).float()
        pred = self.mae(images, shuffle[:, : self.keep], restore)
        return self.mae.loss(images, pred.float(), mask)


class Distilled(torch.nn.Module):
    """Normalised images and embeddings -> loss; all LayerNorms are trained."""

    def __init__(self, work: dict):
        super().__init__()
        lora, loss = work["lora"], work["loss"]
        self.pacx = torch_stage_two.Pacx(
            _encoder(work), work["widths"]["ecg"], work["widths"]["labs"],
            work["shared"], lora["rank"], lora["alpha"], lora["dropout"],
            work["head_dropout"])  # fmt: skip
        self.pacx.loss_module = torch_stage_two.Losses(
            loss["clip_weight"], loss["regression_weight"], loss["label_smoothing"]
        )
        for module in self.pacx.modules():
            if isinstance(module, torch.nn.LayerNorm):
                module.requires_grad_(True)

    def forward(self, images, ecg, labs):
        return self.pacx(images, ecg, labs)[0]


class Diagnosed(torch.nn.Module):
    """ECGs and labels -> loss."""

    def __init__(self, work: dict):
        super().__init__()
        self.net = _net1d(work)

    def forward(self, ecg, labels):
        return F.binary_cross_entropy_with_logits(self.net(ecg), labels)


def _encoder(work: dict) -> torch_modules.Encoder:
    side = work["image_size"] // work["patch"]
    sizes = (work["patch"], work["width"], work["depth"], work["num_heads"])
    return torch_modules.Encoder((side, side), *sizes, work["ln_eps"])


def _net1d(work: dict) -> torch_modules.Net1D:
    return torch_modules.Net1D(
        work["base_filters"], tuple(work["filters"]), tuple(work["blocks"]),
        work["kernel"], work["groups_width"], work["classes"])  # fmt: skip


class _Features(torch.nn.Module):
    def __init__(self, net: torch_modules.Net1D):
        super().__init__()
        self.net = net

    def forward(self, ecg):
        return self.net.features(ecg)


class Peer:
    """A step of PyTorch's on one synthetic batch."""

    def __init__(self, work: dict, kind: str):
        self.batch, self._work = work["batch"], work
        cuda = work["backend"] == "gpu"
        if cuda and not torch.cuda.is_available():
            raise PacxError("PyTorch sees no GPU")
        self._device = torch.device("cuda" if cuda else "cpu")
        torch.set_num_threads(measure.cores())
        torch.set_float32_matmul_precision("high" if cuda else "highest")
        dtype = torch.float16 if kind == "reference" else getattr(torch, work["dtype"])
        self._dtype = dtype
        model = _model(work).to(self._device).train(work["train"])
        for module in model.modules():
            if isinstance(module, torch_modules.Attention):
                module.fused = True
        self._model = torch.compile(model) if kind == "compile" else model
        if work["train"]:
            o = work["optim"]
            self._trained = [p for p in model.parameters() if p.requires_grad]
            self._optimizer = torch.optim.AdamW(
                torch_stage_two.decay_groups(model, o["weight_decay"]),
                lr=o["peak_lr"],
                betas=(o["b1"], o["b2"]),
                eps=o["eps"],
                fused=True,
            )
        self._scaler = torch.amp.GradScaler(
            self._device.type, enabled=dtype == torch.float16
        )
        self._images, self._rest = _batch(work, self._device)
        start = time.perf_counter()
        try:
            self.run(1)
        except Exception as e:
            if kind != "compile":
                raise
            text = str(e).strip().partition("\n")[0][:200]
            raise PacxError(f"torch.compile does not work here ({text})") from None
        self.about = {
            "kind": kind,
            "dtype": str(dtype).removeprefix("torch."),
            "first_step_s": round(time.perf_counter() - start, 3),
            "trained_parameters": self._count(),
            "threads": torch.get_num_threads(),
            "device": torch.cuda.get_device_name() if cuda else "cpu",
            "torch": torch.__version__,
        }

    def _count(self) -> int:
        """How many parameters the step has given a gradient."""
        trained = self._trained if self._work["train"] else []
        return sum(p.numel() for p in trained if p.grad is not None)

    def _autocast(self):
        if self._dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self._device.type, self._dtype)

    def _inputs(self) -> tuple:
        if self._images is None:
            return self._rest
        mean, std = (
            torch.tensor(x, device=self._device).view(1, 3, 1, 1) for x in (MEAN, STD)
        )
        return ((self._images.float() / 255 - mean) / std, *self._rest)

    def run(self, steps: int) -> float:
        """Takes steps; returns the last one's loss, or its embeddings' mean."""
        for _ in range(steps):
            last = self._train() if self._work["train"] else self._embed()
        if self._device.type == "cuda":
            torch.cuda.synchronize()
        return float(last.mean())

    def _train(self) -> torch.Tensor:
        self._optimizer.zero_grad(set_to_none=True)
        with self._autocast():
            loss = self._model(*self._inputs())
        self._scaler.scale(loss).backward()
        clip = self._work["optim"]["clip_norm"]
        if clip:
            self._scaler.unscale_(self._optimizer)
            torch.nn.utils.clip_grad_norm_(self._trained, clip)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        return loss.detach()

    @torch.inference_mode()
    def _embed(self) -> torch.Tensor:
        with self._autocast():
            return self._model(*self._inputs()).float()

    def device_peak_mib(self) -> float | None:
        """The most that the GPU's allocator has held; None on a CPU."""
        if self._device.type != "cuda":
            return None
        return round(torch.cuda.max_memory_allocated() / 2**20, 1)

    def profile(self, folder: str, steps: int) -> None:
        """A trace of the peer for TensorBoard or Perfetto."""
        handler = torch.profiler.tensorboard_trace_handler(folder)
        with torch.profiler.profile(on_trace_ready=handler):
            self.run(steps)


def _model(work: dict) -> torch.nn.Module:
    if work["mode"] == "mae":
        return MaskedAutoencoder(work)
    if work["mode"] == "distill":
        return Distilled(work)
    if work["mode"] == "embed":
        return _encoder(work)
    return Diagnosed(work) if work["train"] else _Features(_net1d(work))


def _batch(work: dict, device: torch.device):
    """uint8 images, or None, and the other inputs of the model."""
    b = work["batch"]
    if work["mode"] == "ecg":
        rest = [torch.randn(b, 12, work["length"])]
        if work["train"]:
            rest.append((torch.rand(b, work["classes"]) < 0.1).float())
        return None, tuple(x.to(device) for x in rest)
    shape = (b, 3, work["image_size"], work["image_size"])
    images = torch.randint(0, 256, shape, dtype=torch.uint8)
    widths = work.get("widths", {})
    rest = [torch.randn(b, widths[m]) for m in ("ecg", "labs") if widths]
    return images.to(device), tuple(x.to(device) for x in rest)


if __name__ == "__main__":
    worker.serve(lambda: Peer(json.loads(sys.argv[1]), sys.argv[2]))
