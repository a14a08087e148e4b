"""Every command of README.md, data/README.md and docs/ is one that its program takes.

The README's commands run, with few steps and patients, as others that need no data do.
What needs published data must end with one line that names what is missing. Launchers
print what they would do. tests/core/test_extending.py runs docs/extending.md.
"""

import contextlib
import copy
import io
import pathlib
import re
import shlex
import string
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest
from absl import flags
from ml_collections import config_flags

from data import audit, label_table, prepare
from data.cohort import generate
from launch import gpu_check, load_test, plan, reproduce, spreads
from launch.planning import chips
from pacx_jax import commands as table
from pacx_jax import embed, export, main
from pacx_jax.commands import evaluate, predict, replay, runs, train_tokenizer
from pacx_jax.commands import generate as chexmix
from pacx_jax.convert import __main__ as convert
from pacx_jax.encoders import model_folder
from pacx_jax.evaluate import (
    alignment,
    attention_shares,
    masked_inputs,
    predictions,
    source_probe,
)
from pacx_jax.evaluate.reports import projection, run_report
from pacx_jax.run import recipe_flags
from pacx_jax.serving import server
from tests import tiny

ROOT = pathlib.Path(__file__).resolve().parents[2]
PAGES = ["README.md", "CONTRIBUTING.md", "data/README.md"]
PAGES += sorted(str(p.relative_to(ROOT)) for p in (ROOT / "docs").glob("*.md"))
# What stands for a page's placeholders.
NAMES = {"KIND": "vit_timm", "FORMAT": "safetensors", "GROUP,...": "numeric"}
NAMES |= {"config.FIELD=VALUE": "config.seed=1", "vitb": "DIR", "cxr": "DIR"}
TRAINED = "--config.data.path=prepared/chexpert"  # of the run that is done, so small
SMALL = {"num_devices": 1, "global_batch_size": 8, "total_steps": 2, "eval_every": 2,
         "save_every": 2, "optim.warmup_steps": 1, "data.threads": 1,
         "dtype": "float32", "data.image_size": 32, "model.variant": "mu",
         "model.patch_size": 8, "model.decoder.width": 16, "model.decoder.depth": 1,
         "model.decoder.num_heads": 2}  # fmt: skip
# Programs of others: the files of this repository that they are given have to exist.
OTHERS = {"curl", "docker", "git", "mkdocs", "npm", "pip", "printf", "python3.11",
          "sed", "source", "tensorboard", "uv", "uvx"}  # fmt: skip


def blocks(page):
    """(number of the first line, language, lines) of each fenced block."""
    parts = re.split(r"^```(.*)\n", (ROOT / page).read_text(), flags=re.MULTILINE)
    line = 1 + parts[0].count("\n")
    for i in range(1, len(parts), 4):  # language, block, "", text up to the next one
        yield line + 1, parts[i], parts[i + 1].splitlines()
        line += 2 + "".join(parts[i + 1 : i + 4]).count("\n")


