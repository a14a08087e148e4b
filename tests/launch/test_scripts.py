"""The launch scripts on one machine, with stand-ins for a cluster's programs."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from launch import compile_cache
from tests.launch.scripts import (
    ARGUMENTS,
    FAKES,
    ROOT,
    environment,
    run,
    seen,
    seen_environment,
    start,
)

SAVES = 'trap "exit 75" TERM; while :; do sleep 0.05; done'


HERE = f"{pathlib.Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
SHELLCHECK = shutil.which("shellcheck", path=HERE)


@pytest.mark.skipif(not SHELLCHECK, reason="shellcheck is not installed")
def test_scripts_pass_shellcheck():
    scripts = [*sorted((ROOT / "launch").glob("*.sh")), ROOT / "launch/slurm.sbatch"]
    command = [SHELLCHECK, "-x", "-P", "SCRIPTDIR", *scripts, *FAKES.iterdir()]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout


def local(tmp_path, *arguments, **more):
    arguments = [*arguments, *ARGUMENTS, f"--workdir={tmp_path}/run"]
    return run(tmp_path, "local.sh", *arguments, **more)


def test_local_gives_each_process_its_number_and_devices(tmp_path):
    code, output = local(tmp_path, "--num_processes=2", "--devices=4", "--port=2345")
    assert (code, output) == (0, "")
    for i in range(2):
        assert seen(tmp_path, i)[-3:] == [
            "--coordinator=localhost:2345",
            "--num_processes=2",
            f"--process_id={i}",
        ]
        assert ARGUMENTS[0] in seen(tmp_path, i)
        flags = seen_environment(tmp_path, i)["XLA_FLAGS"]
        assert flags == "--xla_force_host_platform_device_count=4"


def test_local_shares_out_the_visible_gpus(tmp_path):
    options = ["--num_processes=2", "--devices=2", "--platform=gpu"]
    assert local(tmp_path, *options, CUDA_VISIBLE_DEVICES="4,5,6,7")[0] == 0
    shares = [seen_environment(tmp_path, i)["CUDA_VISIBLE_DEVICES"] for i in range(2)]
    assert shares == ["4,5", "6,7"]


def test_local_stops_the_others_when_one_fails_and_ends_with_its_code(tmp_path):
    behaviour = f'[ "$id" = 1 ] && {{ echo "error: no data" >&2; exit 2; }}; {SAVES}'
    code, output = local(tmp_path, "--num_processes=3", behaviour=behaviour)
    assert code == 2
    assert "process 1 of 3 failed with exit code 2\nerror: no data" in output


def test_local_starts_again_after_a_lost_process_and_not_after_an_error(tmp_path):
    code, output = local(tmp_path, behaviour="kill -ABRT $$")
    assert code == 75 and "process 0 of 2 lost another one" in output
    behaviour = '[ "$id" = 1 ] && exit 2; kill -ABRT $$'
    assert local(tmp_path, behaviour=behaviour)[0] == 2


def local_without_python(tmp_path):
    """local.sh of a clone of its own, without `python` on PATH."""
    shutil.copytree(ROOT / "launch", tmp_path / "clone" / "launch")
    (tmp_path / "only").mkdir()
    for name in ("bash", "dirname", "env", "mkdir", "sleep", "tail"):
        (tmp_path / "only" / name).symlink_to(shutil.which(name))
    # The stand-in's; that of a .venv or of pyenv works in its own place alone.
    python = pathlib.Path(sys.executable).resolve()
    (tmp_path / "only" / "python3").symlink_to(python)
    (tmp_path / "behaviour").write_text("exit 0")
    arguments = ["bash", "launch/local.sh", *ARGUMENTS, f"--workdir={tmp_path}/run"]
    return subprocess.run(
        arguments,
        cwd=tmp_path / "clone",
        env=environment(tmp_path, PATH=str(tmp_path / "only")),
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_local_without_any_python_is_one_line(tmp_path):
    done = local_without_python(tmp_path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "error: no python on PATH: source .venv/bin/activate" in done.stderr
    assert not (tmp_path / "run").exists()


def test_local_takes_the_python_of_its_venv_where_path_has_none(tmp_path):
    venv = tmp_path / "clone" / ".venv" / "bin"
    venv.mkdir(parents=True)
    (venv / "python").symlink_to(FAKES / "python")
    done = local_without_python(tmp_path)
    assert done.returncode == 0, done.stderr
    assert ARGUMENTS[0] in seen(tmp_path, 1)


def wait_for(path: pathlib.Path) -> None:
    deadline = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < deadline, f"waited in vain for {path.name}"
        time.sleep(0.02)


def test_local_passes_a_stop_on_and_ends_with_75(tmp_path):
    behaviour = f'trap "exit 75" TERM; touch "$FAKE/ready_$id"; {SAVES}'
    process = start(
        tmp_path, "local.sh", f"--workdir={tmp_path}/run", behaviour=behaviour
    )
    wait_for(tmp_path / "ready_0")
    wait_for(tmp_path / "ready_1")
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=30)
    assert (process.returncode, output) == (75, "")


def test_local_kills_what_does_not_stop(tmp_path):
    behaviour = '[ "$id" = 0 ] && exit 75; trap "" TERM; while :; do sleep 0.05; done'
    code, output = local(tmp_path, "--grace=1", behaviour=behaviour)
    assert code == 137
    assert "process 1 of 2 failed with exit code 137" in output


def caches(tmp_path, count=2):
    """Where each process was told to keep compiled programs, below the user's cache."""
    found = [
        seen_environment(tmp_path, i)["JAX_COMPILATION_CACHE_DIR"] for i in range(count)
    ]
    return [f.removeprefix(f"{tmp_path}/cache/pacx_jax/compiled/") for f in found]


