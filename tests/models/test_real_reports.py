"""Real reports (Open-i, CC BY-NC-ND): tokens, and a decoder that learns their language.

They lie in PyPI's torchxrayvision: PACX_OPENI names the wheel, or its
NLMCXR_reports.tgz. They are read where they are; nothing of them is kept here.
"""

import functools
import importlib.util
import io
import os
import pathlib
import re
import tarfile
import zipfile
from xml.etree import ElementTree

import jax
import numpy as np
import optax
import pytest

from pacx_jax.evaluate import report_labels
from pacx_jax.input import reports, tokenizer
from pacx_jax.models import text, text_loss
from tests import report_sets

NAME = "NLMCXR_reports.tgz"
SHARED = pathlib.Path(__file__).resolve().parents[3] / "shared/realdata/reports"
SECTIONS = ("findings", "impression")
LENGTH, BATCH, STEPS = 40, 24, 40


def archive() -> bytes:
    """The archive's bytes; skips where it is not."""
    asked = os.environ.get("PACX_OPENI", "")
    places = [pathlib.Path(asked)] if asked else [SHARED / NAME]
    places += [] if asked else sorted(SHARED.glob("torchxrayvision-*.whl"))
    spec = None if asked else importlib.util.find_spec("torchxrayvision")
    if spec:
        places.append(pathlib.Path(spec.origin).parent / "data" / NAME)
    for path in filter(pathlib.Path.is_file, places):
        if path.suffix == ".whl":
            with zipfile.ZipFile(path) as wheel:
                return wheel.read(f"torchxrayvision/data/{NAME}")
        return path.read_bytes()
    pytest.skip("no Open-i reports: set PACX_OPENI to torchxrayvision's wheel")


@pytest.fixture(scope="module")
def sources():
    """Source of 9 in 10 reports, source of the rest, and the rest's MeSH terms."""
    examples, terms = [], []
    with tarfile.open(fileobj=io.BytesIO(archive()), mode="r:gz") as tar:
        names = [m for m in tar.getmembers() if m.name.endswith(".xml")]
        for member in sorted(names, key=lambda m: int(re.findall(r"\d+", m.name)[-1])):
            root = ElementTree.parse(tar.extractfile(member)).getroot()
            found = {e.get("Label", "").lower(): e.text or ""
                     for e in root.iter("AbstractText")}  # fmt: skip
            uid = root.find("uId").get("id")
            examples.append({"path": member.name, "patient_id": uid, "study_id": uid}
                            | {s: found.get(s, "") for s in SECTIONS})  # fmt: skip
            terms.append(" ".join(e.text or "" for e in root.iter("major")))
    order = np.random.default_rng(0).permutation(len(examples))
    held_out, rest = order[::10], np.delete(order, np.s_[::10])
    pick = lambda rows: [examples[i] for i in rows]  # noqa: E731
    return (
        report_sets.Source(pick(rest)),
        report_sets.Source(pick(held_out), "test"),
        [terms[i] for i in held_out],
    )


@pytest.fixture(scope="module")
def trained(sources, tmp_path_factory):
    path = str(tmp_path_factory.mktemp("openi") / "tokenizer.json")
    return tokenizer.train_on(sources[0], path, 2000, SECTIONS)[0]


def test_real_reports_are_read_and_tokenized(sources, trained):
    found = reports.read(sources[1], SECTIONS)
    assert len(found.texts) > 300 and found.images == found.studies
    assert not any(re.search("XXXX|___", text) for text in found.texts)
    about = tokenizer.coverage(trained, found.texts, 300)
    assert about["unknown"] < 0.001  # of reports that it was not trained on
    assert 20 < about["tokens"] < 100 and about["cut"] <= 2
    text = found.texts[0]
    squeezed = re.sub(r"\W", "", text.lower())
    assert re.sub(r"\W", "", trained.decode(trained.encode(text, 300))) == squeezed


