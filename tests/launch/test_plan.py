"""The planner: what it counts, what it predicts from that, and what it refuses."""

import datetime
import functools
import importlib
import json
import os
import re
import sys
import types

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

from configs import distill_vitb16, mae_vitb16
from launch import plan as command
from launch.planning import abstract, chips, compilers, flops, hlo, report
from launch.planning import plan as planning
from launch.planning.hlo import Collective
from pacx_jax import losses, sharding
from pacx_jax.errors import PacxError
from pacx_jax.models import text_loss

FIELDS = """devices global_batch peak_bytes_per_chip hbm_bytes_per_chip flops_per_step
collectives predicted_images_per_s predicted_efficiency
predicted_efficiency_no_overlap""".split()


def run(monkeypatch, flags):
    """plan.py's exit code; ml_collections reads overrides from sys.argv itself."""
    monkeypatch.setattr(sys, "argv", ["plan.py", *flags])
    monkeypatch.delenv("XLA_FLAGS", False)  # the suite's, which libtpu does not know
    return command.main()


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
        ("psum", Collective("all-reduce", 8, 1, 32)),
        ("all_gather", Collective("all-gather", 8, 1, 256)),
        ("psum_scatter", Collective("reduce-scatter", 8, 1, 256)),
        ("loop", Collective("all-reduce", 8, 5, 160)),
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
    assert hlo.collectives(text, 8) == [expected]


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
    assert hlo.collectives(text, 256) == [
        Collective("all-gather", 4, 1, 8 * 4 * 4),
        Collective("all-reduce", 256, 1, 768 * 4 * 2 + 4 + 8),
        Collective("reduce-scatter", 2, 1, 2 * 4 * 2 * 2),
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
    assert hlo.collectives(text, 16) == [
        Collective("all-gather", 4, 1, 16 * 4),
        Collective("all-gather", 8, 1, 8 * 4),
        Collective("all-reduce", 2, 4, 4 * 8 * 4),
    ]


def test_a_group_is_read_where_the_order_of_the_devices_is_written_too():
    text = """HloModule step
ENTRY %main (p: f32[8]) -> f32[8] {
  ROOT %t = f32[8]{0} all-gather(%y), replica_groups=mesh['a'=2,'b'=1,'c'=4], \
device_ids=([4,2]T(1,0)) {'a'}, dimensions={0}
}
"""
    assert hlo.collectives(text, 8) == [Collective("all-gather", 2, 1, 8 * 4)]


def test_a_collective_in_a_loop_of_unknown_length_is_refused(meshes):
    def body(x):
        return jax.lax.while_loop(
            lambda c: c.sum() < 100, lambda c: jax.lax.psum(c, "data"), x
        )

    text = compiled_text(meshes[8], body, (16, 4), out=PartitionSpec())
    with pytest.raises(PacxError, match="unknown length"):
        hlo.collectives(text, 8)


def step_on(topology, collectives, gathered=0):
    """A step that computes 100 ms, at half of the peak."""
    return {
        "topology": topology.name,
        "devices": topology.devices,
        "global_batch": 8 * topology.devices,
        "flops_per_chip": 0.05 * topology.chip.peak_flops,
        "accessed_bytes_per_chip": 0.0,
        "kernel_seconds": 0.0,
        "gathered_bytes_per_chip": gathered,
        "collectives": [one._asdict() for one in collectives],
    }


def test_efficiency_is_relative_to_one_chip_without_collectives():
    topology = chips.parse("v5e:16x16")
    step = step_on(topology, [Collective("all-reduce", 256, 1, 5_000_000_000)])
    # One link one way would take 200 ms times (n - 1) / n, and hops; a pod has two
    # closed rings, a host two open. Two thirds of 100 ms hide it.
    pod, host = planning.at(step, topology), planning.at(step, topology.curve()[0])
    assert pod["compute_seconds"] == pytest.approx(0.1)
    assert pod["reduction_seconds"] == pytest.approx(0.2 / 4 * 255 / 256 + 60e-6)
    assert pod["step_seconds"] == pytest.approx(0.1)
    assert host["reduction_seconds"] == pytest.approx(0.2 / 2 * 3 / 4 + 4e-6)
    assert host["step_seconds"] == pytest.approx(
        0.1 + host["reduction_seconds"] - 0.2 / 3
    )
    for one in (pod, host):
        assert one["efficiency"] == pytest.approx(0.1 / one["step_seconds"])
        together = 0.1 + one["reduction_seconds"]
        assert one["efficiency_no_overlap"] == pytest.approx(0.1 / together)


def test_a_step_s_kernels_are_its_compute_where_they_are_known():
    step = step_on(chips.parse("gpu:16xH100"), []) | {"kernel_seconds": 0.07}
    assert planning.predicted(step)["predicted_step_seconds"] == 0.07


@pytest.mark.parametrize("name", ["v5e:16x16", "v5p:8x8x16", "gpu:256xH100", "v5e:1x1"])
def test_no_efficiency_is_above_1(name):
    topology = chips.parse(name)
    n = topology.devices
    sizes = {"all-reduce": 10**8, "all-gather": 10**7}
    sent = [Collective(kind, n, 3, size) for kind, size in sizes.items() if n > 1]
    found = planning.predicted(step_on(topology, sent))
    assert len(found["curve"]) == (len(topology.curve()) if n > 1 else 0)
    for point in found["curve"]:
        assert 0 < point["efficiency_no_overlap"] <= point["efficiency"] <= 1


def test_gathers_grow_with_the_chips_and_wait_whatever_xla_makes_of_them():
    topology = chips.parse("v5p:8x8x16")
    host, rows, gradients = topology.curve()[0], 1_024_000, 8_000_000
    apart = Collective("all-gather", 1024, 1, rows)
    reduce = Collective("all-reduce", 1024, 8, gradients)
    both = Collective("all-reduce", 1024, 9, gradients + rows)
    # A host has 2 x 2 chips, of whose axes each carries 2 x 100 GB/s.
    bytes_of = lambda size: size * 3 / 4 / 200e9  # noqa: E731
    for sent, waits in (
        ([apart, reduce], bytes_of(4000) + 2e-6),
        ([both], 2 * bytes_of(4000) + 2 * 9 * 2e-6),
    ):
        step = step_on(topology, sent, gathered=rows)
        least, whole = planning.at(step, host), planning.at(step, topology)
        assert least["other_seconds"] == pytest.approx(waits)
        assert whole["other_seconds"] > waits
        assert whole["step_seconds"] == pytest.approx(0.1 + whole["other_seconds"])
        # What is reduced has the size of the gradients anywhere.
        hops = 0 if sent == [both] else 2 * 8 * 2e-6
        reduced = 2 * bytes_of(gradients) + hops
        assert least["reduction_seconds"] == pytest.approx(reduced)


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
    sent = flops.count(jax.jit(jax.grad(loss, (0, 1))), (z, z), 8).gathered
    assert 2 * size + 3 * numbers <= sent <= 2 * size + 3 * numbers + 16
    assert flops.count(jax.jit(lambda z: z.sum()), (z,), 8).gathered == 0


def test_the_gradient_of_an_output_layer_is_no_row_of_the_batch(meshes):
    def loss(x, kernel):
        labels, valid = jnp.zeros((64, 4), int), jnp.ones((64, 4, 1), bool)
        return text_loss.chunked_cross_entropy(x, kernel, labels, valid)[0].sum()

    x, kernel = (
        jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((64, 4, 16), (16, 32))
    )
    with sharding.tracing(meshes[8]):
        sent = flops.count(jax.jit(jax.grad(loss, (0, 1))), (x, kernel), 8).gathered
    assert sent == 0


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
        assert [rate for _, rate, _ in rings] == each
    # Google states 51.2 TB/s for all-reduces of a v5e pod, 200 GB/s a chip: four links.
    pod = chips.parse("v5e:16x16").rings(256)
    assert pod[0][1] == pytest.approx(51.2e12 / 256)


def test_groups_of_a_part_of_the_chips_go_round_their_own_rings():
    node = chips.parse("gpu:64xH100")
    assert [size for size, _, _ in node.rings(8)] == [8]
    assert [size for size, _, _ in node.rings(16)] == [8, 2]
    assert [rate for _, rate, _ in node.rings(64)] == [450e9, 50e9]
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
        ("v5p:16x16x24", "v5p:2x2x1"),
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
    def count(function, devices=1):
        return flops.count(jax.jit(function), (x, w), devices).flops

    def loop(x, w):
        return jax.lax.scan(lambda c, _: (c @ w, None), x, None, length=5)[0].sum()

    x = jax.ShapeDtypeStruct((16, 8), jnp.float32)
    w = jax.ShapeDtypeStruct((8, 8), jnp.float32)
    one = 2 * 16 * 8 * 8
    assert count(loop, 4) == 5 * one / 4
    gradient = jax.value_and_grad(lambda x, w: (jnp.tanh(x @ w) @ w).sum(), (0, 1))
    assert count(gradient) == 6 * one
    # XLA drops the gradients of a frozen side, and so does the count.

    def of_x(x, w):
        value, (dx, _) = gradient(x, w)
        return value, dx

    assert count(of_x) == 4 * one
    rows = PartitionSpec("data")
    each = jax.shard_map(
        lambda x, w: x @ w,
        mesh=meshes[8],
        in_specs=(rows, PartitionSpec()),
        out_specs=rows,
    )
    assert count(each, 8) == one / 8


@pytest.mark.parametrize(
    "topology",
    """v7x:4x4 v5e v5e:2x2x1 v5e:3x3 v5e:1x2 v6e:1x256 v5p:2x2x8 v5p:8x4x4
    v5p:0x4x4 v4:2x2x1 gpu:8xB7 gpu:8xA100 gpu:12xH100 gpu:1032xH100 gpu:0xH100
    gpu:H100""".split(),
)
def test_a_topology_that_is_not_to_be_had_is_one_line(topology, monkeypatch, capsys):
    code = run(monkeypatch, ["--config=configs/labs_dae.py", f"--topology={topology}"])
    out, err = capsys.readouterr()
    assert code == 2 and out == ""
    assert err.startswith(f"error: --topology={topology}: ") and err.count("\n") == 1
    known = "2x2, 2x4, 4x4, 4x8, 8x8, 8x16, 16x16; v5p:", "of H100, H200, N up to 8"
    assert all(each in err for each in known)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], "give --config="),
        (["--config=configs/none.py"], "no such file"),
        (["--all"], "give --out="),
        (["--config=configs/mae_vitb16.py", "--config.model.wdth=3"], "wdth"),
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


