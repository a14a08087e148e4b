"""The GPU check on a CPU: rows for what works, what fails, and what has no time."""

import json
import os
import pathlib
import re
import signal
import zipfile

import numpy as np
import pytest

from launch import bench, gpu_check
from launch.benchmarks import gpu_device, gpu_parts, ours, recipes
from launch.benchmarks.gpu_parts import Part
from pacx_jax import sharding
from tests.launch import gpu_numeric

ROOT = pathlib.Path(gpu_check.ROOT)
# Sleeps, as does a process that it starts and whose number it writes.
HANGS = """
import pathlib, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print('{"numbers": [{"what": "x", "error": 1.0, "bound": 2.0, "within": true}]}',
      flush=True)
pathlib.Path(%r).write_text(str(child.pid))
time.sleep(60)
"""


@pytest.fixture(autouse=True)
def handlers():
    """Puts the handlers back that the check sets."""
    numbers = signal.SIGTERM, signal.SIGINT
    before = {number: signal.getsignal(number) for number in numbers}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def python(name: str, code: str, limit: float = 20, **fields) -> Part:
    return Part(name, "numeric", ("-c", code), limit, **fields)


def run(monkeypatch, out, parts, *flags) -> tuple[int, list[dict], str]:
    """Exit code, rows and Markdown of a check of these parts."""
    monkeypatch.setattr(gpu_parts, "parts", lambda *_: parts)
    code = gpu_check.main([f"--out={out}", "--dry_run", *flags])
    return code, rows_in(out), (out / "gpu_check.md").read_text()


def rows_in(out) -> list[dict]:
    return json.loads((out / "gpu_check.json").read_text())["rows"]


def gone(pid: int) -> bool:
    """Whether a process has ended; init may not have waited for it yet."""
    stat = pathlib.Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z"


def test_what_fails_or_hangs_is_a_row_and_the_rest_goes_on(
    monkeypatch, tmp_path, capsys
):
    real = gpu_parts.parts(str(tmp_path), True)[0]
    assert real.name == "environment"
    number = tmp_path / "pid"
    parts = [
        real,
        python("fails", "print('{\"a\": 1}'); raise ValueError('two\\nlines')"),
        python("crashes", "import os; os.abort()"),
        python("lacks", "import package_that_is_nowhere.part"),
        python("hangs", HANGS % str(number), limit=4),
        python("works", 'print(\'noise\\n{"n": 1, "flops_per_s": null}\\nnoise\')'),
    ]
    seconds = f"--seconds={sum(part.limit for part in parts)}"
    code, rows, text = run(monkeypatch, tmp_path, parts, seconds)
    assert code == 1
    row = {r["part"]: r for r in rows}
    assert set(row) == {p.name for p in parts}
    assert row["environment"]["outcome"] == "ok"
    about = row["environment"]["result"]
    assert about["backend"] == "cpu" and about["autotune_level"] == 4
    assert about["versions"]["jax"] and f"jax {about['versions']['jax']}" in text
    assert row["fails"]["outcome"] == "failed" and row["fails"]["result"] == {"a": 1}
    assert row["fails"]["reason"] == "ValueError: two"
    assert "Traceback" in row["fails"]["said"]
    assert "Aborted" in row["crashes"]["reason"]
    assert row["lacks"]["reason"].startswith("needs package_that_is_nowhere: carry")
    assert row["hangs"]["outcome"] == "out of time"
    assert row["hangs"]["reason"] == "stopped after 4 s" and row["hangs"]["seconds"] < 9
    assert row["hangs"]["result"]["numbers"]  # what it had said until then
    assert gone(int(number.read_text()))
    assert row["works"]["result"] == {"n": 1, "flops_per_s": None}
    assert "| fails | failed | " in text and "DRY RUN" in text
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "gpu_check.md")


def test_end_of_the_budget_leaves_rows_for_what_was_not_run(monkeypatch, tmp_path):
    parts = [
        python("first", "import time; time.sleep(60)", limit=4),
        python("second", "print(1)", limit=40),
    ]
    code, rows, text = run(monkeypatch, tmp_path, parts, "--seconds=5")
    assert code == 1
    assert [r["outcome"] for r in rows] == ["out of time", "not run"]
    assert re.fullmatch(r"\d s were left of the 40 it takes", rows[1]["reason"])
    assert "| second | not run |" in text


