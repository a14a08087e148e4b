"""Batches: the same for any hosts, from any step, with any unreadable samples."""

import collections
import hashlib
import json
import types

import numpy as np
import pytest

from pacx_jax import modalities
from pacx_jax.errors import PacxError
from pacx_jax.input import images, pipeline, transforms
from pacx_jax.input.quarantine import Quarantine, replacement


class Images:
    """n small images in memory; those in `bad` are truncated files."""

    label_names = ()
    split = "train"
    entries = ("image", "path")

    def __init__(self, n=37, bad=()):
        rng = np.random.default_rng(0)
        pixels = rng.integers(0, 255, (n, 20, 18), dtype=np.uint8)
        self.files = [images.encode_png(p) for p in pixels]
        for i in bad:
            self.files[i] = self.files[i][:100]
        self.fingerprint = f"{n} {bad}"
        self.reads = collections.Counter()

    def __len__(self):
        return len(self.files)

    def __getitem__(self, i):
        self.reads[i] += 1
        return {"image": self.files[i], "path": self.name(i)}

    def name(self, i):
        return f"im{i}.png"


def transform(train=True):
    data = types.SimpleNamespace(image_size=8, hflip=0.5)
    return transforms.make("mae", data, train=train)


def batches(source, steps, b=8, seed=5, **options):
    iterator = pipeline.train_batches(
        source, transform(), global_batch_size=b, seed=seed, **options
    )
    taken = [next(iterator) for _ in range(steps)]
    iterator.close()
    return taken


def same(one, two):
    assert len(one) == len(two)
    for x, y in zip(one, two, strict=True):
        assert x.keys() == y.keys()
        for key in x:
            np.testing.assert_array_equal(x[key], y[key])
            assert x[key].dtype == y[key].dtype


@pytest.mark.parametrize("hosts", [1, 2, 4, 8])
def test_hosts_together_give_the_batches_of_one(hosts):
    source = Images(bad=(3, 11))
    straight = batches(source, 12, quarantine=Quarantine(None, 0.2))
    parts = [
        batches(
            source,
            12,
            rows=np.arange(h * 8 // hosts, (h + 1) * 8 // hosts),
            quarantine=Quarantine(None, 0.2),
        )
        for h in range(hosts)
    ]
    joined = [
        {k: np.concatenate([p[step][k] for p in parts]) for k in parts[0][step]}
        for step in range(12)
    ]
    same(joined, straight)


def test_the_bytes_of_a_batch_follow_from_seed_and_number_alone():
    def digest(number, hosts=1, seed=5, **options):
        parts = [
            batches(Images(), 1, seed=seed, start_step=number, rows=rows, **options)[0]
            for rows in np.split(np.arange(8), hosts)
        ]
        digest = hashlib.sha256()
        for key in sorted(parts[0]):
            digest.update(np.concatenate([part[key] for part in parts]).tobytes())
        return digest.hexdigest()

    for number in (4, 9):  # of 37 examples: the first epoch's edge, and the second's
        whole = digest(number, threads=0)
        for hosts, threads in ((1, 3), (2, 0), (2, 2), (4, 1), (8, 1)):
            assert digest(number, hosts, threads=threads) == whole
        assert digest(number + 1) != whole and digest(number, seed=6) != whole


@pytest.mark.parametrize("start", [0, 1, 7, 40])
def test_a_run_from_step_k_gives_what_a_straight_run_gives_from_k(start):
    straight = batches(Images(), start + 5, threads=1)[start:]
    same(batches(Images(), 5, start_step=start, threads=2), straight)


def test_neither_threads_nor_cache_change_a_batch():
    straight = batches(Images(), 20, threads=0)
    for options in ({"threads": 3}, {"cache": True}, {"cache": True, "threads": 4}):
        same(batches(Images(), 20, **options), straight)


def test_augmentation_belongs_to_the_position_in_the_stream_not_to_the_batch():
    small, large = batches(Images(), 8, b=4), batches(Images(), 4, b=8)
    for key in ("image", "index"):
        np.testing.assert_array_equal(
            np.concatenate([x[key] for x in small]),
            np.concatenate([x[key] for x in large]),
        )


def test_every_epoch_has_every_example_once_in_another_order_and_crop():
    n = 37
    stream = batches(Images(n), 3 * n, b=1)
    epochs = np.concatenate([x["index"] for x in stream]).reshape(3, n)
    for epoch in epochs:
        assert sorted(epoch) == list(range(n))
    assert not (epochs[0] == epochs[1]).all() and not (epochs[1] == epochs[2]).all()
    crops = {x["image"].tobytes() for x in stream if x["index"] == 0}
    assert len(crops) == 3


def test_another_seed_gives_another_order():
    one, two = batches(Images(), 4, seed=1), batches(Images(), 4, seed=2)
    assert any((x["index"] != y["index"]).any() for x, y in zip(one, two, strict=True))


def test_a_cache_decodes_each_example_once():
    source = Images(16)
    batches(source, 20, cache=True, threads=0)
    assert set(source.reads.values()) == {1}
    cache = pipeline.Cache()
    plain = Images(16)
    for _ in range(3):
        list(evaluated(plain, cache=cache))
    assert set(plain.reads.values()) == {1} and len(cache) == 16


def test_a_full_cache_keeps_no_more():
    cache = pipeline.Cache(max_mib=5 * 360 / 2**20)
    list(evaluated(Images(16), cache=cache))
    assert len(cache) == 5


def test_a_cache_is_not_used_for_other_data():
    cache = pipeline.Cache()
    list(evaluated(Images(16), cache=cache))
    with pytest.raises(ValueError, match="cache of"):
        evaluated(Images(17), cache=cache)


def evaluated(source, b=8, **options):
    return pipeline.eval_batches(
        source, transform(train=False), global_batch_size=b, **options
    )


def test_evaluation_is_in_order_and_pads_the_last_batch():
    got = list(evaluated(Images(19)))
    assert [x["image"].shape for x in got] == [(8, 8, 8, 3)] * 3
    index = np.concatenate([x["index"] for x in got])
    mask = np.concatenate([x["mask"] for x in got])
    np.testing.assert_array_equal(index[:19], np.arange(19))
    np.testing.assert_array_equal(mask, [1.0] * 19 + [0.0] * 5)
    assert (index[19:] == -1).all() and mask.dtype == np.float32
    assert not got[-1]["image"][3:].any()


def test_evaluation_of_two_hosts_is_that_of_one():
    straight = list(evaluated(Images(17)))
    parts = [list(evaluated(Images(17), rows=r)) for r in np.split(np.arange(8), 2)]
    joined = [
        {k: np.concatenate([x[k], y[k]]) for k in x}
        for x, y in zip(*parts, strict=True)
    ]
    same(joined, straight)  # the second host's last rows are all padding


def test_unreadable_samples_are_left_out_of_evaluation_and_listed(tmp_path):
    path = tmp_path / "run" / "quarantine.jsonl"
    got = list(evaluated(Images(19, bad=(0, 4)), quarantine=Quarantine(path, 0.2)))
    mask = np.concatenate([x["mask"] for x in got])
    assert np.flatnonzero(mask == 0).tolist() == [0, 4, 19, 20, 21, 22, 23]
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(x["split"], x["index"], x["name"]) for x in lines] == [
        ("train", 0, "im0.png"),
        ("train", 4, "im4.png"),
    ]
    assert all("im" in x["reason"] and "\n" not in x["reason"] for x in lines)