@pytest.mark.parametrize(
    "recipe", [pytest.param(mae_vitb16, marks=pytest.mark.full), distill_vitb16]
)
def test_a_step_has_no_collective_but_gradients_and_contrastive_gathers(
    recipe, tmp_path
):
    config = recipe.get_config("runlocal")
    config.dtype, config.global_batch_size = "bfloat16", 32  # as on chips
    fields = abstract.ENCODERS.get(config.objective, {})
    config.update_from_flattened_dict(dict.fromkeys(fields, ""))
    config = abstract.completed(config, str(tmp_path), "runlocal")
    step, args, _ = abstract.train_step(config, jax.devices())
    text = step.lower(*args).compile().as_text()
    found = {c.kind: c for c in hlo.collectives(text, 8)}
    check_collectives(found, args[0], config, 8)


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


def compiled(config, topology, **changed):
    """What `compile_step` gives of a config, none of which was compiled."""
    parts = "argument temporary output code peak aliased accessed gathered".split()
    found = {f"{part}_bytes_per_chip": 1 for part in parts}
    found |= {"flops_per_chip": 1.0, "gradient_bytes": 8, "text": None}
    mesh = {"data": 4, "fsdp": 1, "tensor": 1}
    return types.SimpleNamespace(**found, mesh=mesh | changed)