def commands(lines, start):
    """(number of its line, words, script after <<'END') of each command of a block."""
    values, i = {}, 0
    while i < len(lines):
        number, line, script = start + i, lines[i], None
        while line.endswith("\\") or line.count('"') % 2:
            i += 1
            line = line.removesuffix("\\") + lines[i]
        i += 1
        if line.endswith("<<'END'"):
            end = lines.index("END", i)
            script, i = "\n".join(lines[i:end]), end + 1
            line = line.removesuffix("<<'END'")
        for part in string.Template(line).safe_substitute(values).split(" && "):
            for name, instead in NAMES.items():
                part = re.sub(rf"\b{re.escape(name)}(?!\w)", instead, part)
            part = re.sub(r" \[([^]]*)\]", r" \1", part.replace(" ...", ""))
            words = shlex.split(part, comments=True)
            while words and (given := re.fullmatch(r"([A-Z_]+)=(.*)", words[0])):
                values[given[1]], words = given[2], words[1:]
            if words:
                yield number, words, script


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A clone's root with what the pages' commands start from, of tiny sizes."""
    root, rng = tmp_path_factory.mktemp("clone"), np.random.default_rng(0)
    for name in ("configs", "data", "launch", "tests"):
        (root / name).symlink_to(ROOT / name)
    nothing = "symile symile_val symile_test ecg probe_train probe_val probe_test"
    sizes = ["--pretrain=16", *(f"--{name}=0" for name in nothing.split())]
    assert generate.main([f"--target={root / 'cohort'}", *sizes]) == 0
    (root / "cohort/chexpert").rename(root / "CheXpert-v1.0-small")
    for path in ("runs/demo/distill", "runs/distill", "runs/demo/ecg", "DIR"):
        kind = "ecg_net1d" if path.endswith("ecg") else "vit"
        model_folder.save(root / path, tiny.folder(kind), card="a test's")
    for path in ("DIR/film.png", "a.png", "b.jpg"):
        grey = rng.integers(0, 256, (40, 50), dtype=np.uint8)
        PIL.Image.fromarray(grey).save(root / path)
    (root / "DIR_OR_FILE").mkdir()
    np.save(root / "DIR_OR_FILE/ecg.npy", rng.normal(size=(5000, 12)))
    return root


def train(arguments):
    """pacx_jax.main reads the flags, and trains the README's run."""
    argv, values = ["main", *arguments], flags.FlagValues()
    if TRAINED in arguments:
        argv += [f"--config.{k}={v}" for k, v in SMALL.items()]
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
    for flag in flags.FLAGS.get_flags_for_module(main):
        if not flag.name.startswith("config"):
            values[flag.name] = copy.deepcopy(flag)
    assert len(recipe_flags.parse(argv, values)) == 1
    main.check_values(values.config)
    if TRAINED in arguments:
        main.run(values.config, values.workdir)


def do(command):
    """A check that runs one of our commands, or has it say what is missing or there."""

    def check(arguments):
        with contextlib.redirect_stderr(io.StringIO()) as said:
            code = command(arguments)
        if code:
            (line,) = said.getvalue().splitlines()
            named = any((a.partition("=")[2] or a) in line for a in arguments)
            assert code == 2 and "--help" not in line, line
            assert named or "pip install" in line, line  # such as PyTorch

    return check


def planned(arguments):
    values = plan.define()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sys, "argv", ["plan", *arguments])
        assert len(recipe_flags.parse(sys.argv, values)) == 1
    if arguments:
        chips.parse(values.topology)
        main.check_values(values.config)


def prints(command, code=0):
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert said.returncode == code, said.stdout + said.stderr
    assert said.stdout + said.stderr


def launcher(script):
    """A check that has it print what it would do, and main read the run's flags."""

    def check(arguments):
        if script.endswith(".py"):
            command = [sys.executable, script, *arguments, "--dry-run"]
        else:
            at = 1 if script.endswith("pod.sh") else 0  # after the step's name
            command = ["bash", script, *arguments[:at], "--dry-run", *arguments[at:]]
        prints(command)
        if run := [a for a in arguments if a.startswith("--config")]:
            train(run)

    return check


def demo(arguments):
    """Its flags are read before its folder, which cannot be made here."""
    arguments = [a for a in arguments if not a.startswith("--imagenet=")]
    nowhere = "--target=/dev/null/demo"
    prints([sys.executable, "launch/demo.py", *arguments, nowhere], code=2)


def suite(arguments):
    """pytest knows the flags and finds the files, if no test of the name NAME."""
    if arguments:
        command = [sys.executable, "-m", "pytest", "--collect-only", *arguments]
        prints(command, code=5 if "NAME" in arguments else 0)