def test_unreadable_samples_are_replaced_the_same_way_every_time():
    source = Images(bad=(3, 11))
    runs = [
        batches(source, 12, threads=t, quarantine=Quarantine(None, 0.2))
        for t in (0, 1, 3)
    ]
    same(runs[0], runs[1])
    same(runs[0], runs[2])
    seen = np.concatenate([x["index"] for x in runs[0]])
    assert not set(seen) & {3, 11} and len(seen) == 96
    good = np.concatenate([x["index"] for x in batches(Images(), 12)])
    changed = np.flatnonzero(seen != good)
    assert set(good[changed]) == {3, 11}  # nothing else moved
    expected = [replacement(5, i, 0, 37) for i in good[changed]]
    np.testing.assert_array_equal(seen[changed], expected)


def test_a_resumed_run_lists_no_sample_twice(tmp_path):
    path = tmp_path / "quarantine.jsonl"
    for start in (0, 3, 20):
        quarantine = Quarantine(path, 0.2)
        batches(Images(bad=(3, 11)), 12, start_step=start, quarantine=quarantine)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [x["index"] for x in lines] == [3, 11]
    assert {p.name for p in tmp_path.iterdir()} == {path.name, "quarantine.lock"}


def test_too_many_unreadable_samples_stop_the_run_with_one_line(tmp_path):
    path = tmp_path / "quarantine.jsonl"
    source = Images(40, bad=tuple(range(6)))
    with pytest.raises(PacxError, match="6 unreadable samples of 40") as error:
        batches(source, 20, quarantine=Quarantine(path, 0.125))  # 5 may be
    assert str(path) in str(error.value) and "\n" not in str(error.value)
    assert error.value.__cause__ is None
    assert len(path.read_text().splitlines()) == 6
    batches(source, 20, quarantine=Quarantine(None, 0.15))
    with pytest.raises(PacxError, match="1 unreadable samples of 40"):
        batches(source, 20, quarantine=Quarantine(None, 0.0), threads=0)


def test_without_a_quarantine_the_first_unreadable_sample_raises():
    with pytest.raises(PacxError, match="^im3.png: .*truncated"):
        batches(Images(bad=(3,)), 20)


def test_other_errors_keep_their_kind():
    class Faulty(Images):
        def __getitem__(self, i):
            return super().__getitem__(i) if i != 3 else [] + ()

    with pytest.raises(TypeError):
        batches(Faulty(), 20, quarantine=Quarantine(None, 0.5))


def test_bad_requests_are_one_line():
    with pytest.raises(PacxError, match="the data set is empty"):
        batches(Images(0), 1)
    with pytest.raises(PacxError, match="global_batch_size 0"):
        batches(Images(), 1, b=0)
    with pytest.raises(PacxError, match="rows .* outside a batch of 8"):
        batches(Images(), 1, rows=np.arange(4, 12))
    data = types.SimpleNamespace()
    readers = [modalities.Reader(m, modalities.get(m), {}) for m in ("ecg", "labs")]
    distill = transforms.make("distill", data, train=True, readers=readers)
    with pytest.raises(PacxError, match="have no ecg, labs, labs_mask.*distill"):
        pipeline.train_batches(Images(), distill, global_batch_size=8, seed=0)
