"""The planner: what it counts, what it predicts from that, and what it refuses."""

import dataclasses
import importlib
import json
import os
import re
import sys

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

from configs import distill_vitb16, mae_vitb16
from launch import plan as command
from launch.planning import (
    abstract,
    chips,
    compilers,
    fitting,
    flops,
    hlo,
    predict,
    report,
    worker,
)
from launch.planning import plan as planning
from launch.planning.predict import Collective
from pacx_jax import losses
from pacx_jax.errors import PacxError

FIELDS = """devices global_batch peak_bytes_per_chip hbm_bytes_per_chip flops_per_step
collectives predicted_images_per_s predicted_efficiency
predicted_efficiency_no_overlap""".split()


def run(monkeypatch, flags):
    """plan.py's exit code; ml_collections reads overrides from sys.argv itself."""
    monkeypatch.setattr(sys, "argv", ["plan.py", *flags])
    return command.main()


def collectives(text, devices):
    return [Collective(**found) for found in hlo.collectives(text, devices)]


def compiled_text(mesh, body, *shapes, out):
    rows = PartitionSpec("data")
    mapped = jax.shard_map(
        body, mesh=mesh, in_specs=(rows,) * len(shapes), out_specs=out, check_vma=False
    )
    args = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return jax.jit(mapped).lower(*args).compile().as_text()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # Of (16, 4) float32 a device has (2, 4), 32 bytes; all of it is 256.
        ("psum", Collective("all-reduce", 8, 1, 32, {"f32": 32})),
        ("all_gather", Collective("all-gather", 8, 1, 256, {"f32": 256})),
        ("psum_scatter", Collective("reduce-scatter", 8, 1, 256, {"f32": 256})),
        ("loop", Collective("all-reduce", 8, 5, 160, {"f32": 160})),
    ],
)
def test_collectives_of_a_known_module_are_counted(meshes, name, expected):
    def body(x):
        if name == "psum":
            return jax.lax.psum(x, "data")
        if name == "all_gather":
            return jax.lax.all_gather(x, "data", tiled=True)
        if name == "psum_scatter":
            whole = jnp.tile(x, (8, 1)) * jnp.arange(1.0, 17.0)[:, None]
            return jax.lax.psum_scatter(whole, "data", tiled=True)
        step = lambda c, _: (jnp.sin(jax.lax.psum(c, "data")), None)  # noqa: E731
        return jax.lax.scan(step, x, None, length=5)[0]

    out = PartitionSpec("data") if name == "psum_scatter" else PartitionSpec()
    text = compiled_text(meshes[8], body, (16, 4), out=out)
    assert collectives(text, 8) == [expected]


def test_collectives_as_a_tpu_writes_them_are_counted():
    text = """HloModule step
%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[]{:T(128)} add(%a, %b)
}
ENTRY %main (p: f32[8]) -> f32[8] {
  %r = (bf16[768,4]{1,0:T(8,128)(2,1)S(1)}, f32[]{:T(128)}, /*index=2*/pred[8]{0}) \
all-reduce(%a, %b, %c), replica_groups=[1,256]<=[256], to_apply=%add
  %s = (f32[2,4]{1,0}, f32[8,4]{1,0}) all-gather-start(%x), replica_groups={{0,1,2,3}}
  %d = f32[8,4]{1,0} all-gather-done(%s)
  ROOT %t = bf16[2,4]{1,0} reduce-scatter(%y), replica_groups={{0,1},{2,3}}, \
to_apply=%add
}
"""
    assert collectives(text, 256) == [
        Collective("all-gather", 4, 1, 8 * 4 * 4, {"f32": 128}),
        Collective(
            "all-reduce",
            256,
            1,
            768 * 4 * 2 + 4 + 8,
            {"bf16": 768 * 4 * 2, "f32": 4, "pred": 8},
        ),
        Collective("reduce-scatter", 2, 1, 2 * 4 * 2 * 2, {"bf16": 32}),
    ]