def test_local_keeps_compiled_programs_in_the_user_s_cache(tmp_path):
    assert local(tmp_path)[0] == 0
    assert caches(tmp_path) == [compile_cache.cpu()] * 2
    assert local(tmp_path, JAX_COMPILATION_CACHE_DIR="/else/where")[0] == 0
    assert caches(tmp_path) == ["/else/where"] * 2
    assert local(tmp_path, JAX_COMPILATION_CACHE_DIR="")[0] == 0
    assert caches(tmp_path) == [""] * 2


def test_a_cache_that_cannot_be_written_stops_no_run(tmp_path):
    (tmp_path / "cache").write_text("a file")
    code, output = local(tmp_path)
    assert code == 0 and caches(tmp_path) == [""] * 2
    assert "compiled programs are not kept; set JAX_COMPILATION_CACHE_DIR" in output


def test_cpus_of_other_instructions_share_no_compiled_programs(tmp_path):
    names = set()
    for flags in ("avx2 avx512f", "avx2", "avx2 "):
        for hertz in ("3000.1", "2200.7"):  # of the moment
            text = f"processor : 0\nmodel : 85\ncpu MHz : {hertz}\nflags : {flags}\n"
            (tmp_path / "cpuinfo").write_text(f"{text}\n{text}")
            names.add(compile_cache.cpu(str(tmp_path / "cpuinfo")))
    assert len(names) == 3


def slurm(tmp_path, **more):
    more = {"SLURM_JOB_ID": "7", "SLURM_SUBMIT_DIR": str(ROOT)} | more
    arguments = [*ARGUMENTS, f"--workdir={tmp_path}/run"]
    code, output = run(tmp_path, "slurm.sbatch", *arguments, **more)
    calls = tmp_path / "scontrol.calls"
    return code, "requeue 7" in calls.read_text() if calls.exists() else False


def test_slurm_starts_every_task_with_the_run_s_arguments(tmp_path):
    assert slurm(tmp_path, FAKE_TASKS="3") == (0, False)
    for i in range(3):
        assert seen(tmp_path, i)[:3] == ["-m", "pacx_jax.main", "--distributed=auto"]
        assert seen(tmp_path, i)[3:-1] == ARGUMENTS
    assert "--gpu-bind=none" in (tmp_path / "srun.args").read_text()
    assert caches(tmp_path, 3) == [compile_cache.cpu()] * 3


