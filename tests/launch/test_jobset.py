"""JobSets and images: valid by the schema's fields, unprivileged, one for each run."""

import argparse
import os
import re
import socket
import threading

import packaging.requirements
import pytest
import yaml

from launch import barrier, jobset
from pacx_jax.errors import PacxError
from tests.launch.scripts import ROOT, environment

# The fields used here of jobset.x-k8s.io/v1alpha2 (kubernetes-sigs/jobset,
# api/jobset/v1alpha2/jobset_types.go), batch/v1 and core/v1, with their types. A set
# holds the values that the schema allows; a name ending in ! must be there.
QUANTITIES = {"google.com/tpu": int, "nvidia.com/gpu": int}
CONFINED = {
    "allowPrivilegeEscalation": bool,
    "readOnlyRootFilesystem": bool,
    "capabilities": {"drop": [str]},
}
CONTAINER = {
    "name!": str,
    "image": str,
    "command": [str],
    "args": [str],
    "env": [
        {"name!": str, "value": str, "valueFrom": {"fieldRef": {"fieldPath!": str}}}
    ],
    "resources": {"requests": QUANTITIES, "limits": QUANTITIES},
    "securityContext": CONFINED,
    "volumeMounts": [{"name!": str, "mountPath!": str}],
}
POD = {
    "restartPolicy": {"Never"},  # OnFailure excludes a podFailurePolicy
    "terminationGracePeriodSeconds": int,
    "automountServiceAccountToken": bool,
    "serviceAccountName": str,
    "nodeSelector": dict[str, str],
    "securityContext": {
        "runAsNonRoot": bool,
        "runAsUser": int,
        "runAsGroup": int,
        "fsGroup": int,
        "fsGroupChangePolicy": {"OnRootMismatch", "Always"},
        "seccompProfile": {"type!": {"RuntimeDefault", "Localhost", "Unconfined"}},
    },
    "initContainers": [CONTAINER],
    "containers!": [CONTAINER],
    "volumes": [
        {
            "name!": str,
            "persistentVolumeClaim": {"claimName!": str},
            "emptyDir": {"medium": {"", "Memory"}},
        }
    ],
}
EXIT_CODES = {"containerName": str, "operator!": {"In", "NotIn"}, "values!": [int]}
JOB = {
    "completionMode": {"Indexed", "NonIndexed"},
    "completions": int,
    "parallelism": int,
    "backoffLimit": int,
    "podFailurePolicy": {
        "rules!": [
            {
                "action!": {"FailJob", "Ignore", "Count", "FailIndex"},
                "onExitCodes": EXIT_CODES,
            }
        ]
    },
    "template!": {"spec": POD},
}
JOBSET = {
    "apiVersion!": {"jobset.x-k8s.io/v1alpha2"},
    "kind!": {"JobSet"},
    "metadata!": {
        "name!": str,
        "labels": dict[str, str],
        "annotations": dict[str, str],
    },
    "spec!": {
        "suspend": bool,
        "ttlSecondsAfterFinished": int,
        "network": {"enableDNSHostnames": bool, "publishNotReadyAddresses": bool},
        "failurePolicy": {
            "maxRestarts": int,
            "restartStrategy": {"Recreate", "BlockingRecreate", "InPlaceRestart"},
            "rules": [
                {
                    "name!": str,
                    "action!": {
                        "FailJobSet",
                        "RestartJobSet",
                        "RestartJobSetAndIgnoreMaxRestarts",
                        "RestartJob",
                        "RestartJobAndIgnoreMaxRestarts",
                    },
                    "onJobFailureReasons": [str],
                }
            ],
        },
        "replicatedJobs": [{"name!": str, "replicas": int, "template!": {"spec": JOB}}],
    },
}


def check(value, schema, path="JobSet"):
    """AssertionError, naming the field, where `value` is not of `schema`."""
    if isinstance(schema, dict):
        assert isinstance(value, dict), path
        kinds = {k.rstrip("!"): v for k, v in schema.items()}
        for k, v in value.items():
            assert k in kinds, f"{path}.{k} is no field"
            check(v, kinds[k], f"{path}.{k}")
        missing = {k[:-1] for k in schema if k.endswith("!")} - set(value)
        assert not missing, f"{path} has no {missing}"
    elif isinstance(schema, list):
        assert isinstance(value, list), path
        for i, v in enumerate(value):
            check(v, schema[0], f"{path}[{i}]")
    elif isinstance(schema, set):
        assert value in schema, f"{path} is {value!r}"
    elif schema == dict[str, str]:
        assert all(type(k) is type(v) is str for k, v in value.items()), path
    else:
        assert type(value) is schema, f"{path} is {value!r}"