def test_sigterm_ends_the_part_and_leaves_the_table(monkeypatch, tmp_path):
    stop = "import os, signal, time; os.kill(os.getppid(), signal.SIGTERM)"
    parts = [
        python("done", "print('{}')"),
        python("stops", f"{stop}; time.sleep(60)"),
        python("after", "print('{}')"),
    ]
    monkeypatch.setattr(gpu_check.measure, "cores", lambda: 1)
    code, rows, _ = run(monkeypatch, tmp_path, parts)
    assert code == 143
    outcomes = [(r["part"], r["outcome"]) for r in rows]
    assert outcomes == [("done", "ok"), ("stops", "out of time"), ("after", "not run")]


def test_timed_parts_run_alone_and_others_side_by_side(tmp_path):
    start = "import pathlib, sys, time; a, b = map(pathlib.Path, (%r, %r)); a.touch()\n"
    meets = start + (
        "end = time.monotonic() + 20\n"
        "while not b.exists() and time.monotonic() < end: time.sleep(0.05)\n"
        "sys.exit(not b.exists())"
    )
    alone = start + "time.sleep(1); found = b.exists(); a.unlink(); sys.exit(found)"

    def pair(code: str, one: str, two: str, timed: bool) -> list[Part]:
        paths = [
            (str(tmp_path / x), str(tmp_path / y)) for x, y in ((one, two), (two, one))
        ]
        names = (one, two)
        return [
            python(n, code % p, timed=timed) for n, p in zip(names, paths, strict=True)
        ]

    parts = [python("first", 'print(\'{"backend": "gpu"}\')', timed=False)]
    parts += pair(meets, "one", "two", False) + pair(alone, "three", "four", True)
    report = {"rows": [], "budget": 200, "dry_run": False, "seconds": 0.0}
    report |= dict.fromkeys(("date", "commit", "command"), "")
    gpu_check.Check(tmp_path, report, dict(os.environ)).run(parts, at_once=2)
    assert [row["outcome"] for row in rows_in(tmp_path)] == ["ok"] * 5


def test_time_left_over_is_shared_by_limits(monkeypatch, tmp_path):
    given = []

    def process(self, part, seconds):
        given.append(round(seconds))
        return 0, "{}", ""

    monkeypatch.setattr(gpu_check.Check, "_process", process)
    parts = [python("one", "", limit=10), python("two", "", limit=30)]
    run(monkeypatch, tmp_path, parts, "--seconds=80")
    run(monkeypatch, tmp_path, parts, "--seconds=20")
    assert given == [20, 60, 10, 20]


@pytest.mark.parametrize(
    ("ratios", "outcome"), [("{}", "failed"), ('{"eager": {"median": 2}}', "ok")]
)
def test_a_peer_that_is_missing_is_said(ratios, outcome, monkeypatch, tmp_path):
    said = "PyTorch is missing: the peer is not measured"
    code = f"print({said!r}); print('{{\"ratios\": {ratios}}}')"
    parts = [Part("mae beside PyTorch", "peers", ("-c", code), 20)]
    _, rows, _ = run(monkeypatch, tmp_path, parts)
    assert (rows[0]["outcome"], rows[0]["reason"]) == (outcome, said)


def test_packages_in_wheels_are_carried(monkeypatch, tmp_path):
    with zipfile.ZipFile(tmp_path / "carried-1-py3-none-any.whl", "w") as wheel:
        wheel.writestr("carried_here.py", "X = 5")
    part = python("imports", "import carried_here as c; print('{\"x\": %d}' % c.X)")
    _, rows, _ = run(monkeypatch, tmp_path, [part], f"--wheels={tmp_path}")
    assert rows[0]["result"] == {"x": 5}


def test_without_a_gpu_one_line_says_so(monkeypatch, tmp_path, capsys):
    assert gpu_check.main([f"--out={tmp_path}", "--parts=trace"]) == 2
    error = capsys.readouterr().err
    assert error == (
        "error: JAX has no GPU (JAX's backend is cpu): give --dry_run on a CPU\n"
    )
    assert [r["outcome"] for r in rows_in(tmp_path)] == ["ok"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "--out"),
        (["--out=x", "--parts=bench,dance"], "--parts=dance: choose of environment"),
        (["--out=x", "--seconds=0"], "--seconds=0: give more than 0"),
        (["--out=x", "--wheels=/nowhere"], "--wheels=/nowhere: no such folder"),
        (["--out=/proc/x"], "--out=/proc/x: "),
    ],
)
def test_bad_flags_are_one_line(argv, message, capsys):
    with pytest.raises(SystemExit) as stop:
        gpu_check.main(argv)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1
    assert error.startswith("error: ") and message in error


