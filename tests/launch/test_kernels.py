"""Steps compiled for GPUs: kernels and their times in the text, and real compiles."""

import importlib
import json
import os
import re
import sys

import jax
import jax.numpy as jnp
import pytest

from launch import plan as command
from launch.planning import (
    chips,
    compilers,
    flops,
    hlo,
)
from launch.planning.hlo import Collective
from pacx_jax.errors import PacxError
from pacx_jax.models import attention_tpu

CHIP = chips.GPUS["H100"]._replace(hbm_bandwidth=1e9)  # 1,000 bytes a microsecond


def cost(**names):
    """A backend_config as XLA writes it, with a time in us by each of its models."""
    each = ",".join(
        f'{{"end_to_end_cycles":0,"exec_time_us":{us},"compute_time_us":0,'
        f'"memory_access_time_us":0,"name":"{name.replace("_", "-")}"}}'
        for name, us in names.items()
    )
    return f'"force_earliest_schedule":false,"reification_cost":[{each}]'


LOOP = f"""HloModule jit_step, is_scheduled=true

%fused_add (param_0: f32[8]) -> f32[8] {{
  ROOT %add = f32[8]{{0}} add(%param_0, %param_0), backend_config={{{cost(sol=100)}}}
  %copy.9 = f32[8]{{0}} copy(%add)
}}

%body (param: (s32[], f32[8])) -> (s32[], f32[8]) {{
  %p = (s32[], f32[8]{{0}}) parameter(0)
  %product = (bf16[4,4]{{1,0}}, s8[64]{{0}}) custom-call(%a, %b), \
custom_call_target="__cublas$lt$matmul", backend_config={{{cost(sol=2.5)}}}
  %loop_add = f32[8]{{0}} fusion(%x), kind=kLoop, calls=%fused_add, \
backend_config={{{cost(_=9, sol=0.5)}}}
  ROOT %t = (s32[], f32[8]{{0}}) tuple(%i, %loop_add)
}}

%condition (param: (s32[], f32[8])) -> pred[] {{
  ROOT %lt = pred[] fusion(%i), kind=kLoop, calls=%fused_add, \
backend_config={{{cost(sol=0.0)}}}
}}

ENTRY %main (p: f32[8]) -> f32[8] {{
  %p.1 = f32[8]{{0}} parameter(0)
  %soft = f32[8]{{0}} fusion(%p.1), kind=kCustom, calls=%fused_add, backend_config=\
{{"fusion_backend_config":{{"kind":"__triton","block":1}},\
{cost(_=7, indexing_cost_model=3, sol=0.01)}}}
  %sum = f32[]{{:T(128)}} fusion(%soft), kind=kInput, calls=%fused_add, \
backend_config={{{cost(sol=4)}}}
  %start = f32[8]{{0}} all-reduce-start(%soft), replica_groups={{{{0,1}}}}, \
to_apply=%add, backend_config={{{cost(sol=20)}}}
  %done = f32[8]{{0}} all-reduce-done(%start), backend_config={{{cost()}}}
  %c = f32[8]{{0}} copy(%done)
  %cs = (f32[8]{{0}}, f32[8]{{0}}, u32[]) copy-start(%c)
  %cd = f32[8]{{0}} copy-done(%cs)
  %order = (f32[8]{{0}}, s32[8]{{0}}) sort(%cd, %i), dimensions={{0}}
  ROOT %while.3 = (s32[], f32[8]{{0}}) while(%init), condition=%condition, \
body=%body, backend_config={{"known_trip_count":{{"n":"5"}}}}
}}
"""