PART = """%fused.{} (p: f32[4]) -> f32[16] {{
  ROOT %g = f32[16]{{0}} all-gather(%p), channel_id=5, replica_groups=[4,4]<=[16], \
dimensions={{0}}, frontend_attributes={{chain_id="3"}}
}}
"""


def test_loops_and_meshes_as_a_tpu_writes_them_are_counted():
    text = """HloModule step
%condition (p: (s32[], f32[8])) -> pred[] {
  %bound = s32[]{:T(128)} constant(4)
  %p = (s32[]{:T(128)}, f32[8]{0:T(128)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i, %bound), direction=LT
}
%body (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %r = f32[8]{0} all-reduce(%x), replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_1'}
}
ENTRY %main (p: f32[8]) -> f32[8] {
  %loop = (s32[], f32[8]) while(%init), condition=%condition, body=%body
  %a = f32[8] fusion(%y), calls=%fused.1
  %b = f32[8] fusion(%y), calls=%fused.2
  ROOT %t = f32[8]{0} all-gather(%y), replica_groups=mesh['x'=2,'y'=8] {'x','y':(1)4}
}
"""
    for i in (1, 2):  # parts of one gather that runs beside two others
        text = text.replace("ENTRY", PART.format(i) + "ENTRY", 1)
    assert collectives(text, 16) == [
        Collective("all-gather", 4, 1, 16 * 4, {"f32": 64}),
        Collective("all-gather", 8, 1, 8 * 4, {"f32": 32}),
        Collective("all-reduce", 2, 4, 4 * 8 * 4, {"f32": 128}),
    ]


def test_a_collective_in_a_loop_of_unknown_length_is_refused(meshes):
    def body(x):
        return jax.lax.while_loop(
            lambda c: c.sum() < 100, lambda c: jax.lax.psum(c, "data"), x
        )

    text = compiled_text(meshes[8], body, (16, 4), out=PartitionSpec())
    with pytest.raises(ValueError, match="unknown length"):
        collectives(text, 8)


def test_ring_formulas():
    ring = chips.Ring(4, 1e9, 1e-6)
    reduce = Collective("all-reduce", 4, 3, 8_000_000)
    # Twice three quarters of 8 MB at 1 GB/s, and 2 x 3 hops of each of 3.
    assert reduce.seconds([ring]) == pytest.approx(12e-3 + 18e-6)
    gather = Collective("all-gather", 4, 1, 8_000_000)
    assert gather.seconds([ring]) == pytest.approx(6e-3 + 3e-6)
    # On two axes, the second carries a quarter: both together 15/16 of the bytes.
    both = Collective("reduce-scatter", 16, 1, 16_000_000).seconds([ring, ring])
    assert both == pytest.approx(15e-3 + 6e-6)
    slow = chips.Ring(2, 1e8, 0.0)
    assert gather.seconds([ring, slow]) == pytest.approx(6e-3 + 3e-6 + 10e-3)


def hand_made(topology, collectives_, many=0.0):
    peak = topology.chip.peak_flops
    counted = ((topology.curve()[0].devices, 0.0), (topology.devices, many * peak))
    return predict.Costs(topology, 0.05 * peak, counted, 0.6, 0.0, tuple(collectives_))


def test_efficiency_is_relative_to_one_chip_without_collectives():
    topology = chips.parse("v5e:16x16")
    size = 50_000_000_000 // 10
    costs = hand_made(topology, [Collective("all-reduce", 256, 1, size)])
    # Compute 100 ms at half of the peak, 60 of it backward. One link one way would take
    # 200 ms times (n - 1) / n, and hops; a pod has two closed rings, a host two open.
    point = predict.at(costs, topology)
    assert point.compute == pytest.approx(0.1)
    assert point.reduction == pytest.approx(0.2 / 4 * 255 / 256 + 60e-6)
    assert point.step == pytest.approx(0.1)
    host = predict.at(costs, topology.curve()[0])
    assert host.reduction == pytest.approx(0.2 / 2 * 3 / 4 + 4e-6)
    assert host.step == pytest.approx(0.1 + host.reduction - 0.06)
    for one in (point, host):
        assert one.efficiency == pytest.approx(0.1 / one.step)
        assert one.no_overlap == pytest.approx(0.1 / (0.1 + one.reduction))
    # The pod's four links carry more than a host's two: relative to a host, its
    # efficiency without overlap would be above 1.
    assert host.no_overlap < point.no_overlap


