"""The embed command with --ecgs, and the ECG encoder it calls."""

import jax
import numpy as np
import pytest

from pacx_jax import embed
from pacx_jax.encoders import model_folder
from pacx_jax.encoders.ecg_encoder import load_ecg_encoder
from pacx_jax.errors import PacxError
from pacx_jax.input import ecg
from tests import tiny
from tests.input.test_ecg import record


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("encoder") / "ecg"
    model = tiny.folder("ecg_net1d")
    model.preprocessing["decimate"] = 5
    model_folder.save(path, model, "")
    return path


@pytest.fixture
def ecgs(tmp_path):
    root = tmp_path / "ecgs"
    (root / "b").mkdir(parents=True)
    np.save(root / "b" / "long.npy", record(0, 12_000))
    np.save(root / "a.npy", record(1))
    return root


def call(folder, ecgs, out, *more):
    return embed.main([f"--encoder={folder}", f"--ecgs={ecgs}", f"--out={out}", *more])


def test_embedding_is_the_encoders_of_the_chain(folder):
    # Another batch is another compilation. Bound 1e-5; measured 2.0e-7.
    model = model_folder.load(folder, "ecg_net1d")
    windows, _ = ecg.windows(record(0, 15_000), which="all")
    z = load_ecg_encoder(folder, batch_size=2)(windows)
    x = np.stack([ecg.decimate(w, 5) for w in windows])
    want = np.asarray(jax.jit(model.module().apply)({"params": model.params}, x))
    assert z.shape == (3, 16) and z.dtype == np.float32
    assert tiny.worst(z, want) < 1e-5
    np.testing.assert_array_equal(
        load_ecg_encoder(folder, batch_size=2)(windows[2:]), z[2:]
    )


def test_windows_are_first_all_or_their_mean(folder, ecgs, tmp_path, capsys):
    got = {}
    for which in ("first", "all", "mean"):
        out = tmp_path / f"{which}.npz"
        assert call(folder, ecgs, out, f"--windows={which}") == 0
        with np.load(out, allow_pickle=False) as file:
            got[which] = {k: file[k] for k in file}
    assert "2 embeddings of width 16" in capsys.readouterr().out
    first, every, mean = got["first"], got["all"], got["mean"]
    assert first["path"].tolist() == ["a.npy", "b/long.npy"]
    assert every["path"].tolist() == ["a.npy", "b/long.npy", "b/long.npy"]
    assert mean["path"].tolist() == first["path"].tolist()
    assert first["start_seconds"].tolist() == [0, 0]
    assert every["start_seconds"].tolist() == [0, 0, 10]
    assert sorted(mean) == ["embedding", "path"]
    np.testing.assert_array_equal(every["embedding"][:2], first["embedding"])
    z = every["embedding"]
    np.testing.assert_allclose(mean["embedding"], [z[0], z[1:].mean(0)], rtol=1e-6)


def test_rate_and_lead_order_of_arrays_are_flags(folder, tmp_path):
    np.save(tmp_path / "r.npy", record(t=3600)[:, [0, 1, 2, 3, 5, 4, *range(6, 12)]])
    out = tmp_path / "z.npz"
    assert call(folder, tmp_path / "r.npy", out, "--fs=360", "--lead_order=mimic") == 0
    windows, _ = ecg.windows(record(t=3600), 360)
    with np.load(out) as file:
        assert file["path"].tolist() == ["r.npy"]
        want = load_ecg_encoder(folder)(windows)
        np.testing.assert_array_equal(file["embedding"], want)


