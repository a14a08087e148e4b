"""Encoders, data and results in buckets, read and written by way of a local disk."""

import concurrent.futures
import json
import os
import pathlib
import shutil
import types

import numpy as np
import PIL.Image
import pytest

import pacx_jax
from pacx_jax import embed, export
from pacx_jax.convert import __main__ as conversion
from pacx_jax.encoders import model_folder
from pacx_jax.errors import PacxError
from pacx_jax.input import prepared, sources
from pacx_jax.run import embedding_cache, overlap
from pacx_jax.stores import objects, staging
from tests import tiny
from tests.reliability import runs


@pytest.fixture
def images(url, tmp_path):
    """A folder of five images in a bucket, and the same on the disk."""
    store, folder = objects.Store(f"{url}/images"), tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(5):
        file = folder / f"{i}.png"
        PIL.Image.fromarray(rng.integers(0, 256, (32, 32), np.uint8)).save(file)
        staging.send(store, file.name, file)
    return f"{url}/images", folder


@pytest.fixture
def encoder(url, tmp_path):
    """A model folder in a bucket, and the same on the disk."""
    model_folder.save(tmp_path / "vit", tiny.folder("vit"), card="a test's")
    with staging.output(f"{url}/vit") as local:
        shutil.copytree(tmp_path / "vit", local)
    return f"{url}/vit", tmp_path / "vit"


def gets(proxy) -> list[str]:
    return [
        path for method, path in proxy.requests if method == "GET" and "?" not in path
    ]


def test_encoder_is_copied_once_and_again_when_it_changes(encoder, proxy):
    remote, local = encoder
    want = model_folder.load(local).params["cls_token"]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        found = list(pool.map(model_folder.load, [remote] * 4))
    for model in found:
        np.testing.assert_array_equal(model.params["cls_token"], want)
    assert len(gets(proxy)) == 3  # its files, once each
    with staging.output(remote) as folder:
        model_folder.save(folder, tiny.folder("vit", seed=5), card="another")
    other = model_folder.load(remote).params["cls_token"]
    assert (other != want).any()
    with pytest.raises(PacxError, match=f"{remote}/none: no such object or folder"):
        model_folder.load(f"{remote}/none")


@pytest.mark.parametrize("port", ["s3"], indirect=True)
def test_embeddings_of_a_bucket_in_a_bucket_are_those_of_the_disk(
    encoder, images, url, tmp_path, capsys
):
    flags = [f"--encoder={encoder[0]}", f"--images={images[0]}"]
    assert embed.main([*flags, f"--out={url}/z.npz"]) == 0
    assert f"in {url}/z.npz" in capsys.readouterr().out
    out = tmp_path / "z.npz"
    here = [f"--encoder={encoder[1]}", f"--images={images[1]}", f"--out={out}"]
    assert embed.main(here) == 0
    assert objects.Store(f"{url}/z.npz").read()[0] == out.read_bytes()


@pytest.mark.parametrize("port", ["s3"], indirect=True)
def test_encoder_reads_images_and_ecgs_of_a_bucket(url, encoder, images, tmp_path):
    encoder = pacx_jax.load_encoder(encoder[1])
    near = encoder.preprocess(images[1] / "3.png")
    np.testing.assert_array_equal(encoder.preprocess(f"{images[0]}/3.png"), near)
    np.save(tmp_path / "a.npy", np.random.default_rng(0).normal(size=(5000, 12)))
    staging.send(objects.Store(f"{url}/ecgs"), "b/a.npy", tmp_path / "a.npy")
    about = types.SimpleNamespace(windows="first", fs=500, lead_order="standard")
    about.pad_short = about.skip_unreadable = False

    def count(windows):
        return np.zeros((len(list(windows)), 2))

    found, _ = embed.embed_ecgs(count, f"{url}/ecgs", about)
    assert found["path"] == ["b/a.npy"]


@pytest.mark.parametrize("port", ["s3"], indirect=True)
def test_encoder_in_a_bucket_is_converted_there_and_back(encoder, url, capsys):
    convert = ["--kind=vit_timm", f"--source={encoder[0]}", "--to=torch"]
    file, back = f"{url}/vit.safetensors", f"{url}/back"
    assert conversion.main([*convert, f"--target={file}"]) == 0
    flags = ["--kind=vit_timm", f"--source={file}", "--num_heads=2"]
    assert conversion.main([*flags, f"--target={back}"]) == 0
    assert back in capsys.readouterr().out
    params = [model_folder.load(path).params for path in (back, encoder[1])]
    assert tiny.worst(*(tree["cls_token"] for tree in params)) == 0
    assert conversion.main([*flags, f"--target={back}"]) == 2
    assert f"{back} exists: give another --target" in capsys.readouterr().err


@pytest.mark.parametrize("port", ["gs"], indirect=True)
def test_embeddings_cached_in_a_bucket_are_computed_once(url, monkeypatch):
    made, want = [], np.arange(40, dtype=np.float32).reshape(20, 2)
    teacher = types.SimpleNamespace(name="labs", width=2, folder=tiny.folder("vit"))

    def embed():
        return embedding_cache.embeddings(
            runs.Patients("train"),
            teacher,
            None,
            None,
            cache_dir=f"{url}/cache",
            batch_size=4,
            quarantine=None,
        )

    monkeypatch.setattr(embedding_cache, "compute", lambda *_: made.append(1) or want)
    for _ in range(2):
        np.testing.assert_array_equal(embed(), want)
    assert len(made) == 1
    (name,) = objects.Store(f"{url}/cache").list()
    objects.Store(f"{url}/cache").write(name, b"damaged")
    with pytest.raises(PacxError, match=f"{url}/cache/{name} is damaged: delete it"):
        embed()


