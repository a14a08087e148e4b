"""The unified model: vocabulary, sequences, causality, generation with a cache."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pacx_jax.errors import PacxError
from pacx_jax.models import text_generation, unified, unified_generation
from pacx_jax.models.unified import IMAGE, PAD, TEXT
from tests import tiny

WORDS = unified.Words(text_size=12, codes=6)
CODES, TEXT_LENGTH = 4, 6
LENGTH = CODES + 2 + TEXT_LENGTH
START, END = 12, 13  # [IMG], [/IMG]


@pytest.fixture(scope="module")
def model(request):
    """Rotary; with BOTH also one of learned positions and a tied output layer."""
    positions = getattr(request, "param", "rotary")
    tied = positions == "learned"
    return unified.Transformer(
        WORDS.size, LENGTH, 16, 2, 2, positions=positions, tied=tied
    )


BOTH = pytest.mark.parametrize("model", unified.POSITIONS, indirect=True)


@pytest.fixture(scope="module")
def params(model):
    return tiny.random_params(model, np.zeros((1, 3), int), noise=0.5)


@pytest.fixture(scope="module")
def tokens():
    rng = np.random.default_rng(0)
    codes = rng.integers(0, WORDS.codes, (4, CODES))
    text = np.zeros((4, TEXT_LENGTH), int)
    for row, n in zip(text, (4, 2, 0, 3), strict=True):
        row[: n + 2] = [2, *rng.integers(4, 12, n), 3] if n else 0
    return np.asarray(WORDS.sequences(codes, text, np.arange(4) % 2 == 1))


@functools.partial(jax.jit, static_argnums=0)
def logits_of(model, params, tokens):
    return model.apply({"params": params}, tokens)


@BOTH
def test_parameter_tree_is_as_stated(model, params):
    shapes = {name: leaf.shape for name, leaf in tiny.flat(params).items()}
    want = {"token_embed/embedding": (21, 16), "norm/scale": (16,), "norm/bias": (16,)}
    want |= {"pos_embed": (1, LENGTH, 16)} if model.tied else {"head/kernel": (16, 21)}
    for i in range(2):
        kernels = {"attn/qkv": (16, 48), "attn/proj": (16, 16),
                   "mlp/fc1": (16, 64), "mlp/fc2": (64, 16)}  # fmt: skip
        for name, shape in kernels.items():
            want[f"block_{i:02d}/{name}/kernel"] = shape
            want[f"block_{i:02d}/{name}/bias"] = shape[1:]
        for name in ("norm1", "norm2"):
            want |= {f"block_{i:02d}/{name}/{x}": (16,) for x in ("scale", "bias")}
    assert shapes == want


def test_published_size_at_the_scale_of_a_vit_b():
    words = unified.Words(30_522, 4096)
    model = unified.Transformer(words.size, 320)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 2), int))
    blocks = 12 * (12 * 768**2 + 13 * 768)
    assert tiny.count(shapes) == blocks + 2 * words.size * 768 + 2 * 768 == 138_233_856


def test_sequences_have_their_padding_last_whichever_stands_first(tokens):
    first = WORDS.first_code
    assert first == 15 and WORDS.mask == 14 and WORDS.size == 21
    kinds = np.asarray(WORDS.kinds(tokens))
    lengths = (kinds != PAD).sum(1)
    np.testing.assert_array_equal(lengths, [12, 10, 6, 11])
    for row, kind, n in zip(tokens, kinds, lengths, strict=True):
        assert (kind[:n] != PAD).all() and (row[n:] == 0).all()
        assert (row == START).sum() == (row == END).sum() == 1
        at = list(row).index(START)
        assert (row[at + 1 : at + 1 + CODES] >= first).all()
        assert row[at + 1 + CODES] == END
        assert (kind == IMAGE).sum() == CODES + 2
    assert tokens[0, 0] == START and tokens[1, 0] == 2 and tokens[1, 4] == START
    assert tokens[3, 5] == START and tokens[2, 0] == START
    content = np.asarray(WORDS.content(tokens))
    np.testing.assert_array_equal(content.sum(1), [8, 6, 4, 7])
    assert not content[np.isin(tokens, [0, 2, 3, START, END])].any()


@BOTH
def test_a_changed_token_leaves_every_logit_before_it_bit_for_bit(
    model, params, tokens
):
    before = np.asarray(logits_of(model, params, tokens))
    for at in (1, 5, 11):
        changed = tokens.copy()
        changed[:, at] = (changed[:, at] + 5) % WORDS.size
        after = np.asarray(logits_of(model, params, changed))
        np.testing.assert_array_equal(after[:, :at], before[:, :at])
        assert (np.abs(after[:, at:] - before[:, at:]).max(-1) > 1e-4).any(0).all()


def test_a_token_out_of_range_is_not_a_number(model, params, tokens):
    wrong = tokens.copy()
    wrong[0, 3] = WORDS.size
    logits = np.asarray(logits_of(model, params, wrong))
    assert np.isnan(logits[0, 3:]).all() and np.isfinite(logits[1:]).all()


@BOTH
def test_order_is_known_from_the_positions(model, params):
    row = np.array([[START, 15, 16, 17, 18, END]])
    other = np.array([[START, 17, 16, 15, 18, END]])
    a, b = (logits_of(model, params, x)[0, -1] for x in (row, other))
    assert np.abs(a - b).max() > 1e-3


@BOTH
def test_logits_with_a_cache_equal_those_of_the_whole_sequence(model, params, tokens):
    # Bound 1e-5. Measured 1.4e-6.
    want = np.asarray(logits_of(model, params, tokens))
    apply = functools.partial(model.apply, {"params": params})
    start = jax.jit(lambda x: apply(x, LENGTH, method="start"))
    step = jax.jit(lambda x, at, cache: apply(x, at, cache, method="next_logits"))
    logits, cache = start(tokens[:, :3])
    for at in range(2, LENGTH):
        if at > 2:
            logits, cache = step(tokens[:, at], at, cache)
        np.testing.assert_allclose(logits, want[:, at], atol=1e-5)


def by_recomputation(model, params, tokens, wanted, **how):
    """`fill` without a cache: the whole sequence for every token."""
    tokens = np.where(wanted == PAD, tokens, 0)
    done, rows = np.zeros(len(tokens), bool), np.arange(len(tokens))
    for at in range(1, tokens.shape[1]):
        logits = np.asarray(logits_of(model, params, tokens))[:, at - 1]
        for row in np.flatnonzero(wanted[:, at]):
            kind = wanted[row, at]
            ids = np.arange(4, 12) if kind == TEXT else np.arange(15, 21)
            ids = np.append([1, 3], ids) if kind == TEXT else ids
            seen = np.full(WORDS.size, -np.inf, np.float32)
            seen[ids] = logits[row, ids]
            new = text_generation.chosen(
                seen[None], how["k"], how["key"], rows[row : row + 1], at,
                how["temperature"], how["top_p"],
            )  # fmt: skip
            if done[row] and kind == TEXT:
                new = [0]
            tokens[row, at] = new[0]
            done[row] |= kind == TEXT and new[0] == 3
    return tokens


def open_places(tokens):
    """A text after an image, holes in an image before one, a whole image after one."""
    tokens, wanted = tokens.copy(), np.zeros_like(tokens)
    wanted[0, 7:] = wanted[2, 7:] = TEXT
    tokens[0, 6] = tokens[2, 6] = 2
    wanted[1, [5, 7]] = IMAGE
    wanted[3, 6:10] = IMAGE
    return tokens, wanted


@pytest.mark.parametrize("k", [0, 4])
def test_filling_with_a_cache_equals_recomputation(model, params, tokens, k):
    how = {"k": k, "temperature": 0.7, "top_p": 0.9, "key": jax.random.key(3)}
    tokens, wanted = open_places(tokens)
    for prefix in (1, 4):
        got = unified_generation.fill(
            model, WORDS, params, tokens, wanted, prefix=prefix, **how
        )
        want = by_recomputation(model, params, tokens, wanted, **how)
        np.testing.assert_array_equal(got, want)
    got = np.asarray(got)
    np.testing.assert_array_equal(got[wanted == PAD], tokens[wanted == PAD])
    assert (got[wanted == IMAGE] >= 15).all() and (got[wanted == TEXT] < 12).all()


def test_filling_at_once_takes_each_place_from_the_same_logits(model, params, tokens):
    tokens, wanted = open_places(tokens)
    got = unified_generation.fill_at_once(model, WORDS, params, tokens, wanted)
    masked = np.where(wanted == PAD, tokens, WORDS.mask)
    logits = np.asarray(logits_of(model, params, masked))[:, :-1]
    codes = 15 + logits[..., 15:].argmax(-1)
    want = np.where(wanted == IMAGE, np.pad(codes, ((0, 0), (1, 0))), tokens)
    at = wanted != TEXT
    np.testing.assert_array_equal(np.asarray(got)[at], want[at])


def test_log_likelihood_is_the_sum_of_the_counted_tokens(model, params, tokens):
    counted = np.asarray(WORDS.kinds(tokens)) == TEXT
    got = unified_generation.log_likelihood(model, params, tokens, counted)
    logits = np.float64(logits_of(model, params, tokens))
    logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    want = [
        sum(logs[i, t - 1, tokens[i, t]] for t in range(1, LENGTH) if counted[i, t])
        for i in range(4)
    ]
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.full
def test_draws_are_of_the_key_and_the_row_alone(model, params, tokens):
    tokens, wanted = open_places(tokens)
    run = functools.partial(
        unified_generation.fill, model, WORDS, params, k=WORDS.size, temperature=3.0
    )
    a = np.asarray(run(tokens, wanted, key=jax.random.key(0)))
    np.testing.assert_array_equal(a, run(tokens, wanted, key=jax.random.key(0)))
    rows = np.array([3])
    alone = run(tokens[3:], wanted[3:], key=jax.random.key(0), rows=rows)
    np.testing.assert_array_equal(alone[0], a[3])
    assert (a != np.asarray(run(tokens, wanted, key=jax.random.key(1)))).any()


def test_top_p_and_temperature_shape_what_is_drawn():
    logits = jnp.tile(jnp.log(jnp.array([0.5, 0.1, 0.3, 0.06, 0.04])), (4000, 1))
    draw = functools.partial(
        text_generation.chosen, logits, 5, jax.random.key(0), jnp.arange(4000), 7
    )
    for how, want in (
        ({"top_p": 0.7}, np.array([5, 0, 3, 0, 0]) / 8),
        ({"top_p": 1e-6}, [1, 0, 0, 0, 0]),
        ({"temperature": 0.5}, np.array([25, 1, 9, 0.36, 0.16]) / 35.52),
    ):
        shares = np.bincount(draw(**how), minlength=5) / 4000
        np.testing.assert_allclose(shares, want, atol=0.03)
    shares = np.bincount(draw(top_p=0.7), minlength=5)
    assert not shares[[1, 3, 4]].any()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"positions": "sincos"}, "config.model.positions 'sincos': choose rotary or"),
        ({"num_heads": 3}, "width 16 is not divisible by num_heads 3"),
        ({"length": 8}, "a sequence of 12 tokens, but the model takes 8"),
        ({"remat": "some"}, "config.remat 'some': choose none, dots, full"),
    ],
)
def test_what_does_not_fit_is_one_line(model, params, tokens, fields, message):
    with pytest.raises(PacxError, match=message):
        model.clone(**fields).apply({"params": params}, tokens)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"k": 22}, r"k 22: give 0 \(greedy\) to 21"),
        ({"temperature": 0.0}, "temperature 0.0: give more than 0"),
        ({"top_p": 0.0}, "top_p 0.0: give more than 0 and at most 1"),
    ],
)
def test_drawing_refuses_what_there_is_not(model, params, tokens, how, message):
    with pytest.raises(PacxError, match=message):
        unified_generation.fill(
            model, WORDS, params, tokens, 0 * tokens, key=jax.random.key(0), **how
        )