def test_bad_record_stops_the_command_or_is_listed(folder, ecgs, tmp_path, capsys):
    np.save(ecgs / "short.npy", record(t=4999))
    stack = np.stack([record(2), record(3), record(4)])
    stack[1, 7, 4] = np.nan
    np.save(ecgs / "stack.npy", stack)
    out = tmp_path / "z.npz"
    assert call(folder, ecgs, out) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert "(4999 samples); at least 10 s are needed, or --pad_short" in error
    assert not out.exists()
    assert call(folder, ecgs, out, "--skip_unreadable") == 0
    lines = capsys.readouterr().err.splitlines()
    assert [x[:9] for x in lines] == ["skipped: "] * 2
    assert "short.npy" in lines[0] and "stack.npy[1]: ECG with NaN" in lines[1]
    with np.load(out) as file:
        names = ["a.npy", "b/long.npy", "stack.npy[0]", "stack.npy[2]"]
        assert file["path"].tolist() == names
    assert call(folder, ecgs / "short.npy", out, "--pad_short") == 0
    short = ecgs / "short.npy"
    out.unlink()
    assert call(folder, short, out, "--windows=mean", "--skip_unreadable") == 2
    error = capsys.readouterr().err
    assert (
        "nothing there can be embedded (1 skipped; the first: " in error
        and error.count("\n") == 1
    )
    assert not out.exists()


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (record() * 1e300, "samples beyond 1e+30 in lead(s) I, II"),
        (record() * 1e-300, "ECG of deviation"),
        (np.zeros((0, 5000, 12)), "it holds no record"),
    ],
    ids=["huge", "tiny", "none"],
)
def test_array_without_an_embedding_is_refused(
    folder, tmp_path, capsys, array, expected
):
    np.save(tmp_path / "r.npy", array)
    assert call(folder, tmp_path / "r.npy", tmp_path / "z.npz") == 2
    error = capsys.readouterr().err
    assert expected in error and error.count("\n") == 1
    assert not (tmp_path / "z.npz").exists()


def test_model_of_another_kind_is_refused_by_either_flag(
    folder, ecgs, tmp_path, capsys
):
    model_folder.save(tmp_path / "vit", tiny.folder("vit"), "")
    assert call(tmp_path / "vit", ecgs, tmp_path / "z.npz") == 2
    assert "holds a vit model, but a ecg_net1d is needed" in capsys.readouterr().err
    argv = [f"--encoder={folder}", f"--images={ecgs}", f"--out={tmp_path / 'z.npz'}"]
    assert embed.main(argv) == 2
    said = capsys.readouterr().err
    assert "holds a ecg_net1d model, but a vit, unified or densenet is needed" in said
    assert not (tmp_path / "z.npz").exists()


def test_encoder_of_another_rate_is_refused(tmp_path):
    model = tiny.folder("ecg_net1d")
    model.preprocessing["sampling_rate"] = 250
    model_folder.save(tmp_path / "ecg", model, "")
    with pytest.raises(PacxError, match="sampling_rate is 250 Hz"):
        load_ecg_encoder(tmp_path / "ecg")


def test_nothing_to_embed_is_one_line(folder, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    for name in ("empty", "nowhere"):
        assert call(folder, tmp_path / name, tmp_path / "z.npz") == 2
        error = capsys.readouterr().err
        assert name in error and error.count("\n") == 1


@pytest.mark.parametrize(
    "args, says",
    [
        ("--images=x --windows=all", "--windows goes with --ecgs"),
        ("--images=x --fs=250", "--fs goes with --ecgs"),
        ("--ecgs=x --image_size=64", "--image_size goes with --images"),
    ],
)
def test_flags_of_the_other_kind_are_refused_by_name(capsys, args, says):
    assert embed.main(["--encoder=x", "--out=x.npz", *args.split()]) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--fs=250", "--lead_order=mimic"])
def test_flags_of_arrays_are_refused_where_all_records_have_headers(
    folder, ecgs, tmp_path, capsys, flag
):
    for name in ("a", "b/long"):
        (ecgs / f"{name}.hea").touch()
    assert call(folder, ecgs, tmp_path / "z.npz", flag) == 2
    assert f"{flag.split('=')[0]} is of arrays, and {ecgs} holds WFDB" in (
        capsys.readouterr().err
    )
    (ecgs / "a.hea").unlink()  # one is an array again: past the flags, at the other
    assert call(folder, ecgs, tmp_path / "z.npz", flag) == 2
    error = capsys.readouterr().err
    assert "long.hea: " in error and "is of arrays" not in error
