"""What --distributed=auto finds in the environments of SLURM, Open MPI and TPUs."""

import os

import pytest
from jax._src.clusters import cloud_tpu_cluster
from jax._src.clusters import cluster as jax_cluster

from pacx_jax.distributed import cluster
from pacx_jax.errors import PacxError

NODE = {"SLURM_JOB_ID": "4097", "SLURM_NTASKS": "16", "SLURM_PROCID": "9"}
NODE |= {"SLURM_LOCALID": "1", "SLURM_STEP_NODELIST": "gpu[003-004],far"}
RANK = {"OMPI_COMM_WORLD_SIZE": "8", "OMPI_COMM_WORLD_RANK": "5"}
RANK |= {"OMPI_COMM_WORLD_LOCAL_RANK": "1"}
MPI_4 = {"OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911"}
MPI_5 = {"PMIX_NAMESPACE": "prterun-login-2-13183@1"}


@pytest.fixture
def started_by(monkeypatch):
    """Sets an environment in which nothing but what is given started the process."""

    def start(**variables):
        for name in list(os.environ):
            if name.startswith(("SLURM", "OMPI", "PMIX", "TPU", "MEGASCALE")):
                monkeypatch.delenv(name)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return start


@pytest.mark.parametrize(
    ("variables", "found"),
    [
        (NODE, ("gpu003:61441", 16, 9, [1])),
        (RANK | MPI_4, ("10.96.0.1:62624", 8, 5, [1])),
        (RANK | MPI_5, ("login-2:62335", 8, 5, [1])),
        (RANK | MPI_5 | {"JAX_COORDINATOR_PORT": "77"}, ("login-2:77", 8, 5, [1])),
        (RANK | {"JAX_COORDINATOR_ADDRESS": "a:1"}, ("a:1", 8, 5, [1])),
        (NODE | {"JAX_COORDINATOR_ADDRESS": "a:1"}, ("a:1", 16, 9, [1])),
    ],
    ids=["slurm", "mpi_4", "mpi_5", "mpi_5_port", "mpi_address", "slurm_address"],
)
def test_a_scheduler_s_process_knows_its_place(started_by, variables, found):
    started_by(**variables)
    assert tuple(cluster.detect(1)) == found


@pytest.fixture
def on_a_tpu(monkeypatch, started_by):
    """A host with TPU chips, whose metadata server answers with what is given."""

    def start(metadata, **variables):
        started_by(**variables)
        for module in (cloud_tpu_cluster, jax_cluster):
            monkeypatch.setattr(module, "running_in_cloud_tpu_vm", True)
        answer = {k: (v, 200) for k, v in metadata.items()}
        monkeypatch.setattr(
            cloud_tpu_cluster, "get_metadata", lambda key: answer.get(key, ("", 404))
        )

    return start


def test_a_host_of_a_cloud_tpu_slice_knows_its_place(on_a_tpu):
    hosts = "a:b:127.0.0.1,c:d:10.0.0.3"
    on_a_tpu({"agent-worker-number": "1", "worker-network-endpoints": hosts})
    assert tuple(cluster.detect(1)) == ("127.0.0.1:8482", 2, 1, None)


def test_a_pod_of_a_gke_tpu_slice_knows_its_place(on_a_tpu):
    hosts = "localhost,mae-workers-0-1.mae,mae-workers-0-2.mae"
    on_a_tpu({}, TPU_WORKER_HOSTNAMES=hosts, TPU_WORKER_ID="2", TPU_SKIP_MDS_QUERY="1")
    assert tuple(cluster.detect(1)) == ("localhost:8482", 3, 2, None)


def test_the_pods_of_several_slices_are_numbered_slice_by_slice(on_a_tpu):
    more = {"MEGASCALE_NUM_SLICES": "2", "MEGASCALE_SLICE_ID": "1"}
    more |= {"MEGASCALE_COORDINATOR_ADDRESS": "localhost:8080"}
    more |= {"TPU_WORKER_HOSTNAMES": "e,f", "TPU_WORKER_ID": "0"}
    on_a_tpu({}, TPU_SKIP_MDS_QUERY="1", **more)
    assert tuple(cluster.detect(1)) == ("localhost:8482", 4, 2, None)


@pytest.mark.parametrize(
    ("variables", "error"),
    [
        ({}, "found no SLURM, Open MPI, Cloud TPU or GKE"),
        (RANK, "PMIX_NAMESPACE '' names no host: set JAX_COORDINATOR_ADDRESS"),
        ({"OMPI_COMM_WORLD_RANK": "0"}, "'OMPI_COMM_WORLD_LOCAL_RANK' is not set"),
        (MPI_4 | {"OMPI_COMM_WORLD_RANK": "0"}, "'OMPI_COMM_WORLD_SIZE' is not set"),
        (NODE | {"SLURM_NTASKS": "many"}, "'many'"),
    ],
)
def test_an_environment_that_says_too_little_is_one_line(started_by, variables, error):
    started_by(**variables)
    with pytest.raises(PacxError, match=error):
        cluster.detect(1)