@pytest.mark.parametrize("port", ["gs"], indirect=True)
def test_export_to_a_bucket_leaves_other_folders_alone(encoder, images, url, capsys):
    flags = [f"--encoder={encoder[0]}", f"--images={images[0]}"]
    assert export.main([*flags, f"--out={url}/copy"]) == 0
    assert capsys.readouterr().out.startswith(f"{url}/copy\n")
    loaded = [model_folder.load(path).params for path in (f"{url}/copy", encoder[1])]
    assert tiny.worst(*(params["cls_token"] for params in loaded)) == 0
    assert export.main([*flags, f"--out={images[0]}"]) == 2
    assert "exists and is no exported folder" in capsys.readouterr().err
    assert len(objects.Store(images[0]).list()) == 5


def test_folder_of_images_in_a_bucket_is_read_as_from_the_disk(images, tmp_path):
    remote, local = images
    stage = tmp_path / "chosen"
    about = {"source": "folder", "csv": "-", "val_fraction": 0.4}
    data = types.SimpleNamespace(path=remote, stage=str(stage), **about)
    there = sources.open_source(data, "train")
    here = sources.open_source(types.SimpleNamespace(path=str(local), **about), "train")
    assert there.fingerprint == here.fingerprint and len(there) == len(here)
    assert there[1] == here[1] and there.name(0).startswith(f"{remote}/")
    assert any(stage.rglob("*.png"))
    data.path = str((remote, f"folder:{local}"))
    with pytest.raises(PacxError, match=f"{remote} and folder:{local} are copies"):
        sources.open_source(data, "train")
    shutil.copy(local / "0.png", local / "more.png")
    mixed = sources.open_source(data, "train")
    assert mixed.sets == (remote, f"folder:{local}") and mixed[1] == there[1]
    assert mixed.name(len(there)).startswith(f"{local}/")


def test_prepared_file_that_is_not_what_pacx_json_says_is_refused(url):
    store = objects.Store(url)
    store.write("a.array_record", b"records")
    about = {"sha256": {"a.array_record": "0" * 64}}
    store.write(prepared.FILE, json.dumps(about).encode())
    with pytest.raises(PacxError, match=f"{url}/a.array_record is damaged: its sha256"):
        staging.local(url)


def test_what_is_no_prepared_set_is_refused_before_it_is_copied(images, proxy):
    remote, local = images
    data = types.SimpleNamespace(source="prepared", path=remote)
    with pytest.raises(PacxError, match=f"^{remote}: no prepared data set .no pacx"):
        sources.open_source(data, "train")
    data.stage = f"{local}/0.png/stage"
    with pytest.raises(PacxError, match=f"data.stage={data.stage}: cannot be written"):
        sources.open_source(data, "train")
    assert not gets(proxy)


def test_no_room_is_found_before_anything_is_read(images, proxy, monkeypatch):
    full = shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
    with pytest.raises(PacxError, match="no space left for a copy of .*PACX_SCRATCH"):
        staging.local(images[0])
    assert not gets(proxy)


def test_room_is_looked_for_once_for_all_sets_of_a_mixture(url, proxy, monkeypatch):
    sets = [f"{url}/a", f"{url}/b"]
    for each in sets:
        objects.Store(each).write("film.png", bytes(2**20))
    one = 2**20 + 64 * 2**20  # what a set takes, and what stays free
    enough = shutil.disk_usage("/")._replace(free=one + 2**20 // 2)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: enough)
    staging.check_room(sets[:1])
    data = types.SimpleNamespace(path=str(tuple(sets)), source="folder")
    with pytest.raises(PacxError, match=f"no space left for copies of {url}/a, {url}"):
        sources.open_source(data, "train")
    assert not gets(proxy)


def test_patients_behind_a_remote_encoder_are_found(url, tmp_path):
    store = objects.Store(f"{url}/run")
    run = {"run": f"{url}/run", "namespace": "n", "patients": 1, "hashes": ["ab"]}
    content = {"format": overlap.FORMAT, "runs": [run]}
    store.write(overlap.PATIENTS, json.dumps(content).encode())
    store.write(overlap.KEY, b"00" * 32)
    for init in (f"{url}/run", f"{url}/run/export"):
        assert overlap.behind(init).runs == (run,)
    assert "unknown" in overlap.behind(f"{url}/another").runs[0]


@pytest.mark.parametrize("port", ["s3"], indirect=True)
def test_copies_in_a_bucket_are_refused(images, monkeypatch):
    with pytest.raises(PacxError, match="data.stage=s3://b1b: name a folder of this"):
        staging.local(images[0], "s3://b1b")
    monkeypatch.setenv("PACX_SCRATCH", "s3://b1b")
    with pytest.raises(PacxError, match="PACX_SCRATCH=s3://b1b: set it to a folder"):
        staging.local(images[0])


def test_copies_lie_in_a_folder_for_their_owner_alone(images):
    folder = staging.scratch()
    assert folder.stat().st_mode & 0o777 == 0o700
    local = staging.local(images[0])
    assert pathlib.Path(os.environ["PACX_SCRATCH"]) in local.parents
    assert staging.name_of(local) == images[0]
