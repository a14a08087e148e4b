"""Starts one run as a JobSet on GKE, from launch/gke_jobset.yaml.

  python launch/jobset.py --accelerator=tpu --name=mae --image=IMAGE --topology=4x4 \\
      --config=configs/mae_vitb16.py --workdir=gs://BUCKET/runs/mae
  python launch/jobset.py --accelerator=gpu --name=mae --image=IMAGE --hosts=2 ...

Arguments that are not listed by --help are the run's. --dry-run prints the manifest.
A name that the cluster has already is refused by it: delete the finished JobSet first.
"""

from __future__ import annotations

import argparse
import json
import math
import pathlib
import re
import subprocess
import sys

import yaml

ROOT = pathlib.Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:  # as a script, this file's folder is there instead
    sys.path.insert(0, str(ROOT))

from pacx_jax import cli  # noqa: E402
from pacx_jax.errors import PacxError  # noqa: E402


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that say what a JobSet runs on."""
    add = parser.add_argument
    add("--accelerator", choices=("tpu", "gpu"))
    add("--image", help="built from launch/Dockerfile.tpu or .gpu")
    add("--topology", default="4x4", help="of the TPU slice")
    add("--hosts", type=int, default=2, help="GPU nodes")
    add("--chips_per_host", type=int, help="4 TPU chips or 8 GPUs where not given")
    add("--type", help="the nodes' accelerator, such as tpu-v6e-slice, nvidia-l4")
    add("--claim", default="pacx", help="mounted at /pacx, for a --workdir there")
    add("--service_account", help="the pods', which may read and write the bucket")


def manifest(flags: argparse.Namespace, name: str, arguments: list[str]) -> dict:
    """The JobSet that runs `arguments` of pacx_jax.main on what `flags` say.

    Raises:
      PacxError: a name, size or image that cannot be.
    """
    if not flags.accelerator or not flags.image:
        raise PacxError("give --accelerator=tpu or gpu, and --image")
    # A pod is NAME-workers-0-INDEX-abcde, and that a label: 63 characters at most.
    if not re.fullmatch(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?", name):
        raise PacxError(
            f"name {name!r}: give at most 40 of a-z, 0-9, -; a letter first"
        )
    on_claim = any(a.startswith("--workdir=/pacx/") for a in arguments)
    buckets = ("--workdir=gs://", "--workdir=s3://")
    if not on_claim and not any(a.startswith(buckets) for a in arguments):
        raise PacxError(
            "give --workdir=gs://BUCKET/..., s3://... or /pacx/...: all else is lost "
            "with its pod"
        )
    path = ROOT / "launch" / "gke_jobset.yaml"
    found = {
        d["metadata"]["labels"]["accelerator"]: d
        for d in yaml.safe_load_all(path.read_text(encoding="utf-8"))
    }
    document = found[flags.accelerator]
    document["metadata"]["name"] = name
    document["spec"]["suspend"] = False
    job = document["spec"]["replicatedJobs"][0]["template"]["spec"]
    pod = job["template"]["spec"]
    container = pod["containers"][0]
    barrier = pod["initContainers"][0]
    barrier["image"] = container["image"] = flags.image
    if on_claim:
        claim = {"claimName": flags.claim}
        pod["volumes"][0] = {"name": "pacx", "persistentVolumeClaim": claim}
    if flags.service_account:
        pod["serviceAccountName"] = flags.service_account
    if flags.accelerator == "tpu":
        hosts, chips = _tpu_hosts(flags, pod["nodeSelector"])
        launch, resource = ["--distributed=auto"], "google.com/tpu"
    else:
        given = flags.chips_per_host
        hosts, chips = flags.hosts, 8 if given is None else given
        launch, resource = container["args"][:3], "nvidia.com/gpu"
        launch[1] = f"--num_processes={hosts}"
        if flags.type:
            pod["nodeSelector"]["cloud.google.com/gke-accelerator"] = flags.type
    if hosts < 1 or chips < 1:
        raise PacxError(f"{hosts} hosts of {chips} chips: give at least 1 of each")
    job["completions"] = job["parallelism"] = hosts
    barrier["args"][1] = str(hosts)
    container["args"] = [*launch, *arguments]
    for bound in ("requests", "limits"):
        container["resources"][bound] = {resource: chips}
    return json.loads(json.dumps(document))  # its YAML without anchors


def _tpu_hosts(flags: argparse.Namespace, selector: dict) -> tuple[int, int]:
    """Hosts of the slice and chips of each, and `selector` set to that slice."""
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*){1,2}", flags.topology):
        raise PacxError(f"--topology={flags.topology}: give such as 4x4 or 8x8x16")
    total = math.prod(int(n) for n in flags.topology.split("x"))
    chips = min(total, 4) if flags.chips_per_host is None else flags.chips_per_host
    if chips < 1 or total % chips:
        raise PacxError(
            f"--topology={flags.topology} has {total} chips: not a multiple of "
            f"{chips} a host"
        )
    selector["cloud.google.com/gke-tpu-topology"] = flags.topology
    if flags.type:
        selector["cloud.google.com/gke-tpu-accelerator"] = flags.type
    return total // chips, chips


def create(document: dict, *, dry_run: bool) -> None:
    """Hands the JobSet to the cluster of kubectl's current context, or prints it."""
    text = yaml.safe_dump(document, sort_keys=False)
    if dry_run:
        print(text)
        return
    command = ["kubectl", "create", "--filename=-"]
    try:
        subprocess.run(command, input=text, text=True, check=True)
    except FileNotFoundError:
        raise PacxError("kubectl is not on PATH: install it") from None
    except subprocess.CalledProcessError as e:
        name = document["metadata"]["name"]
        raise PacxError(f"kubectl refused {name}: exit code {e.returncode}") from None


@cli.command
def main(argv: list[str] | None = None) -> None:
    parser = cli.Parser(description=__doc__)
    add_flags(parser)
    parser.add_argument("--name", required=True)
    parser.add_argument("--dry-run", action="store_true")
    flags, arguments = parser.parse_known_args(argv)
    create(manifest(flags, flags.name, arguments), dry_run=flags.dry_run)


if __name__ == "__main__":
    sys.exit(main())