@pytest.mark.parametrize(
    ("behaviour", "state", "restarts", "expected"),
    [
        ("exit 75", "RUNNING", "3", (75, True)),
        ("exit 75", "COMPLETING", "0", (75, False)),  # cancelled: it stays so
        ("exit 75", "RUNNING", "100", (75, False)),
        ('[ "$id" = 0 ] && exit 2; exit 75', "RUNNING", "0", (2, False)),
        ('[ "$id" = 0 ] && exit 2; kill -ABRT $$', "RUNNING", "0", (2, False)),
        ("kill -ABRT $$", "RUNNING", "0", (75, True)),  # each lost another
        ("exit 1", "RUNNING", "0", (1, False)),
        # Asked to stop while it still starts.
        ("kill -TERM $PPID; kill -TERM $$", "RUNNING", "0", (75, True)),
    ],
)
def test_slurm_requeues_a_stopped_run_alone(
    tmp_path, behaviour, state, restarts, expected
):
    more = {"FAKE_STATE": state, "SLURM_RESTART_COUNT": restarts}
    assert slurm(tmp_path, behaviour=behaviour, **more) == expected


def pod(tmp_path, step, *arguments, **more):
    place = ["--name=pod", "--zone=z", "--project=p"]
    return run(tmp_path, "tpu_pod.sh", step, *place, *arguments, **more)


@pytest.fixture
def workers(tmp_path):
    """Two workers with the clone installed, and an active slice."""
    for i in range(2):
        folder = tmp_path / f"worker_{i}" / "pacx" / ".venv" / "bin"
        folder.mkdir(parents=True)
        (folder / "python").symlink_to(FAKES / "python")
        shutil.copytree(ROOT / "launch", folder.parents[1] / "launch")
    (tmp_path / "states").write_text("ACTIVE\n")
    return tmp_path


def test_tpu_pod_waits_for_its_queued_resource(tmp_path):
    (tmp_path / "states").write_text("WAITING_FOR_RESOURCES\nPROVISIONING\nACTIVE\n")
    code, output = pod(tmp_path, "create", "--type=v5litepod-16", "--spot")
    assert (code, output.splitlines()[-1]) == (0, "pod: ACTIVE")
    call = (tmp_path / "gcloud.calls").read_text().splitlines()[0]
    assert call == (
        "compute tpus queued-resources create pod --zone=z --project=p --node-id=pod "
        "--accelerator-type=v5litepod-16 --runtime-version=v2-alpha-tpuv5-lite --spot"
    )


@pytest.mark.parametrize("state", ["FAILED", "DELETING", "NEVER_HEARD_OF"])
def test_tpu_pod_ends_in_a_state_that_is_not_waited_in(tmp_path, state):
    (tmp_path / "states").write_text(f"{state}\n")
    code, output = pod(tmp_path, "create", "--type=v6e-8")
    assert code == 1
    assert output.splitlines()[-1].startswith(f"error: the request pod is {state}: ")


def test_tpu_pod_waits_on_where_one_question_has_no_answer(tmp_path):
    states = ["WAITING_FOR_RESOURCES", "ERROR: (gcloud) no network", "ACTIVE"]
    (tmp_path / "states").write_text("\n".join([*states, ""]))
    code, output = pod(tmp_path, "create", "--type=v6e-8")
    assert (code, output.splitlines()[-1]) == (0, "pod: ACTIVE")


def test_tpu_pod_says_that_its_request_is_queued_when_it_cannot_ask(tmp_path):
    (tmp_path / "states").write_text("PROVISIONING\nERROR: (gcloud) no network\n")
    code, output = pod(tmp_path, "create", "--type=v6e-8", PACX_MAX_FAILURES="3")
    assert code == 2
    line = output.splitlines()[-1]
    assert "pod may still be queued, and is billed once active" in line
    assert "(ERROR: (gcloud) no network): create it again to wait on" in line
    assert (tmp_path / "gcloud.calls").read_text().count("describe") == 4


def test_tpu_pod_takes_up_the_waiting_for_an_earlier_request(tmp_path):
    (tmp_path / "requested").touch()
    (tmp_path / "states").write_text("PROVISIONING\nPROVISIONING\nACTIVE\n")
    code, output = pod(tmp_path, "create", "--type=v6e-8")
    assert (code, output.splitlines()[-1]) == (0, "pod: ACTIVE")
    assert "pod was requested before" in output


def test_tpu_pod_ends_with_what_gcloud_says_of_a_refused_request(tmp_path):
    (tmp_path / "refusal").write_text("ERROR: (gcloud) no quota\n")
    (tmp_path / "states").write_text("ERROR: (gcloud) NOT_FOUND\n")
    code, output = pod(tmp_path, "create", "--type=v6e-8")
    assert (code, output) == (1, "ERROR: (gcloud) no quota\n")