def pod_of(document):
    return document["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]


def make(accelerator, name="mae", *more, workdir="/pacx/runs/mae"):
    parser = argparse.ArgumentParser()
    jobset.add_flags(parser)
    flags = parser.parse_args([f"--accelerator={accelerator}", "--image=r/pacx", *more])
    return jobset.manifest(flags, name, ["--config=c", f"--workdir={workdir}"])


def documents():
    text = (ROOT / "launch" / "gke_jobset.yaml").read_text()
    return list(yaml.safe_load_all(text))


@pytest.mark.parametrize(
    "document",
    [
        *documents(),
        make("tpu"),
        make("gpu", "mae", "--service_account=pacx", workdir="gs://bucket/runs/mae"),
    ],
    ids=["tpu_file", "gpu_file", "tpu_made", "gpu_made"],
)
def test_a_jobset_has_the_schema_s_fields_and_no_privileges(document):
    check(document, JOBSET)
    pod = pod_of(document)
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["runAsUser"] > 0
    mounts = {v["name"] for v in pod["volumes"]}
    for container in pod["containers"] + pod["initContainers"]:
        assert not container["securityContext"]["allowPrivilegeEscalation"]
        assert container["securityContext"]["capabilities"]["drop"] == ["ALL"]
        assert {m["name"] for m in container.get("volumeMounts", [])} <= mounts


def job_of(document):
    """Its Job, as one of its own: what Kubernetes' own schemas know."""
    template = document["spec"]["replicatedJobs"][0]["template"]
    about = {"apiVersion": "batch/v1", "kind": "Job", "metadata": document["metadata"]}
    return about | {"spec": template["spec"]}


@pytest.mark.parametrize("accelerator", ["tpu", "gpu"])
def test_the_jobs_of_a_jobset_are_valid_by_kubernetes_schemas(accelerator):
    if "PACX_REQUIRE_TORCH" not in os.environ:  # CI has it
        pytest.importorskip("kubernetes_validate")
    import kubernetes_validate

    job = job_of(make(accelerator))
    for version in ("1.31", "1.37"):
        kubernetes_validate.validate(job, version, strict=True)
    for document in documents():
        kubernetes_validate.validate(job_of(document), "1.37", strict=True)
    job["spec"]["template"]["spec"]["containers"][0]["securityContexts"] = {}
    with pytest.raises(kubernetes_validate.ValidationError, match="securityContexts"):
        kubernetes_validate.validate(job, "1.37", strict=True)


def test_a_claim_is_mounted_for_a_workdir_on_it_alone():
    volumes = pod_of(make("tpu", "mae", "--claim=c"))["volumes"]
    assert volumes[0] == {"name": "pacx", "persistentVolumeClaim": {"claimName": "c"}}
    flags = ["--service_account=pacx"]
    pod = pod_of(make("tpu", "mae", *flags, workdir="s3://bucket/mae"))
    assert pod["volumes"][0] == {"name": "pacx", "emptyDir": {}}
    assert pod["serviceAccountName"] == "pacx"


def test_pods_keep_compiled_programs_where_the_claim_is_mounted():
    for document in documents():
        container = pod_of(document)["containers"][0]
        env = {e["name"]: e.get("value") for e in container["env"]}
        mounts = [m["mountPath"] for m in container["volumeMounts"]]
        assert env["JAX_COMPILATION_CACHE_DIR"] == "/pacx/jax_cache"
        assert "/pacx" in mounts


def test_the_schema_s_check_finds_a_misspelt_field():
    document = make("tpu")
    pod_of(document)["containers"][0]["securityContexts"] = {}
    with pytest.raises(AssertionError, match=r"containers\[0\].securityContexts"):
        check(document, JOBSET)


def test_the_manifests_start_nothing_until_a_run_is_made_of_them():
    assert all(document["spec"]["suspend"] for document in documents())
    assert not make("tpu")["spec"]["suspend"]


def test_exit_codes_of_errors_fail_a_jobset_and_all_others_restart_it():
    for document in documents():
        job = document["spec"]["replicatedJobs"][0]["template"]["spec"]
        codes = job["podFailurePolicy"]["rules"][0]["onExitCodes"]
        assert (codes["operator"], codes["values"]) == ("In", [1, 2])
        assert job["backoffLimit"] == 0  # any other code fails the job, not the JobSet
        rule = document["spec"]["failurePolicy"]["rules"][0]
        assert rule["action"] == "FailJobSet"
        assert rule["onJobFailureReasons"] == ["PodFailurePolicy"]
        assert document["spec"]["failurePolicy"]["maxRestarts"] > 0


def test_a_tpu_jobset_has_a_pod_for_each_host_of_its_slice():
    document = make("tpu", "big", "--topology=8x8x16", "--type=tpu-v5p-slice")
    job = document["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert job["completions"] == job["parallelism"] == 256
    pod = pod_of(document)
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5p-slice",
        "cloud.google.com/gke-tpu-topology": "8x8x16",
    }
    assert pod["initContainers"][0]["args"][1] == "256"
    assert pod["containers"][0]["args"][:2] == ["--distributed=auto", "--config=c"]
    assert pod["containers"][0]["resources"]["limits"] == {"google.com/tpu": 4}


def test_a_gpu_jobset_numbers_its_processes():
    container = pod_of(make("gpu", "g", "--hosts=3"))["containers"][0]
    assert container["args"][:3] == [
        "--coordinator=$(JOBSET)-workers-0-0.$(JOBSET):8476",
        "--num_processes=3",
        "--process_id=$(JOB_COMPLETION_INDEX)",
    ]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["tpu", "Mae"], "name 'Mae': give at most 40"),
        (["tpu", "mae", "--topology=4by4"], "--topology=4by4: give such as 4x4"),
        (["tpu", "mae", "--topology=3x3"], "has 9 chips: not a multiple of 4"),
        (["gpu", "mae", "--hosts=0"], "0 hosts of 8 chips"),
        (["gpu", "mae", "--chips_per_host=0"], "2 hosts of 0 chips"),
        (["tpu", "mae", "--chips_per_host=0"], "not a multiple of 0"),
    ],
)
def test_a_jobset_that_cannot_be_is_refused(arguments, error):
    with pytest.raises(PacxError, match=error):
        make(*arguments)