def test_where_a_text_cannot_be_had_collectives_are_those_of_the_trace(
    monkeypatch, tmp_path
):
    monkeypatch.setattr(compilers, "compile_step", compiled)
    config = importlib.import_module("configs.labs_dae").get_config()
    found = planning.make(config, "v5e:2x2", tmp_path)
    sent = {"kind": "all-reduce", "group": 4, "count": 1, "bytes_per_chip": 8 + 1}
    assert found["collectives"] == [sent]
    assert found["collectives_counted_on"] == "trace"
    assert found["compiled_on"] == str(datetime.date.today())
    lines = report.lines(found)
    assert "| all-reduce | 4 | 1 | 9 |" in lines
    # Asked again, it is not compiled again; one that is damaged is named.
    monkeypatch.setattr(compilers, "compile_step", None)
    assert planning.make(config, "v5e:2x2", tmp_path) == found
    (kept,) = tmp_path.glob("*.json")
    kept.write_bytes(kept.read_bytes()[:9])
    with pytest.raises(PacxError, match=f"{kept} is damaged"):
        planning.make(config, "v5e:2x2", tmp_path)


def test_where_parameters_are_split_a_step_without_a_text_is_refused(
    monkeypatch, tmp_path
):
    split = functools.partial(compiled, fsdp=4, data=1)
    monkeypatch.setattr(compilers, "compile_step", split)
    config = importlib.import_module("configs.labs_dae").get_config()
    with pytest.raises(PacxError, match="where parameters are split"):
        planning.make(config, "v5e:2x2", tmp_path)