def test_kernels_of_loops_are_counted_as_often_as_they_run():
    found = hlo.kernels(LOOP, CHIP)
    kinds = {kind["name"]: tuple(kind.values())[1:] for kind in found["kernels"]}
    us = pytest.approx
    # What stands within a fusion is no kernel. A copy reads and writes 32 bytes, an
    # asynchronous one has a context of 4; the sort reads 32 and writes 64.
    assert kinds == {
        "__cublas$lt$matmul": (5, us(12.5e-6), 0.0),
        "loop fusion": (10, us(2.5e-6), 0.0),
        "Triton fusion": (1, us(3e-6), 0.0),
        "reduction fusion": (1, us(4e-6), 0.0),
        "collective": (1, us(20e-6), 0.0),
        "copy": (2, 0.0, us(0.132e-6)),
        "sort": (1, 0.0, us(0.096e-6)),
    }
    assert list(kinds)[:2] == ["collective", "__cublas$lt$matmul"]
    assert found["custom_calls"] == {"__cublas$lt$matmul": 5}
    assert found["unknown_loops"] == 0 and found["model_ms"] == us(42e-3)
    assert found["own_estimate_ms"] == {"copy": us(0.132e-3), "sort": us(0.096e-3)}
    assert found["kernel_seconds"] == us(22e-6 + 0.228e-6)


def test_a_loop_of_unknown_length_is_taken_as_run_once_and_said():
    found = hlo.kernels(LOOP.replace("known_trip_count", "guess"), CHIP)
    assert found["custom_calls"] == {"__cublas$lt$matmul": 1}
    assert found["unknown_loops"] == 1


CHOICE = f"""HloModule step
%update (p: f32[250]) -> f32[250] {{
  %p = f32[250]{{0}} parameter(0)
  ROOT %adam = f32[250]{{0}} fusion(%p), kind=kLoop, calls=%none, \
backend_config={{{cost(sol=3)}}}
}}
%keep (p: f32[250]) -> f32[250] {{
  ROOT %copy.1 = f32[250]{{0}} copy(%p)
}}
ENTRY %main (p: f32[250]) -> f32[250] {{
  ROOT %cond = f32[250]{{0}} conditional(%ok, %p, %p), CALLED
}}
"""


@pytest.mark.parametrize(
    "called",
    [
        "true_computation=%update, false_computation=%keep",
        "branch_computations={%keep, %update}",
    ],
)
def test_of_a_choice_the_branch_with_the_most_instructions_is_counted(called):
    found = hlo.kernels(CHOICE.replace("CALLED", called), CHIP)
    assert [(k["name"], k["count"]) for k in found["kernels"]] == [("loop fusion", 1)]


ATTENTION = """HloModule step
ENTRY %main (p: bf16[8,50,4,64]) -> bf16[8,50,4,64] {
  %q = bf16[8,50,4,64]{3,2,1,0} bitcast(%p)
  %k = bf16[8,50,4,64]{3,2,1,0} bitcast(%p)
  %v = bf16[8,50,4,64]{3,2,1,0} bitcast(%p)
  %fwd = (bf16[8,4,50,64]{3,1,2,0}, f32[8,4,50]{2,1,0}, u8[0]{0}) custom-call(%q, %k, \
/*index=2*/%v), custom_call_target="__cudnn$fmhaSoftmax", \
api_version=API_VERSION_STATUS_RETURNING, backend_config={"operation_queue_id": "0", \
"cudnn_fmha_backend_config": {"fmha_scale": 0.125, "intermediate_tensor_shape": \
{"element_type": "BF16", "dimensions": ["8", "4", "50", "50"], "tuple_shapes": []}}}
  %s = f32[8,4,50]{2,1,0} get-tuple-element(%fwd), index=1
  %o = bf16[8,50,4,64]{3,2,1,0} bitcast(%gte)
  ROOT %bwd = (bf16[8,4,50,64]{3,1,2,0}, bf16[8,4,50,64]{3,1,2,0}, \
bf16[8,4,50,64]{3,1,2,0}, u8[4096]{0}) custom-call(%q, %k, %v, %s, %o, /*index=5*/%o), \
custom_call_target="__cudnn$fmhaSoftmaxBackward", \
backend_config={"cudnn_fmha_backend_config": {"intermediate_tensor_shape": \
{"element_type": "BF16", "dimensions": ["8", "4", "50", "50"]}}}
}
"""