def test_real_reports_are_labelled_as_their_indexers_did(sources):
    # MeSH terms of "normal" reports against ours; and one finding that both have.
    _, held_out, terms = sources
    texts = [reports.text_of(e, SECTIONS) for e in held_out.examples]
    found = report_labels.label(texts)
    kept = [i for i, text in enumerate(texts) if text]
    normal = np.array([terms[i].strip() == "normal" for i in kept])
    column = {n: i for i, n in enumerate(report_labels.FINDINGS)}
    ours = found[kept, column["No Finding"]] == 1
    assert ours[normal].mean() > 0.9
    for name, term in (("Cardiomegaly", "Cardiomegaly"),
                       ("Pleural Effusion", "Pleural Effusion")):  # fmt: skip
        indexed = np.array([term in terms[i] for i in kept])
        present = found[kept, column[name]] == 1
        assert indexed.sum() >= 5 and present[indexed].mean() > 0.7


def encoded(source, made) -> np.ndarray:
    """(n, t) of the source's reports."""
    found = reports.read(source, SECTIONS).texts
    return np.stack([made.encode(text, LENGTH) for text in found])


def batches(rows: np.ndarray, seed: int):
    """Endless (b, t), in an order drawn anew each time."""
    rng = np.random.default_rng(seed)
    while True:
        order = rng.permutation(len(rows))
        for i in range(0, len(rows) - BATCH + 1, BATCH):
            yield rows[order[i : i + BATCH]]


def unigram_perplexity(train, test, pad: int) -> float:
    """Of the held-out tokens by their shares in training, one added to each count."""
    counts = 1.0 + np.bincount(train[:, 1:][train[:, 1:] != pad], minlength=2000)
    logp = np.log(counts / counts.sum())
    return float(np.exp(-logp[test[:, 1:][test[:, 1:] != pad]].mean()))


def test_a_small_decoder_lowers_the_perplexity_of_real_held_out_reports(
    sources, trained
):
    # Measured: 2,116 before, 118 by the tokens' shares, 21.7 after.
    model = text.TextDecoder(
        trained.vocab_size, 64, 2, 4, 64, dropout=0.1, max_length=LENGTH
    )
    memory = np.zeros((BATCH, 1, 8), np.float32)  # no image: a model of language
    tx = optax.adam(optax.cosine_decay_schedule(1e-2, STEPS))

    def loss(params, tokens, **dropout):
        hidden = model.apply(
            {"params": params}, tokens, memory, method="hidden", **dropout
        )
        total, count = text_loss.chunked_caption_loss(
            hidden, params["head"]["kernel"], tokens, np.ones(BATCH), trained.pad_id
        )
        return total / count, count

    @jax.jit
    def update(params, opt_state, tokens, key):
        gradient = jax.grad(functools.partial(loss, train=True, key=key), has_aux=True)
        grads, _ = gradient(params, tokens)
        updates, opt_state = tx.update(grads, opt_state)
        return optax.apply_updates(params, updates), opt_state

    evaluate = jax.jit(loss)
    train, held_out = (encoded(source, trained) for source in sources[:2])

    def perplexity(params):
        stream = batches(held_out, 1)
        sums = [evaluate(params, next(stream)) for _ in range(8)]
        total = sum(float(a * n) for a, n in sums)
        return float(np.exp(total / sum(float(n) for _, n in sums)))

    stream = batches(train, 0)
    params = jax.jit(model.init)(jax.random.key(0), next(stream), memory)["params"]
    opt_state, before = tx.init(params), perplexity(params)
    for i in range(STEPS):
        key = jax.random.fold_in(jax.random.key(1), i)
        params, opt_state = update(params, opt_state, next(stream), key)
    after = perplexity(params)
    floor = unigram_perplexity(train, held_out, trained.pad_id)
    print(f"perplexity {before:.0f} before, {floor:.0f} by shares, {after:.1f} after")
    assert before > 1000 and floor < before / 4
    assert after < floor / 3