def require_libtpu():
    """Skips where it is not installed; where PACX_LIBTPU names it, as in CI, fails."""
    if compilers.version("PACX_LIBTPU") == "none" and "PACX_LIBTPU" not in os.environ:
        pytest.skip("libtpu is not installed")


def test_a_plan_for_a_tpu_is_compiled_by_libtpu(tmp_path, monkeypatch, capsys):
    require_libtpu()
    flags = ["--config=configs/labs_dae.py", "--topology=v5e:2x2"]
    flags += ["--global_batch=65536", f"--plans={tmp_path}"]
    assert run(monkeypatch, flags) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    found = json.loads(last)
    assert set(FIELDS) <= set(found) and found["collectives_counted_on"] == "chips"
    assert found["mesh"] == {"data": 4, "fsdp": 1, "tensor": 1}
    assert found["hbm_bytes_per_chip"] == 16 * 2**30 > found["peak_bytes_per_chip"] > 0
    assert {c["kind"] for c in found["collectives"]} == {"all-reduce"}
    assert found["accessed_bytes_per_chip"] > found["argument_bytes_per_chip"]
    assert any(line.startswith("| v5e:16x16 | 256 |") for line in lines)
    assert run(monkeypatch, [*flags[:2], "--global_batch=1001"]) == 2
    assert "1001" in capsys.readouterr().err


def test_a_file_s_tables_are_renewed_between_its_marks(monkeypatch, tmp_path):
    path = tmp_path / "scaling.md"
    path.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    mesh = {"data": 4, "fsdp": 1, "tensor": 1}
    sections = dict.fromkeys(("collectives", "kernels", "curve"), [])
    plan = sections | {"compiled_on": "2026-01-02", "mesh": mesh}
    monkeypatch.setattr(planning, "make", lambda *_: plan)
    report.renew(path, tmp_path)
    text = path.read_text()
    assert text.startswith("before\n") and text.endswith(f"{report.END}\nafter\n")
    assert "old" not in text
    head = "## segment on v5p:8x8x16\n\nCompiled on 2026-01-02.\n\n```\npython launch/"
    assert head in text
    path.write_text("nothing\n")
    with pytest.raises(PacxError, match=re.escape("has no lines")):
        report.renew(path, tmp_path)