def test_what_xla_does_not_estimate_takes_its_bytes():
    found = hlo.kernels(ATTENTION, CHIP)
    # Arrays of 8 x 50 x 4 x 64 bfloat16, and a float32 a query; no workspace.
    assert found["own_estimate_ms"] == {
        "__cudnn$fmhaSoftmax": pytest.approx((4 * 204800 + 6400) / 1e6),
        "__cudnn$fmhaSoftmaxBackward": pytest.approx((8 * 204800 + 6400) / 1e6),
    }
    assert set(found["custom_calls"].values()) == {1}
    assert found["model_ms"] == 0


def test_products_within_attention_kernels_are_counted_in_a_trace(monkeypatch):
    compilers.assume_cudnn(monkeypatch.setattr)
    b, n, h, c = 8, 200, 4, 64

    def cudnn(x):
        q, k, v = jnp.moveaxis(x.reshape(b, n, 3, h, c), 2, 0)
        return jax.nn.dot_product_attention(q, k, v, implementation="cudnn")

    x = jax.ShapeDtypeStruct((b, n, 3 * h * c), jnp.bfloat16)
    for attend in (cudnn, lambda x: attention_tpu.attend(x, h, True)):
        total = lambda x: attend(x).astype(jnp.float32).sum()  # noqa: E731
        product = 2 * b * n * n * h * c
        assert flops.count(jax.jit(total), (x,), 1).flops == 2 * product
        # The scores are computed again.
        gradient = jax.jit(jax.grad(total))
        assert flops.count(gradient, (x,), 4).flops == 7 * product / 4


def test_collectives_as_a_gpu_writes_them_are_counted():
    groups = "replica_groups={{0,1,2,3}}"
    text = f"""HloModule step
%wrapped (p: f32[8]) -> f32[8] {{
  ROOT %w = f32[8]{{0}} collective-broadcast(%p), {groups}
}}
ENTRY %main (p: f32[8]) -> f32[8] {{
  %as = ((f32[8]{{0}}), f32[8]{{0}}) async-start(%x), calls=%wrapped
  %ad = f32[8]{{0}} async-done(%as), calls=%wrapped
  %r = (bf16[64,4]{{1,0}}, f32[]) all-reduce-start(%a, %b), \
replica_groups=mesh['axis_0'=4,'axis_1'=1] {{'axis_0'}}, to_apply=%add
  %rd = (bf16[64,4]{{1,0}}, f32[]) all-reduce-done(%r)
  %s = ((f32[16,4]{{1,0}}), f32[4,4]{{1,0}}) reduce-scatter-start(%x), {groups}
  %g = (f32[4,4]{{1,0}}, f32[16,4]{{1,0}}) all-gather-start(%x), {groups}
  ROOT %t = ((f32[8,4]{{1,0}}), f32[8,4]{{1,0}}) all-to-all-start(%x), {groups}
}}
"""
    whole = 16 * 4 * 4
    assert hlo.collectives(text, 8) == [
        Collective("all-gather", 4, 1, whole),
        Collective("all-reduce", 4, 1, 516),
        Collective("all-to-all", 4, 1, 128),
        Collective("collective-broadcast", 4, 1, 32),
        Collective("reduce-scatter", 4, 1, whole),
    ]
    (kind,) = hlo.kernels(text, CHIP)["kernels"]
    zeros = dict.fromkeys(("model_seconds", "own_seconds"), 0.0)
    assert kind == {"name": "collective", "count": 5} | zeros


def require_plugin():
    """Skips where it is not installed; where PACX_CUDA names it, as in CI, fails."""
    if compilers.version("PACX_CUDA") == "none" and "PACX_CUDA" not in os.environ:
        pytest.skip("JAX's CUDA plugin is not installed (docs/scaling.md)")


def run(monkeypatch, *flags):
    monkeypatch.setattr(sys, "argv", ["plan.py", *flags])
    return command.main()