@pytest.mark.parametrize("name", ["v5e:16x16", "v5p:8x8x16", "gpu:256xH100", "v5e:1x1"])
@pytest.mark.parametrize("many", [0.0, 0.04])
def test_no_efficiency_is_above_1(name, many):
    topology = chips.parse(name)
    n = topology.devices
    sizes = {"all-reduce": 10**8, "all-gather": 10**7}
    sent = [Collective(kind, n, 3, size) for kind, size in sizes.items() if n > 1]
    costs = hand_made(topology, sent, many)
    for point in predict.curve(costs):
        assert 0 < point.no_overlap <= point.efficiency <= 1


def test_gathers_grow_with_the_chips_and_wait_for_nobody():
    topology = chips.parse("v5p:8x8x16")
    costs = hand_made(topology, [Collective("all-gather", 1024, 2, 1024_000)], many=0.1)
    at_host = costs.collectives_at(topology.curve()[0])
    assert at_host == [(Collective("all-gather", 4, 2, 4000), False)]
    point = predict.at(costs, topology)
    assert point.other > 0 == point.reduction
    # FLOPs grow linearly with the global batch, from one host on.
    assert costs.compute_seconds(1024) == pytest.approx(0.1)
    grown = costs.compute_seconds(2044) - costs.compute_seconds(1024)
    assert grown == pytest.approx(0.2)


def test_gathers_wait_and_grow_where_xla_makes_all_reduces_of_them():
    topology = chips.parse("v5p:8x8x16")
    gradients, rows = 8_000_000, 1024 * 1000
    one = Collective("all-reduce", 1024, 9, gradients + rows)
    costs = dataclasses.replace(hand_made(topology, [one]), gathered=rows)
    assert costs.collectives_at(topology.curve()[0]) == [
        (Collective("all-reduce", 4, 9, 4 * 1000), False),
        (Collective("all-reduce", 4, 0, gradients), True),
    ]
    point = predict.at(costs, topology)
    rings = topology.rings(1024)
    assert point.other == Collective("all-reduce", 1024, 9, rows).seconds(rings)
    assert point.step == pytest.approx(point.compute + point.other)  # the rest hides
    # Where they are gathers still, nothing of the all-reduces is theirs.
    apart = Collective("all-gather", 1024, 1, rows)
    reduce = Collective("all-reduce", 1024, 8, gradients)
    costs = dataclasses.replace(hand_made(topology, [apart, reduce]), gathered=rows)
    assert costs.collectives_at(topology) == [(apart, False), (reduce, True)]


def test_what_a_step_sends_by_itself_is_counted_from_its_trace(meshes):
    def loss(za, zb):
        found = losses.info_nce(
            za, {"b": zb}, jnp.float32(9), label_smoothing=0.1, mesh=meshes[8]
        )
        return found["b"]

    z = jax.ShapeDtypeStruct((64, 16), jnp.float32)
    size, numbers = 64 * 16 * 4, 64 * 4
    # Forward: the anchors, and for each column a maximum and a sum; the loss. Backward:
    # the anchors' gradients, and one number a column.
    sent = flops.count(jax.grad(loss, (0, 1)), (z, z), 8).gathered
    assert 2 * size + 3 * numbers <= sent <= 2 * size + 3 * numbers + 16
    assert flops.count(lambda z: z.sum(), (z,), 8).gathered == 0


