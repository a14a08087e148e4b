"""The report decoder: causality, padding, dropout, the loss, generation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pacx_jax import sharding
from pacx_jax.errors import PacxError
from pacx_jax.models import text, text_generation, text_loss
from tests import tiny

PAD, UNK, START, END, VOCAB, LENGTH = 0, 1, 2, 3, 40, 12
SMALL = {"vocab_size": VOCAB, "width": 16, "depth": 2, "num_heads": 2, "mlp_dim": 24,
         "max_length": LENGTH}  # fmt: skip


@pytest.fixture(scope="module")
def model():
    return text.TextDecoder(**SMALL)


@pytest.fixture(scope="module")
def memory():
    return np.random.default_rng(0).normal(size=(4, 5, 20)).astype(np.float32)


@pytest.fixture(scope="module")
def tokens():
    rng = np.random.default_rng(1)
    tokens = rng.integers(4, VOCAB, (4, LENGTH)).astype(np.int32)
    tokens[:, 0] = START
    for row, n in enumerate((12, 7, 4, 9)):
        tokens[row, n - 1] = END
        tokens[row, n:] = PAD
    return tokens


PRESENT = np.float32([1, 1, 0, 1])


@pytest.fixture(scope="module")
def params(model, tokens, memory):
    return tiny.random_params(model, tokens, memory)


@functools.partial(jax.jit, static_argnums=0)
def logits_of(model, params, tokens, memory):
    return model.apply({"params": params}, tokens, memory)


def test_parameter_tree_is_as_stated(params):
    block = {"self_attn": {"qkv": (16, 48), "proj": (16, 16)},
             "cross_attn": {"q": (16, 16), "kv": (20, 32), "proj": (16, 16)},
             "mlp": {"fc1": (16, 24), "fc2": (24, 16)}}  # fmt: skip
    shapes = {name: leaf.shape for name, leaf in tiny.flat(params).items()}
    want = {"token_embed/embedding": (VOCAB, 16), "head/kernel": (16, VOCAB),
            "norm/scale": (16,), "norm/bias": (16,)}  # fmt: skip
    for i in range(2):
        for part, layers in block.items():
            for layer, shape in layers.items():
                want[f"block_{i:02d}/{part}/{layer}/kernel"] = shape
        for norm in ("norm1", "norm2", "norm3"):
            want |= {
                f"block_{i:02d}/{norm}/{leaf}": (16,) for leaf in ("scale", "bias")
            }
    assert shapes == want


def test_published_size():
    model = text.TextDecoder(30522)
    tokens, memory = jnp.zeros((1, 300), int), jnp.zeros((1, 14, 768))
    shapes = jax.eval_shape(model.init, jax.random.key(0), tokens, memory)
    blocks = 4 * (10 * 768**2 + 6 * 768)
    assert tiny.count(shapes) == 2 * 30522 * 768 + blocks + 2 * 768


@pytest.mark.parametrize("posemb", text.POSEMB)
def test_a_changed_token_leaves_every_logit_before_it_bit_for_bit(
    model, tokens, memory, posemb
):
    model = model.clone(posemb=posemb)
    params = tiny.random_params(model, tokens, memory)
    before = np.asarray(logits_of(model, params, tokens, memory))
    for at in (1, 6, 11):
        changed = tokens.copy()
        changed[:, at] = (changed[:, at] + 5) % VOCAB
        after = np.asarray(logits_of(model, params, changed, memory))
        np.testing.assert_array_equal(after[:, :at], before[:, :at])
        assert (np.abs(after[:, at:] - before[:, at:]).max(-1) > 1e-4).any(0).all()


def test_order_comes_from_the_mask_alone_unless_positions_are_learned(
    model, params, tokens, memory
):
    # Without positions the last token's logits do not see the order of the others.
    swapped = tokens[:1].copy()
    swapped[0, [3, 5]] = swapped[0, [5, 3]]
    for posemb, seen in (("none", False), ("learned", True)):
        of = model.clone(posemb=posemb, depth=1)
        weights = tiny.random_params(of, tokens, memory)
        a, b = (logits_of(of, weights, x, memory[:1])[0, -1] for x in
                (tokens[:1], swapped))  # fmt: skip
        assert (np.abs(a - b).max() > 1e-3) == seen


def test_every_image_token_is_seen(model, params, tokens, memory):
    grads = jax.grad(lambda m: logits_of(model, params, tokens, m)[:, 0].sum())(memory)
    assert (np.abs(grads).max(-1) > 1e-6).all()


def losses_by(model, tokens, present, memory, **chunks):
    def loss(params, memory):
        if not chunks:
            logits = model.apply({"params": params}, tokens, memory)
            total, count = text_loss.caption_loss(logits, tokens, present, PAD)
        else:
            of = {"params": params}
            hidden = model.apply(of, tokens, memory, method="hidden")
            kernel = params["head"]["kernel"]
            total, count = text_loss.chunked_caption_loss(
                hidden, kernel, tokens, present, PAD, **chunks
            )
        return total / jnp.maximum(count, 1), count

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))


def test_loss_is_the_mean_over_the_tokens_of_studies_with_a_report(
    model, params, tokens, memory
):
    (loss, count), _ = losses_by(model, tokens, PRESENT, memory)(params, memory)
    logits = np.float64(logits_of(model, params, tokens, memory))
    logits -= np.log(np.exp(logits).sum(-1, keepdims=True))
    following = tokens[:, 1:]
    each = [-logits[i, t, following[i, t]] for i in (0, 1, 3)
            for t in range(LENGTH - 1) if following[i, t] != PAD]  # fmt: skip
    assert count == len(each) == 11 + 6 + 8
    np.testing.assert_allclose(loss, np.mean(each), rtol=1e-6)


@pytest.mark.parametrize("chunks", [{}, {"chunk": 8}], ids=["whole", "chunked"])
def test_padding_and_studies_without_a_report_give_no_loss_and_no_gradient(
    model, params, tokens, memory, chunks
):
    run = losses_by(model, tokens, PRESENT, memory, **chunks)
    (loss, _), (grads, of_memory) = run(params, memory)
    assert not np.asarray(of_memory[2]).any() and np.asarray(of_memory[0]).any()
    # Whatever stands in a report that counts as absent.
    other = tokens.copy()
    other[2, 1:] = 7
    again = losses_by(model, other, PRESENT, memory, **chunks)(params, memory)
    assert again[0][0] == loss
    jax.tree.map(np.testing.assert_array_equal, again[1][0], grads)
    # Nor does padding get any as an input.
    assert not np.asarray(grads["token_embed"]["embedding"][PAD]).any()


@pytest.mark.parametrize("chunks", [{}, {"chunk": 8}], ids=["whole", "chunked"])
def test_a_batch_without_reports_has_loss_0_and_no_gradient(
    model, params, tokens, memory, chunks
):
    nothing = np.zeros(4, np.float32)
    run = losses_by(model, tokens, nothing, memory, **chunks)
    (loss, count), grads = run(params, memory)
    assert loss == 0 and count == 0
    assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(grads))


@pytest.mark.parametrize("chunk", [8, 1000])
def test_chunked_loss_equals_that_of_whole_logits(model, params, tokens, memory, chunk):
    want = losses_by(model, tokens, PRESENT, memory)(params, memory)
    got = losses_by(model, tokens, PRESENT, memory, chunk=chunk)(params, memory)
    np.testing.assert_allclose(got[0], want[0], rtol=1e-6)
    for a, b in zip(jax.tree.leaves(got[1]), jax.tree.leaves(want[1]), strict=True):
        assert tiny.worst(a, b) < 1e-5


def test_label_smoothing_is_that_of_its_definition(model, params, tokens, memory):
    logits = logits_of(model, params, tokens, memory)
    logp = np.asarray(jax.nn.log_softmax(logits[:, :-1]), np.float64)
    following, valid = text_loss.targets(tokens, PRESENT, PAD)
    target = 0.9 * np.eye(VOCAB)[following] + 0.1 / VOCAB
    want = -(target * logp).sum(-1)[np.asarray(valid)].sum()
    got, _ = text_loss.caption_loss(logits, tokens, PRESENT, PAD, 0.1)
    np.testing.assert_allclose(got, want, rtol=1e-5)
    rng = np.random.default_rng(0)
    hidden, kernel = rng.normal(size=(4, LENGTH, 6)), rng.normal(size=(6, VOCAB))
    run = jax.jit(
        text_loss.chunked_caption_loss,
        static_argnames=("pad_id", "chunk", "label_smoothing"),
    )
    got, _ = run(
        hidden, kernel, tokens, PRESENT, pad_id=PAD, label_smoothing=0.1, chunk=8
    )
    want, _ = text_loss.caption_loss(hidden @ kernel, tokens, PRESENT, PAD, 0.1)
    np.testing.assert_allclose(got, want, rtol=1e-5)


@pytest.mark.parametrize("axes", [(1, 1), (2, 2)])
def test_loss_and_gradients_equal_those_of_one_device(
    model, params, tokens, memory, axes
):
    many = [np.tile(x, (4, *[1] * (x.ndim - 1))) for x in (tokens, memory)]
    present = np.float32([1, 1, 0, 1] * 3 + [0] * 4)  # a device without any
    tokens, memory = many
    want = losses_by(model, tokens, present, memory)(params, memory)
    mesh = sharding.make_mesh(8, *axes)
    with sharding.tracing(mesh):
        run = losses_by(model, tokens, present, memory, chunk=8)
        lies = sharding.tree_shardings(params, mesh)
        rows = sharding.batch_sharding(mesh)
        got = jax.jit(run, in_shardings=(lies, rows))(params, memory)
    np.testing.assert_allclose(got[0], want[0], rtol=1e-6)
    for a, b in zip(jax.tree.leaves(got[1]), jax.tree.leaves(want[1]), strict=True):
        assert tiny.worst(a, b) < 1e-5


def test_kernels_of_blocks_are_sharded_like_those_of_the_encoder(params):
    mesh = sharding.make_mesh(8, 2, 2)
    lies = tiny.flat(sharding.tree_shardings(params, mesh))
    specs = {name.removeprefix("block_01/"): str(tuple(s.spec))
             for name, s in lies.items()}  # fmt: skip
    outputs, inputs = "('fsdp', 'tensor')", "('tensor', 'fsdp')"
    for name in ("self_attn/qkv", "cross_attn/q", "cross_attn/kv", "mlp/fc1"):
        assert specs[f"{name}/kernel"] == outputs
    for name in ("self_attn/proj", "cross_attn/proj", "mlp/fc2"):
        assert specs[f"{name}/kernel"] == inputs
    assert specs["head/kernel"] == specs["token_embed/embedding"] == "()"


def test_dropout_is_of_the_key_and_the_rows_numbers_alone(
    model, params, tokens, memory
):
    @jax.jit
    def apply(key, tokens, memory, rows):
        of = {"params": params}
        return model.apply(of, tokens, memory, train=True, key=key, rows=rows)

    def run(key, order=(0, 1, 2, 3)):
        order = np.array(order)
        key = jax.random.key(key)
        return np.asarray(apply(key, tokens[order], memory[order], order))

    whole = run(0)
    np.testing.assert_allclose(run(0, (3, 2, 0, 1)), whole[[3, 2, 0, 1]], atol=1e-5)
    assert np.abs(run(1) - whole).max() > 0.01
    assert np.abs(logits_of(model, params, tokens, memory) - whole).max() > 0.01
    with pytest.raises(ValueError, match="needs a key"):
        model.apply({"params": params}, tokens, memory, train=True)


def test_dropout_keeps_causality(model, params, tokens, memory):
    kwargs = {"train": True, "key": jax.random.key(0)}
    apply = jax.jit(lambda x: model.apply({"params": params}, x, memory, **kwargs))
    other = np.where(np.arange(LENGTH) < 6, tokens, 9)
    before, after = np.asarray(apply(tokens)), np.asarray(apply(other))
    np.testing.assert_array_equal(before[:, :6], after[:, :6])


@pytest.mark.parametrize(
    "remat", ["full", pytest.param("dots", marks=pytest.mark.full)]
)
def test_recomputing_changes_no_number_beyond_rounding(
    model, params, tokens, memory, remat
):
    want = losses_by(model, tokens, PRESENT, memory)(params, memory)
    got = losses_by(model.clone(remat=remat), tokens, PRESENT, memory)(params, memory)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert tiny.worst(a, b) < 1e-5


def test_bfloat16_stays_near_float32(model, params, tokens, memory):
    half = logits_of(model.clone(dtype=jnp.bfloat16), params, tokens, memory)
    full = logits_of(model, params, tokens, memory)
    assert 1e-4 < tiny.relative(np.float32(half), full) < 0.02


def by_recomputation(model, params, memory, key=None, k=0):
    """Texts without a cache: each token from a call on all tokens before it."""
    tokens = np.full((len(memory), LENGTH), PAD, np.int32)
    tokens[:, 0] = START
    done = np.zeros(len(memory), bool)
    for at in range(LENGTH - 1):
        logits = logits_of(model, params, tokens, memory)[:, at]
        logits = logits.at[:, np.array([PAD, START])].set(-np.inf)
        rows = np.arange(len(memory))
        new = np.asarray(text_generation.chosen(logits, k, key, rows, at))
        tokens[:, at + 1] = np.where(done, PAD, new)
        done |= tokens[:, at + 1] == END
    return tokens


@pytest.mark.parametrize("posemb", text.POSEMB)
@pytest.mark.parametrize("k", [0, 3])
def test_generation_with_a_cache_equals_recomputation(model, memory, tokens, posemb, k):
    model = model.clone(posemb=posemb)
    params = tiny.random_params(model, tokens, memory)
    params["head"]["kernel"][:, END] *= 3  # some texts end early
    memory = np.concatenate([memory, -memory, 2 * memory])
    key = jax.random.key(5)
    got = text_generation.generate(
        model, params, memory, start=START, end=END, pad=PAD, k=k, key=key
    )
    want = by_recomputation(model, params, memory, key, k)
    np.testing.assert_array_equal(got, want)
    lengths = (np.asarray(got) != PAD).sum(1)
    assert lengths.min() < LENGTH and len({tuple(row) for row in want}) > 2


def test_logits_with_a_cache_equal_those_of_the_whole_text(
    model, params, tokens, memory
):
    want = logits_of(model, params, tokens, memory)
    cache = text_generation.first_cache(model, params, memory, LENGTH)

    @jax.jit
    def step(tokens, at, cache):
        of = {"params": params}
        return model.apply(of, tokens, at, cache, method="next_logits")

    for at in range(LENGTH):
        logits, cache = step(tokens[:, at], at, cache)
        np.testing.assert_allclose(logits, want[:, at], atol=1e-5)


def test_texts_begin_with_the_start_and_are_padded_after_their_end(
    model, params, memory
):
    params = jax.tree.map(np.array, params)
    params["head"]["kernel"][:, END] = 0
    params["head"]["kernel"][:, PAD] = 30 * params["head"]["kernel"][:, 5]
    got = np.asarray(
        text_generation.generate(model, params, memory, start=START, end=END,
                                 max_length=7)
    )  # fmt: skip
    assert got.shape == (4, 7) and (got[:, 0] == START).all()
    for row in got:
        ended = np.flatnonzero(row == END)
        last = ended[0] if len(ended) else 6
        assert (row[last + 1 :] == PAD).all()
        assert not np.isin(row[1 : last + 1], [PAD, START]).any()


def test_draws_are_of_the_key_and_the_row_alone(model, params, memory):
    run = functools.partial(
        text_generation.generate, model, params, start=START, end=END, k=5
    )
    a = np.asarray(run(memory, key=jax.random.key(0)))
    np.testing.assert_array_equal(a, run(memory, key=jax.random.key(0)))
    alone = run(memory[2:3], key=jax.random.key(0), rows=np.array([2]))
    np.testing.assert_array_equal(alone[0], a[2])
    assert (a != np.asarray(run(memory, key=jax.random.key(1)))).any()
    one = run(memory, key=jax.random.key(0), k=1)
    greedy = text_generation.generate(model, params, memory, start=START, end=END)
    np.testing.assert_array_equal(one, greedy)


def test_draws_have_the_probabilities_of_the_k_likeliest():
    logits = jnp.log(jnp.array([0.5, 0.1, 0.3, 0.05, 0.05]))
    many = jnp.tile(logits, (4000, 1))
    drawn = text_generation.chosen(many, 3, jax.random.key(0), jnp.arange(4000), 7)
    shares = np.bincount(drawn, minlength=5) / 4000
    np.testing.assert_allclose(shares, np.array([5, 1, 3, 0, 0]) / 9, atol=0.04)
    assert not shares[3:].any()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"posemb": "sincos"},
            "config.caption.posemb 'sincos': choose none or learned",
        ),
        ({"num_heads": 3}, "width 16 is not divisible by num_heads 3"),
        ({"max_length": 8}, "a text of 12 tokens, but config.data.report_length is 8"),
        ({"remat": "some"}, "config.remat 'some': choose none, dots, full"),
    ],
)
def test_what_does_not_fit_is_one_line(model, params, tokens, memory, fields, message):
    with pytest.raises(PacxError, match=message):
        model.clone(**fields).apply({"params": params}, tokens, memory)


def test_generation_refuses_lengths_and_k_that_there_are_not(model, params, memory):
    run = functools.partial(
        text_generation.generate, model, params, memory, start=START, end=END
    )
    with pytest.raises(PacxError, match="max_length 13: give 1 to 12"):
        run(max_length=13)
    with pytest.raises(PacxError, match=r"k 41: give 0 \(greedy\) to 40"):
        run(k=41, key=jax.random.key(0))
    with pytest.raises(ValueError, match="needs a key"):
        run(k=4)