def test_a_plan_for_an_h100_is_compiled_for_it(monkeypatch, tmp_path, capsys):
    require_plugin()
    flags = ["--config=configs/mae_vitb16.py:runlocal", "--topology=gpu:16xH100"]
    flags += ["--config.dtype=bfloat16", "--config.attention=xla"]
    flags += ["--config.model.decoder.depth=1", f"--plans={tmp_path}"]
    assert run(monkeypatch, *flags, "--global_batch=64") == 0
    *lines, last = capsys.readouterr().out.splitlines()
    found = json.loads(last)
    assert found["collectives_counted_on"] == "chips"
    assert found["hbm_bytes_per_chip"] == 80 * 10**9
    assert found["peak_bytes_per_chip"] > found["temporary_bytes_per_chip"] > 0
    (reduction,) = found["collectives"]
    assert reduction["kind"] == "all-reduce" and reduction["group"] == 16
    # Gradients are added up in bfloat16, as a CPU's compiler would not do.
    assert reduction["bytes_per_chip"] < 0.6 * found["gradient_bytes"]
    kinds = {kind["name"]: kind for kind in found["kernels"]}
    assert sum(n for name, n in found["custom_calls"].items() if "cublas" in name) > 0
    assert kinds["collective"]["count"] == reduction["count"]
    model = 1000 * sum(kind["model_seconds"] for kind in kinds.values())
    assert found["model_ms"] == pytest.approx(model) and model > 0
    compute = model - 1000 * kinds["collective"]["model_seconds"]
    compute += sum(found["own_estimate_ms"].values())
    assert 1000 * found["predicted_step_seconds"] >= 0.999 * compute
    assert 0 < found["predicted_mfu"] < 0.5
    assert 0 < found["predicted_efficiency_no_overlap"] < 1
    assert found["predicted_efficiency_no_overlap"] <= found["predicted_efficiency"]
    assert any(line.startswith("| __cublas$lt$matmul |") for line in lines)


@pytest.mark.full
def test_a_batch_that_does_not_fit_an_h100_is_refused_with_what_fits(
    monkeypatch, tmp_path, capsys
):
    require_plugin()
    rows = 2**29
    flags = ["--config=configs/labs_dae.py", "--topology=gpu:1xH100"]
    flags += [f"--global_batch={rows}", f"--plans={tmp_path}"]
    assert run(monkeypatch, *flags) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    said = rf"--global_batch={rows} \({rows} rows a chip\) does not fit gpu:1xH100: "
    assert re.search(said + r"it takes [\d.]+ GiB of 74.5 GiB a chip; give a", err)


def test_a_step_s_text_and_bytes_are_there_for_tests():
    require_plugin()
    config = importlib.import_module("configs.labs_dae").get_config()
    config.global_batch_size = 64
    found = compilers.compile_step(config, "gpu:2xH100")
    assert "ENTRY" in found.text and hlo.collectives(found.text, 2)
    state, arguments = found.aliased_bytes_per_chip, found.argument_bytes_per_chip
    assert 0 < state <= arguments < found.peak_bytes_per_chip


def test_without_the_plugin_a_plan_for_gpus_is_one_line(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("PACX_CUDA", str(tmp_path))
    flags = ["--config=configs/labs_dae.py", "--topology=gpu:1xH100"]
    assert run(monkeypatch, *flags, f"--plans={tmp_path}") == 2
    err = capsys.readouterr().err
    assert "pip install --no-deps --target=DIR jax-cuda13-plugin==" in err
    assert "set PACX_CUDA=DIR" in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("plugin", "pjrt"), [("0.9.9", "0.9.9"), ("0.9.9", None), (None, "0.9.9")]
)
def test_a_plugin_of_another_version_is_refused(plugin, pjrt, monkeypatch, tmp_path):
    monkeypatch.setenv("PACX_CUDA", str(tmp_path))
    names = compilers.WHEELS["PACX_CUDA"]
    for name, version in zip(names, (plugin, pjrt), strict=True):
        if version:
            folder = tmp_path / f"{name.replace('-', '_')}-{version}.dist-info"
            folder.mkdir()
            text = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
            (folder / "METADATA").write_text(text)
    with pytest.raises(PacxError, match=r"pip install.* installed is 0\.9\.9"):
        compilers.check(chips.parse("gpu:1xH100"))