@pytest.mark.parametrize("nfs", [[], ["--nfs=10.0.0.2:/share"]])
def test_tpu_pod_installs_on_all_workers_by_hash(tmp_path, nfs):
    code, output = pod(tmp_path, "install", *nfs)
    assert code == 0, output
    calls = (tmp_path / "gcloud.calls").read_text()
    assert ("nconnect=8 10.0.0.2:/share /mnt/pacx" in calls) == ("mount" in calls)
    assert ("mount" in calls) == bool(nfs)
    assert "pod:pacx.tar.gz --zone=z --project=p --worker=all" in calls
    assert (
        "--require-hashes -r requirements.lock -r launch/requirements.tpu.lock" in calls
    )


@pytest.mark.parametrize(
    ("behaviour", "expected"),
    [
        ("exit 0", 0),
        ("exit 75", 75),
        ("kill -ABRT $$", 75),
        ('[ "$id" = 1 ] && exit 2; kill -ABRT $$', 2),
    ],
)
def test_tpu_pod_runs_on_all_workers_and_ends_as_they_do(workers, behaviour, expected):
    arguments = ["--workdir=/mnt/pacx/runs/a b", "--config=c", "--config.x=(1, 2)"]
    code, output = pod(workers, "run", "--", *arguments, behaviour=behaviour)
    assert code == expected, output
    for i in range(2):
        got = [a.replace(f"{workers}/mnt", "/mnt/pacx") for a in seen(workers, i)]
        assert got[2:] == ["--distributed=auto", *arguments]
    assert caches(workers) == [compile_cache.cpu()] * 2
    logs = workers / "mnt" / "runs" / "a b" / "logs"
    assert len(list(logs.iterdir())) == 1  # both stand-ins have this machine's name


def test_launchers_make_no_folder_of_a_bucket(workers):
    bucket = "--workdir=gs://bucket/runs/mae"
    assert pod(workers, "run", "--", bucket)[0] == 0
    assert seen(workers, 0)[-1] == bucket
    assert list((workers / "worker_1/pacx_logs").glob("worker_*.log"))
    assert run(workers, "local.sh", bucket)[0] == 0
    job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "mae"}
    code, output = run(workers, "slurm.sbatch", "--dry-run", bucket, **job)
    assert code == 0 and "--output=slurm-mae-7/process_%t.log" in output
    code, output = pod(
        workers, "collect", bucket, f"--target={workers}/got", "--dry-run"
    )
    assert code == 0 and "gcloud storage rsync --recursive --exclude=" in output
    assert f" {bucket[10:]} {workers}/got " in output
    assert not (ROOT / "gs:").exists()


def test_tpu_pod_stops_a_run_that_is_under_way(workers):
    behaviour = f'trap "exit 75" TERM; touch "$FAKE/ready_$id"; {SAVES}'
    arguments = ["run", "--name=pod", "--zone=z", "--", "--workdir=/mnt/pacx/run"]
    process = start(workers, "tpu_pod.sh", *arguments, behaviour=behaviour)
    wait_for(workers / "ready_0")
    wait_for(workers / "ready_1")
    assert pod(workers, "stop", behaviour=behaviour)[0] == 0
    process.communicate(timeout=30)
    assert process.returncode == 75


def test_tpu_pod_takes_a_worker_that_went_down_for_stopped(workers):
    (workers / "worker_0" / "pacx.exit").write_text("0\n")
    gone = subprocess.Popen(["true"])
    gone.wait()
    (workers / "worker_1" / "pacx.pid").write_text(f"{gone.pid}\n")
    assert pod(workers, "wait")[0] == 75


def test_tpu_pod_says_that_its_slice_was_taken_away(workers):
    (workers / "states").write_text("SUSPENDED\n")
    (workers / "unreachable").write_text("ssh: Connection refused\n")
    code, output = pod(workers, "wait")
    assert code == 75 and "the slice pod was taken away" in output


@pytest.mark.parametrize("step", ["wait", "stop"])
def test_tpu_pod_says_that_nothing_was_started(workers, step):
    code, output = pod(workers, step)
    assert code == 2 and output.count("\n") == 1
    what = {"wait": "nothing was started on 2 workers of pod", "stop": "nothing runs"}
    assert output.startswith(f"error: {what[step]}")


DENIED = "me@10.0.0.7: Permission denied (publickey).\n"


