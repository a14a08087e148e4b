"""The mistakes that people most likely make, each answered in one line with a remedy.

Every row does what somebody would, in a folder with six X-rays, labels.csv and an
encoder. It has words that name what was given, or what was not, and words that say what
to do: the answer needs both.
"""

import contextlib
import copy
import io
import re
import sys

import numpy as np
import PIL.Image
import pytest
from absl import flags
from ml_collections import config_flags

import pacx_jax
from data import audit
from pacx_jax import cli, commands, embed, main
from pacx_jax.commands import predict, runs
from pacx_jax.encoders import model_folder
from pacx_jax.errors import PacxError
from pacx_jax.input import sources
from pacx_jax.run import fingerprints, overlap, recipe_flags
from tests import tiny

LABELS = "path,patient_id,split,sick\n" + "".join(
    f"{i}.png,p{i},{('train', 'val')[i // 2 % 2]},{i % 2}\n" for i in range(6)
)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The folder in which the commands are given."""
    rng = np.random.default_rng(0)
    (tmp_path / "xrays").mkdir()
    for i in range(6):
        grey = rng.integers(0, 256, (32, 32), dtype=np.uint8)
        PIL.Image.fromarray(grey).save(tmp_path / f"xrays/{i}.png")
    (tmp_path / "xrays/labels.csv").write_text(LABELS)
    (tmp_path / "empty").mkdir()
    model_folder.save(tmp_path / "encoder", tiny.folder("vit"), "")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def train(*arguments, recipe="finetune"):
    """What `pacx train` does with these flags."""
    argv, values = ["pacx train", f"--config={recipe}", *arguments], flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
    for flag in flags.FLAGS.get_flags_for_module(main):
        if not flag.name.startswith("config"):
            values[flag.name] = fresh = copy.deepcopy(flag)
            fresh.unparse()  # without what other tests gave
    assert len(recipe_flags.parse(argv, values)) == 1
    main.run(values.config, values.workdir or "run")


def finetune(**changes):
    """A good command, but for the changes."""
    fields = {"data.path": "xrays", "model_init": "encoder", "data.image_size": 32,
              "global_batch_size": 8, "data.threads": 1}  # fmt: skip
    fields |= {k.replace("__", "."): v for k, v in changes.items()}
    return train(*(f"--config.{k}={v}" for k, v in fields.items() if v is not None))


def no_workdir():
    flags.FLAGS(["pacx train"])
    main.from_flags(["pacx train"])


def with_labels(text, **changes):
    with open("xrays/labels.csv", "w") as file:
        file.write(text)
    finetune(**changes)


def another_config():
    config = tiny.config("labs_dae", seed=1, data__path="xrays")
    fingerprints.files.write_json("run/config.json", config.to_dict())
    fingerprints.files.write("run/metrics.jsonl", '{"step": 1}\n')
    train("--config.data.path=xrays", recipe="labs_dae")


def damaged():
    with open("xrays/3.png", "r+b") as file:
        file.truncate(60)
    embed.main(["--encoder=encoder", "--images=xrays", "--out=z.npz"])


def pytorch():
    with open("mae.pth", "wb") as file:
        file.write(b"PK")
    pacx_jax.load_encoder("mae.pth")


def floats():
    pacx_jax.load_encoder("encoder")(np.zeros((32, 32), np.float32))


def predicting(**changes):
    given = {"model": "encoder", "images": "xrays", "out": "p.csv"} | changes
    predict.main([f"--{k}={v}" for k, v in given.items()])


def prepared():
    with open("xrays/pacx.json", "w") as file:
        file.write("{}")
    finetune()


def one_class():
    with_labels(
        LABELS.replace(",val,1", ",val,0"),
        total_steps=1,
        num_devices=1,
        tuning="linear",
    )


def others():
    with open("encoder/config.json", "w") as file:
        file.write('{"model_type": "vit", "architectures": ["ViTModel"]}')
    pacx_jax.load_encoder("encoder")


def seen():
    """Fine-tunes an encoder that has learnt from every patient, also of the test."""
    text = LABELS.replace("p2,val", "p2,test")
    with open("xrays/all.csv", "w") as file:
        file.write(re.sub("val|test", "train", text))
    fields = {"data__source": "folder", "data__path": "xrays", "data__csv": "all.csv"}
    before = tiny.config("mae_vitb16", data__val_fraction=0.0, **fields)
    overlap.account(before, "encoder", sources.open_source(before.data, "train"))
    with_labels(text)


MISTAKES = {
    "command misspelt": (
        lambda: commands.main(["trian"]), "pacx trian", "did you mean train?"),
    "recipe for a command": (
        lambda: commands.main(["fintune"]), "pacx fintune",
        "did you mean pacx train --config=finetune?"),
    "no command's name": (
        lambda: commands.main(["zzz"]), "pacx zzz", "have train, evaluate"),
    "recipe misspelt": (
        lambda: train(recipe="fine_tune"), "--config=fine_tune",
        "did you mean finetune?"),
    "field misspelt": (
        lambda: finetune(total_step=9), "--config.total_step:",
        "did you mean total_steps?"),
    "value of another type": (
        lambda: finetune(total_steps="many"), "--config.total_steps=many",
        "a whole number below 2^31"),
    "no workdir": (no_workdir, "--config=RECIPE", "and --workdir=DIR"),
    "data path mistyped": (
        lambda: finetune(data__path="xray"), "xray: no such folder", "check data.path"),
    "prepared set for a folder": (prepared, "xrays: a prepared data set",
        "give data.source=prepared"),
    "no images there": (
        lambda: finetune(data__path="empty"), "empty: no JPEG", "check data.path"),
    "no encoder to start from": (
        lambda: finetune(model_init=None), "config.model_init is empty",
        "give the encoder to start from"),
    "encoder without weights": (
        lambda: finetune(model_init="empty"), "empty holds no model.safetensors",
        "give a folder written by a finished"),
    "image size of another encoder": (
        lambda: finetune(data__image_size=224), "config.data.image_size is 224",
        "set config.data.image_size to that"),
    "batch that devices do not divide": (
        lambda: finetune(global_batch_size=12), "global_batch_size 12",
        "set config.global_batch_size to a multiple"),
    "CSV mistyped": (
        lambda: finetune(data__csv="label.csv"), "label.csv: no such CSV",
        "check data.csv"),
    "CSV names other files": (
        lambda: with_labels(LABELS.replace("3.png", "x.png")),
        "xrays/labels.csv: 1 rows", "row 5, 'x.png'; add the files or remove the rows"),
    "label that is a string": (
        lambda: with_labels(LABELS.replace(",1\n", ",severe\n", 1)),
        "xrays: NO LABELS: column 'sick'", "labels are 0, 1, -1"),
    "label that is a string, named": (
        lambda: with_labels(
            LABELS.replace(",1\n", ",severe\n", 1),
            data__label_columns="('sick',)"),
        "xrays/labels.csv: row 3 has 'severe'", "labels are 0, 1, -1"),
    "label column mistyped": (
        lambda: finetune(data__label_columns="('sik',)"),
        "data.label_columns has 'sik'", "neither a column (path"),
    "no labels": (
        lambda: finetune(data__csv="-"), "xrays: no labels",
        "a folder's own have to stand in a CSV"),
    "patient in two splits": (
        lambda: with_labels(LABELS.replace("p2", "p0")), "patient 'p0' is in both",
        "data.split_column='-'"),
    "one class on validation": (one_class,
        "config.best 'val/auroc_macro' is not a number",
        "config.best='' with config.export=latest"),
    "workdir of another config": (another_config, "seed was 1, is 0",
        "Take another --workdir"),
    "workdir is the data": (
        lambda: train("--workdir=xrays", "--config.data.path=xrays"),
        "xrays is data.path too", "take another --workdir"),
    "damaged image": (damaged, "xrays/3.png: unreadable image", "replace or delete it"),
    "PyTorch's checkpoint": (pytorch, "mae.pth: is a file", "by pacx_jax.convert"),
    "another software's folder": (others, "encoder/config.json",
        "convert such by pacx_jax.convert"),
    "floats for an image": (floats, "dtype float32 and shape (32, 32)",
        "give uint8 (h, w) or (h, w, 3)"),
    "predicting without a classifier": (predicting, "encoder holds an encoder",
        "train one by pacx train"),
    "predicting into another format": (
        lambda: predicting(out="p.xlsx"), "--out p.xlsx",
        "name a file that ends in .csv"),
    "audit of no set": (
        lambda: audit.main(["xrays", "xray"]), "xray: no such folder",
        "give prepared sets or image folders"),
    "encoder that knows the test patients": (seen,
        "1 of 1 val, 1 of 1 test patients were in the training of",
        "Take other data or another encoder"),
    "runs of no folder": (
        lambda: runs.main(["rusn"]), "rusn: no such folder", "name the one that holds"),
    "Hub without its package": (
        lambda: pacx_jax.load_encoder("hf://me/model"), "hf://me/model",
        "pip install -e '.[hub]'"),
}  # fmt: skip


def test_there_are_at_least_twenty():
    assert len(MISTAKES) >= 20


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_that_says_what_to_do(name, here, monkeypatch):
    mistake, named, told = MISTAKES[name]
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with contextlib.redirect_stderr(io.StringIO()) as said:
        try:
            mistake()
        except PacxError as e:
            print(f"error: {cli.describe(e)}", file=sys.stderr)
    lines = [x for x in said.getvalue().splitlines() if x.startswith("error: ")]
    assert len(lines) == 1, said.getvalue()
    assert named in lines[0] and told in lines[0].replace(named, "")
    assert not re.search(r"Traceback|<class|object at 0x", said.getvalue())