@pytest.mark.parametrize(
    ("code", "text", "want"),
    [
        (1, "a\nModuleNotFoundError: No module named 'grain.x'\n", "needs grain: "),
        (
            2,
            "jaxlib.X: RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes\nat y\n"
            "error: the process of ours ended: what it said stands above",
            "jaxlib.X: RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes",
        ),
        (
            2,
            "Traceback\nNotImplementedError: Unsupported sequence length Q 197\n"
            "error: the process of ours ended: what it said stands above",
            "NotImplementedError: Unsupported sequence length Q 197",
        ),
        (2, "error: global_batch_size 9 is odd\n", "global_batch_size 9 is odd"),
        (-9, "", "ended by SIGKILL"),
        (3, "last\n", "exit code 3: last"),
        (3, "", "exit code 3: it said nothing"),
    ],
)
def test_reason_is_the_line_that_says_most(code, text, want):
    found = gpu_check.reason(code, text)
    assert found.startswith(want) and "\n" not in found


@pytest.mark.parametrize("dry_run", [False, True])
def test_every_part_is_a_command_that_exists(dry_run):
    parts = gpu_parts.parts("out", dry_run)
    assert len({p.name for p in parts}) == len(parts)
    assert {p.group for p in parts} == set(gpu_parts.GROUPS)
    for part in parts:
        if part.command[0] == "launch/bench.py":
            bench.parse(list(part.command[1:]))
            continue
        known = {
            "tests.launch.gpu_numeric": gpu_numeric.CHECKS,
            "launch.benchmarks.gpu_device": gpu_device.PARTS,
        }
        assert part.command[0] == "-m" and part.command[2] in known[part.command[1]]


def test_choices_are_of_known_modes_and_change_something():
    for mode, _, flags, env in gpu_parts.CHOICES:
        assert flags or env
        options = vars(bench.parse([*gpu_parts.MODES[mode], *flags]))
        recipes.make_config(options)  # refuses unknown fields
        ours.other_forms(options["other_form"], sharding.make_mesh(1))


def test_flags_of_xla_add_to_those_that_are_set():
    both = gpu_check.merged({"XLA_FLAGS": "--a=1", "X": "1"}, {"XLA_FLAGS": "--b=2"})
    assert both == {"XLA_FLAGS": "--a=1 --b=2", "X": "1"}
    assert gpu_check.merged({"X": "1"}, {}) == {"X": "1"}


def test_numbers_beyond_their_bounds_end_with_a_line(capsys):
    numbers = gpu_numeric.Numbers()
    numbers.add("near", 1e-6, 1e-5)
    numbers.measure("same", np.ones(3), np.ones(3), 0)
    numbers.end()
    numbers.add("far", 1e-3, 1e-5)
    numbers.add("none", float("nan"), 1e-5)
    with pytest.raises(SystemExit, match="2 of 4 beyond: far: 1.0e-03, bound 1e-05"):
        numbers.end()
    found = gpu_check.last_json(capsys.readouterr().out)["numbers"]
    assert [n["within"] for n in found] == [True, True, False, False]


def test_a_number_of_the_suite_that_is_wrong_fails_its_check(monkeypatch, capsys):
    from pacx_jax.models import attention

    good = attention.attend
    monkeypatch.setattr(attention, "attend", lambda *args: 1.1 * good(*args))
    monkeypatch.setattr(gpu_numeric, "ATTENTION", ((20, 2, 8),))
    with pytest.raises(SystemExit, match="2 of 2 beyond: attention, 20 tokens"):
        gpu_numeric.attention()


def test_carried_versions_are_those_of_the_lock():
    pattern = re.compile(r"^([\w-]+)==(\S+)", re.MULTILINE)
    carried = (ROOT / "launch/requirements.gpu_check.txt").read_text()
    lock = dict(pattern.findall((ROOT / "requirements.lock").read_text()))
    found = dict(pattern.findall(carried))
    assert {"einops", "ml-collections", "pytest", "grain"} <= set(found)
    other = {k: v for k, v in found.items() if lock.get(k, v) != v}
    assert not other
    assert set(found) - set(lock) == {"flatbuffers"}  # an extra's


@pytest.mark.full
def test_dry_run_shows_that_every_part_works(tmp_path):
    environ = dict(os.environ)
    os.environ.pop("XLA_FLAGS", None)  # the tests' eight devices
    try:
        assert gpu_check.main([f"--out={tmp_path}", "--dry_run"]) == 0
    finally:
        os.environ.update(environ)
    rows = rows_in(tmp_path)
    assert {r["outcome"] for r in rows} == {"ok"}
    assert len(rows) == len(gpu_parts.parts("", True))
    assert list((tmp_path / "trace").rglob("*.xplane.pb"))