def test_tpu_pod_names_a_worker_that_never_answers_and_ends(workers):
    (workers / "unreachable").write_text(9 * DENIED)
    code, output = pod(workers, "wait", PACX_MAX_FAILURES="3")
    assert code == 2
    asking, error = output.splitlines()
    assert asking == f"worker 1 of pod did not answer, asking again: {DENIED.strip()}"
    assert error.startswith(
        "error: worker 1 of pod did not answer 3 times in a row, last: "
        "me@10.0.0.7: Permission denied (publickey).;"
    )


def test_tpu_pod_takes_no_lost_network_for_a_lost_slice(workers):
    (workers / "states").write_text("ERROR: (gcloud) no network\nACTIVE\n")
    (workers / "unreachable").write_text(2 * DENIED)
    for i in range(2):
        (workers / f"worker_{i}" / "pacx.exit").write_text("0\n")
    assert pod(workers, "wait", PACX_MAX_FAILURES="3")[0] == 0


def test_tpu_pod_forgets_failures_once_the_workers_answer(workers):
    """Also those that still run, for whose end it would wait for days."""
    with subprocess.Popen(["sleep", "60"]) as running:
        for i in range(2):
            (workers / f"worker_{i}" / "pacx.pid").write_text(f"{running.pid}\n")
        (workers / "unreachable").write_text(2 * DENIED)
        process = start(
            workers,
            "tpu_pod.sh",
            *("wait", "--name=pod", "--zone=z"),
            PACX_POLL_SECONDS="0.01",
            PACX_MAX_FAILURES="3",
        )
        calls = workers / "gcloud.calls"
        deadline = time.monotonic() + 30
        while not calls.exists() or calls.read_text().count("tpu-vm ssh") < 4:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        (workers / "unreachable").write_text(2 * DENIED)
        while (workers / "unreachable").read_text():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        for i in range(2):
            (workers / f"worker_{i}" / "pacx.exit").write_text("0\n")
        running.kill()
        output, _ = process.communicate(timeout=30)
    assert process.returncode == 0, output


def test_tpu_pod_collects_into_a_new_folder_and_deletes(workers):
    (workers / "mnt" / "run").mkdir(parents=True)
    (workers / "mnt" / "run" / "done.json").write_text("{}")
    arguments = ["collect", "--workdir=/mnt/pacx/run", f"--target={workers}/got"]
    assert pod(workers, *arguments)[0] == 0
    assert (workers / "got" / "done.json").exists()
    code, output = pod(workers, *arguments)
    assert code == 2 and "exists: give a new folder" in output
    assert pod(workers, "delete")[0] == 0
    last = (workers / "gcloud.calls").read_text().splitlines()[-1]
    assert last.endswith(
        "queued-resources delete pod --zone=z --project=p --force --quiet"
    )


@pytest.mark.parametrize(
    "command",
    [
        ["local.sh", "--dry-run", "--workdir=w"],
        ["slurm.sbatch", "--dry-run", "--workdir=w"],
        ["tpu_pod.sh", "create", "--name=n", "--zone=z", "--type=v4-8", "--dry-run"],
        ["tpu_pod.sh", "install", "--name=n", "--zone=z", "--nfs=a:/b", "--dry-run"],
        ["tpu_pod.sh", "run", "--name=n", "--zone=z", "--dry-run", "--",
         "--workdir=/mnt/pacx/w"],
        ["tpu_pod.sh", "wait", "--name=n", "--zone=z", "--dry-run"],
        ["tpu_pod.sh", "stop", "--name=n", "--zone=z", "--dry-run"],
        ["tpu_pod.sh", "collect", "--name=n", "--zone=z", "--workdir=/mnt/pacx/w",
         "--target=no/such", "--dry-run"],
        ["tpu_pod.sh", "delete", "--name=n", "--zone=z", "--dry-run"],
    ],
    ids=lambda command: "_".join(command[:2]),
)  # fmt: skip
def test_a_dry_run_prints_commands_and_runs_none(tmp_path, command):
    code, output = run(tmp_path, *command)
    assert code == 0
    assert output.startswith(("env ", "srun ", "gcloud ", "git ", "mkdir "))
    assert [p.name for p in tmp_path.iterdir()] == ["behaviour"]