@pytest.mark.parametrize("workdir", ["runs/mae", "gcs://bucket/mae"])
def test_a_workdir_that_ends_with_its_pod_is_refused(workdir):
    with pytest.raises(PacxError, match="give --workdir=gs://BUCKET/"):
        make("tpu", workdir=workdir)


def test_jobset_hands_the_manifest_to_the_cluster_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", environment(tmp_path)["PATH"])
    monkeypatch.setenv("FAKE", str(tmp_path))
    command = ["--accelerator=tpu", "--name=mae", "--image=r/pacx"]
    command += ["--config=c", "--workdir=/pacx/runs/mae"]
    jobset.main([*command, "--dry-run"])
    assert not list(tmp_path.iterdir())
    assert yaml.safe_load(capsys.readouterr().out) == make("tpu")
    jobset.main(command)
    assert yaml.safe_load((tmp_path / "mae.yaml").read_text()) == make("tpu")
    assert jobset.main(command) == 2
    assert "kubectl refused mae: exit code 1" in capsys.readouterr().err


def test_the_barrier_lets_all_pods_go_together():
    with socket.create_server(("", 0)) as probe:
        port = probe.getsockname()[1]
    passed = []

    def come(index):
        barrier.wait("localhost", 3, index, port=port, seconds=20)
        passed.append(index)

    threads = [threading.Thread(target=come, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    threads[0].join(0.3)
    assert not passed  # the third is still to come
    come(2)
    for thread in threads:
        thread.join(20)
    assert sorted(passed) == [0, 1, 2]


def test_the_barrier_gives_up_on_a_pod_that_never_comes():
    with socket.create_server(("", 0)) as probe:
        port = probe.getsockname()[1]
    with pytest.raises(TimeoutError):
        barrier.wait("localhost", 2, 0, port=port, seconds=0.1)


@pytest.mark.parametrize("kind", ["gpu", "tpu", "serve"])
def test_an_image_installs_by_hash_and_runs_as_another_user_than_root(kind):
    lines = (ROOT / "launch" / f"Dockerfile.{kind}").read_text().splitlines()
    users = [line.split()[1] for line in lines if line.startswith("USER ")]
    assert users == ["1000:1000"]
    text = "\n".join(lines)
    more = "" if kind == "serve" else f" -r requirements.{kind}.lock"
    assert f"--require-hashes -r requirements.lock{more}\n" in text
    for line in lines:  # what is copied is there
        if line.startswith("COPY "):
            assert all((ROOT / name).exists() for name in line.split()[1:-1]), line


@pytest.mark.parametrize("python", ["3.11", "3.12"])
@pytest.mark.parametrize("accelerator", ["gpu", "tpu"])
def test_an_accelerator_s_lock_adds_to_the_lock_and_fits_its_jax(accelerator, python):
    target = {"python_full_version": f"{python}.1", "sys_platform": "linux"}

    def pins(path):
        lines = re.findall(r"^([\w.-]+==.+) \\$", path.read_text(), re.M)
        found = [packaging.requirements.Requirement(line) for line in lines]
        held = [r for r in found if r.marker is None or r.marker.evaluate(target)]
        assert len({r.name for r in held}) == len(held)
        return {r.name: str(r.specifier) for r in held}

    base = pins(ROOT / "requirements.lock")
    path = ROOT / "launch" / f"requirements.{accelerator}.lock"
    extra = pins(path)
    assert extra and not set(base) & set(extra)
    assert path.read_text().count("--hash=sha256:") >= len(extra)
    found = {v for k, v in extra.items() if k.startswith("jax")}
    assert found == ({base["jax"]} if accelerator == "gpu" else set())
    assert base["jaxlib"] == base["jax"]