def test_rings_are_closed_in_whole_pods_and_in_cubes():
    closed = {
        "v5e:16x16": [1, 1],
        "v5e:8x16": [0, 1],
        "v5e:8x8": [0, 0],
        "v5p:2x4x4": [0, 0, 0],
        "v5p:4x4x8": [1, 1, 1],
    }
    for name, axes in closed.items():
        topology = chips.parse(name)
        link = topology.chip.link_bandwidth
        rings = topology.rings(topology.devices)
        each = [link * (1 + one) * len(axes) for one in axes]
        assert [ring.bytes_per_second for ring in rings] == each
    # Google states 51.2 TB/s for all-reduces of a v5e pod, 200 GB/s a chip: four links.
    pod = chips.parse("v5e:16x16").rings(256)
    assert pod[0].bytes_per_second == pytest.approx(51.2e12 / 256)


def test_groups_of_a_part_of_the_chips_go_round_their_own_rings():
    node = chips.parse("gpu:64xH100")
    assert [r.size for r in node.rings(8)] == [8]
    assert [r.size for r in node.rings(16)] == [8, 2]
    assert [r.bytes_per_second for r in node.rings(64)] == [450e9, 50e9]
    curve = [t.devices for t in node.curve()]
    assert curve[0] == 8 and curve[-1] == 1024 and 64 in curve
    slices = [t.devices for t in chips.parse("v5p:8x8x16").curve()]
    assert slices[0] == 4 and slices[-1] == 6144 and 1024 in slices


@pytest.mark.parametrize(
    "name, host",
    [
        ("v5e:1x1", "v5e:1x1"),
        ("v5e:2x4", "v5e:2x2"),
        ("v6e:4x8", "v6e:2x2"),
        ("v5e:16x16", "v5e:2x2"),
        ("v5p:4x4x64", "v5p:2x2x1"),
        ("v5p:8x8x16", "v5p:2x2x1"),
        ("gpu:24xH100", "gpu:8xH100"),
    ],
)
def test_a_curve_holds_the_topology_itself_in_order_of_size(name, host):
    topology = chips.parse(name)
    curve = topology.curve()
    devices = [t.devices for t in curve]
    assert curve.count(topology) == 1 and devices == sorted(devices)
    assert curve[0].name == host


def test_products_are_counted_through_loops_and_on_every_device(meshes):
    def loop(x, w):
        return jax.lax.scan(lambda c, _: (c @ w, None), x, None, length=5)[0].sum()

    x = jax.ShapeDtypeStruct((16, 8), jnp.float32)
    w = jax.ShapeDtypeStruct((8, 8), jnp.float32)
    counted = flops.count(loop, (x, w), 4)
    assert counted == (5 * 2 * 16 * 8 * 8 / 4, 0, True)
    assert not flops.count(jnp.matmul, (x, w), 4).loops
    gradient = jax.value_and_grad(
        lambda x, w: (jnp.tanh(x @ w) @ w).sum(), argnums=(0, 1)
    )
    assert flops.count(gradient, (x, w), 1).flops == 6 * 2 * 16 * 8 * 8
    # XLA drops the gradients of a frozen side, and so does the count.

    def of_x(x, w):
        value, (dx, _) = gradient(x, w)
        return value, dx

    assert flops.count(of_x, (x, w), 1).flops == 4 * 2 * 16 * 8 * 8
    rows = PartitionSpec("data")
    each = jax.shard_map(
        lambda x, w: x @ w,
        mesh=meshes[8],
        in_specs=(rows, PartitionSpec()),
        out_specs=rows,
    )
    assert flops.count(each, (x, w), 8).flops == 2 * 2 * 8 * 8


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("memory", [lambda b: 100 + 3 * b, lambda b: 100 + b + b * b])
def test_the_largest_batch_is_found_and_was_compiled(memory, told):
    seen = []

    def compile_at(rows):
        seen.append(rows)
        fits = memory(rows) <= 1000
        return fitting.Tried(rows, memory(rows) if fits or told else None, fits)

    first = fitting.Tried(8, memory(8), True)
    tried = fitting.largest(first, compile_at, 1000, 100, 12)
    best = max(b for b in range(8, 1000, 8) if memory(b) <= 1000)
    assert fitting.bounds(tried) == (best, best + 8)
    assert set(seen) == {t.rows for t in tried} - {8} and len(seen) <= 6
    few = fitting.largest(first, compile_at, 1000, 100, 0)
    assert few == [first] and fitting.bounds(few) == (8, None)