@pytest.mark.parametrize(
    ("command", "error"),
    [
        (["local.sh", "--devices=0", "--workdir=w"], "--devices=0: give a whole"),
        (["local.sh", "--platform=tpu", "--workdir=w"], "--platform=tpu: choose cpu"),
        (["local.sh", "--workdir=w", "--devices=2"], "options go before those of"),
        (["local.sh"], "give --workdir=DIR"),
        (["local.sh", "--workdir=gcs://b/w"], "--workdir=gcs://b/w: give a folder, gs"),
        (["slurm.sbatch", "--workdir=s3:/b"], "--workdir=s3:/b: give a folder, gs://"),
        (["slurm.sbatch", "--config=c"], "give --workdir=DIR, on a file system"),
        (["slurm.sbatch", "--workdir=w", "--dry-run"], "--dry-run goes before all"),
        (["slurm.sbatch", "--workdir=no/such"], "this is no SLURM job: submit it by"),
        (["slurm.sbatch", "--sweep=no/such"], "launch/sweep.py --on=slurm submits it"),
        (["tpu_pod.sh", "destroy", "--name=n", "--zone=z"], "not 'destroy'"),
        (["tpu_pod.sh", "run", "--name=A", "--zone=z"], "--name=A: give a name of"),
        (["tpu_pod.sh", "run", "--name=n", "--zone=z", "--", "--workdir=runs/x"],
         "give -- --workdir=gs://BUCKET/"),
        (["tpu_pod.sh", "create", "--name=n", "--zone=z", "--type=v9-8"],
         "--type=v9-8: give --runtime too"),
    ],
)  # fmt: skip
def test_bad_arguments_are_one_line(tmp_path, command, error):
    code, output = run(tmp_path, *command)
    assert code == 2
    assert output.startswith("error: ") and error in output and output.count("\n") == 1
    assert not (ROOT / "w").exists() and not (ROOT / "no").exists()


def real(tmp_path, script, *options, **more) -> subprocess.CompletedProcess:
    """Trains an MAE for two steps with the launcher, and Python as it is."""
    if not (tmp_path / "images").exists():
        rng = np.random.default_rng(0)
        (tmp_path / "images").mkdir()
        for i in range(24):
            pixels = rng.integers(0, 256, (32, 32), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / f"{i:02}.png")
    data = {"source": "folder", "path": tmp_path / "images", "simulated": False}
    data |= {"image_size": 32, "val_fraction": 0.3, "test_fraction": 0.1}
    fields = {f"data.{k}": v for k, v in data.items()}
    fields |= {"global_batch_size": 8, "total_steps": 2, "optim.warmup_steps": 1}
    command = ["bash", f"launch/{script}", *options]
    command += ["--config=configs/mae_vitb16.py:runlocal", f"--workdir={tmp_path}/run"]
    command += [f"--config.{k}={v}" for k, v in fields.items()]
    (tmp_path / "bin").mkdir(exist_ok=True)
    for name in ("srun", "scontrol"):
        (tmp_path / "bin" / name).unlink(missing_ok=True)
        (tmp_path / "bin" / name).symlink_to(FAKES / name)
    given = environment(tmp_path) | {"PATH": f"{tmp_path}/bin{os.pathsep}{HERE}"}
    given |= {"PYTHONPATH": str(ROOT)}
    given["XLA_FLAGS"] = "--xla_backend_optimization_level=0"
    return subprocess.run(
        command, cwd=ROOT, env=given | more, timeout=300, capture_output=True, text=True
    )


@pytest.mark.full
def test_two_real_processes_train_one_run(tmp_path):
    done = real(tmp_path, "local.sh", "--num_processes=2", "--devices=2")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run" / "done.json").read_text())["step"] == 2
    assert (tmp_path / "run" / "logs" / "process_1.log").exists()


@pytest.mark.full
def test_the_tasks_of_a_slurm_job_find_each_other_and_train(tmp_path):
    job = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_SUBMIT_DIR": str(ROOT)}
    done = real(tmp_path, "slurm.sbatch", **job)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run" / "done.json").read_text())["step"] == 2
    kept = list((tmp_path / "cache/pacx_jax/compiled").glob("*/jit_*"))
    assert kept  # by the first process alone
    since = {p: p.stat().st_mtime_ns for p in kept}
    shutil.rmtree(tmp_path / "run")
    assert real(tmp_path, "slurm.sbatch", **job).returncode == 0
    assert {p: p.stat().st_mtime_ns for p in since} == since
