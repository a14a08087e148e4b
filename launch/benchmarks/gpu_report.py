"""The table of `launch/gpu_check.py`: a row for every part, as JSON and as Markdown."""

from __future__ import annotations

import json
import pathlib
import re
import signal
from typing import Any

from launch.benchmarks import measure
from pacx_jax import files

OK, FAILED, LATE, LEFT_OUT = "ok", "failed", "out of time", "not run"
_MISSING = re.compile(r"No module named '([\w.]+)'")
_ERROR = re.compile(
    r"^(\w+\.)*\w*(Error|Exception|Interrupt)\b.*|^Fatal Python error.*"
)


def reason(code: int, text: str) -> str:
    """Why a process failed, in one line.

    Args:
      code: its exit code, negative for a signal.
      text: what it wrote to standard error.
    """
    lines = [" ".join(line.split()) for line in text.splitlines() if line.strip()]
    if missing := _MISSING.findall(text):
        package = missing[-1].partition(".")[0]
        return f"needs {package}: carry its wheel, see --help"
    errors = [line for line in lines if _ERROR.match(line)]
    full = [line for line in lines if "RESOURCE_EXHAUSTED" in line]
    full += [line for line in lines if "OutOfMemoryError" in line]
    said = [line for line in lines if line.startswith("error: ")]
    # What a worker of the bench died of stands before the bench's own line on that.
    own = [line for line in said if "what it said stands above" not in line]
    for found in (full, own, errors, said):
        if found:
            return found[-1].removeprefix("error: ")[:300]
    if code < 0:
        return f"ended by {signal.Signals(-code).name}"
    return f"exit code {code}: {lines[-1][:200] if lines else 'it said nothing'}"


def last_json(text: str) -> dict[str, Any] | None:
    """The last line that is a JSON object."""
    for line in reversed(text.splitlines()):
        if line.startswith("{"):
            try:
                return json.loads(line)
            except ValueError:
                continue
    return None


def write(out: pathlib.Path, report: dict[str, Any]) -> None:
    """Renews gpu_check.json and gpu_check.md, each whole or as it was."""
    texts = {"json": json.dumps(report, indent=1) + "\n", "md": markdown(report)}
    for suffix, text in texts.items():
        files.write(out / f"gpu_check.{suffix}", text)


def markdown(report: dict[str, Any]) -> str:
    """The table, under a line on what it was measured."""
    rows = report["rows"]
    of = {row["part"]: row["result"] for row in rows if row["result"]}
    dry = " DRY RUN on a CPU, tiny sizes: its times mean nothing." if report[
        "dry_run"
    ] else ""  # fmt: skip
    lines = [
        "# GPU check",
        "",
        f"{report['date']}, commit {report['commit']}, {report['seconds']:.0f} s of "
        f"{report['budget']:.0f} s; `{report['command']}`.{dry}",
        "",
        *_about(of.get("environment")),
        "| part | outcome | s | |",
        "|---|---|---:|---|",
    ]
    products = (of.get("dense products") or {}).get("flops_per_s")
    for row in rows:
        text = words(row, products and products["median"])
        cells = (row["part"], row["outcome"], f"{row['seconds']:.0f}", text)
        lines.append("| " + " | ".join(c.replace("|", "/") for c in cells) + " |")
    return "\n".join(lines) + "\n"


def _about(found: dict | None) -> list[str]:
    if not found:
        return []
    versions = ", ".join(f"{k} {v}" for k, v in found["versions"].items())
    smi = "; ".join((found["nvidia_smi"] or [])[1:]) or "no nvidia-smi"
    return [
        f"{found['devices']} x {found['device_kind']} ({smi}), "
        f"{found['device_mib'] or 'unknown'} MiB for JAX, cuDNN {found['cudnn']}, "
        f"{found['cores']} cores, XLA's autotune level {found['autotune_level']}, "
        f"XLA_FLAGS `{found['xla_flags']}`; {versions}.",
        "",
    ]


def words(row: dict, products: float | None = None) -> str:
    """What a row says, in one line.

    Args:
      products: FLOP/s of this device's dense products, where they were measured.
    """
    said = [row["reason"]] if row["reason"] else []
    result = row["result"] or {}
    if "numbers" in result:
        numbers = result["numbers"]
        worst = max(n["error"] / n["bound"] if n["bound"] else n["error"]
                    for n in numbers)  # fmt: skip
        within = sum(n["within"] for n in numbers)
        said.append(
            f"{within} of {len(numbers)} within their bounds, the furthest at "
            f"{worst:.2g} of its"
        )
    elif "step_s" in result:
        said += _of_bench(result, products)
    elif "flops_per_s" in result:
        spread = measure.cell(result["flops_per_s"], 1e-12, 1)
        said.append(f"{spread} TFLOP/s of bfloat16, {result['n']} a side")
    elif "backend" in result:
        said.append(f"{result['devices']} x {result['device_kind']}, as above")
    elif "bytes" in result:
        total = sum(result["bytes"].values()) / 2**20
        said.append(f"{', '.join(result['bytes'])}: {total:.1f} MiB")
    return "; ".join(said)


def _of_bench(r: dict, products: float | None) -> list[str]:
    said = [
        f"{measure.cell(r['step_s'], 1000, 1)} ms, {r['images_per_s']:,.0f} images/s"
    ]
    if r["mfu"] is not None:
        said.append(f"MFU {r['mfu']} ({r['peak_source']})")
    if r["mfu_measured"] is not None:
        said[-1] += f", {r['mfu_measured']} of the measured peak"
    need = r["gflop_step"] * 1e9 * r["images_per_s_per_device"]
    if products and r["dtype"] == "bfloat16":
        said.append(f"{need / products:.3f} of this device's dense products")
    said.append(f"{r['peak_mib']:,.0f} MiB")
    if r.get("forced"):
        forms = {True: "hand-written", False: "JAX's"}
        said.append(", ".join(f"{k} {forms[v]}" for k, v in r["forced"].items()))
    if r.get("compile_s") and not r.get("ratios"):  # those come from the cache
        said.append(f"compiled in {r['compile_s']} s")
    if r.get("ratios"):
        peers = ", ".join(f"{k} {v['median']}" for k, v in r["ratios"].items())
        said.append(f"speed of PyTorch's: {peers}")
    if r.get("data_stall_share"):
        said.append(f"waits for data {100 * r['data_stall_share']['median']:.2f}%")
    if r.get("saves"):
        said.append(f"a save every 500 steps {100 * r['saves']['share']:.2f}%")
    return said