PROGRAMS = {
    "pacx_jax.main": train,
    "pacx_jax.embed": do(embed.main),
    "pacx_jax.commands.evaluate": do(evaluate.main),
    "pacx_jax.commands.predict": do(predict.main),
    "pacx_jax.commands.runs": do(runs.main),
    "pacx_jax.commands.replay": do(replay.main),
    "pacx_jax.export": do(export.main),
    "pacx_jax.convert": do(convert.main),
    "pacx_jax.commands.generate": do(chexmix.main),
    "pacx_jax.commands.train_tokenizer": do(train_tokenizer.main),
    "pacx_jax.evaluate.predictions": do(predictions.main),
    "pacx_jax.evaluate.masked_inputs": do(masked_inputs.main),
    "pacx_jax.evaluate.reports.run_report": do(run_report.main),
    "pacx_jax.evaluate.rollout": do(attention_shares.main),
    "pacx_jax.evaluate.source_probe": do(source_probe.main),
    "pacx_jax.evaluate.alignment": do(alignment.main),
    "pacx_jax.evaluate.reports.projection": do(projection.main),
    "data/prepare.py": do(prepare.main),
    "data/label_table.py": do(label_table.main),
    "launch/reproduce.sh": do(reproduce.main),
    "launch/spreads.py": do(spreads.main),
    "data/audit.py": do(audit.main),
    "pacx_jax.serving.server": server.parse,
    "launch/load_test.py": load_test.parse,
    "launch/plan.py": planned,
    "launch/gpu_check.py": gpu_check.parse,
    "launch/demo.sh": demo,
    "launch/test.sh": suite,
}
SCRIPTS = ("jobset.py", "local.sh", "slurm.sbatch", "study.py", "sweep.py",
           "tpu_pod.sh")  # fmt: skip
PROGRAMS |= {f"launch/{name}": launcher(f"launch/{name}") for name in SCRIPTS}


def pacx(arguments):
    """`pacx NAME` takes what its program takes."""
    name, rest = arguments[0], arguments[1:]
    module = table.named(name).module.removesuffix(".__main__")
    file = module.replace(".", "/") + ".py"
    known = [p for p in (module, file, "launch/demo.sh") if p in PROGRAMS]
    assert known[0] != "launch/demo.sh" or name == "demo", f"add {module} to PROGRAMS"
    PROGRAMS[known[0]](rest)


PROGRAMS["pacx"] = pacx


def check(words, script, page):
    if script is not None:
        compile(script, page, "exec")
    elif words[0].startswith("--config."):  # more flags for the command above
        train(["--config=configs/distill_vitb16.py", *words])
    elif words[0] in OTHERS:
        names = [word.rpartition("=")[2] for word in words]
        ours = [
            n for n in names if re.fullmatch(r"\w[\w./-]*\.(lock|txt|py|[gt]pu)", n)
        ]
        assert all((ROOT / name).is_file() for name in ours)
    else:
        known = [i for i, word in enumerate(words) if word in PROGRAMS]
        assert known, f"add its program to PROGRAMS in {__name__}, or to OTHERS"
        PROGRAMS[words[known[0]]](words[known[0] + 1 :])


@pytest.mark.parametrize("page", PAGES)
def test_programs_take_every_command_of_the_page(page, clone, monkeypatch, capsys):
    monkeypatch.chdir(clone)
    wrong, count = [], 0
    for start, language, lines in blocks(page):
        if language == "text" or (language and page == "docs/extending.md"):
            continue
        if language == "python" or lines[0].startswith(("import ", "from ")):
            code = compile("\n".join(lines), f"{page}:{start}", "exec")
            if page == "README.md":
                exec(code, names := {})
                assert names["z"].shape == (2, 32)
            continue
        for line, words, script in commands(lines, start):
            count += 1
            try:
                check(words, script, page)
            except (Exception, SystemExit) as e:
                said = capsys.readouterr().err if isinstance(e, SystemExit) else e
                wrong.append(f"{page}:{line}: {shlex.join(words)}: {said}")
    assert not wrong, "mend the page or the program:\n" + "\n".join(wrong)
    assert count == 7 or page != "README.md"  # or they were not found


@pytest.mark.parametrize("name", table.PROGRAMS)
def test_programs_take_the_example_of_their_help(name, clone, monkeypatch):
    monkeypatch.chdir(clone)
    first, *arguments = shlex.split(table.PROGRAMS[name].example)
    assert (first, arguments[0]) == ("pacx", name)
    pacx(arguments)