@pytest.mark.parametrize(
    "topology",
    """v7x:4x4 v5e v5e:2x2x1 v5e:3x3 v5e:1x2 v6e:1x256 v5p:2x2x8 v5p:8x4x4 v5p:4x4x6
    v5p:16x16x32 v5p:0x4x4 v4:2x2x1 gpu:8xB7 gpu:12xH100 gpu:1032xH100 gpu:0xH100
    gpu:H100""".split(),
)
def test_a_topology_that_is_not_to_be_had_is_one_line(topology, monkeypatch, capsys):
    code = run(monkeypatch, ["--config=configs/labs_dae.py", f"--topology={topology}"])
    out, err = capsys.readouterr()
    assert code == 2 and out == ""
    assert err.startswith(f"error: --topology={topology}: ") and err.count("\n") == 1
    known = "2x2, 2x4, 4x4, 4x8, 8x8, 8x16, 16x16; v5p:", "A100, H100, H200"
    assert all(each in err for each in known)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], "give --config="),
        (["--config=configs/none.py"], "no such file"),
        (["--all"], "give --out="),
        (["--config=configs/mae_vitb16.py", "--config.model.wdth=3"], "wdth"),
        (
            ["--config=configs/mae_vitb16.py", "--topology=v5e:2x2", "--compiles=-1"],
            "--compiles=-1",
        ),
    ],
)
def test_bad_flags_are_one_line(flags, said, monkeypatch, capsys):
    assert run(monkeypatch, flags) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1


def test_without_libtpu_a_plan_for_tpus_is_one_line(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("PACX_LIBTPU", str(tmp_path))
    flags = ["--config=configs/labs_dae.py", "--topology=v5e:2x2"]
    code = run(monkeypatch, [*flags, f"--plans={tmp_path}"])
    err = capsys.readouterr().err
    assert code == 2 and "pip install --no-deps --target=DIR libtpu, and set" in err


def tiny(recipe, directory, rows):
    """A recipe's small preset on encoders of zeros, in bfloat16 as on chips."""
    config = recipe.get_config("runlocal")
    config.dtype, config.global_batch_size = "bfloat16", rows
    if config.objective == "distill":
        for field, kind in abstract.FOLDERS["distill"].items():
            data = config.data
            made = abstract.zero_folder(kind, directory, data, "runlocal")
            config.update_from_flattened_dict({field: made})
    return config


@pytest.mark.parametrize("recipe", [mae_vitb16, distill_vitb16])
def test_a_step_has_no_collective_but_gradients_and_contrastive_gathers(
    recipe, tmp_path
):
    config = abstract.completed(tiny(recipe, str(tmp_path), 32), str(tmp_path))
    step = abstract.train_step(config, jax.devices())
    text = step.function.lower(*step.args).compile().as_text()
    found = {c.kind: c for c in collectives(text, 8)}
    check_collectives(found, step.args[0], config, 8)


def check_collectives(found, state, config, devices):
    """The gradient of each parameter once, scalars, and the embeddings' gathers."""
    gradients = sum(leaf.size * 4 for leaf in jax.tree.leaves(state.params))
    scalars = found["all-reduce"].bytes_per_chip - gradients
    assert all(c.group == devices for c in found.values())
    if config.objective == "mae":
        assert 0 < scalars <= 64
        assert set(found) == {"all-reduce"}
        return
    # X-rays' embeddings, float32; in the backward pass they are added up and split. For
    # ECG and labs, of each column its largest sum, all sums, and their gradients.
    one = config.global_batch_size * config.heads.shared_dim * 4
    assert set(found) == {"all-reduce", "all-gather", "reduce-scatter"}
    assert found["all-gather"].bytes_per_chip == one
    assert found["reduce-scatter"].bytes_per_chip == one
    assert 0 < scalars <= 2 * 3 * 4 * config.global_batch_size + 64


@pytest.mark.full
@pytest.mark.parametrize("chips_", [256, 1024])
@pytest.mark.parametrize("recipe", [mae_vitb16, distill_vitb16])
def test_pods_have_no_other_collective_either(recipe, chips_, tmp_path):
    config = recipe.get_config()
    config.global_batch_size = 8 * chips_
    topology = f"gpu:{chips_}xH100"
    simulated = dataclasses.replace(chips.parse(topology), simulated=True)
    result = worker.call(worker.run, config, simulated, 0)
    found = {c["kind"]: Collective(**c) for c in result["collectives"]}
    completed = abstract.completed(config, str(tmp_path))
    state = abstract.train_step(abstract.resized(completed, 64), jax.devices()).args[0]
    check_collectives(found, state, completed, chips_)


def test_a_plan_for_gpus_without_a_description_is_simulated_and_says_so(
    tmp_path, monkeypatch, capsys
):
    flags = ["--config=configs/mae_vitb16.py:runlocal", "--topology=gpu:16xA100"]
    flags += ["--global_batch=64", f"--plans={tmp_path}", "--compiles=1"]
    flags += ["--config.model.decoder.depth=1"]
    assert run(monkeypatch, flags) == 0
    lines = capsys.readouterr().out.splitlines()
    found = json.loads(lines[-1])
    assert set(FIELDS) <= set(found)
    assert found["devices"] == 16 and found["global_batch"] == 64
    assert found["hbm_bytes_per_chip"] == 80 * 10**9
    (reduction,) = found["collectives"]
    assert reduction["kind"] == "all-reduce" and reduction["count"] >= 1
    assert found["collectives_counted_on"] == found["compiled_for"] == "simulated"
    assert any("XLA's CPU compiler, which knows no A100" in line for line in lines)
    assert found["model_ms"] is found["kernels"] is None
    assert 0 < found["predicted_efficiency"] <= 1
    assert found["largest_global_batch"] > 64  # one more compile, which fitted
    assert found["peak_bytes_per_chip"] > found["argument_bytes_per_chip"] > 0
    step = 64 / found["predicted_images_per_s"]
    assert step >= found["roofline_seconds"] * 0.999
    assert any(line.startswith("| **gpu:16xA100** | 16 | 64 |") for line in lines)
    # Asked again, it is not compiled again.
    (kept,) = tmp_path.glob("*.json")
    stamp = kept.stat().st_mtime_ns
    assert run(monkeypatch, flags) == 0
    assert capsys.readouterr().out.splitlines() == lines
    assert kept.stat().st_mtime_ns == stamp
    # One that is damaged is named.
    kept.write_bytes(kept.read_bytes()[:9])
    assert run(monkeypatch, flags) == 2
    assert f"{kept} is damaged" in capsys.readouterr().err


@pytest.fixture
def small(monkeypatch):
    """Compiles for chips of a megabyte, with the CPU devices of this process."""
    for chips_, name in ((chips.GPUS, "H100"), (chips.TPUS, "v5e")):
        chip = dataclasses.replace(chips_[name], hbm_bytes=2**20)
        monkeypatch.setitem(chips_, name, chip)
    config = importlib.import_module("configs.labs_dae").get_config()
    config.global_batch_size = 64
    simulated = lambda name: dataclasses.replace(chips.parse(name), simulated=True)  # noqa: E731
    return lambda topology: worker.run(config, simulated(topology), 0)


def test_a_batch_that_compiles_and_does_not_fit_is_refused(small):
    said = (
        r"--global_batch=64 \(8 rows a chip\) does not fit gpu:8xH100: .* smaller one"
    )
    with pytest.raises(PacxError, match=said):
        small("gpu:8xH100")


def test_a_tpu_s_memory_is_not_judged_by_what_a_cpu_s_compiler_takes(small):
    result = small("v5e:2x4")
    assert result["peak"] > 2**20 and result["collectives"]


def test_where_a_text_cannot_be_had_collectives_are_counted_on_simulated_devices(
    monkeypatch, tmp_path
):
    numbers = dict.fromkeys("arguments temporaries outputs code peak".split(), 1)
    numbers |= {"flops": 1.0, "traffic": 1.0, "backward": 0.5, "gathered": 0}
    numbers |= {"mesh": {"data": 4, "tensor": 1}, "kernels": None}
    numbers |= {"counted": ((4, 1.0), (4, 1.0)), "tried": [(8, 1, True)]}
    sent = dataclasses.asdict(Collective("all-reduce", 4, 1, 8, {"f32": 8}))

    def compiled(function, config, topology, compiles):
        assert compiles == (0 if topology.simulated else 3)
        return numbers | {"collectives": [sent] if topology.simulated else None}

    monkeypatch.setattr(worker, "call", compiled)
    config = importlib.import_module("configs.labs_dae").get_config()
    costs, summary = planning.make(config, "v5e:2x2", 3, tmp_path)
    assert summary["collectives"] == [sent] and summary["compiled_for"] == "chips"
    assert summary["collectives_counted_on"] == "simulated"
    where = "the step compiled for 4 simulated CPU devices"
    assert any(where in line for line in report.lines(costs, summary))


def require_libtpu():
    """Skips where it is not installed; where PACX_LIBTPU names it, as in CI, fails."""
    if compilers.version("PACX_LIBTPU") == "none" and "PACX_LIBTPU" not in os.environ:
        pytest.skip("libtpu is not installed")


def test_a_plan_for_a_tpu_is_compiled_by_libtpu(tmp_path):
    require_libtpu()
    config = importlib.import_module("configs.labs_dae").get_config()
    config.global_batch_size = 65536  # the optimizer's FLOPs are no products
    costs, summary = planning.make(config, "v5e:2x2", 0, tmp_path)
    assert summary["collectives_counted_on"] == "chips"
    assert summary["mesh"] == {"data": 4, "fsdp": 1, "tensor": 1}
    assert summary["hbm_bytes_per_chip"] == 16 * 2**30 > summary["peak_bytes_per_chip"]
    kinds = {c["kind"] for c in summary["collectives"]}
    assert kinds == {"all-reduce"}
    products = costs.counted[1][1]
    # Measured 1.11: elementwise work and drawn noise are much in so small a model.
    assert products <= costs.flops <= 1.15 * products
    assert any("v5e:16x16" in line for line in report.lines(costs, summary))
    config.global_batch_size = 1001
    with pytest.raises(PacxError, match="1001"):
        planning.make(config, "v5e:2x2", 0, tmp_path)


def test_a_file_s_tables_are_renewed_between_its_marks(monkeypatch, tmp_path):
    path = tmp_path / "scaling.md"
    path.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    monkeypatch.setattr(report, "section", lambda recipe, pod, *_: [f"{recipe} {pod}"])
    report.renew(path, 1, tmp_path, 2)
    text = path.read_text()
    assert text.startswith("before\n") and text.endswith(f"{report.END}\nafter\n")
    assert "old" not in text and "segment v5p:8x8x16" in text
    path.write_text("nothing\n")
    with pytest.raises(PacxError, match=re.escape("has no lines")):
        report.renew(path, 1, tmp_path, 1)
